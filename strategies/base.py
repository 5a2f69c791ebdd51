"""What a strategy is: how updates are made, how they are combined, and how the combined change is applied.

The three are separate methods, so that a new strategy overrides what it changes and nothing else: `factors` (which
factors a round trains), `combiner` (a mean, a median, a secure sum...) and `step` (the server's optimizer). Flower's
own interface (`flwr.serverapp.strategy.Strategy`) is built on them here, once for all.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from shared.adapter import Layout, require_layout, trained
from shared.errors import ProtocolError
from shared.messages import (
    Answer,
    Arrays,
    Evaluate,
    Factors,
    Joined,
    Label,
    Metrics,
    Refusal,
    Train,
    Update,
    answer_from,
    bytes_of,
    to_record,
)
from shared.settings import Settings
from strategies.averaging import Change

logger = logging.getLogger(__name__)
Adapter = dict[str, NDArray[np.float32]]


class NoUpdate(ProtocolError):
    """A round brought no usable update from any platform."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a person needs to know to choose a strategy, in three honest clauses."""

    name: str
    when: str
    trusts: str
    sends: str

    @property
    def line(self) -> str:
        """The card in one line."""
        return f"{self.name}: {self.when}; trusts {self.trusts}; sends {self.sends}"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A platform that takes part: the node that speaks for it, and what it declared when it joined."""

    node: int
    platform: str
    users: int


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is kept of an update once it is in the sum: everything but its arrays."""

    platform: str
    users: int
    epsilon: float
    ledger: str
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Drop:
    """An answer that was left out, and why."""

    node: int
    platform: str
    reason: str


@dataclass(kw_only=True)
class Report:
    """What the platforms answered in one phase of a round.

    Args:
        refusals: By node, since a refusal's own word for its platform is not checked.
    """

    updates: list[Receipt] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)


class Combiner(Protocol):
    """Folds updates into one change, one at a time."""

    def add(self, change: Arrays, *, weight: int) -> None:
        """Take one update in; nothing of it may be kept but what the result needs."""

    def change(self) -> Change:
        """The combined change of everything that was added."""


class AdapterStrategy(Strategy):
    """A Flower strategy over adapters.

    Args:
        settings: Sent with every request.
        run: Name of the run, which every answer must repeat.
        members: Who is asked, and whose answers are taken. None: every node of the grid is asked, and an answer's
            own word for its users is its weight.

    `report` says what the last phase brought. The caller may replace `members` between phases.
    """

    card: ClassVar[Card]

    def __init__(self, *, settings: Settings, run: str, members: Iterable[Member] | None = None) -> None:
        self.settings, self.run = settings, run
        self.members: dict[int, Member] | None = None if members is None else {member.node: member for member in members}
        self.report = Report()
        self._adapter: Adapter = {}

    @abstractmethod
    def factors(self, server_round: int) -> Factors:
        """Which factors platforms train in this round, from 1; only those are sent back."""

    @abstractmethod
    def combiner(self, layout: Layout) -> Combiner:
        """A fresh combiner for updates of that layout."""

    def step(self, adapter: Arrays, change: Change) -> Adapter:
        """The next global adapter: the change is added as it is. float32."""
        return {
            name: (array + change[name]).astype(np.float32) if name in change else array.copy() for name, array in adapter.items()
        }

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """One `Train` request per member; all of them share one record, so the adapter is held once."""
        self._adapter = adapter_from(arrays)
        request = Train(
            run=self.run,
            settings=self.settings,
            round=server_round,
            factors=self.factors(server_round),
            adapter=self._adapter,
        )
        return self._to_members(to_record(request), MessageType.TRAIN, server_round, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Fold the updates in as they arrive, and give the next global adapter.

        An answer that is not an update of this round, in the layout of the adapter, from a member, with the users that
        it declared and finite values, is left out with its reason in `report`.

        Raises:
            NoUpdate: no usable update came; the adapter would silently stay as it was.
        """
        self.report = Report()
        factors = self.factors(server_round)
        layout = {name: _shape(self._adapter[name]) for name in trained(self._adapter, factors)}
        combiner = self.combiner(layout)
        for answer in self._accepted(server_round, replies, Update, layout):
            assert isinstance(answer, Update)
            combiner.add(answer.change, weight=answer.users)
            self.report.updates.append(_receipt(answer))
            del answer  # one update in memory at a time: not this one while the next is on its way
        if not self.report.updates:
            raise NoUpdate(
                f"round {server_round} brought no usable update",
                where=", ".join(f"{drop.platform or drop.node}: {drop.reason}" for drop in self.report.drops[:5]),
                do="look at the platforms' logs, then continue the run from its last checkpoint",
            )
        adapter = self.step(self._adapter, combiner.change())
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
        return self._to_members(to_record(request), MessageType.EVALUATE, server_round, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Means weighted by declared users; each platform's own figures are in `report`. None if nobody answered."""
        self.report = Report()
        for answer in self._accepted(server_round, replies, Metrics, {}):
            assert isinstance(answer, Metrics)
            self.report.metrics.append(answer)
        users = sum(metrics.users for metrics in self.report.metrics)
        if not users:
            return None
        means = {
            name: sum(getattr(metrics, name) * metrics.users for metrics in self.report.metrics) / users
            for name in ("ndcg", "hr", "auc")
        }
        return MetricRecord({**means, "platforms": len(self.report.metrics), "users": users})

    def summary(self) -> None:
        """Log the strategy's card."""
        logger.info(self.card.line)

    def _to_members(self, record: RecordDict, kind: str, server_round: int, config: ConfigRecord, grid: Grid) -> list[Message]:
        nodes = list(grid.get_node_ids()) if self.members is None else list(self.members)
        # A request outlives the deadline a little: Flower forgets an expired one, and asking after it is an error there.
        lifetime = self.settings.reply_timeout + 60.0
        return [Message(record, node, kind, ttl=lifetime, group_id=str(server_round)) for node in nodes]

    def _accepted(
        self, server_round: int, replies: Iterable[Message], kind: type[Update | Metrics], layout: Layout
    ) -> Iterator[Answer]:
        for message in replies:
            node = message.metadata.src_node_id
            answer = self._vet(server_round, message, kind, layout)
            del message
            if isinstance(answer, Refusal):
                self.report.refusals[node] = answer
            elif answer is not None:
                yield answer
            del answer

    def _vet(self, server_round: int, message: Message, kind: type[Update | Metrics], layout: Layout) -> Answer | None:
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
                _require_usable(answer, self._adapter, layout)
        except ProtocolError as error:
            self.report.drops.append(Drop(node=node, platform=member.platform if member else "", reason=error.found))
            return None
        return answer

    def _require_ours(self, answer: Update | Metrics | Refusal, member: Member | None, server_round: int) -> None:
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


def _shape(array: NDArray[np.float32]) -> tuple[int, int]:
    rows, columns = array.shape
    return rows, columns


def _require_usable(update: Update, adapter: Adapter, layout: Layout) -> None:
    require_layout(update.change, layout, where=update.platform)
    for name in layout:
        with np.errstate(over="ignore"):
            moved = adapter[name] + update.change[name]
        # What every update leaves within float32's range, their weighted mean does too (it is convex).
        if not np.isfinite(moved).all():
            raise ProtocolError(f"{name} would leave the range of float32", where=update.platform)


def _receipt(update: Update) -> Receipt:
    return Receipt(
        platform=update.platform,
        users=update.users,
        epsilon=update.epsilon,
        ledger=update.ledger,
        seconds=update.seconds,
        bytes=bytes_of(update),
    )
