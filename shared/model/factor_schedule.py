"""What a platform must know of a strategy: which factors it trains, which leave, which stay, and what is fixed.

How updates are combined is decided by the coordinator (`strategies/`). This is the part that both sides must agree on; it
follows from the strategy's name in the settings, so a platform that joined a run in which B stays refuses to send B,
whatever it is asked later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.base.errors import ProtocolError
from shared.protocol.messages import Factors

PERSONALISE = "personalise"
"""The part of a strategy's name that says: afterwards each platform trains a residual adapter of its own."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one platform takes part in a strategy.

    Args:
        cycle: Factors that are trained and sent, round by round, over and over.
        kept: Factors that are trained too, and never leave the platform; the coordinator's copy of them is not used.
        core: Whether the adapter is one r x r matrix between fixed factors (`shared/model/fixed_factors.py`) instead of A and B.
        residual: Whether the coordinator sends frozen low-rank factors beside the adapter (`shared/model/residual_factors.py`).
        restarts: Whether the factors are drawn or turned anew before every round, so that an optimizer's moments of the
            round before mean nothing.
        ranks: Whether platforms may train different ranks.
    """

    cycle: tuple[Factors, ...] = (Factors.BOTH,)
    kept: Factors | None = None
    core: bool = False
    residual: bool = False
    restarts: bool = False
    ranks: bool = False

    def factors(self, server_round: int) -> Factors:
        """What is trained and sent in a round, counted from 1.

        >>> [str(SCHEMES["rolora"].factors(n)) for n in (1, 2, 3)]
        ['b', 'a', 'b']
        """
        return self.cycle[(server_round - 1) % len(self.cycle)]

    def require(self, factors: Factors) -> None:
        """Check what another party asks to be sent.

        Raises:
            ProtocolError: it asks for factors that stay on the platform, or that the adapter does not have.
        """
        asked, staying = set(factors.value), set(self.kept.value if self.kept else "")
        if asked & staying:
            raise ProtocolError(f"asks for factors {factors.value!r}, of which {self.kept!s} stays on the platform")
        if ("r" in asked) != self.core:
            raise ProtocolError(f"asks for factors {factors.value!r} of an adapter that has {'only r' if self.core else 'no r'}")


PLAIN = Scheme()
SCHEMES: Mapping[str, Scheme] = {
    "fedavg": PLAIN,
    "ffa": Scheme(cycle=(Factors.B,)),
    "rolora": Scheme(cycle=(Factors.B, Factors.A)),
    "fedsa": Scheme(cycle=(Factors.A,), kept=Factors.B),
    "fedsb": Scheme(cycle=(Factors.R,), core=True),
    "flora": Scheme(residual=True, restarts=True),
    "exact": Scheme(residual=True),
    "svd": Scheme(restarts=True, ranks=True),
}
"""Name of a strategy -> its scheme; whoever is not here trains and sends both factors."""


def parts_of(strategy: str) -> tuple[str, ...]:
    """The parts of a strategy's name, as in `ffa+fedadam`.

    >>> parts_of("rolora+median")
    ('rolora', 'median')
    """
    return tuple(part.strip() for part in strategy.split("+"))


def scheme_of(strategy: str) -> Scheme:
    """The scheme of a strategy; its other parts (how updates are combined) concern the coordinator alone.

    >>> scheme_of("median+ffa").cycle
    (<Factors.B: 'b'>,)
    """
    return next((SCHEMES[part] for part in parts_of(strategy) if part in SCHEMES), PLAIN)


def personalises(strategy: str) -> bool:
    """Whether platforms personalise the model after the last round."""
    return PERSONALISE in parts_of(strategy)
