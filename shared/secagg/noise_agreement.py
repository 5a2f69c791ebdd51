"""What the platforms of a secure sum agree on once it is known who they are: the noise, and so the fixed point."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar

from shared.base.errors import ProtocolError
from shared.base.settings import Settings, TrainingSettings, settings_digest
from shared.preferences.sum_kind import SumKind
from shared.privacy.plan import sum_multiplier
from shared.secagg.codec import decode
from shared.secagg.fixed_point import FixedPoint
from shared.secagg.quorum import Quorum
from shared.secagg.roster import Roster, RosterEntry, SumTerms
from shared.secagg.shared_catalogues import BOUND, MOST_ITEMS, MOST_USERS, DeclaredCatalogue, shared_catalogues

MOST_NOISE = 1e6
"""Noise multiplier, at most; a plan at a thousandth of it is noise."""


COUNTS = 1
SUMS = {kind: COUNTS + place for place, kind in enumerate(SumKind, start=1)}
"""Numbers of the sums before any training: popularities of catalogues, and then what users like."""
LAST_SUM = max(SUMS.values())


def number_of(round_: int) -> int:
    """The secure sum's own number of a training round; it counts from 1, sums before training included."""
    return round_ + LAST_SUM


def terms_of(settings: Settings, run: str) -> SumTerms:
    """The terms of the run, which each platform derives alike from the settings that it receives."""
    return SumTerms(
        run=run,
        rounds=number_of(settings.rounds),
        threshold=settings.secure.threshold,
        colluders=settings.secure.colluders,
        least=settings.server.minimum_platforms,
        settings=bytes.fromhex(settings_digest(settings)),
    )


def declared_by(entry: RosterEntry) -> DeclaredCatalogue:
    """The catalogue and the users that a platform declares, signed with its keys (`Entry.declared`).

    Raises:
        ProtocolError: it declares nothing that can be read.
    """
    try:
        return decode(DeclaredCatalogue, entry.declared)
    except ProtocolError as error:
        raise ProtocolError(f"what {entry.platform!r} declares cannot be read: {error.found}") from None


def pooled(entries: Iterable[RosterEntry], *, colluders: int) -> tuple[DeclaredCatalogue, ...]:
    """The catalogues whose popularities round 0 sums, from the platforms' signed lines; both sides compute them.

    Raises:
        ProtocolError: a platform declares nothing that can be read.
    """
    return shared_catalogues((declared_by(entry) for entry in entries), colluders=colluders)


def batch_of(entries: Iterable[RosterEntry], training: TrainingSettings) -> float:
    """Expected number of users in the largest platform's batch, from the platforms' signed lines.

    Raises:
        ProtocolError: a platform declares nothing that can be read.
    """
    return max((training.batch([declared_by(entry).users]) for entry in entries), default=0.0)


def require_owners(roster: Roster, catalogues: Iterable[DeclaredCatalogue], survivors: Collection[int]) -> None:
    """Check that no platform's popularity is alone in the sum of round 0 over these survivors.

    The roster's lines are counted when the catalogues are agreed on; this counts those that the sum still has, since the
    coordinator decides who is lost.

    Raises:
        ProtocolError: of those who have a catalogue, at least one and at most colluders + 1 are left.
    """
    needed = roster.terms.colluders + 2
    for catalogue in catalogues:
        left = [number for number in survivors if _same(declared_by(roster.entries[number]), catalogue)]
        if 0 < len(left) < needed:
            raise ProtocolError(
                f"{len(left)} platforms with catalogue {catalogue.digest.hex()[:16]} are left in the sum of popularities, "
                f"{needed} are needed"
            )


def _same(one: DeclaredCatalogue, other: DeclaredCatalogue) -> bool:
    return (one.digest, one.items) == (other.digest, other.items)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Public numbers in the roster (`Roster.facts`), so that platforms which got different ones share no mask.

    Args:
        noise_multiplier: The largest that any platform needs for its budget; 0 if none does.
        batch: Expected number of users in the largest platform's batch.
        preference_noise, taste_noise: As `noise_multiplier`, of the sum of preferences and of that behind the taste map.
        catalogues: Those whose popularities are summed (`pooled`).
    """

    tag: ClassVar[int] = 60

    noise_multiplier: float
    batch: float
    preference_noise: float = 0.0
    taste_noise: float = 0.0
    catalogues: tuple[DeclaredCatalogue, ...] = ()

    def __post_init__(self) -> None:
        noises = ("noise_multiplier", "preference_noise", "taste_noise")
        for name, most in (*((name, MOST_NOISE) for name in noises), ("batch", MOST_USERS)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ProtocolError(f"the agreed {name} is {value}, between 0 and {most} is possible")
        items = sum(one.items for one in self.catalogues)
        if items > MOST_ITEMS:
            raise ProtocolError(f"the agreed catalogues have {items} items; at most {MOST_ITEMS} are summed")

    def require_signed(self, roster: Roster, settings: Settings) -> None:
        """Check what follows from the roster's signed lines: the batch, and the catalogues, nothing more and nothing less.

        Raises:
            ProtocolError: they are others.
        """
        batch = batch_of(roster.entries, settings.training)
        if self.batch != batch:
            raise ProtocolError(
                f"batches of {self.batch:g} users were agreed on, and the platforms' signed numbers of users make them {batch:g}"
            )
        # Popularities of whole catalogues serve training alone.
        wanted = pooled(roster.entries, colluders=roster.terms.colluders) if settings.trains else ()
        if self.catalogues != wanted:
            least = roster.terms.colluders + 2
            signed = [declared_by(entry) for entry in roster.entries]
            few = [
                f"{one.digest.hex()[:16]} ({one.items} items, signed by {sum(_same(one, other) for other in signed)} of them)"
                for one in self.catalogues
                if one not in wanted
            ]
            raise ProtocolError(
                f"the agreed catalogues are not those that {least} platforms of the roster signed: "
                + (", ".join(few[:3]) if few else f"{len(self.catalogues)} where there are {len(wanted)}"),
                where="the secure sum's agreement",
                do="do not take part: a catalogue that fewer have would reveal one platform's popularity",
            )

    @property
    def private(self) -> bool:
        """Whether any platform's budget needs noise."""
        return self.noise_multiplier > 0 or self.preference_noise > 0 or self.taste_noise > 0

    def preference_point(self, *, dimension: int, of: SumKind, roster: Roster) -> FixedPoint:
        """The fixed point of a sum of what users like.

        Args:
            dimension: Numbers that are summed.
            of: What is summed.

        Raises:
            InputError: as `point`.
        """
        quorum, users = roster.quorum, max(declared_by(entry).users for entry in roster.entries)
        return FixedPoint(
            dimension=dimension,
            participants=quorum.members,
            honest=quorum.honest,
            clip=1.0,
            noise_multiplier=sum_multiplier(of, preference_noise=self.preference_noise, taste_noise=self.taste_noise),
            # Nobody likes an item by more than 1; an item that a tenth of the largest platform likes as its only one still fits.
            # A direction of texts may be everybody's.
            coordinate=max(1.0, users if of is SumKind.TASTE else users / 10),
        )

    def popularity_point(self, *, quorum: Quorum, settings: Settings) -> FixedPoint:
        """The fixed point of the round that sums popularities.

        Raises:
            InputError: as `point`.
        """
        return FixedPoint(
            dimension=sum(one.items for one in self.catalogues),
            participants=quorum.members,
            honest=quorum.honest,
            clip=1.0,
            noise_multiplier=settings.privacy.prior_noise_multiplier if self.private else 0.0,
            # Room for an item that every user of the largest platform likes (`FixedPoint.room`).
            batch=25 / math.sqrt(BOUND) * max(one.users for one in self.catalogues),
        )

    def point(self, *, dimension: int, quorum: Quorum, clip: float) -> FixedPoint:
        """The fixed point of a round.

        Args:
            dimension: Parameters that the round trains and sends.
            clip: L2 bound of one user's gradient, from the settings.

        Raises:
            InputError: words of 32 bits would not do, or a share of the noise would be too small.
        """
        return FixedPoint(
            dimension=dimension,
            participants=quorum.members,
            honest=quorum.honest,
            clip=clip,
            noise_multiplier=self.noise_multiplier,
            batch=self.batch,
        )
