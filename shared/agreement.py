"""What the platforms of a secure sum agree on once it is known who they are: the noise, and so the fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from shared.catalogues import BOUND, Catalogue
from shared.errors import ProtocolError
from shared.fixed_point import FixedPoint
from shared.secagg.quorum import Quorum
from shared.secagg.roster import Terms
from shared.settings import Settings, digest


def number_of(round_: int) -> int:
    """The secure sum's own number of a round: it counts from 1, and round 0 sums popularities."""
    return round_ + 1


def terms_of(settings: Settings, run: str) -> Terms:
    """What every platform of the run was told; each makes the same of the settings that it got."""
    return Terms(
        run=run,
        rounds=number_of(settings.rounds),
        threshold=settings.secure.threshold,
        colluders=settings.secure.colluders,
        least=settings.server.minimum_platforms,
        settings=bytes.fromhex(digest(settings)),
    )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Public numbers that stand in the roster (`Roster.facts`), so that platforms which were told others share no mask.

    Args:
        noise_multiplier: The largest that any platform needs for its budget; 0 if none does.
        batch: Expected number of users in the largest platform's batch.
        catalogues: Those that several platforms have, whose popularities are summed.
    """

    tag: ClassVar[int] = 60

    noise_multiplier: float
    batch: float
    catalogues: tuple[Catalogue, ...] = ()

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "batch"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ProtocolError(f"the agreed {name} is {value}")

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
            noise_multiplier=settings.privacy.prior_noise_multiplier if self.noise_multiplier else 0.0,
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
