"""What a run is going to read of a platform's users, from public numbers alone: its time and disk follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from client.compute.cache_eviction import MOST_BYTES
from shared.base.settings import Settings
from shared.model.factor_schedule import personalises
from shared.privacy.plan import EVALUATED

_WORTH = 0.5
"""Part of all views from which on they are encoded ahead: a few large passes take less time than many small ones."""
_FEATURE_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class PlannedReads:
    """Texts that one run is expected to read, and the most bytes that their features take.

    Args:
        items: Texts of items.
        views: Views of users.
        read: How many of the views are read in all steps together.
        evaluated: Held-out users whom evaluations read.
        item_bytes, user_bytes: Of one text.
    """

    items: int
    views: int
    read: float
    evaluated: int
    item_bytes: int
    user_bytes: int

    @property
    def ahead(self) -> bool:
        """Whether all views are encoded before the first step."""
        return self.read >= _WORTH * self.views and self._bytes(self.views) <= MOST_BYTES

    @property
    def bytes_kept(self) -> int:
        """Bytes of features that are worth keeping from one run to the next."""
        return min(MOST_BYTES, self._bytes(self.views if self.ahead else math.ceil(self.read)))

    def _bytes(self, views: int) -> int:
        return self.items * self.item_bytes + (views + self.evaluated) * self.user_bytes


def planned_reads(settings: Settings, *, users: int, items: int, width: int) -> PlannedReads:
    """What a run with these settings reads.

    A step reads a user with the sample rate q, and then s of their v views: each of them with q s / v. So T steps read
    v n (1 - (1 - q s / v)^T) different ones.

    Args:
        users: Declared number of users.
        items: Of the catalogue.
        width: Numbers in the features of one token.

    >>> planned_reads(Settings(), users=1_000_000, items=50_000, width=384).ahead
    False
    """
    training, model = settings.training, settings.model
    steps = settings.steps + (settings.personal.steps if personalises(settings.strategy) else 0)
    each = training.rate(users) * min(1.0, training.sequences / training.views)
    views = users * training.views
    return PlannedReads(
        items=items,
        views=views,
        read=views * -math.expm1(steps * math.log1p(-each)) if each < 1 else views,
        evaluated=min(users, EVALUATED),
        item_bytes=model.item_tokens * width * _FEATURE_BYTES,
        user_bytes=model.user_tokens * width * _FEATURE_BYTES,
    )
