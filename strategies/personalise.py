"""After the last round, each platform may train a residual adapter of its own on top of the global model."""

from __future__ import annotations

from typing import ClassVar

from strategies.strategy_card import Card, Role


class PersonaliseStrategy:
    """Added to any strategy: `ffa+personalise`.

    The platforms do the work (`client/personalisation/personal_plan.py`), from a part of their budget that the federation leaves
    (`personal.share`) and from what it did not spend. The own adapter never leaves; the coordinator learns whether it is in
    use, which is the outcome of a noised, charged comparison.
    """

    card: ClassVar[Card] = Card(
        name="personalise",
        role=Role.AFTERWARDS,
        when="platforms recommend for themselves and can give part of their budget to a fit of their own, kept only if it wins",
        trusts="what the strategy before it trusts",
        sends="one word: whether a platform uses a model of its own",
    )
