"""Every strategy keeps the contract, alone and in company; `ffa`'s and `rolora`'s exactness have their own oracles."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from shared.base.settings import Settings, build
from shared.model.factor_schedule import SCHEMES
from shared.protocol.messages import Factors
from strategies.base import AdapterStrategy
from strategies.composition import named, strategy_cards
from strategies.strategy_card import Role
from tests.strategies.contract import RUN, SHAPES, Arrays, ExactContract, StrategyContract, drawn, identify


class TestFedAvg(ExactContract):
    name = "fedavg"

    def test_the_mean_is_weighted_by_declared_users(self) -> None:
        adapter, one, two = drawn(0), drawn(1), drawn(2)
        got = self.combine({1: (one, 300), 2: (two, 100)}, adapter)
        for name in SHAPES:
            wanted = adapter[name] + 0.75 * one[name] + 0.25 * two[name]
            np.testing.assert_allclose(got[name], wanted, rtol=1e-6, atol=1e-7)


class TestFFA(ExactContract):
    name = "ffa"

    def test_averaging_both_factors_is_not_exact(self) -> None:
        """Why `ffa` is there: on the same changes, `fedavg`'s product is far from the mean of the products."""
        adapter = drawn(0)
        changes = {node: (drawn(node), 1) for node in (1, 2)}
        got = TestFedAvg().combine(changes, adapter)
        products = [
            (adapter["head.lora_B"] + change["head.lora_B"]) @ (adapter["head.lora_A"] + change["head.lora_A"])
            for change, _ in changes.values()
        ]
        gap = np.abs(got["head.lora_B"] @ got["head.lora_A"] - np.mean(products, axis=0)).max()
        assert gap > 0.1

    def test_a_is_never_moved(self) -> None:
        adapter = drawn(0)
        got = self.combine({1: (drawn(1), 1), 2: (drawn(2), 5)}, adapter)
        np.testing.assert_array_equal(got["head.lora_A"], adapter["head.lora_A"])
        assert {named("ffa")(settings=self.settings, run=RUN).factors(n) for n in range(1, 9)} == {Factors.B}


class TestRoLoRA(ExactContract):
    name = "rolora"

    def test_the_factors_take_turns(self) -> None:
        strategy = named("rolora")(settings=self.settings, run=RUN)
        assert [strategy.factors(n) for n in range(1, 5)] == [Factors.B, Factors.A, Factors.B, Factors.A]


class TestFedSA(ExactContract):
    name = "fedsa"

    def test_b_is_never_asked_for(self) -> None:
        strategy = named("fedsa")(settings=self.settings, run=RUN)
        assert {strategy.factors(n) for n in range(1, 9)} == {Factors.A}


class TestFedSB(ExactContract):
    name = "fedsb"


class TestExact(ExactContract):
    name = "exact"


class TestFLoRA(ExactContract):
    name = "flora"


class TestSVD(ExactContract):
    name = "svd"


class TestMedian(ExactContract):
    name = "median"


class TestTrimmed(ExactContract):
    name = "trimmed"


class TestKrum(ExactContract):
    name = "krum"


class TestSecureSum(StrategyContract):
    """As a strategy over adapters; what travels masked instead has its own tests."""

    name = "secure-sum"


class TestFedAvgM(ExactContract):
    name = "fedavgm"
    server: ClassVar[dict[str, Any]] = {"learning_rate": 1.0}


class TestFedAdam(StrategyContract):
    name = "fedadam"


class TestFedYogi(StrategyContract):
    name = "fedyogi"


class TestPersonalise(ExactContract):
    name = "personalise"


class TestFFAWithFedAdam(StrategyContract):
    name = "ffa+fedadam"


class TestMedianOfRoLoRA(ExactContract):
    name = "median+rolora"


class TestKrumOfFedSB(StrategyContract):
    name = "fedsb+krum+fedyogi"
    server: ClassVar[dict[str, Any]] = {"faulty": 0}


class TestTrimmedFedSA(ExactContract):
    name = "fedsa+trimmed"
    server: ClassVar[dict[str, Any]] = {"faulty": 2}


@pytest.mark.parametrize("server_round", [1, 2, 3])
@pytest.mark.parametrize("name", ["ffa", "rolora"])
def test_the_mean_of_the_products_is_the_product_of_the_mean(
    name: str, server_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify(monkeypatch)
    contract: Any = {"ffa": TestFFA, "rolora": TestRoLoRA}[name]()
    adapter = drawn(0)
    strategy: AdapterStrategy = contract.strategy(dict.fromkeys((1, 2, 3), 1), adapter)
    changes = {node: {key: value * 0.1 for key, value in contract.drawn(100 * server_round + node).items()} for node in (1, 2, 3)}
    got = contract.one_round(strategy, server_round, adapter)
    moving = {"b": ".lora_B", "a": ".lora_A"}[strategy.factors(server_round).value]
    for at in ("encoder.layer.5.query", "head"):

        def after(change: Arrays, factor: str, at: str = at) -> np.ndarray[Any, Any]:
            key = f"{at}.lora_{factor}"
            return adapter[key].astype(float) + (change[key] if key.endswith(moving) else 0.0)

        mean = np.mean([after(change, "B") @ after(change, "A") for change in changes.values()], axis=0)
        np.testing.assert_allclose(got[f"{at}.lora_B"].astype(float) @ got[f"{at}.lora_A"], mean, rtol=0, atol=5e-6)


def test_the_catalogue_lists_every_strategy_once_and_each_has_its_contract() -> None:
    def below(contract: type) -> set[str]:
        return {contract.name for contract in contract.__subclasses__() if hasattr(contract, "name")} | {
            name for inner in contract.__subclasses__() for name in below(inner)
        }

    names = [card.name for card in strategy_cards()]
    assert names == sorted(set(names))
    assert {card.name for card in strategy_cards() if card.role is not Role.UNTRAINED} <= below(StrategyContract)


def test_whoever_makes_updates_is_known_to_the_platforms() -> None:
    made = {card.name for card in strategy_cards() if card.role is Role.UPDATES}
    # The secure sum trains and sends both factors, as whoever is not in the table.
    assert made - {"secure-sum"} == set(SCHEMES)


def test_linear_is_what_an_average_is_and_a_product_is_not() -> None:
    linear = {name for name in SCHEMES if named(name)(settings=build({"strategy": name}, where="test"), run=RUN).linear}
    assert linear == {"fedavg", "ffa", "rolora", "fedsa", "fedsb"}
    assert isinstance(Settings(), Settings)
