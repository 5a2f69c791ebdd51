"""`exact`, `flora` and `svd` against the mean of the products, which only these tests form."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from shared.base.settings import build
from shared.model.residual_factors import is_residual, merged
from shared.protocol.flower_records import request_from
from shared.protocol.messages import Train
from strategies.base import AdapterStrategy, Member, adapter_from, record_of
from strategies.composition import named
from strategies.products.svd import FlexLoRA, Slices, leading, truncated
from tests.strategies.contract import (
    RUN,
    Arrays,
    Nodes,
    StrategyContract,
    drawn,
    identify,
    inherited,
    model,
    moved,
    reply,
    update,
)

# Non-square both ways, wide enough for rank 16, and not the same twice.
WIDE = {
    "encoder.layer.1.intermediate.dense.lora_A": (16, 24),
    "encoder.layer.1.intermediate.dense.lora_B": (40, 16),
    "encoder.layer.1.output.dense.lora_A": (16, 40),
    "encoder.layer.1.output.dense.lora_B": (24, 16),
}


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    identify(monkeypatch)


def contract_of(strategy_name: str) -> StrategyContract:
    return type("Contract", (StrategyContract,), {"name": strategy_name})()


def mean_of_products(adapter: Arrays, changes: Mapping[int, tuple[Arrays, int]]) -> Arrays:
    total = sum(users for _, users in changes.values())
    products = [(model(moved(adapter, change)), users) for change, users in changes.values()]
    return {name: sum(product[name] * users for product, users in products) / total for name in products[0][0]}


class TestExactOnes:
    """`exact` and `flora`: the global product is the mean of the platforms' products, after every round."""

    @pytest.mark.parametrize("name", ["exact", "flora"])
    @inherited
    @given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=7), seed=st.integers(0, 99))
    def test_the_product_is_the_mean_of_the_products(self, name: str, weights: list[int], seed: int) -> None:
        adapter = drawn(seed)
        changes = {node: (drawn(seed + node), users) for node, users in enumerate(weights, start=1)}
        got, wanted = model(contract_of(name).combine(changes, adapter)), mean_of_products(adapter, changes)
        for at in wanted:
            np.testing.assert_allclose(got[at], wanted[at], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ["exact", "flora"])
    def test_over_many_rounds_and_platforms(self, name: str) -> None:
        """Six rounds of five platforms: the residual passes the rank that its map can have, and stays exact."""
        contract = contract_of(name)
        strategy = contract.strategy({node: 10 * node for node in range(1, 6)}, drawn(0))
        adapter = drawn(0)
        for server_round in range(1, 7):
            changes = {
                node: ({k: 0.3 * v for k, v in drawn(100 * server_round + node).items()}, 10 * node) for node in range(1, 6)
            }
            strategy.configure_train(server_round, record_of(adapter), ConfigRecord(), Nodes())
            answers = [
                reply(update(node, change, users=users, round=server_round), node) for node, (change, users) in changes.items()
            ]
            wanted = mean_of_products(adapter, changes)
            adapter = adapter_from(strategy.aggregate_train(server_round, answers)[0])
            for at, product in model(adapter).items():
                np.testing.assert_allclose(product, wanted[at], rtol=0, atol=2e-5)
        ranks = {key: array.shape[0] for key, array in adapter.items() if key.endswith("residual_A")}
        assert ranks == {"encoder.layer.5.query.residual_A": 5, "head.residual_A": 3}

    def test_plain_averaging_is_not_exact_on_the_same_changes(self) -> None:
        adapter = drawn(0)
        changes = {node: (drawn(node), 1) for node in (1, 2, 3)}
        got, wanted = model(contract_of("fedavg").combine(changes, adapter)), mean_of_products(adapter, changes)
        assert max(np.abs(got[at] - wanted[at]).max() for at in wanted) > 0.3

    @pytest.mark.parametrize("name", ["exact", "flora"])
    def test_no_platform_is_forgotten(self, name: str) -> None:
        """A published baseline kept only the first client's factors."""
        adapter, quiet = drawn(0), {key: np.zeros_like(value) for key, value in drawn(0).items()}
        for loud in (1, 2, 3):
            changes = {node: (drawn(7) if node == loud else quiet, 1) for node in (1, 2, 3)}
            got, wanted = model(contract_of(name).combine(changes, adapter)), mean_of_products(adapter, changes)
            for at in wanted:
                np.testing.assert_allclose(got[at], wanted[at], atol=1e-5)
                assert np.abs(wanted[at] - model(adapter)[at]).max() > 0.1

    def test_a_transposed_residual_would_be_seen(self) -> None:
        """Seen in a published code because q and v are square there; here no map is."""
        got = contract_of("exact").combine({1: (drawn(1), 1), 2: (drawn(2), 1)}, drawn(0))
        for at, shape in (("encoder.layer.5.query", (5, 7)), ("head", (4, 3))):
            a, b = got[f"{at}.residual_A"], got[f"{at}.residual_B"]
            assert (b @ a).shape == shape
            with pytest.raises(ValueError, match="broadcast"):
                _ = a.T @ b.T + model(drawn(0))[at]

    def test_one_platform_leaves_no_residual_under_exact(self) -> None:
        got = contract_of("exact").combine({1: (drawn(1), 5)}, drawn(0))
        assert not any(map(is_residual, got))

    def test_flora_begins_every_round_with_a_new_a_and_no_b(self) -> None:
        contract = contract_of("flora")
        strategy = contract.strategy({1: 1, 2: 1}, drawn(0))
        first = contract.one_round(strategy, 1, drawn(0))
        second = contract.one_round(strategy, 2, first)
        assert not first["head.lora_B"].any() and not second["head.lora_B"].any()
        assert (first["head.lora_A"] != second["head.lora_A"]).any()
        assert (first["head.lora_A"] != drawn(0)["head.lora_A"]).all()

    def test_what_is_published_is_the_whole_product(self) -> None:
        got = contract_of("flora").combine({1: (drawn(1), 1), 2: (drawn(2), 3)}, drawn(0))
        one = merged(got)
        assert not any(map(is_residual, one))
        for at, product in model(got).items():
            np.testing.assert_allclose(model(one)[at], product, atol=1e-5)


def strategy_of(ranks: Mapping[int, int], adapter: Arrays, *, users: Mapping[int, int] | None = None) -> AdapterStrategy:
    members = [
        Member(node=node, platform=f"p{node}", users=(users or {}).get(node, 1), rank=rank) for node, rank in ranks.items()
    ]
    settings = build({"strategy": "svd", "model": {"rank": 16}}, where="test")
    strategy = named("svd")(settings=settings, run=RUN, members=members)
    strategy.configure_train(1, record_of(adapter), ConfigRecord(), Nodes())
    return strategy


def falling(seed: int) -> Arrays:
    """Factors whose products have a falling spectrum, in the order that `svd` keeps them."""
    adapter = drawn(seed, WIDE)
    for name, array in adapter.items():
        sizes = np.geomspace(2.0, 0.1, 16).astype(np.float32)
        adapter[name] = array * (sizes[:, None] if name.endswith("A") else sizes)
    return adapter


class TestSVD:
    @inherited
    @given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=5), seed=st.integers(0, 99))
    def test_is_the_best_approximation_of_its_rank(self, weights: list[int], seed: int) -> None:
        adapter = drawn(seed)
        changes = {node: (drawn(seed + node), users) for node, users in enumerate(weights, start=1)}
        got, wanted = model(contract_of("svd").combine(changes, adapter)), mean_of_products(adapter, changes)
        for at, mean in wanted.items():
            # Eckart and Young: no matrix of rank 2 is nearer than the singular values that are cut.
            least = np.sqrt((np.linalg.svd(mean, compute_uv=False)[2:] ** 2).sum())
            assert np.linalg.norm(got[at] - mean) <= least * (1 + 1e-5) + 1e-5
            assert np.linalg.matrix_rank(got[at], tol=1e-4) <= 2

    def test_each_platform_gets_and_returns_its_own_rank(self) -> None:
        adapter = falling(0)
        strategy = strategy_of({1: 4, 2: 8, 3: 16, 4: 64, 5: 4}, adapter)
        sent = strategy.configure_train(1, record_of(adapter), ConfigRecord(), Nodes())
        requests = [request_from(message.content) for message in sent]
        assert all(isinstance(request, Train) for request in requests)
        for request, rank in zip(requests, (4, 8, 16, 16, 4), strict=True):
            for name, array in request.adapter.items():  # type: ignore[union-attr]
                np.testing.assert_array_equal(array, leading(adapter, rank)[name])
        assert sent[0].content is sent[4].content and sent[2].content is sent[3].content
        wrong = {name: np.zeros_like(value) for name, value in leading(adapter, 8).items()}
        fine = {name: np.zeros_like(value) for name, value in leading(adapter, 4).items()}
        strategy.aggregate_train(1, [reply(update(1, wrong), 1), reply(update(5, fine), 5)])
        assert "shape" in strategy.report.drops[0].reason

    def test_mixed_ranks_are_the_mean_of_their_slices(self) -> None:
        """4, 8 and 16 on non-square maps, against the sum over slices, each over its owners, that only this test forms."""
        adapter, ranks, users = falling(0), {1: 4, 2: 8, 3: 16, 4: 16}, {1: 50, 2: 30, 3: 10, 4: 5}
        strategy = strategy_of(ranks, adapter, users=users)
        changes = {
            node: leading({key: 0.2 * value for key, value in falling(node).items()}, rank) for node, rank in ranks.items()
        }
        answers = [reply(update(node, change, users=users[node]), node) for node, change in changes.items()]
        got = model(adapter_from(strategy.aggregate_train(1, answers)[0]))
        for at in got:
            whole = np.zeros(got[at].shape)
            for begin, end in ((0, 4), (4, 8), (8, 16)):
                owners = [node for node, rank in ranks.items() if rank >= end]
                for node in owners:
                    after = moved(leading(adapter, ranks[node]), changes[node])
                    b, a = after[f"{at}.lora_B"][:, begin:end], after[f"{at}.lora_A"][begin:end]
                    whole += users[node] / sum(users[owner] for owner in owners) * b @ a
            u, s, v = np.linalg.svd(whole)
            np.testing.assert_allclose(got[at], u[:, :16] * s[:16] @ v[:16], atol=1e-4)

    def test_ranks_do_not_collapse(self) -> None:
        """Sixteen rounds in which nobody changes anything: averaged over all platforms, the upper slices would be gone."""
        adapter, ranks = falling(0), {1: 4, 2: 4, 3: 4, 4: 16}
        wanted = model(adapter)
        for _ in range(16):
            strategy = strategy_of(ranks, adapter)
            answers = [
                reply(update(node, {name: np.zeros_like(value) for name, value in leading(adapter, rank).items()}), node)
                for node, rank in ranks.items()
            ]
            adapter = adapter_from(strategy.aggregate_train(1, answers)[0])
        for at, product in model(adapter).items():
            np.testing.assert_allclose(product, wanted[at], atol=1e-4)
        naive = np.linalg.svd(wanted["encoder.layer.1.output.dense"], compute_uv=False)[4:] * (1 / 4) ** 16
        assert (naive < 1e-6).all()  # what a mean over all would have left of them

    def test_a_slice_that_nobody_owns_this_round_stays(self) -> None:
        adapter = falling(0)
        strategy = strategy_of({1: 4, 2: 16}, adapter)
        zero = {name: np.zeros_like(value) for name, value in leading(adapter, 4).items()}
        got = adapter_from(strategy.aggregate_train(1, [reply(update(1, zero), 1)])[0])
        for at, product in model(got).items():
            np.testing.assert_allclose(product, model(adapter)[at], atol=1e-4)

    def test_the_factors_come_in_the_order_of_their_weight(self) -> None:
        adapter = falling(3)
        got = adapter_from(strategy_of({1: 16}, adapter).aggregate_train(1, [reply(update(1, falling(4)), 1)])[0])
        for at in ("encoder.layer.1.intermediate.dense", "encoder.layer.1.output.dense"):
            a, b = got[f"{at}.lora_A"].astype(float), got[f"{at}.lora_B"].astype(float)
            np.testing.assert_allclose(a @ a.T, np.eye(16) / 3, atol=1e-5)
            sizes = np.linalg.norm(b, axis=0)
            assert (np.diff(sizes) < 1e-5).all()
            np.testing.assert_allclose(b.T @ b / np.outer(sizes, sizes), np.eye(16), atol=1e-5)

    def test_from_b_zero_every_row_of_a_can_still_learn(self) -> None:
        """At the start the product is zero: factors that shared its singular values evenly would both be dead."""
        adapter = falling(0)
        for name in adapter:
            if name.endswith("B"):
                adapter[name] = np.zeros_like(adapter[name])
        zero = {name: np.zeros_like(value) for name, value in adapter.items()}
        got = adapter_from(strategy_of({1: 16}, adapter).aggregate_train(1, [reply(update(1, zero), 1)])[0])
        for name, value in got.items():
            if name.endswith("A"):
                np.testing.assert_allclose(value.astype(float) @ value.T, np.eye(16) / 3, atol=1e-5)
            else:
                assert not value.any()

    @pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 1)])
    def test_more_ranks_than_the_map_has(self, shape: tuple[int, int]) -> None:
        out, inner = shape
        shapes = {"x.lora_A": (5, inner), "x.lora_B": (out, 5)}
        adapter = drawn(0, shapes)
        fold = Slices(adapter, set())
        fold.add({name: np.zeros(value, np.float32) for name, value in shapes.items()}, weight=1)
        got = fold.adapter()
        assert {name: array.shape for name, array in got.items()} == shapes
        np.testing.assert_allclose(model(got)["x"], model(adapter)["x"], atol=1e-5)

    def test_the_full_matrix_is_never_formed(self) -> None:
        shapes = {"x.lora_A": (4, 30_000), "x.lora_B": (40_000, 4)}
        adapter = drawn(0, shapes)
        tracemalloc.start()
        fold = Slices(adapter, {2})
        for node, rank in ((1, 4), (2, 2), (3, 4)):
            fold.add(leading(drawn(node, shapes), rank), weight=node)
        got = fold.adapter()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert {name: array.shape for name, array in got.items()} == shapes
        assert peak < 150e6 < 40_000 * 30_000 * 8 / 60

    def test_a_rank_above_the_runs_is_the_runs(self) -> None:
        strategy: Any = strategy_of({1: 99, 2: 16, 3: 15}, falling(0))
        assert isinstance(strategy, FlexLoRA)
        assert [strategy.rank(member) for member in strategy.members.values()] == [None, None, 15]

    def test_truncating_a_sum_that_is_zero(self) -> None:
        fold = Slices(drawn(0), set())
        a, b = truncated(fold.mean("head").scaled(0.0), spare=drawn(0)["head.lora_A"])
        assert not b.any() and np.isfinite(a).all()
