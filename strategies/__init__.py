"""How platforms' adapters become a global adapter: no files, no Flower start-up.

A strategy is one module in this package with one subclass of `strategies.base.AdapterStrategy` that has a `card`;
`named` and `catalogue` find it there.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from shared.errors import InputError

if TYPE_CHECKING:
    from strategies.base import AdapterStrategy, Card


def named(name: str) -> type[AdapterStrategy]:
    """The strategy of that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    known = _known()
    if name not in known:
        raise InputError(f"no strategy is named {name!r}", where="strategy", do=f"choose from {', '.join(known)}")
    return known[name]


def catalogue() -> tuple[Card, ...]:
    """What there is to choose from, sorted by name."""
    return tuple(strategy.card for strategy in _known().values())


@cache
def _known() -> dict[str, type[AdapterStrategy]]:
    from strategies.base import AdapterStrategy

    found: dict[str, type[AdapterStrategy]] = {}
    for module in pkgutil.iter_modules(__path__):
        for thing in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(thing, type) and issubclass(thing, AdapterStrategy) and "card" in vars(thing):
                found[thing.card.name] = thing
    return dict(sorted(found.items()))
