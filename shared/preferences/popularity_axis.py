"""The direction in which popularity alone moves a sum of preferences, and what of the sum lies along it.

Whoever likes what everybody likes has an x / |x| close to one direction, the square root of popularity: the trivial axis of
correspondence analysis (Greenacre 1984, "Theory and applications of correspondence analysis"). It says nothing of which items go
together, and takes a part of every user's norm that the noise must cover. It is known from the sum of single items, so a user's
vector is released without it (`client/privacy/preference_release.py`), and what is known of it is put back afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError

MOST_ALONG = 0.9
"""Share of the axis, at most: the rest of a sum is scaled by what remains."""


@dataclass(frozen=True, kw_only=True)
class PopularityAxis:
    """A direction among items, and how much of a user's unit vector lies along it.

    Args:
        direction: float32 (items,), not negative, of length 1 but for rounding.
        share: Squared length of a user's x / |x| along it, on average as far as the noise lets it be known; in [0, 0.9].
    """

    direction: NDArray[np.float32] = field(repr=False)
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= MOST_ALONG:
            raise ProtocolError(f"a share of popularity of {self.share}")
        _require_direction(self.direction)

    def put_back(
        self, factors: NDArray[np.float32], diagonal: NDArray[np.float64], *, users: int, along: float | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Factors and diagonal of the sum of x x' / |x|^2, given those of the sum without the axis.

        Users' vectors without it were scaled to norm 1, so they count less again, by what they had beside the axis.

        Args:
            factors: float32 (rank, items).
            diagonal: float64 (items,).
            users: Declared users in the sum.
            along: Squared length along the axis that is put back; by default that of all these users.

        Returns:
            float32 (rank + 1, items), the axis first; float32 (items,).
        """
        rest, along = 1 - self.share, users * self.share if along is None else along
        axis = np.float32(math.sqrt(along)) * self.direction
        whole = np.vstack([axis[None], np.float32(math.sqrt(rest)) * factors])
        return whole, (rest * diagonal + along * self.direction.astype(np.float64) ** 2).astype(np.float32)


def popularity_axis(likes: NDArray[np.float64], *, noise: float, users: int) -> PopularityAxis:
    """The axis of noised popularity.

    Of a noised count, the part above the noise is taken. That keeps the noise of a thousand rare items from turning the
    axis (at epsilon 2, films: share of a user's norm along it .091, and .076 from the counts as they are; .132 from exact ones)
    and from being taken for a share of it.

    Args:
        likes: float64 (items,). The noised sum over users of x / |x|.
        noise: Standard deviation of the noise in each; 0: exact.
        users: Declared users in the sum.

    >>> axis = popularity_axis(np.array([9.0, 16.0, 0.0]), noise=0.0, users=25)
    >>> axis.direction.round(2), round(axis.share, 2)
    (array([0.6, 0.8, 0. ], dtype=float32), 0.53)
    """
    above = np.clip(likes - noise, max(noise, 1e-6) / 10, max(users, 1) + noise)
    direction = np.sqrt(above)
    direction /= np.linalg.norm(direction)
    mean = float(above @ direction) / max(users, 1)
    return PopularityAxis(direction=direction.astype(np.float32), share=min(mean**2, MOST_ALONG))


def declared_direction(direction: NDArray[np.float32]) -> bytes:
    """A direction as a question holds it: little-endian float32."""
    return direction.astype("<f4").tobytes()


def parse_direction(text: bytes, *, items: int) -> NDArray[np.float32]:
    """The direction in a question.

    Raises:
        ProtocolError: it is not one over so many items.
    """
    if len(text) != 4 * items:
        raise ProtocolError(f"an axis of {len(text)} bytes for {items} items")
    direction = np.frombuffer(text, "<f4").astype(np.float32)
    _require_direction(direction)
    return direction


def _require_direction(direction: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(direction.astype(np.float64)))
    if direction.ndim != 1 or not abs(length - 1) < 1e-3 or not (direction >= 0).all():
        raise ProtocolError("an axis of popularity that is no direction")
