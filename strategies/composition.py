"""A strategy by its name: at most one part of each role, joined by '+' in any order.

    fedavg            updates alone: their mean is added
    fedadam           a server optimizer alone acts on fedavg's updates
    ffa+median        ffa's updates, their median
    rolora+krum+fedavgm+personalise

What does not fit together is refused here, before a run starts, with the reason.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import strategies
from shared.base.errors import InputError
from shared.base.nearest_names import meant
from shared.base.settings import Settings
from shared.model.factor_schedule import parts_of
from strategies.base import AdapterStrategy, Member
from strategies.optimizers import ServerOptimizer
from strategies.robust import Robust
from strategies.secure_sum.summed_step import StepOnSums
from strategies.strategy_card import Card, Role

_DEFAULT = "fedavg"


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The parts of one strategy. Call it to make the strategy.

    Args:
        combining: None: the mean, weighted by declared users.
        optimizer: None: the combined change is added as it is.
        afterwards: What follows the last round, or None.
    """

    name: str
    updates: type[AdapterStrategy]
    combining: type[Robust] | None = None
    optimizer: type[ServerOptimizer] | None = None
    afterwards: type[Any] | None = None

    def __call__(self, *, settings: Settings, run: str, members: Iterable[Member] | None = None) -> AdapterStrategy:
        """The strategy of a run.

        Raises:
            InputError: the settings' noise cannot be combined with it.
        """
        self.require(settings)
        faulty = settings.server.faulty
        optimizer = self.optimizer(settings.server) if self.optimizer else None
        if optimizer is None and settings.distributed:
            optimizer = StepOnSums(settings)
        if self.combining is None:
            return self.updates(settings=settings, run=run, members=members, optimizer=optimizer)
        return self.updates(
            settings=settings,
            run=run,
            members=members,
            combining=partial(self.combining, faulty=faulty),
            optimizer=optimizer,
            least=self.combining.least(faulty),
        )

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards of its parts."""
        parts = (self.updates, self.combining, self.optimizer, self.afterwards)
        return tuple(part.card for part in parts if part is not None and hasattr(part, "card"))

    @property
    def card(self) -> Card:
        """What the parts together are, as one card."""
        cards = self.cards
        if len(cards) == 1:
            return cards[0]
        return Card(
            name=self.name,
            when=" + ".join(f"{card.name}: {card.when}" for card in cards),
            trusts=" + ".join(f"{card.name}: {card.trusts}" for card in cards),
            sends=self.updates.card.sends,
        )

    def require(self, settings: Settings) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: the updates cannot be summed blindly, and the settings say that nobody may see them.
        """
        # Other values of privacy.noise do not concern the coordinator: the platforms add that noise themselves.
        if str(settings.privacy.noise) != "distributed":
            return
        if self.combining is not None:
            raise InputError(
                f"{self.combining.card.name} compares the platforms' updates with each other, "
                "and under distributed noise the secure sum shows the coordinator only their sum",
                where=f"strategy {self.name}, privacy.noise = distributed",
                do="take local noise, or no robust combiner",
            )
        if not self.updates.linear:
            raise InputError(
                f"{self.updates.card.name} needs each platform's factors in clear to multiply them, "
                "and under distributed noise the secure sum shows the coordinator only their sum",
                where=f"strategy {self.name}, privacy.noise = distributed",
                do=f"take local noise, or one of {', '.join(sorted(_linear()))}",
            )


def named(name: str) -> Composition:
    """The strategy of that name.

    Returns:
        Its parts. Called with `settings` and `run`, it makes the strategy.

    Raises:
        InputError: a part is unknown, two parts have one role, or a part does not go with the updates.

    | given | result |
    |---|---|
    | `"ffa+median"`, `"median + ffa"` | the same parts, in any order |
    | `"median"` | `fedavg` with it, as for any part without updates of its own |
    | `""`, `"FFA"` | `InputError`, with all names |
    | `"ffa+rolora"` | `InputError`: one of each role at most |
    | `"flora+median"`, `"preferences+median"` | `InputError`: they do not go together |
    """
    known, taken = _known(), dict[Role, str]()
    for part in parts_of(name):
        if part not in known:
            raise InputError(
                f"no strategy is named {part!r}{meant(part, known)}",
                where="strategy" if part == name else f"strategy {name!r}",
                do=f"choose from {', '.join(known)}",
            )
        role = known[part].card.role
        if role in taken:
            raise InputError(
                f"{taken[role]} and {part} are both for {role}", where=f"strategy {name!r}", do="name one of each role at most"
            )
        taken[role] = part
    found = {role: known[part] for role, part in taken.items()}
    if Role.UNTRAINED in found and len(found) > 1:
        alone = taken.pop(Role.UNTRAINED)
        raise InputError(
            f"{alone} trains nothing, so {', '.join(taken.values())} has nothing to act on",
            where=f"strategy {name!r}",
            do=f"name {alone} alone, or set preferences.items to share preferences before training",
        )
    updates = found.get(Role.UNTRAINED) or found.get(Role.UPDATES, known[_DEFAULT])
    clash = [taken[role] for role in (Role.COMBINING, Role.OPTIMIZER) if role in found]
    if clash and not updates.linear:
        raise InputError(
            f"{clash[0]} acts on plain updates, and {updates.card.name} combines the products of their factors instead",
            where=f"strategy {name!r}",
            do=f"combine {clash[0]} with one of {', '.join(sorted(_linear()))}",
        )
    return Composition(
        name=name,
        updates=updates,
        combining=found.get(Role.COMBINING),
        optimizer=found.get(Role.OPTIMIZER),
        afterwards=found.get(Role.AFTERWARDS),
    )


def strategy_cards() -> tuple[Card, ...]:
    """What there is to choose from, sorted by name."""
    return tuple(part.card for part in _known().values())


def under_secure_sum(card: Card) -> bool:
    """Whether a part works where the coordinator learns only the sum of the updates."""
    return bool(_known()[card.name].linear) if card.role is Role.UPDATES else card.role is not Role.COMBINING


def _linear() -> list[str]:
    return [name for name, part in _known().items() if part.card.role is Role.UPDATES and part.linear]


@cache
def _known() -> dict[str, Any]:
    """Every class in this package with a card of its own; adding a part is adding a module."""
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(strategies.__path__, f"{strategies.__name__}."):
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, type) and isinstance(vars(thing).get("card"), Card):
                found[thing.card.name] = thing  # type: ignore[attr-defined]
    return dict(sorted(found.items()))
