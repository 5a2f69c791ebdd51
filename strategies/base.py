"""What a strategy is: how updates are made, how they are combined, and how the combined change is applied.

The three are separate, so that a new strategy changes one and takes the others as they are: a subclass of
`AdapterStrategy` says which factors a round trains and what the global model is; a `Combiner` (a mean, a median, a secure
sum...) makes one change of many; a `ServerOptimizer` applies it. `strategies.composition` puts them together by name.
Flower's own interface (`flwr.serverapp.strategy.Strategy`) is built on them here, once for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.model.adapter import Layout, require_layout, trained
from shared.model.factor_schedule import Scheme, scheme_of
from shared.preferences.summed_preferences import PreferenceQuestion
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import (
    Answer,
    Arrays,
    Evaluate,
    Factors,
    Joined,
    Label,
    Metrics,
    Personalise,
    Personalised,
    Prefer,
    Preferred,
    Refusal,
    Train,
    Update,
)
from shared.protocol.quality import METRICS
from strategies.averaging import Change, WeightedMean
from strategies.optimizers import ServerOptimizer
from strategies.phase_report import Drop, Member, NoUpdate, Receipt, RoundReport, receipt_of
from strategies.strategy_card import Card

__all__ = [
    "Adapter",
    "AdapterStrategy",
    "Card",
    "Combiner",
    "Drop",
    "Member",
    "NoUpdate",
    "Receipt",
    "RoundReport",
    "adapter_from",
    "receipt_of",
    "record_of",
]

logger = logging.getLogger(__name__)
_Answering = Update | Metrics | Personalised | Preferred
Adapter = dict[str, NDArray[np.float32]]


_GRACE = 60.0


def lifetime_of(timeout: float) -> float:
    """Seconds that a request lives, whose answer is waited for so long: Flower forgets an expired one, and asking after it is an
    error there."""
    return timeout + _GRACE


class Combiner(Protocol):
    """Folds updates into one change, one at a time."""

    def add(self, change: Arrays, *, weight: int) -> None:
        """Take one update in; nothing of it may be kept but what the result needs."""

    def change(self) -> Change:
        """The combined change of everything that was added."""


Combining = Callable[[Layout], Combiner]


class AdapterStrategy(Strategy):
    """A Flower strategy over adapters.

    Args:
        settings: Sent with every request.
        run: Name of the run, which every answer must repeat.
        members: Who is asked, and whose answers are taken. None: every node of the grid is asked, and an answer's
            own word for its users is its weight.
        combining: Makes a round's combiner; by default the mean weighted by declared users.
        optimizer: Applies the combined change; by default it is added as it is.
        least: Updates that a round needs at least.

    `report` says what the last phase brought, `round` which one was asked last. The caller may replace `members` between phases.
    """

    card: ClassVar[Card]
    linear: ClassVar[bool] = True
    """Whether the global model depends on the weighted sum of what is sent and on nothing else, so that a secure sum, which
    can only add, suffices; and so that another combiner or a server optimizer may follow it."""

    def __init__(
        self,
        *,
        settings: Settings,
        run: str,
        members: Iterable[Member] | None = None,
        combining: Combining = WeightedMean,
        optimizer: ServerOptimizer | None = None,
        least: int = 1,
    ) -> None:
        self.settings, self.run, self.least = settings, run, least
        self.members: dict[int, Member] | None = None if members is None else {member.node: member for member in members}
        self.optimizer = optimizer or ServerOptimizer(settings.server)
        self.report = RoundReport()
        self._combining = combining
        self.largest: float | None = None
        """The most that an update may move a parameter; None: any finite number. A deployed coordinator sets it."""
        self.round = 0
        self._adapter: Adapter = {}
        self._asked_sum = ("", 0)

    @property
    def scheme(self) -> Scheme:
        """What the platforms know of this strategy."""
        return scheme_of(self.card.name)

    def factors(self, server_round: int) -> Factors:
        """Which factors platforms train in this round, from 1; only those are sent back."""
        return self.scheme.factors(server_round)

    def combiner(self, layout: Layout) -> Combiner:
        """A fresh combiner for updates of that layout."""
        return self._combining(layout)

    def finish(self, combiner: Combiner) -> Adapter:
        """The next global adapter, once every update is in."""
        return self.step(self._adapter, combiner.change())

    def step(self, adapter: Arrays, change: Change) -> Adapter:
        """The next global adapter from the combined change, float32."""
        return self.optimizer.step(adapter, change)

    def rank(self, member: Member | None) -> int | None:
        """The rank that a member trains; None: the run's."""
        return None

    def view(self, adapter: Adapter, rank: int | None) -> Adapter:
        """What of the global adapter a platform of that rank is sent to train."""
        return adapter

    def require_usable(self, update: Update, view: Adapter, layout: Layout) -> None:
        """Check an update against what its platform was sent.

        Raises:
            ProtocolError: another layout, or values that are not finite or would not stay so.
        """
        require_layout(update.change, layout, where=update.platform)
        for name in layout:
            with np.errstate(over="ignore"):
                moved = view[name] + update.change[name]
            # What every update leaves within float32's range, their weighted mean does too (it is convex).
            if not np.isfinite(moved).all():
                raise ProtocolError(f"{name} would leave the range of float32", where=update.platform)
            if self.largest is not None and float(np.abs(update.change[name]).max(initial=0.0)) > self.largest:
                raise ProtocolError(f"{name} moved further than the settings' training can move it", where=update.platform)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """What a checkpoint must keep beside the adapter, so that a resumed run ends as an uninterrupted one."""
        return self.optimizer.state()

    def restore(self, state: Mapping[str, NDArray[np.float64]], adapter: Arrays) -> None:
        """Go on from a `state()`.

        Raises:
            InputError: it is not this strategy's, or of another adapter.
        """
        self.optimizer.restore(state, adapter)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """One `Train` request per member; members that get the same share one record, so the adapter is held once."""
        self._adapter, self.round = adapter_from(arrays), server_round
        records: dict[int | None, RecordDict] = {}

        def record(rank: int | None) -> RecordDict:
            if rank not in records:
                request = Train(
                    run=self.run,
                    settings=self.settings,
                    round=server_round,
                    factors=self.factors(server_round),
                    adapter=self.view(self._adapter, rank),
                )
                records[rank] = to_record(request)
            return records[rank]

        return self._to_members(lambda member: record(self.rank(member)), MessageType.TRAIN, server_round, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Fold the updates in as they arrive, and give the next global adapter.

        An answer that is not an update of this round, in the layout of what was sent, from a member, with the users that
        it declared and finite values, is left out with its reason in `report`.

        Raises:
            NoUpdate: no usable update came, or fewer than the combiner needs; the adapter would silently stay as it was.
        """
        self.report = RoundReport()
        combiner = self.combiner(_layout(self._adapter, self.factors(server_round)))
        for answer in self._accepted(server_round, replies, Update):
            assert isinstance(answer, Update)
            combiner.add(answer.change, weight=answer.users)
            self.report.updates.append(receipt_of(answer))
            del answer  # one update in memory at a time: not this one while the next is on its way
        if len(self.report.updates) < self.least:
            brought = len(self.report.updates)
            raise NoUpdate(
                f"round {server_round} brought {brought or 'no'} usable update{'s' * (brought > 1)}"
                + (f", of {self.least} that are needed" if self.least > 1 else ""),
                where=", ".join(f"{drop.platform or drop.node}: {drop.reason}" for drop in self.report.drops[:5]),
                do="look at the platforms' logs, then continue the run from its last checkpoint",
            )
        adapter = self.finish(combiner)
        if not all(np.isfinite(array).all() for array in adapter.values()):
            raise NoUpdate(
                f"round {server_round} would drive the adapter out of the range of float32",
                do="take a smaller server.learning_rate, or find the platform whose update is so large",
            )
        counts: dict[str, int | float | list[int] | list[float]] = {
            "platforms": len(self.report.updates),
            "users": sum(receipt.users for receipt in self.report.updates),
            "dropped": len(self.report.drops),
        }
        return record_of(adapter), MetricRecord(counts)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """One `Evaluate` request per member; `config["label"]` says of which model (default: the federated one)."""
        request = Evaluate(
            run=self.run,
            settings=self.settings,
            round=server_round,
            label=Label(str(config.get("label", Label.FEDERATED))),
            adapter=adapter_from(arrays),
        )
        record = to_record(request)
        return self._to_members(lambda _: record, MessageType.EVALUATE, server_round, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means weighted by declared users; each platform's own figures are in `report`. None if nobody answered."""
        self.report = RoundReport()
        for answer in self._accepted(server_round, replies, Metrics):
            assert isinstance(answer, Metrics)
            self.report.metrics.append(answer)
        users = sum(metrics.users for metrics in self.report.metrics)
        if not users:
            return None
        means = {name: sum(metrics.quality[name] * metrics.users for metrics in self.report.metrics) / users for name in METRICS}
        return MetricRecord({**means, "platforms": len(self.report.metrics), "users": users})

    def configure_personalise(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> list[Message]:
        """One `Personalise` request per member, with the whole model of the last round."""
        request = Personalise(run=self.run, settings=self.settings, round=server_round, adapter=adapter_from(arrays))
        record = to_record(request)
        return self._to_members(lambda _: record, MessageType.TRAIN, server_round, grid)

    def aggregate_personalise(self, server_round: int, replies: Iterable[Message]) -> None:
        """Put into `report` what the platforms say; there is nothing to combine."""
        self.report = RoundReport()
        for answer in self._accepted(server_round, replies, Personalised):
            assert isinstance(answer, Personalised)
            self.report.personalised.append(answer)

    def configure_prefer(self, question: PreferenceQuestion, *, grid: Grid) -> list[Message]:
        """One `Prefer` request per member, where each adds all of its noise itself."""
        self._asked_sum = question.of.value, question.size
        request = Prefer(run=self.run, settings=self.settings, **question.fields(), lists=b"", body=b"")
        record = to_record(request)
        return self._to_members(lambda _: record, MessageType.TRAIN, 0, grid)

    def aggregate_prefer(self, replies: Iterable[Message]) -> NDArray[np.float64]:
        """The sum of what members answer to what was asked last, float64 (numbers asked for,); `report` has their receipts.

        Raises:
            NoUpdate: no usable answer came.
        """
        self.report = RoundReport()
        name, length = self._asked_sum
        total = np.zeros(length)
        for answer in self._accepted(0, replies, Preferred):
            assert isinstance(answer, Preferred)
            total += answer.sums[name]
            self.report.preferred.append(receipt_of(answer))
            del answer  # one answer in memory at a time
        if not self.report.preferred:
            raise NoUpdate(
                f"no platform answered with {name}",
                where=", ".join(f"{drop.platform or drop.node}: {drop.reason}" for drop in self.report.drops[:5]),
                do="look at the platforms' logs, then resume the run",
            )
        return total

    def summary(self) -> None:
        """Log the strategy's card."""
        logger.info(self.card.line)

    def _to_members(
        self, record: Callable[[Member | None], RecordDict], kind: str, server_round: int, grid: Grid
    ) -> list[Message]:
        asked = dict.fromkeys(grid.get_node_ids()) if self.members is None else self.members
        lifetime = lifetime_of(self.settings.reply_timeout)
        return [Message(record(member), node, kind, ttl=lifetime, group_id=str(server_round)) for node, member in asked.items()]

    def _accepted(self, server_round: int, replies: Iterable[Message], kind: type[_Answering]) -> Iterator[Answer]:
        for message in replies:
            node = message.metadata.src_node_id
            answer = self._vet(server_round, message, kind)
            del message
            if isinstance(answer, Refusal):
                self.report.refusals[node] = answer
            elif answer is not None:
                yield answer
            del answer

    def _vet(self, server_round: int, message: Message, kind: type[_Answering]) -> Answer | None:
        node = message.metadata.src_node_id
        member = None if self.members is None else self.members.get(node)
        try:
            if message.has_error():
                raise ProtocolError(f"error {message.error.code}")
            answer = answer_from(message.content)
            if isinstance(answer, Joined) or not isinstance(answer, kind | Refusal):
                raise ProtocolError(f"answered with '{answer.kind}', expected '{kind.kind}'")
            self._require_ours(answer, member, server_round)
            if isinstance(answer, Update):
                view = self.view(self._adapter, self.rank(member))
                self.require_usable(answer, view, _layout(view, self.factors(server_round)))
            if isinstance(answer, Preferred):
                self._require_sum(answer)
        except ProtocolError as error:
            self.report.drops.append(Drop(node=node, platform=member.platform if member else "", reason=error.found))
            return None
        return answer

    def _require_sum(self, answer: Preferred) -> None:
        name, length = self._asked_sum
        sums = answer.sums.get(name)
        if list(answer.sums) != [name] or sums is None or sums.shape != (length,) or not np.isfinite(sums).all():
            raise ProtocolError(f"{name} of another shape, or not finite")

    def _require_ours(self, answer: _Answering | Refusal, member: Member | None, server_round: int) -> None:
        if self.members is not None and member is None:
            raise ProtocolError("is not a member of this run")
        # A request that could not even be read is refused without a run, a round or a name.
        if isinstance(answer, Refusal):
            return
        if answer.run != self.run:
            raise ProtocolError(f"answers run {answer.run!r}")
        if answer.round != server_round:
            raise ProtocolError(f"answers round {answer.round} in round {server_round}")
        if member is not None and answer.platform != member.platform:
            raise ProtocolError(f"speaks for {answer.platform!r}")
        if answer.users < 1 or (member is not None and answer.users != member.users):
            # Users are weights: a platform that could change its own would outvote the others.
            raise ProtocolError(f"declares {answer.users} users" + (f", joined with {member.users}" if member else ""))


def adapter_from(arrays: ArrayRecord) -> Adapter:
    """The adapter in a Flower record."""
    return {name: array.numpy() for name, array in arrays.items()}


def record_of(adapter: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """The adapter as Flower carries it."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in adapter.items()})


def _layout(adapter: Arrays, factors: Factors) -> dict[str, tuple[int, int]]:
    return {name: (adapter[name].shape[0], adapter[name].shape[1]) for name in trained(adapter, factors)}
