"""Rounds under local noise: whoever is there is asked for its update in clear, and the strategy combines them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from server.monitoring.run_events import Kind
from server.run.attendance import Attendance
from server.run.checkpoint import NAME as CHECKPOINT
from server.run.dispatch import Dispatch
from server.run.preference_store import PreferenceStore
from server.run.run_record import RunRecord
from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.preferences.item_index import parse_items
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.summed_preferences import PreferenceQuestion, PreferenceSum, combined_preferences
from shared.privacy.plan import sum_multiplier
from shared.protocol.messages import Joined, Reason
from shared.secagg.fixed_point import FixedPoint
from strategies.base import AdapterStrategy, Member, NoUpdate, adapter_from, record_of
from strategies.optimizers import Adapter


class LocalRounds:
    """The rounds of one run in which every platform adds all of its noise itself.

    Args:
        out: The run's folder.
        wait: Seconds to wait for a platform before a round, if none is there.
    """

    def __init__(
        self,
        *,
        grid: Grid,
        settings: Settings,
        out: Path,
        strategy: AdapterStrategy,
        attendance: Attendance,
        record: RunRecord,
        dispatch: Dispatch,
        wait: float,
    ) -> None:
        self._grid, self._settings, self._out, self._strategy, self._wait = grid, settings, out, strategy, wait
        self._attendance, self._record, self._dispatch = attendance, record, dispatch
        self._joined: dict[str, Joined] = {}

    def enter(self, joined: Joined) -> str:
        """Why a platform cannot take part: a list of items that is none keeps one out."""
        try:
            parse_items(joined.item_list)
        except ProtocolError as error:
            return error.found
        self._joined[joined.platform] = joined
        return ""

    def restore(self) -> None:
        """Nothing outlives a round but the checkpoint."""

    def set_up(self, adapter: Adapter) -> None:
        """Nothing is agreed before the first round."""

    def taste(self, store: PreferenceStore) -> PreferenceSum:
        """Which directions of texts all members' users like together.

        Raises:
            NoUpdate: nobody answered.
        """
        question = PreferenceQuestion(directions=self._settings.preferences.map)
        return store.watched(partial(self._summed, self._attendance.members))(question)

    def prefer(self, store: PreferenceStore) -> SharedPreferences | None:
        """What users like of the items that two members or more have; None where no two have any.

        Raises:
            NoUpdate: nobody answered.
        """
        members = self._attendance.members
        here = [self._joined[member.platform] for member in members.values()]
        declared = PlatformLists.of([parse_items(one.item_list) for one in here])
        shared = declared.shared()
        if not len(shared):
            return None
        # Who has none of the items has nothing to say.
        owners = {here[number].platform for number in declared.owners(shared)}
        asked = {node: member for node, member in members.items() if member.platform in owners}
        most = self._settings.preferences.items
        return combined_preferences(shared, most=most, ask=store.watched(partial(self._summed, asked)), store=store)

    def _summed(self, asked: Mapping[int, Member], question: PreferenceQuestion) -> PreferenceSum:
        """What members answer, added up."""
        self._strategy.members = dict(asked)
        exchange = self._dispatch.send(self._strategy.configure_prefer(question, grid=self._grid))
        total = self._strategy.aggregate_prefer(self._dispatch.answers(exchange, told=0))
        report = self._strategy.report
        for receipt in report.preferred:
            self._record.credit(receipt, counted=False)
        self._dispatch.book(exchange, report, 0)
        came = [self._joined[receipt.platform] for receipt in report.preferred]
        each = [sum_multiplier(question.of, preference_noise=one.preference_noise, taste_noise=one.taste_noise) for one in came]
        return PreferenceSum(vector=total, noise=_noise_of(each, question.size), users=sum(one.users for one in came))

    def round(self, server_round: int, adapter: Adapter) -> Adapter | None:
        """The next global adapter, or None where the round was answered to a coordinator that did not live to keep it.

        Raises:
            NoUpdate: no platform is there, or too few answered.
        """
        self._attendance.look()
        self._attendance.await_someone(seconds=self._wait)
        strategy = self._strategy
        strategy.members = self._attendance.asked(server_round)
        exchange = self._dispatch.send(strategy.configure_train(server_round, record_of(adapter), ConfigRecord(), self._grid))
        try:
            arrays, _ = strategy.aggregate_train(server_round, self._dispatch.answers(exchange, told=server_round))
        except NoUpdate as error:
            lost = self._lost_with_the_coordinator(server_round)
            self._dispatch.book(exchange, strategy.report, server_round)
            if not self._attendance.members:
                tallies = self._record.tallies.values()
                raise NoUpdate(
                    f"round {server_round}: no platform is left",
                    where="; ".join(f"{tally.platform}: {dict(tally.refusals)}" for tally in tallies),
                    do=f"the adapter of round {server_round - 1} is in {self._out / CHECKPOINT}; plan fewer rounds",
                ) from None
            if not lost:
                where = error.where or self._dispatch.missing(exchange, strategy.report)
                raise NoUpdate(error.found, where=where, do=error.do) from None
            text = f"round {server_round} was answered before the coordinator stopped; it is not trained twice"
            self._record.say(Kind.LATE, text)
            return None
        self._dispatch.book(exchange, strategy.report, server_round)
        came, least = len(strategy.report.updates), self._settings.server.minimum_platforms
        if came < least:
            # The platforms agreed to be one of so many; what came is not used, and is answered again when the round is.
            raise NoUpdate(
                f"round {server_round}: {came} platforms answered, and the run's settings need {least}",
                where=self._dispatch.missing(exchange, strategy.report),
                do="see why the others did not, then resume the run",
            )
        return adapter_from(arrays)

    def _lost_with_the_coordinator(self, round_: int) -> bool:
        """Whether every member answered this round to a coordinator that was stopped before it could keep the sum."""
        refusals, asked, tallies = self._strategy.report.refusals, self._strategy.members or {}, self._record.tallies
        return bool(asked) and all(
            node in refusals and refusals[node].reason is Reason.ROUND and tallies[member.platform].joined.finished >= round_
            for node, member in asked.items()
        )


def _noise_of(multipliers: list[float], length: int) -> float:
    """Standard deviation of the noise in a sum to which each platform adds all of its noise itself."""
    points = (FixedPoint.own(dimension=length, clip=1.0, noise_multiplier=one) for one in multipliers if one)
    return math.sqrt(sum(point.noise**2 for point in points))
