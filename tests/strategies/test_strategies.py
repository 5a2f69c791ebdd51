"""Every strategy keeps one contract; FFA-LoRA's exactness and the registry have their own oracles."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.adapter import trained
from shared.errors import InputError
from shared.messages import Answer, Factors, Label, Metrics, Reason, Refusal, Train, Update, request_from, to_record
from shared.settings import Settings
from strategies import catalogue, named
from strategies.base import AdapterStrategy, Member, NoUpdate, adapter_from, record_of

RUN = "trial"
# The check fears one test run by several classes; that is just what a contract is, and these tests keep no state.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=30, deadline=None)
# Not square, so that a transposed factor cannot pass unseen.
SHAPES = {
    "encoder.layer.5.query.lora_A": (2, 7),
    "encoder.layer.5.query.lora_B": (5, 2),
    "head.lora_A": (2, 3),
    "head.lora_B": (4, 2),
}
Arrays = dict[str, np.ndarray[Any, Any]]


class Nodes:
    """The one thing that a strategy asks of a grid."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def get_node_ids(self) -> Iterable[int]:
        return self.ids


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def drawn(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def reply(answer: Answer | Error, node: int) -> Message:
    """What comes back from `node`."""
    request = Message(RecordDict(), node, "train")
    return Message(answer if isinstance(answer, Error) else to_record(answer), reply_to=request)


def update(node: int, change: Mapping[str, Any], *, users: int = 1, **other: Any) -> Update:
    values = {"run": RUN, "platform": f"p{node}", "round": 1, "users": users, "epsilon": 1.0, "ledger": "", "seconds": 0.1}
    return Update(**{**values, "change": dict(change), **other})


def metrics(node: int, *, users: int, ndcg: float) -> Metrics:
    return Metrics(
        run=RUN, platform=f"p{node}", round=1, label=Label.FEDERATED, users=users, ndcg=ndcg, hr=ndcg / 2, auc=0.5,
        exact=True, epsilon=0.0, ledger="", seconds=0.1,
    )  # fmt: skip


class StrategyContract:
    """What every strategy must keep; a new strategy is covered as soon as it is in the catalogue."""

    name: ClassVar[str]

    def strategy(self, weights: Mapping[int, int], adapter: Arrays) -> AdapterStrategy:
        members = [Member(node=node, platform=f"p{node}", users=users) for node, users in weights.items()]
        strategy = named(self.name)(settings=Settings(strategy=self.name), run=RUN, members=members)
        strategy.configure_train(1, record_of(adapter), ConfigRecord(), Nodes())
        return strategy

    def trained(self, strategy: AdapterStrategy, arrays: Arrays) -> Arrays:
        return {name: arrays[name] for name in trained(arrays, strategy.factors(1))}

    def combine(self, changes: Mapping[int, tuple[Arrays, int]], adapter: Arrays, order: Iterable[int] | None = None) -> Arrays:
        strategy = self.strategy({node: users for node, (_, users) in changes.items()}, adapter)
        answers = {node: update(node, self.trained(strategy, c), users=users) for node, (c, users) in changes.items()}
        arrays, _ = strategy.aggregate_train(1, (reply(answers[node], node) for node in (order or answers)))
        return adapter_from(arrays)

    def test_the_card_is_whole(self) -> None:
        card = named(self.name).card
        assert card.name == self.name
        assert all(len(part) > 3 for part in (card.when, card.trusts, card.sends))
        assert "\n" not in card.line

    def test_every_member_gets_the_adapter_and_the_factors(self) -> None:
        adapter = drawn(0)
        strategy = self.strategy({3: 1, 4: 1}, adapter)
        sent = strategy.configure_train(2, record_of(adapter), ConfigRecord(), Nodes(3, 4, 5))
        assert [message.metadata.dst_node_id for message in sent] == [3, 4]
        assert sent[0].content is sent[1].content  # one copy, whatever the number of platforms
        request = request_from(sent[0].content)
        assert isinstance(request, Train)
        assert (request.round, request.run, request.factors) == (2, RUN, strategy.factors(2))
        for name, array in adapter.items():
            np.testing.assert_array_equal(request.adapter[name], array)

    @pytest.mark.parametrize(("members", "asked"), [(None, [7, 8]), ([], [])])
    def test_every_node_is_asked_only_where_there_is_no_roll(self, members: list[Member] | None, asked: list[int]) -> None:
        strategy = named(self.name)(settings=Settings(), run=RUN, members=members)
        sent = strategy.configure_train(1, record_of(drawn(0)), ConfigRecord(), Nodes(7, 8))
        assert [message.metadata.dst_node_id for message in sent] == asked

    @inherited
    @given(seed=st.integers(0, 99), users=st.integers(1, 2**28))
    def test_one_platform_is_its_own_update(self, seed: int, users: int) -> None:
        adapter, change = drawn(seed), drawn(seed + 1)
        got = self.combine({1: (change, users)}, adapter)
        names = trained(adapter, named(self.name)(settings=Settings(), run=RUN).factors(1))
        for name in SHAPES:
            wanted = (adapter[name].astype(float) + change[name]).astype(np.float32) if name in names else adapter[name]
            np.testing.assert_array_equal(got[name], wanted)

    @inherited
    @given(weights=st.lists(st.integers(1, 10**6), min_size=2, max_size=6), data=st.data())
    def test_the_order_of_answers_does_not_matter(self, weights: list[int], data: st.DataObject) -> None:
        adapter = drawn(0)
        changes = {node: (drawn(node), users) for node, users in enumerate(weights, start=1)}
        order = data.draw(st.permutations(list(changes)))
        straight, shuffled = self.combine(changes, adapter), self.combine(changes, adapter, order)
        for name in SHAPES:
            np.testing.assert_allclose(straight[name], shuffled[name], rtol=1e-6, atol=1e-7)

    def test_equal_updates_give_that_update(self) -> None:
        adapter, change = drawn(0), drawn(1)
        alone = self.combine({1: (change, 5)}, adapter)
        together = self.combine({node: (change, node) for node in (1, 2, 3)}, adapter)
        for name in SHAPES:
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-6)

    def test_zero_updates_leave_the_adapter_unchanged(self) -> None:
        adapter = drawn(0)
        zero = {name: np.zeros_like(array) for name, array in adapter.items()}
        got = self.combine({1: (zero, 3), 2: (zero, 4)}, adapter)
        for name in SHAPES:
            np.testing.assert_array_equal(got[name], adapter[name])

    def test_float32_comes_out_with_every_name_and_shape(self) -> None:
        got = self.combine({1: (drawn(1), 2), 2: (drawn(2), 1)}, drawn(0))
        assert {name: array.shape for name, array in got.items()} == SHAPES
        assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}

    def test_a_bad_update_is_left_out_with_its_reason(self) -> None:
        adapter = drawn(0)
        strategy = self.strategy(dict.fromkeys(range(1, 10), 2), adapter)
        good = self.trained(strategy, drawn(1))
        first = next(iter(good))
        nan = {**good, first: np.full_like(good[first], np.nan)}
        huge = {**good, first: np.full_like(good[first], np.finfo(np.float32).max)}
        bad = {
            2: (update(2, nan, users=2), "not finite"),
            3: (update(3, {**good, first: good[first].T.copy()}, users=2), "shape"),
            4: (update(4, {name: array for name, array in good.items() if name != first}, users=2), "differ"),
            5: (update(5, good, users=2, round=2), "round 2"),
            6: (update(6, good, users=2, run="other"), "other"),
            7: (update(7, good, users=2, platform="p1"), "p1"),
            8: (update(8, good, users=1000), "1000 users"),
            9: (metrics(9, users=2, ndcg=0.1), "metrics"),
            10: (update(10, good, users=2), "member"),
            1: (update(1, good, users=2), ""),
        }
        adapter[first][0, 0] = np.finfo(np.float32).max
        strategy.configure_train(1, record_of(adapter), ConfigRecord(), Nodes())
        replies = [reply(answer, node) for node, (answer, _) in bad.items()]
        replies += [reply(update(2, huge, users=2), 2), reply(Error(code=2, reason="x"), 3)]
        arrays, counted = strategy.aggregate_train(1, iter(replies))
        for node, (_, reason) in bad.items():
            if reason:
                assert any(drop.node == node and reason in drop.reason for drop in strategy.report.drops), (node, reason)
        assert any("float32" in drop.reason for drop in strategy.report.drops if drop.node == 2)
        assert any("error 2" in drop.reason for drop in strategy.report.drops if drop.node == 3)
        assert [receipt.platform for receipt in strategy.report.updates] == ["p1"]
        assert counted["platforms"] == 1 and counted["dropped"] == 11
        np.testing.assert_array_equal(adapter_from(arrays)[first].dtype, np.float32)

    def test_a_refusal_is_no_update_and_no_fault(self) -> None:
        strategy = self.strategy({1: 1, 2: 1}, drawn(0))
        refusal = Refusal(run=RUN, platform="p2", round=1, reason=Reason.BUDGET)
        good = update(1, self.trained(strategy, drawn(1)))
        strategy.aggregate_train(1, [reply(refusal, 2), reply(good, 1)])
        assert strategy.report.refusals == {2: refusal} and not strategy.report.drops

    @pytest.mark.parametrize("answers", [[], [Error(code=2, reason="x")]])
    def test_no_update_at_all_raises(self, answers: list[Error]) -> None:
        strategy = self.strategy({1: 1}, drawn(0))
        with pytest.raises(NoUpdate, match="round 1"):
            strategy.aggregate_train(1, [reply(answer, 1) for answer in answers])

    def test_updates_are_folded_one_at_a_time(self) -> None:
        strategy = self.strategy(dict.fromkeys(range(1, 9), 1), drawn(0))
        alive: list[weakref.ref[Message]] = []

        def arriving() -> Iterator[Message]:
            for node in range(1, 9):
                message = reply(update(node, self.trained(strategy, drawn(node))), node)
                assert not [other for other in alive if other() is not None], "an earlier update is still held"
                alive.append(weakref.ref(message))
                yield message
                del message

        strategy.aggregate_train(1, arriving())
        assert len(strategy.report.updates) == 8

    def test_evaluation_is_weighted_by_users(self) -> None:
        strategy = self.strategy({1: 30, 2: 10}, drawn(0))
        answers = [metrics(1, users=30, ndcg=0.4), metrics(2, users=10, ndcg=0.8)]
        mean = strategy.aggregate_evaluate(1, [reply(answer, node) for node, answer in enumerate(answers, start=1)])
        assert mean is not None
        assert mean["ndcg"] == pytest.approx(0.5) and mean["hr"] == pytest.approx(0.25)
        assert strategy.report.metrics == answers
        assert strategy.aggregate_evaluate(1, []) is None


class TestFedAvg(StrategyContract):
    name = "fedavg"

    def test_the_mean_is_weighted_by_declared_users(self) -> None:
        adapter, one, two = drawn(0), drawn(1), drawn(2)
        got = self.combine({1: (one, 300), 2: (two, 100)}, adapter)
        for name in SHAPES:
            wanted = adapter[name] + 0.75 * one[name] + 0.25 * two[name]
            np.testing.assert_allclose(got[name], wanted, rtol=1e-6, atol=1e-7)


class TestFFA(StrategyContract):
    name = "ffa"

    def test_the_mean_of_the_products_is_the_product_of_the_mean(self) -> None:
        adapter = drawn(0)
        changes = {node: (drawn(node), node * 10) for node in (1, 2, 3)}
        got = self.combine(changes, adapter)
        for name in ("encoder.layer.5.query", "head"):
            a, b = adapter[f"{name}.lora_A"].astype(float), adapter[f"{name}.lora_B"].astype(float)
            products = sum(users * (b + change[f"{name}.lora_B"]) @ a for change, users in changes.values())
            mean_of_products = products / sum(users for _, users in changes.values())
            product_of_mean = got[f"{name}.lora_B"].astype(float) @ got[f"{name}.lora_A"]
            np.testing.assert_allclose(product_of_mean, mean_of_products, rtol=0, atol=5e-6)

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
        assert named("ffa")(settings=Settings(), run=RUN).factors(1) is Factors.B


def test_the_catalogue_lists_every_strategy_once_and_each_has_its_contract() -> None:
    names = [card.name for card in catalogue()]
    assert names == sorted(set(names))
    assert set(names) == {contract.name for contract in StrategyContract.__subclasses__()}


def test_an_unknown_strategy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'fedavgg'") as caught:
        named("fedavgg")
    assert all(card.name in caught.value.do for card in catalogue())
