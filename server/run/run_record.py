"""What a run knows of its platforms, and reports to whoever watches: a tally each, and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from server.monitoring.refusal_words import refusal_words
from server.monitoring.run_events import Event, Kind, Tally
from shared.protocol.messages import Joined, Reason
from strategies.phase_report import Receipt
from strategies.secure_sum.mutual_trust import UntrustedPlatform


class RunRecord:
    """The tallies of a run and the events that change them.

    Args:
        tell: Called with every event as it happens.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self.round = 0
        """The last round that is over."""
        self.lost: tuple[int, ...] = ()
        """Rounds that are over and of which nothing is in the model."""
        self.open = 0
        """A round that was given up and can be asked for again; the run ends before it. 0: there is none."""
        self.tallies: dict[str, Tally] = {}
        self.left_out: dict[str, UntrustedPlatform] = {}
        """Platforms that joined and are in no sum, since they and others do not know each other."""

    @property
    def counted(self) -> int:
        """Rounds whose sum is in the model."""
        return self.round - len(self.lost)

    def say(
        self,
        kind: Kind,
        text: str,
        *,
        platform: str = "",
        round_: int | None = None,
        reason: Reason | None = None,
        with_tallies: bool = False,
        change: float | None = None,
    ) -> None:
        """Tell an event, of the round that is over unless another is named."""
        at = self.round if round_ is None else round_
        tallies = dict(self.tallies) if with_tallies else {}
        self._tell(Event(kind=kind, round=at, text=text, platform=platform, reason=reason, tallies=tallies, change=change))

    def enter(self, joined: Joined) -> None:
        """Take a platform in; one that is known keeps its tally."""
        joined = replace(joined, keys=b"", item_list=b"", trust=b"")  # the rounds keep them themselves
        self.tallies[joined.platform] = replace(self.tallies.get(joined.platform, Tally(joined=joined)), joined=joined)

    def leave_out(self, one: UntrustedPlatform) -> None:
        """Note that a platform has no part in this run, and say who has to do what about it."""
        self.tallies.pop(one.platform, None)
        self.left_out[one.platform] = one
        self.say(Kind.LEFT, f"{one.platform} is left out: {one}", platform=one.platform, reason=Reason.PEERS)

    def add(self, platform: str, *, down: int = 0, up: int = 0, **changes: object) -> None:
        """Count bytes, and change fields of a platform's tally."""
        tally = self.tallies[platform]
        counted = {"bytes_down": tally.bytes_down + down, "bytes_up": tally.bytes_up + up, **changes}
        self.tallies[platform] = replace(tally, **counted)  # type: ignore[arg-type]

    def credit(self, receipt: Receipt, *, counted: bool) -> None:
        """Count a platform's update, and the round if the update is in its sum."""
        rounds = self.tallies[receipt.platform].rounds + counted
        self.add(receipt.platform, epsilon=receipt.epsilon, ledger=receipt.ledger, rounds=rounds)

    def refused(self, platform: str, reason: Reason, *, round_: int) -> None:
        """Count a refusal."""
        refusals: Mapping[int, Reason] = {**self.tallies[platform].refusals, round_: reason}
        self.add(platform, refusals=refusals)
        self.say(Kind.REFUSED, f"{platform}: {refusal_words(reason)}", platform=platform, round_=round_, reason=reason)

    def failed(self, platform: str, kind: Kind, why: str, *, round_: int) -> None:
        """Count an error, a silence or an unusable answer."""
        self.add(platform, failures=self.tallies[platform].failures + 1)
        self.say(kind, f"{platform}: {why}", platform=platform, round_=round_)
