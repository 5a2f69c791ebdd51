"""Which sums of what users like platforms are asked for, in the order in which a run may ask."""

from __future__ import annotations

from enum import StrEnum


class SumKind(StrEnum):
    """A sum to which each user contributes a vector of L2 norm 1 at most; the array of an answer has its name."""

    TASTE = "taste"  # which directions of the items' texts are liked together (`shared/preferences/taste_map.py`)
    LIKES = "likes"  # how popular shared items are
    PREFERENCES = "preferences"  # which of them are liked together

    @property
    def later(self) -> frozenset[SumKind]:
        """The kinds that may be asked for once this one was answered.

        >>> [str(kind) for kind in SumKind.LIKES.later], [str(kind) for kind in SumKind.PREFERENCES.later]
        (['preferences'], [])
        """
        order = list(SumKind)
        return frozenset(order[order.index(self) + 1 :])


def triangle_size(items: int) -> int:
    """Numbers of the vector.

    >>> triangle_size(3)
    6
    """
    return items * (items + 1) // 2


def sum_size(width: int, of: SumKind) -> int:
    """Numbers of a sum of what users like: of each item, or of each pair of items or of directions.

    >>> sum_size(3, SumKind.LIKES), sum_size(3, SumKind.PREFERENCES)
    (3, 6)
    """
    return width if of is SumKind.LIKES else triangle_size(width)
