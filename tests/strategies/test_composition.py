"""Parts of a strategy by name: what fits together is put together, and the rest is refused at start with the reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.base.errors import InputError
from shared.base.settings import build
from strategies.composition import named, strategy_cards, under_secure_sum
from strategies.optimizers import FedAdam, FedAvgM, ServerOptimizer
from strategies.robust import Krum, Median
from strategies.rolora import RoLoRA
from strategies.strategy_card import Card, Role

UPDATES = [card.name for card in strategy_cards() if card.role is Role.UPDATES and card.name != "secure-sum"]
COMBINING = [card.name for card in strategy_cards() if card.role is Role.COMBINING]
OPTIMIZERS = [card.name for card in strategy_cards() if card.role is Role.OPTIMIZER]
PRODUCTS = ["exact", "flora", "svd"]


def made(name: str, **over: Any) -> Any:
    return named(name)(settings=build({"strategy": name, **over}, where="test"), run="r")


def distributed(name: str) -> Any:
    """The settings' noise as the platforms would add it under a secure sum."""
    return SimpleNamespace(privacy=SimpleNamespace(noise="distributed"))


@pytest.mark.parametrize("name", ["rolora+krum+fedavgm", "fedavgm+rolora+krum", " krum + fedavgm+rolora "])
def test_the_order_of_the_parts_says_nothing(name: str) -> None:
    parts = named(name)
    assert (parts.updates, parts.combining, parts.optimizer) == (RoLoRA, Krum, FedAvgM)


@pytest.mark.parametrize("part", [*COMBINING, *OPTIMIZERS])
def test_a_part_alone_acts_on_plain_averaging(part: str) -> None:
    assert named(part).updates is named("fedavg").updates
    assert isinstance(named("fedadam").optimizer, type) and named("fedadam").optimizer is FedAdam
    assert made("fedavg").optimizer.__class__ is ServerOptimizer
    assert named("median").combining is Median


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedavgg", ["fedavgg", "fedavg", "krum"]),
        ("ffa+magic", ["magic", "ffa+magic"]),
        ("", ["''"]),
        ("ffa+", ["''"]),
        ("ffa+fedavg", ["ffa", "fedavg", "both"]),
        ("median+krum", ["median", "krum", "both"]),
        ("fedadam+fedadam", ["fedadam", "both"]),
        ("fedadam+fedyogi+ffa", ["fedyogi", "both"]),
    ],
)
def test_what_is_no_strategy_is_answered(name: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        named(name)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.do


@pytest.mark.parametrize("part", [*COMBINING, *OPTIMIZERS])
@pytest.mark.parametrize("updates", PRODUCTS)
def test_products_take_no_other_combiner_or_optimizer(updates: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        named(f"{updates}+{part}")
    assert "products" in caught.value.found and "ffa" in caught.value.do


@pytest.mark.parametrize("updates", UPDATES)
def test_under_the_secure_sum_only_what_a_sum_can_carry(updates: str) -> None:
    composition = named(updates)
    composition.require(build({}, where="test"))  # local noise: everything
    if updates not in PRODUCTS:
        composition.require(distributed(updates))
        named(f"{updates}+fedadam").require(distributed(updates))
        return
    with pytest.raises(InputError, match="in clear") as caught:
        composition.require(distributed(updates))
    assert "ffa" in caught.value.do and "exact" not in caught.value.do


@pytest.mark.parametrize("combining", COMBINING)
def test_robust_combiners_are_refused_under_the_secure_sum(combining: str) -> None:
    with pytest.raises(InputError, match="compares") as caught:
        named(f"ffa+{combining}").require(distributed(combining))
    assert combining in caught.value.found


def test_the_readme_has_every_part() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Strategies") : text.index("## Under Flower")]
    assert all(f"`{card.name}`" in table for card in strategy_cards())


def test_the_card_of_a_composition_speaks_of_all_its_parts() -> None:
    card = named("ffa+median+fedavgm").card
    assert all(part in card.when for part in ("ffa", "median", "fedavgm"))
    assert card.sends == named("ffa").card.sends
    assert named("ffa").card.name == "ffa"


@pytest.mark.parametrize("card", strategy_cards(), ids=lambda card: card.name)
def test_what_is_said_to_work_under_the_secure_sum_is_what_is_let_through(card: Card) -> None:
    try:
        named(card.name).require(distributed(card.name))
        let_through = True
    except InputError:
        let_through = False
    assert under_secure_sum(card) is let_through
