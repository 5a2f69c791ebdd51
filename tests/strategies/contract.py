"""What every strategy must keep, and what these tests need to ask it: a grid, adapters, updates, answers."""

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

from shared.base.settings import Settings, build
from shared.model.adapter import trained
from shared.model.factor_schedule import scheme_of
from shared.model.residual_factors import is_residual, require_with_residual
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import Answer, Label, Metrics, Reason, Refusal, Train, Update
from strategies.base import AdapterStrategy, Member, NoUpdate, adapter_from, record_of
from strategies.composition import named
from tests.support.qualities import quality_of

RUN = "trial"
# The check fears one test run by several classes; that is just what a contract is, and these tests keep no state.
inherited = settings(
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture], max_examples=12, deadline=None
)
# Not square, so that a transposed factor cannot pass unseen.
SHAPES = {
    "encoder.layer.5.query.lora_A": (2, 7),
    "encoder.layer.5.query.lora_B": (5, 2),
    "head.lora_A": (2, 3),
    "head.lora_B": (4, 2),
}
CORE = {"encoder.layer.5.query.lora_R": (2, 2), "head.lora_R": (2, 2)}
Arrays = dict[str, np.ndarray[Any, Any]]


class Nodes:
    """The one thing that a strategy asks of a grid."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def get_node_ids(self) -> Iterable[int]:
        return self.ids


def drawn(seed: int, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def reply(answer: Answer | Error, node: int) -> Message:
    """What comes back from `node`."""
    request = Message(RecordDict(), node, "train")
    return Message(answer if isinstance(answer, Error) else to_record(answer), reply_to=request)


def update(node: int, change: Mapping[str, Any], *, users: int = 1, **other: Any) -> Update:
    values = {"run": RUN, "platform": f"p{node}", "round": 1, "users": users, "epsilon": 1.0, "ledger": "", "seconds": 0.1}
    return Update(**{**values, "change": dict(change), **other})


def metrics(node: int, *, users: int, ndcg: float) -> Metrics:
    return Metrics(
        run=RUN, platform=f"p{node}", round=1, label=Label.FEDERATED, users=users,
        quality=quality_of({"ndcg@10": ndcg, "hr@10": ndcg / 2}),
        exact=True, epsilon=0.0, ledger="", seconds=0.1,
    )  # fmt: skip


def model(adapter: Mapping[str, Any]) -> Arrays:
    """What an adapter does to each map, float64: B A and its residual, or R; the factors themselves may differ."""
    maps = dict.fromkeys(name.rpartition(".")[0] for name in adapter)
    found = {}
    for name in maps:
        if f"{name}.lora_R" in adapter:
            found[name] = adapter[f"{name}.lora_R"].astype(float)
            continue
        found[name] = adapter[f"{name}.lora_B"].astype(float) @ adapter[f"{name}.lora_A"]
        if f"{name}.residual_A" in adapter:
            found[name] = found[name] + adapter[f"{name}.residual_B"].astype(float) @ adapter[f"{name}.residual_A"]
    return found


def moved(adapter: Arrays, change: Mapping[str, Any]) -> Arrays:
    """The adapter of a platform after its round."""
    return {name: array.astype(float) + change.get(name, 0.0) for name, array in adapter.items()}


def assert_same_model(one: Mapping[str, Any], other: Mapping[str, Any], *, atol: float = 5e-6) -> None:
    left, right = model(one), model(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=atol)


class StrategyContract:
    """What every strategy must keep; `test_strategies.py` has one subclass for each name in the catalogue."""

    name: ClassVar[str]
    server: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _identity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        identify(monkeypatch)

    @property
    def settings(self) -> Settings:
        return build({"strategy": self.name, "server": self.server}, where="test")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return CORE if scheme_of(self.name).core else SHAPES

    @property
    def least(self) -> int:
        return named(self.name)(settings=self.settings, run=RUN).least

    def drawn(self, seed: int) -> Arrays:
        return drawn(seed, self.shapes)

    def strategy(self, weights: Mapping[int, int], adapter: Arrays) -> AdapterStrategy:
        members = [Member(node=node, platform=f"p{node}", users=users) for node, users in weights.items()]
        strategy = named(self.name)(settings=self.settings, run=RUN, members=members)
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
        for card in named(self.name).cards:
            assert card.name in self.name.split("+") or card.name == "fedavg"
            assert all(len(part) > 3 for part in (card.when, card.trusts, card.sends))
            assert "\n" not in card.line
        assert named(self.name).card.line

    def test_every_member_gets_the_adapter_and_the_factors(self) -> None:
        adapter = self.drawn(0)
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
        strategy = named(self.name)(settings=self.settings, run=RUN, members=members)
        sent = strategy.configure_train(1, record_of(self.drawn(0)), ConfigRecord(), Nodes(7, 8))
        assert [message.metadata.dst_node_id for message in sent] == asked

    def test_what_is_trained_is_what_both_sides_know(self) -> None:
        strategy = named(self.name)(settings=self.settings, run=RUN)
        for server_round in range(1, 6):
            factors = strategy.factors(server_round)
            assert trained(self.shapes, factors)
            scheme_of(self.name).require(factors)

    @inherited
    @given(weights=st.lists(st.integers(1, 10**6), min_size=5, max_size=7), data=st.data())
    def test_the_order_of_answers_does_not_matter(self, weights: list[int], data: st.DataObject) -> None:
        adapter = self.drawn(0)
        changes = {node: (self.drawn(node), users) for node, users in enumerate(weights, start=1)}
        order = data.draw(st.permutations(list(changes)))
        assert_same_model(self.combine(changes, adapter), self.combine(changes, adapter, order))

    def test_equal_updates_give_that_update_whatever_their_weights(self) -> None:
        adapter, change = self.drawn(0), self.drawn(1)
        few = self.combine(dict.fromkeys(range(1, self.least + 1), (change, 5)), adapter)
        many = self.combine({node: (change, node) for node in range(1, self.least + 3)}, adapter)
        assert_same_model(few, many)

    def test_zero_updates_leave_the_model_unchanged(self) -> None:
        adapter = self.drawn(0)
        zero = {name: np.zeros_like(array) for name, array in adapter.items()}
        got = self.combine({node: (zero, node) for node in range(1, self.least + 2)}, adapter)
        assert_same_model(got, adapter)

    def test_a_hundred_rounds_without_an_update_leave_it_where_it_was(self) -> None:
        """Turning factors, and conversion to float32, must not add up to a drift."""
        adapter = start = self.drawn(0)
        for _ in range(100):
            zero = {name: np.zeros_like(array) for name, array in self.drawn(0).items()}
            adapter = self.combine(dict.fromkeys(range(1, self.least + 1), (zero, 1)), adapter)
        assert_same_model(adapter, start, atol=5e-5)

    def test_float32_comes_out_with_every_name_and_shape(self) -> None:
        got = self.combine({node: (self.drawn(node), node) for node in range(1, self.least + 2)}, self.drawn(0))
        assert {name: array.shape for name, array in got.items() if not is_residual(name)} == self.shapes
        assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}
        require_with_residual(got, self.shapes, where="test")
        assert scheme_of(self.name).residual == any(map(is_residual, got))

    def test_a_bad_update_is_left_out_with_its_reason(self) -> None:
        adapter = self.drawn(0)
        fine = range(20, 20 + self.least)
        strategy = self.strategy(dict.fromkeys([*range(1, 10), *fine], 2), adapter)
        good = self.trained(strategy, self.drawn(1))
        first = next(iter(good))
        bad = {
            1: (update(1, {**good, "stowaway": good[first]}, users=2), "differ"),
            2: (update(2, {**good, first: np.full_like(good[first], np.nan)}, users=2), "not finite"),
            3: (update(3, {**good, first: good[first].reshape(1, -1)}, users=2), "shape"),
            4: (update(4, {"other": good[first]}, users=2), "differ"),
            5: (update(5, good, users=2, round=2), "round 2"),
            6: (update(6, good, users=2, run="other"), "other"),
            7: (update(7, good, users=2, platform="p1"), "p1"),
            8: (update(8, good, users=1000), "1000 users"),
            9: (metrics(9, users=2, ndcg=0.1), "metrics"),
            10: (update(10, good, users=2), "member"),
        }
        replies = [reply(answer, node) for node, (answer, _) in bad.items()]
        replies += [reply(Error(code=2, reason="x"), 3), *(reply(update(node, good, users=2), node) for node in fine)]
        arrays, counted = strategy.aggregate_train(1, iter(replies))
        for node, (_, reason) in bad.items():
            assert any(drop.node == node and reason in drop.reason for drop in strategy.report.drops), (node, reason)
        assert any("error 2" in drop.reason for drop in strategy.report.drops if drop.node == 3)
        assert [receipt.platform for receipt in strategy.report.updates] == [f"p{node}" for node in fine]
        assert counted["platforms"] == len(fine) and counted["dropped"] == 11
        alone = self.combine(dict.fromkeys(fine, (self.drawn(1), 2)), adapter)
        assert_same_model(adapter_from(arrays), alone)

    def test_an_update_that_would_leave_float32_is_left_out(self) -> None:
        adapter, most = self.drawn(0), np.finfo(np.float32).max
        fine = range(20, 20 + self.least)
        strategy = self.strategy(dict.fromkeys([1, *fine], 1), adapter)
        good = self.trained(strategy, {name: np.zeros_like(array) for name, array in adapter.items()})
        first = next(iter(good))
        if strategy.linear:
            adapter[first][:] = most / 2  # where it is not, the product alone is too large
            strategy.configure_train(1, record_of(adapter), ConfigRecord(), Nodes())
        huge = {**good, first: np.full_like(good[first], most)}
        answers = [reply(update(1, huge), 1), *(reply(update(node, good), node) for node in fine)]
        arrays, _ = strategy.aggregate_train(1, answers)
        assert [drop.node for drop in strategy.report.drops] == [1]
        assert "float32" in strategy.report.drops[0].reason
        assert all(np.isfinite(array).all() for array in adapter_from(arrays).values())

    def test_a_refusal_is_no_update_and_no_fault(self) -> None:
        fine = range(20, 20 + self.least)
        strategy = self.strategy(dict.fromkeys([2, *fine], 1), self.drawn(0))
        refusal = Refusal(run=RUN, platform="p2", round=1, reason=Reason.BUDGET)
        good = self.trained(strategy, self.drawn(1))
        strategy.aggregate_train(1, [reply(refusal, 2), *(reply(update(node, good), node) for node in fine)])
        assert strategy.report.refusals == {2: refusal} and not strategy.report.drops

    @pytest.mark.parametrize("answers", [[], [Error(code=2, reason="x")]])
    def test_no_update_at_all_raises(self, answers: list[Error]) -> None:
        strategy = self.strategy({1: 1}, self.drawn(0))
        with pytest.raises(NoUpdate, match="round 1"):
            strategy.aggregate_train(1, [reply(answer, 1) for answer in answers])

    def test_fewer_updates_than_it_needs_raise(self) -> None:
        few = range(1, self.least)
        strategy = self.strategy(dict.fromkeys(range(1, self.least + 1), 1), self.drawn(0))
        good = self.trained(strategy, self.drawn(1))
        with pytest.raises(NoUpdate, match="round 1 brought"):
            strategy.aggregate_train(1, [reply(update(node, good), node) for node in few])

    def test_messages_are_let_go_one_at_a_time(self) -> None:
        strategy = self.strategy(dict.fromkeys(range(1, 9), 1), self.drawn(0))
        alive: list[weakref.ref[Message]] = []

        def arriving() -> Iterator[Message]:
            for node in range(1, 9):
                message = reply(update(node, self.trained(strategy, self.drawn(node))), node)
                assert not [other for other in alive if other() is not None], "an earlier update is still held"
                alive.append(weakref.ref(message))
                yield message
                del message

        strategy.aggregate_train(1, arriving())
        assert len(strategy.report.updates) == 8

    def test_a_run_that_is_taken_up_again_ends_as_one_that_never_stopped(self) -> None:
        straight = self.strategy(dict.fromkeys(range(1, 9), 1), self.drawn(0))
        adapter = broken = self.drawn(0)
        state: Any = {}
        for server_round in (1, 2, 3, 4):
            adapter = self.one_round(straight, server_round, adapter)
            resumed = named(self.name)(settings=self.settings, run=RUN, members=straight.members.values())
            resumed.restore({key: value.copy() for key, value in state.items()}, broken)
            broken = self.one_round(resumed, server_round, broken)
            state = resumed.state()
        assert adapter.keys() == broken.keys()
        for name, array in adapter.items():
            np.testing.assert_array_equal(array, broken[name])

    def one_round(self, strategy: AdapterStrategy, server_round: int, adapter: Arrays) -> Arrays:
        strategy.configure_train(server_round, record_of(adapter), ConfigRecord(), Nodes())
        names = trained(adapter, strategy.factors(server_round))
        changes = {node: self.drawn(100 * server_round + node) for node in strategy.members}
        answers = [
            update(node, {name: change[name] * 0.1 for name in names}, round=server_round) for node, change in changes.items()
        ]
        arrays, _ = strategy.aggregate_train(server_round, [reply(answer, int(answer.platform[1:])) for answer in answers])
        return adapter_from(arrays)

    def test_evaluation_is_weighted_by_users(self) -> None:
        strategy = self.strategy({1: 30, 2: 10}, self.drawn(0))
        answers = [metrics(1, users=30, ndcg=0.4), metrics(2, users=10, ndcg=0.8)]
        mean = strategy.aggregate_evaluate(1, [reply(answer, node) for node, answer in enumerate(answers, start=1)])
        assert mean is not None
        assert mean["ndcg@10"] == pytest.approx(0.5) and mean["hr@10"] == pytest.approx(0.25)
        assert strategy.report.metrics == answers
        assert strategy.aggregate_evaluate(1, []) is None


class ExactContract(StrategyContract):
    """What a strategy keeps besides where one platform alone is simply that platform's training."""

    @inherited
    @given(seed=st.integers(0, 99), users=st.integers(1, 2**28))
    def test_one_platform_is_its_own_update(self, seed: int, users: int) -> None:
        adapter, change = self.drawn(seed), self.drawn(seed + 1)
        got = self.combine(dict.fromkeys(range(1, self.least + 1), (change, users)), adapter)
        factors = named(self.name)(settings=self.settings, run=RUN).factors(1)
        names = trained(adapter, factors)
        assert_same_model(got, moved(adapter, {name: change[name] for name in names}))
        if named(self.name).updates.linear:
            for name in self.shapes:
                wanted = (adapter[name].astype(float) + change[name]).astype(np.float32) if name in names else adapter[name]
                np.testing.assert_array_equal(got[name], wanted)


def identify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's `Message` reads who sends it from the process-wide identity."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
