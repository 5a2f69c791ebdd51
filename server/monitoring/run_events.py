"""What the coordinator knows of a run: events while it goes on, a tally per platform, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from shared.protocol.messages import Arrays, Joined, Label, Metrics, Reason


class Kind(StrEnum):
    """Kinds of events."""

    WAITING = "waiting"  # for nodes to come
    JOINED = "joined"  # a platform is in
    REFUSED = "refused"  # a platform did not do what it was asked
    FAILED = "failed"  # an error came back instead of an answer
    SILENT = "silent"  # no answer before the deadline
    DROPPED = "dropped"  # an answer that could not be used
    LEFT = "left"  # a platform is out for the rest of the run
    ANSWERED = "answered"  # a platform's update, or its metrics, came in
    LATE = "late"  # an answer to a round that is over
    PREFERRED = "preferred"  # which items are liked together is summed
    SECURED = "secured"  # keys and shares of the secure sum are dealt
    ABANDONED = "abandoned"  # a round of the secure sum had too few survivors; nothing of it is revealed
    LOST = "lost"  # a round is over, and nothing of it is in the model; its checkpoint is written
    EVALUATED = "evaluated"  # every platform's metrics of one model are in
    PLATEAU = "plateau"  # training ends before its last round: evaluations rise no more
    ROUND = "round"  # a round is over and its checkpoint written
    RESUMED = "resumed"  # the run goes on from a checkpoint
    PERSONALISED = "personalised"  # every platform has said whether it goes on with a model of its own
    PUBLISHED = "published"  # the model lies in its folder


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One platform's part in a run; all of it is public, or was released with noise.

    Args:
        joined: What the platform declared.
        bytes_down, bytes_up: Sent to it and got from it, before Flower's framing.
        rounds: Rounds whose sum holds its update.
        epsilon: Spent, as its last answer says.
        ledger: Head of its privacy ledger, as its last answer says; an auditor checks the ledger against it.
        personal: Quality of what the platform uses after personalising; in a simulation only.
        chosen: Whether that is a model of its own; None where it was not asked to personalise.
        refusals: Round -> why it did not answer.
        failures: Errors, silences and unusable answers.
        figures: Round -> NDCG@10 of the global model after it, as the platform released it.
    """

    joined: Joined
    bytes_down: int = 0
    bytes_up: int = 0
    rounds: int = 0
    epsilon: float = 0.0
    ledger: str = ""
    before: Metrics | None = None
    federated: Metrics | None = None
    personal: Metrics | None = None
    chosen: bool | None = None
    refusals: Mapping[int, Reason] = field(default_factory=dict)
    failures: int = 0
    figures: Mapping[int, float] = field(default_factory=dict)

    @property
    def platform(self) -> str:
        """The platform's name."""
        return self.joined.platform

    @property
    def users(self) -> int:
        """Declared users."""
        return self.joined.users

    def metrics(self, label: Label) -> Metrics | None:
        """The last metrics of that model."""
        return {Label.BEFORE: self.before, Label.FEDERATED: self.federated, Label.PERSONAL: self.personal}[label]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run, for whoever watches it.

    Args:
        round: 0 before the first.
        platform: Empty where it concerns all, or a node that has not said who it is.
        text: One line for a person.
        reason: On REFUSED, the platform's word for why.
        tallies: On ROUND and EVALUATED, the state of every platform.
        change: On ROUND, the norm by which the round moved the global adapter, which all of it released.
    """

    kind: Kind
    round: int
    text: str
    platform: str = ""
    reason: Reason | None = None
    tallies: Mapping[str, Tally] = field(default_factory=dict, repr=False)
    change: float | None = None


Watcher = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Why a run trained fewer rounds than it was planned for.

    Args:
        round: The last one that was trained.
        rounds: Planned.
        best: Round whose evaluation none later improves on beyond noise; 0: before the first.
        evaluations: That have come since.
    """

    round: int
    rounds: int
    best: int
    evaluations: int

    def __str__(self) -> str:
        """For a person.

        >>> str(EarlyStop(round=12, rounds=40, best=6, evaluations=3))
        'stopped after round 12 of 40: no improvement beyond noise for 3 evaluations, since round 6'
        """
        counted = f"{self.evaluations} evaluation{'' if self.evaluations == 1 else 's'}"
        since = f"round {self.best}" if self.best else "before the first round"
        return f"stopped after round {self.round} of {self.rounds}: no improvement beyond noise for {counted}, since {since}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run.

    Args:
        adapter: The last global adapter.
        tallies: Platform -> its part, sorted by name.
        rounds: Rounds whose sum is in the model, those of a resumed run included.
        lost: Rounds that were given up for good; such a run is incomplete.
        open: Round that was given up for want of patience, before which the run ended; 0: none. Resumed, it is asked for again.
        stopped: Why training ended before its last round, though none was given up; None: it did not.
        seconds: Of this process alone.
        model: Folder of the published model.
    """

    run: str
    adapter: Arrays = field(repr=False)
    tallies: Mapping[str, Tally]
    rounds: int
    seconds: float
    model: Path
    lost: tuple[int, ...] = ()
    open: int = 0
    stopped: EarlyStop | None = None
