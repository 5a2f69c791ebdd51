"""Who takes part in a run: nodes that join at the start or later, platforms that leave, and whom a round asks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.monitoring.refusal_words import flower_error_words, refusal_words
from server.monitoring.run_events import Kind
from server.run.exchange import Exchange
from shared.base.errors import ExitCode, FedfuseError, ProtocolError
from shared.base.settings import Settings
from shared.protocol.flower_records import answer_from, record_bytes, to_record, with_receipt
from shared.protocol.messages import Answer, Join, Joined, Reason, Refusal
from strategies.base import lifetime_of
from strategies.phase_report import Member

_SETTLE = 0.5
"""Seconds without a new node after which a run that was not told how many to expect begins."""
_LOOK = 0.05
_ONCE_MORE = 60.0
"""Seconds after which a node that failed when it was asked to join is asked again."""


class Say(Protocol):
    """Reports an event."""

    def __call__(self, kind: Kind, text: str, *, platform: str = "", reason: Reason | None = None) -> None:
        """One event, of the round that the run is in."""


class Attendance:
    """The members of a run.

    Args:
        least: Members without which no round could be combined.
        names: Node -> the platform that it was approved as, where somebody approves; a node speaks for that one alone.
        only: Names of the platforms that are asked, of those that were approved; empty: all are.
        entered: Told of every member that came in, with the bytes of the request that asked it.
        receipt: The text of a platform's last receipt, which goes with the request to join: joining is charged, too.
        before: Called before any node is asked to join, when it is there; raises where the run must not go on.
    """

    def __init__(
        self,
        *,
        grid: Grid,
        settings: Settings,
        run: str,
        least: int,
        say: Say,
        entered: Callable[[Member, Joined, int], None],
        names: Callable[[], Mapping[int, str]] | None = None,
        only: Collection[str] = (),
        receipt: Callable[[str], str] = lambda platform: "",
        before: Callable[[], object] | None = None,
    ) -> None:
        self._names, self._only, self._receipt, self._before = names, frozenset(only), receipt, before
        self._grid, self._settings, self._least, self._say, self._entered = grid, settings, least, say, entered
        request = Join(run=run, settings=settings)
        self._run, self._record = run, to_record(request)
        self._size = record_bytes(self._record)
        self.members: dict[int, Member] = {}
        self._asking: dict[int, tuple[Exchange, float]] = {}
        self._refused: set[int] = set()
        self.gone: set[str] = set()
        """Platforms that were members and are asked no more in this run."""

    def wait_for(self, wanted: int | None, *, seconds: float) -> list[int]:
        """The nodes, once they are there.

        Raises:
            FedfuseError: fewer than wanted came in time.
        """
        end = time.monotonic() + seconds
        before: list[int] = []
        first = True
        while True:
            found = sorted(self._online)
            if (wanted is not None and len(found) >= wanted) or (wanted is None and found and found == before):
                return found
            if time.monotonic() >= end:
                raise FedfuseError(
                    f"{len(found)} of {wanted or 'any number of'} platforms came within {seconds:g} s",
                    where=self._absent(found),
                    do="start the platforms' clients, or wait for fewer",
                )
            if first or found != before:
                absent = self._absent(found)
                text = f"{len(found)}{f' of {wanted}' if wanted else ''} platforms are there"
                self._say(Kind.WAITING, f"{text} ({absent})" if absent else text)
            before, first = found, False
            time.sleep(_SETTLE if wanted is None else _LOOK)

    def join(self, nodes: Iterable[int]) -> None:
        """Ask every node to join, and wait for its answer; those that do are the members.

        Raises:
            ProtocolError: two nodes speak for one platform.
            FedfuseError: nobody joined, or fewer than the strategy can combine.
        """
        exchange = self._ask(list(nodes))
        reasons: list[str] = []
        for message in exchange.replies():
            node = message.metadata.src_node_id
            try:
                joined = self._answered(node, answer_from(message.content))
            except ProtocolError as error:
                reasons.append(f"{self.called(node)}: {error.found}")
                self._say(Kind.DROPPED, reasons[-1])
                continue
            if isinstance(joined, Refusal):
                reasons.append(f"{self.called(node, joined.platform)}: {refusal_words(joined.reason)}")
                continue
            twin = self._twin(joined.platform)
            if twin is not None:
                raise ProtocolError(
                    f"two nodes speak for platform {joined.platform!r}",
                    where=f"nodes {twin} and {node}",
                    do="give every platform its own name, and start each client once",
                )
            self._enter(node, joined)
        for node, code in exchange.errors.items():
            reasons.append(f"{self.called(node)}: {flower_error_words(code)}")
            self._say(Kind.FAILED, f"{reasons[-1]}: left out")
        for node in exchange.silent:
            reasons.append(f"{self.called(node)}: no answer")
            self._say(Kind.SILENT, f"{reasons[-1]}: left out")
        if not self.members:
            nobody = FedfuseError("no platform joined", where="; ".join(reasons), do="each platform's own log says why")
            if not exchange.errors and not exchange.silent:
                # All of them said no: asking once more would change nothing.
                nobody.exit_code = ExitCode.REFUSED
            raise nobody
        if len(self.members) < self._least:
            raise FedfuseError(
                f"{len(self.members)} platforms joined, and this run combines no fewer than {self._least}",
                where=f"strategy {self._settings.strategy}, server.faulty = {self._settings.server.faulty}, "
                f"server.minimum_platforms = {self._settings.server.minimum_platforms}",
                do="wait for more platforms, or lower server.minimum_platforms or, of a robust combiner, server.faulty",
            )
        if self._turns < self._least:
            raise FedfuseError(
                f"a round would ask {self._turns} of {len(self.members)} platforms, and combines no fewer than {self._least}",
                where=f"server.participation = {self._settings.server.participation:g}",
                do=f"raise it to {self._least / len(self.members):.2g} or more, or wait for more platforms",
            )

    def look(self) -> None:
        """Between two rounds: let go of who has left, ask who has come, and take in who has answered. Waits for nobody."""
        online = self._online
        # Flower knows a revoked platform's node, and calls it online, until its heartbeat is missed.
        there = online if self._names is None else online & set(self._names())
        for node in [node for node in self.members if node not in there]:
            gone = self.members.pop(node)
            how = "was revoked" if node in online else "has left"
            self._say(Kind.LEFT, f"{gone.platform} {how}: the run goes on without it", platform=gone.platform)
        # Whoever is still preparing is left in peace; whoever failed is asked again, but not at once.
        self._asking = {
            node: (exchange, since)
            for node, (exchange, since) in self._asking.items()
            if node in there and time.monotonic() < since + (self._settings.reply_timeout if exchange.silent else _ONCE_MORE)
        }
        for node in sorted(there - set(self.members) - set(self._asking) - self._refused):
            self._asking[node] = (self._ask([node]), time.monotonic())
        for node, (exchange, _) in list(self._asking.items()):
            for message in exchange.arrived():
                self._asking.pop(node, None)
                self._late(node, message)
            if exchange.errors:
                code = exchange.errors.pop(node)
                self._say(
                    Kind.FAILED,
                    f"{self.called(node)}: {flower_error_words(code)} to 'join'; it is asked again in {_ONCE_MORE:g} s",
                )

    @property
    def _online(self) -> set[int]:
        """Nodes that are there, of those that may be asked."""
        online = set(self._grid.get_node_ids())
        return online & set(self._approved()) if self._only else online

    def _approved(self) -> dict[int, str]:
        """Node -> platform, of those that were approved and may be asked; empty where nobody approves."""
        names = {} if self._names is None else self._names()
        return {node: name for node, name in names.items() if not self._only or name in self._only}

    @property
    def awaited(self) -> set[str]:
        """Platforms that may still join: approved, and neither in nor refused. Empty where nobody approves."""
        known = set(self.members) | self._refused
        return {name for node, name in self._approved().items() if node not in known}

    def await_someone(self, *, seconds: float) -> None:
        """Wait until there is a member again, if there is none; platforms that restart come back by themselves."""
        end = time.monotonic() + seconds
        while not self.members and self._could_come() and time.monotonic() < end:
            time.sleep(_LOOK)
            self.look()

    def dismiss(self, node: int) -> None:
        """Ask a member no more in this run."""
        member = self.members.pop(node, None)
        if member is not None:
            self.gone.add(member.platform)
        self._refused.add(node)

    def asked(self, server_round: int) -> dict[int, Member]:
        """The members that a round asks: all, or a part of them in turn.

        Every platform plans for `Settings.rounds_each` rounds and refuses more, whoever draws. So they take turns, in an order
        that the run's seed shuffles: while the members stay the same, nobody is asked more often. The order is no secret, and no
        privacy is drawn from it. A resumed round asks the same ones of the same members.
        """
        count = max(self._least, self._turns)
        if count >= len(self.members):
            return dict(self.members)
        # By name and not by node: a platform that came back with another node must not change the others' turns.
        ordered = sorted(self.members, key=lambda node: self.members[node].platform)
        order = np.random.default_rng([self._settings.seed, 0]).permutation(len(ordered))
        chosen = {ordered[order[((server_round - 1) * count + at) % len(order)]] for at in range(count)}
        return {node: member for node, member in self.members.items() if node in chosen}

    @property
    def _turns(self) -> int:
        """Platforms that a round asks: rounded down, so that the turns of `Settings.rounds_each` suffice."""
        return math.floor(self._settings.server.participation * len(self.members) + 1e-9)

    def _could_come(self) -> bool:
        online = self._online
        return bool(self._asking) or not online or bool(online - self._refused)

    def _ask(self, nodes: list[int]) -> Exchange:
        if self._before is not None:
            self._before()
        lifetime = lifetime_of(self._settings.reply_timeout)
        names = {} if self._names is None else self._names()
        shown = {node: self._receipt(names[node]) if node in names else "" for node in nodes}
        messages = [
            Message(
                with_receipt(self._record, shown[node]) if shown[node] else self._record,
                node,
                MessageType.QUERY,
                ttl=lifetime,
                group_id="join",
            )
            for node in nodes
        ]
        return Exchange(self._grid, messages, timeout=self._settings.reply_timeout)

    def _answered(self, node: int, answer: Answer) -> Joined | Refusal:
        if not isinstance(answer, Joined | Refusal) or (isinstance(answer, Joined) and answer.run != self._run):
            raise ProtocolError(f"answered 'join' with '{answer.kind}' of run {answer.run!r}")
        known = self._names().get(node, "") if self._names is not None else answer.platform
        if answer.platform != known and not (isinstance(answer, Refusal) and answer.platform == "unknown"):
            raise ProtocolError(f"speaks for {answer.platform!r}, and is approved as {known!r}")
        if isinstance(answer, Refusal):
            self._refused.add(node)
            text = f"{self.called(node, answer.platform)}: {refusal_words(answer.reason)}: left out"
            self._say(Kind.REFUSED, text, platform=answer.platform, reason=answer.reason)
        return answer

    def _late(self, node: int, message: Message) -> None:
        try:
            joined = self._answered(node, answer_from(message.content))
            if isinstance(joined, Joined) and self._twin(joined.platform) is not None:
                # At the start this ends the run; now it must not: whoever came second stays out.
                raise ProtocolError(f"speaks for {joined.platform!r}, which another node speaks for")
        except ProtocolError as error:
            self._refused.add(node)
            self._say(Kind.DROPPED, f"{self.called(node)}: {error.found}: left out")
            return
        if isinstance(joined, Joined):
            self._enter(node, joined)

    def called(self, node: int, said: str = "") -> str:
        """What people call a node: the platform that it was approved as; where nobody approves, what it says."""
        known = said if self._names is None else self._names().get(node, "")
        return known or f"node {node}"

    def _absent(self, here: list[int]) -> str:
        if self._names is None:
            return ""
        names = self._approved()
        came = ", ".join(sorted(names[node] for node in here if node in names)) or "none"
        missing = ", ".join(sorted(name for node, name in names.items() if node not in here)) or "no other is approved"
        return f"here: {came}; missing: {missing}"

    def _twin(self, platform: str) -> int | None:
        return next((node for node, member in self.members.items() if member.platform == platform), None)

    def _enter(self, node: int, joined: Joined) -> None:
        self.members[node] = Member(node=node, platform=joined.platform, users=joined.users, rank=joined.rank or None)
        self._entered(self.members[node], joined, self._size)
