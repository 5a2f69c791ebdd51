"""How platforms' adapters become a global adapter: no files, no Flower start-up.

A strategy is one module in this package with one small class that has a `card`: a subclass of
`strategies.base.AdapterStrategy` (how updates are made), of `strategies.robust.Robust` (how they are combined) or of
`strategies.optimizers.ServerOptimizer` (how the result is applied). `named` puts parts together by name, as in
`ffa+fedadam`; `catalogue` lists the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.card import Card
    from strategies.composition import Composition


def named(name: str) -> Composition:
    """The strategy of that name; its parts are joined by '+'.

    Raises:
        InputError: a part is unknown, or parts do not go together; the message says why.
    """
    from strategies import composition

    return composition.named(name)


def catalogue() -> tuple[Card, ...]:
    """What there is to choose from, sorted by name."""
    from strategies import composition

    return composition.catalogue()
