"""Preferences alone: which items are liked together, summed once over all platforms; nothing is trained."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card
from strategies.strategy_card import Role


class Preferences(AdapterStrategy):
    """No round of training: the sum that other strategies may have before theirs (`preferences.items`) is all there is."""

    card: ClassVar[Card] = Card(
        name="preferences",
        when="platforms that have items in common; takes seconds, one release, no GPU and no text; first choice for most",
        trusts="that no more than secure.colluders platforms side with the coordinator, which itself is trusted with nothing",
        sends="two masked sums: how many like each shared item, and each pair of the most popular ones",
        role=Role.UNTRAINED,
    )
