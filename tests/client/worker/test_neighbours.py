"""A coordinator that asks anything, and knows everybody's rows but one user's, learns no more of that user than is charged for.

Every handler of a deployed worker is asked on two platforms that differ by one user (`tests/support/neighbours.py`). Each of the
ways in which this promise was once broken, or may be, is planted here, and is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.config.source_schema import KINDS
from client.evaluation import held_out_ranking as ranking
from client.evaluation import private_metrics as noised_quality
from client.privacy import popularity_release as popularity
from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import CountMechanism, Mechanism
from client.recommender.histories import liked_histories
from client.run import evaluating, local_session, popularity_prior, run_context, training_context
from client.run.run_context import RunContext
from client.run.training_context import TrainingContext
from shared.base.errors import PrivacyError
from shared.base.settings import Settings, flatten, unflatten
from shared.model.adapter import initial
from shared.protocol.messages import (
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Personalise,
    Reason,
    Refusal,
    Request,
    Train,
    Update,
)
from tests.support.examples import examples
from tests.support.neighbours import EVERYTHING, LAST, LIKES, PLAIN, Told, User, World, compare, neighbours, require_noticed

Make = Callable[..., Settings]
Adapter = dict[str, np.ndarray]


def test_every_kind_of_users_rows_is_in_a_world_here(tmp_path: Path) -> None:
    sources = load(EVERYTHING.write(tmp_path / "world", backbone="minilm")).sources.values()
    assert {source.kind for source in sources} >= {name for name, kind in KINDS.items() if "user" in kind.roles}


@pytest.fixture
def asked(tiny_settings: Make) -> Callable[..., Settings]:
    """Settings of a deployed run."""

    def make(**over: Any) -> Settings:
        base = tiny_settings(
            simulation=False,
            privacy={"generator": "secure", "epsilon": None},
            training={"local_steps": 1, "sample_rate": 1.0, "views": 1, "targets": 2, "compile": "off"},
        )
        return unflatten({**flatten(base), **over}, where="test")

    return make


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with every tensor moved away from zero by so much."""
    random = np.random.default_rng(1)
    return {name: (value + scale * random.standard_normal(value.shape)).astype(np.float32) for name, value in adapter.items()}


def questions(settings: Settings, adapter: Adapter) -> list[Request]:
    """Everything that there is to ask of a platform that adds its own noise."""
    whole = dict(initial(settings))
    run = {"run": "run-1", "settings": settings}

    def evaluate(round_: int, label: Label, about: Adapter) -> Evaluate:
        return Evaluate(**run, round=round_, label=label, adapter=about)

    def train(round_: int, about: Adapter) -> Train:
        return Train(**run, round=round_, factors=Factors.BOTH, adapter=about)

    return [
        Join(**run),
        evaluate(0, Label.BEFORE, adapter),
        evaluate(0, Label.BEFORE, whole),
        train(1, adapter),
        train(1, adapter),
        train(3, whole),
        evaluate(1, Label.PERSONAL, adapter),
        evaluate(1, Label.FEDERATED, adapter),
        train(2, whole),
        evaluate(2, Label.PERSONAL, whole),
        Personalise(**run, round=2, adapter=whole),
    ]


FRIENDS = World(
    users={
        "a": User(items=LIKES, friends=("b",)),
        "b": User(items=LIKES[::-1], friends=("a", "c")),
        "c": User(items=((4, True), (5, True)), friends=("b",)),
        "d": User(items=LIKES, friends=("b", "c")),
        "e": User(items=LIKES[1:], friends=("b",)),
    },
    influence=0,
)
BOUNDED = World(users=FRIENDS.users, influence=1)
STAR = World(
    users={f"a{at}": User(items=LIKES, friends=("b",)) for at in range(60)} | {"b": User(items=((4, True), (5, True)))},
    declared=80,
    influence=0,
)
"""Sixty who read alike name one who is gone next door."""
ONE_IN_COMMON = World(
    users={f"a{at}": User(items=LIKES) for at in range(60)} | {"b": User(items=((0, True), (4, True), (5, True)))}, declared=80
)
"""Sixty who like alike, and one who likes one item of theirs and what nobody else does."""
WORLDS = {
    "plain": PLAIN,
    "one in common": ONE_IN_COMMON,
    "friends": FRIENDS,
    "bounded": BOUNDED,
    "star": STAR,
    "last": LAST,
    "everything": replace(EVERYTHING, times=False),
}


@pytest.fixture
def play(asked: Callable[..., Settings], tmp_path: Path) -> Callable[..., tuple[Told, Told]]:
    """Asks two neighbours everything."""
    count = iter(range(10**6))

    def run(
        world: World, gone: str, *, scale: float = 0.0, only: Callable[[Request], bool] = bool, **over: Any
    ) -> tuple[Told, Told]:
        settings = asked(**over)
        adapter = scaled(dict(initial(settings)), scale)
        requests = [request for request in questions(settings, adapter) if only(request)]
        return neighbours(world, gone, settings, requests, tmp_path / str(next(count)))

    return run


@pytest.mark.parametrize("name", WORLDS)
def test_neighbours_cannot_be_told_apart(play: Any, name: str) -> None:
    here, there = play(WORLDS[name], "b" if "b" in WORLDS[name].users else "a")
    compare(here, there)
    # That it was no silence that was compared.
    kinds = [type(answer) for answer in here.answers]
    assert kinds[:2] == [Joined, Metrics] and kinds[3:5] == [Update, Update] and kinds[7:9] == [Metrics, Update]
    assert [str(entry.kind) for entry in here.charges] == ["popularity", "evaluate", "train", "evaluate", "train"]


ENDS = {
    "model.alpha": (1e-2, 16.0, 1e4),
    "model.temperature": (1e-3, 0.12, 1e2),
    "model.fusion": ("attention", "gated", "vote"),
    "training.objective": ("softmax", "click"),
    "training.clip": (1e-3, 1.0, 1e3),
    "training.clipping": ("fixed", "adaptive"),
    "training.learning_rate": (1e-7, 5e-3, 10.0),
    "training.targets": (1, 3),
    "training.views": (1, 3),
    "privacy.prior_noise_multiplier": (3.0, 200.0),
    "privacy.metrics_noise_multiplier": (10.0, 200.0),
}
users = st.builds(
    User,
    items=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=5, unique_by=lambda pair: pair[0]).map(tuple),
    friends=st.lists(st.sampled_from("abcd"), max_size=2, unique=True).map(tuple),
    profile=st.sampled_from(["", "nurse", "old jazz"]),
    note=st.sampled_from(["", "lovely red film"]),
    vector=st.sampled_from([(), (0.0, 0.0), (3.0, -4.0), (0.1, 0.2)]),
)
worlds = st.builds(
    World,
    users=st.dictionaries(st.sampled_from("abcd"), users, min_size=1, max_size=4),
    times=st.booleans(),
    influence=st.sampled_from([None, 0, 1]),
    profiles=st.booleans(),
    notes=st.booleans(),
    vectors=st.booleans(),
)


def explored(play: Any, world: World, data: st.DataObject) -> None:
    over = {key: data.draw(st.sampled_from(ends), label=key) for key, ends in ENDS.items()}
    scale = data.draw(st.sampled_from([0.0, 1.0, 10.0**8.72, 1e30, 3e38]), label="scale of the adapter")
    compare(*play(world, data.draw(st.sampled_from(sorted(world.users)), label="who is gone"), scale=scale, **over))


SLOWLY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(
    max_examples=examples(8), deadline=None, suppress_health_check=SLOWLY, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(world=worlds, data=st.data())
def test_no_worlds_settings_or_adapters_tell_neighbours_apart(play: Any, world: World, data: st.DataObject) -> None:
    explored(play, world, data)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@settings(max_examples=300, deadline=None, suppress_health_check=SLOWLY)
@given(world=worlds, data=st.data())
def test_and_not_in_many_worlds(play: Any, world: World, data: st.DataObject) -> None:
    explored(play, world, data)


Plant = Callable[[pytest.MonkeyPatch], None]


def check_on_real_users(patched: pytest.MonkeyPatch) -> None:
    """The start-up check reads the first user, and refuses where their gradient is nothing."""

    def check(run: RunContext) -> None:
        trainer = run.trainer(torch.zeros(run.platform.tables.items), run.mechanism)
        rows = run.platform.training.of(np.arange(1))[0, :1]
        parameters = run.parameters(run.part.initial())
        total = trainer.gradient(parameters, list(run.part.layout), run.bank.now(parameters), rows[:, None])
        if not np.abs(total.vector()).max() > 1e-3:
            raise PrivacyError("a tensor gets no gradient")

    patched.setattr(local_session, "check_program", check)


def metrics_without_noise(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(CountMechanism, "privatise", lambda self, total, random: total.vector())


def metrics_twice_as_long(patched: pytest.MonkeyPatch) -> None:
    real = noised_quality.metric_sums

    def doubled(rank: Any, candidates: Any) -> BoundedSum:
        total = real(rank, candidates)
        return BoundedSum(parts={name: 2 * part for name, part in total.parts.items()}, bound=1.0)

    patched.setattr(evaluating, "metric_sums", doubled)


def popularity_exact(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(
        popularity_prior, "release_prior", lambda counts, mechanism, random: popularity.log_popularity(counts.vector(), 0.0)
    )


def popularity_unbounded(patched: pytest.MonkeyPatch) -> None:
    def counts(split: Any, tables: Any, *, seed: int, only: Any) -> BoundedSum:
        found = sum(np.bincount(split.train[user], minlength=tables.items).astype(float) for user in only)
        return BoundedSum(parts={"sum": torch.from_numpy(found)}, bound=1.0)

    patched.setattr(popularity_prior, "bounded_counts", counts)


def metrics_read_unbounded_friends(patched: pytest.MonkeyPatch) -> None:
    real = ranking.held_out_ranks
    patched.setattr(training_context, "held_out_ranks", lambda *args, serving, **facts: real(*args, serving=True, **facts))


def metrics_read_friends_unless_bounded(patched: pytest.MonkeyPatch) -> None:
    """As it once was: with `influence = 0` the group is one, and the unbounded texts were read."""
    real = ranking.held_out_ranks

    def ranks(platform: Any, *args: Any, serving: bool, **facts: Any) -> Any:
        return real(platform, *args, serving=serving or platform.friends.group_size == 1, **facts)

    patched.setattr(training_context, "held_out_ranks", ranks)


def divided_by_the_counted(patched: pytest.MonkeyPatch) -> None:
    real = TrainingContext.mechanism_under

    def counted(self: TrainingContext, plan: Any) -> Mechanism:
        return replace(real(self, plan), users=max(1, self.platform.tables.users))

    patched.setattr(TrainingContext, "mechanism_under", counted)


def not_clipped(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(Mechanism, "weights", lambda self, squared: torch.ones_like(squared))


def own_matrix_as_an_offset(patched: pytest.MonkeyPatch) -> None:
    """Training begins from what the platform's own users like together, exactly: one user's rows are in everybody's gradient."""
    real = TrainingContext.trainer

    def trainer(self: TrainingContext, prior: torch.Tensor, mechanism: Mechanism) -> Any:
        made, tables = real(self, prior, mechanism), self.platform.tables
        rows = liked_histories(tables, self.platform.split.train).rows().toarray()
        together = rows.T @ rows
        length = np.sqrt(np.maximum(np.diag(together), 1.0))
        alike, objective = torch.from_numpy(np.sqrt(together / np.outer(length, length))), made._objective

        def offset(scores: torch.Tensor, answers: Any, local: Any) -> torch.Tensor:
            return objective(scores + 5 * answers.excluded.float() @ alike, answers, local)

        made._objective = offset
        return made

    patched.setattr(TrainingContext, "trainer", trainer)


def noise_share_too_small(patched: pytest.MonkeyPatch) -> None:
    real = Mechanism.release

    def larger(self: Mechanism, steps: int) -> Any:
        return replace(real(self, steps), noise_multiplier=2 * self.noise_multiplier)

    patched.setattr(Mechanism, "release", larger)


def one_charge_for_two_labels(patched: pytest.MonkeyPatch) -> None:
    """As it once was: what was charged last pays for whatever is asked of the same round."""

    def pay(self: RunContext, release: Any, round_: int, question: str) -> None:
        if not self._path.exists():
            run_context.save_run_state(self._path, self.state)
        last = self.ledger.ledger.entries[-1] if self.ledger.ledger.entries else None
        if last is None or (last.run, last.round, last.release) != (self.name, round_, release):
            self.ledger.charge(release, run=self.name, round=round_, question=question)

    patched.setattr(RunContext, "pay", pay)
    # And nothing is remembered of what was answered.
    patched.setattr(evaluating, "answered_before", lambda known, request, settings: None)


def a_failure_is_refused(patched: pytest.MonkeyPatch) -> None:
    """As it once was: what fails on the rows is answered to whoever asked."""
    from client.privacy.failure_guard import raising

    real = RunContext.__init__
    patched.setattr(RunContext, "__init__", lambda self, **facts: real(self, **{**facts, "guard": raising}))
    patched.setattr(evaluating, "metric_sums", failing_for_a)


def failing_for_a(rank: Any, candidates: Any) -> BoundedSum:
    if len(rank) == 5:
        raise ValueError("u is one too many")
    return noised_quality.metric_sums(rank, candidates)


def timings_leave(patched: pytest.MonkeyPatch) -> None:
    from client.privacy.answer_timing import Pace

    patched.setattr(Pace, "of", lambda self, elapsed: round(elapsed, 9))


FAULTS: dict[str, tuple[Plant, World, str, dict[str, Any]]] = {
    "the start-up check reads users": (check_on_real_users, LAST, "a", {}),
    "metrics without noise": (metrics_without_noise, PLAIN, "a", {}),
    "metrics twice as long as their bound": (metrics_twice_as_long, PLAIN, "a", {}),
    "the popularity exact": (popularity_exact, PLAIN, "a", {}),
    "the popularity unbounded": (
        popularity_unbounded,
        World(users={"a": User(items=tuple((n, True) for n in range(30))), "b": User(items=LIKES)}, items=40),
        "a",
        {},
    ),
    "metrics read friends without bound, influence 1": (metrics_read_unbounded_friends, replace(STAR, influence=1), "b", {}),
    "metrics read friends, influence 0": (metrics_read_friends_unless_bounded, STAR, "b", {}),
    "division by the counted users": (divided_by_the_counted, PLAIN, "a", {}),
    "gradients not clipped": (not_clipped, PLAIN, "a", {"training.clip": 1e-3}),
    "the platform's own matrix is an offset": (own_matrix_as_an_offset, ONE_IN_COMMON, "b", {"training.clip": 1e-3}),
    "less noise than is charged": (noise_share_too_small, PLAIN, "a", {}),
    "a failure is refused": (a_failure_is_refused, PLAIN, "a", {}),
    "timings leave": (timings_leave, PLAIN, "a", {}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(play: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world, gone, over = FAULTS[fault]
    require_noticed(plant, lambda: play(world, gone, **over), monkeypatch)


def test_one_evaluation_does_not_pay_for_another(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        one_charge_for_two_labels(patched)
        here, there = play(PLAIN, "a", **{"rounds": 1})
        with pytest.raises(AssertionError, match="no charge names"):
            compare(here, there)


def test_joining_asks_nothing_of_the_rows(play: Any) -> None:
    """48 questions at other scales of the gradients read a user by whether they vanish; not one is refused for it now."""
    for alpha in (1e-2, 16.0, 1e4):
        here, there = play(LAST, "a", only=lambda request: isinstance(request, Join), **{"model.alpha": alpha})
        assert isinstance(here.answers[0], Joined) and here.answers == there.answers


class TestCatalogueOfRows:
    world = World(users={**PLAIN.users, "z": User(items=((4, True), (5, True)))}, listed=False)
    """Only z has items 4 and 5."""

    def test_it_is_refused_of_a_deployed_platform_and_why_is_no_secret(self, play: Any) -> None:
        here, there = play(self.world, "z")
        compare(here, there)
        assert here.answers[0].reason is Reason.SETTINGS and all(isinstance(answer, Refusal) for answer in here.answers)

    def test_else_its_size_would_tell(self, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("client.config.platform_file.PlatformFile.require_catalogue", lambda self: None)
        here, there = play(self.world, "z")
        assert (here.answers[0].items, there.answers[0].items) == (6, 4)
        with pytest.raises(AssertionError, match="items is 6 here and 4 there"):
            compare(here, there)


def test_a_model_that_stays_here_is_not_evaluated_for_anybody(play: Any) -> None:
    here, _ = play(PLAIN, "a", only=lambda request: getattr(request, "label", None) is Label.PERSONAL)
    assert all(isinstance(answer, Refusal) and answer.reason is Reason.ROUND for answer in here.answers)


def test_a_hostile_adapter_ranks_within_its_bounds() -> None:
    from client.evaluation.ranking_metrics import ranks
    from shared.protocol.quality import per_user_metrics

    scores = torch.tensor([[np.nan, 1.0, np.inf], [np.nan] * 3, [-np.inf] * 3], dtype=torch.float32)
    rank, candidates = ranks(scores, torch.tensor([0, 1, 2]), torch.zeros(3, 3, dtype=torch.bool))
    assert ((rank >= 1) & (rank <= candidates)).all()
    assert all(((value >= 0) & (value <= 1)).all() for value in per_user_metrics(rank.numpy(), candidates.numpy()))


@pytest.mark.parametrize("compile_", ["auto", "off"])
def test_other_users_gradients_do_not_depend_on_who_is_there(play: Any, compile_: str) -> None:
    """With the backbone and the number type of a deployment, and an adapter that makes much of every rounding.

    torch's bfloat16 operations, whose rounding depends on the shape of a batch, moved the sum by up to four times its bound.
    """
    random = np.random.default_rng(3)
    users = {
        f"u{at:03d}": User(items=tuple((int(n), True) for n in random.permutation(40)[: random.integers(3, 8)]), profile="nurse")
        for at in range(40)
    }
    users["v"] = User(items=tuple((n, True) for n in range(12)), profile="old jazz garden film river city " * 10)
    crowd = World(users=users, items=40, declared=400, profiles=True)
    over = {"model.backbone": "minilm", "model.user_tokens": 60, "model.rank": 8, "training.compile": compile_}
    compare(*play(crowd, "v", scale=3.0, only=lambda request: isinstance(request, Join | Train), **over))


def counting_fails_on_one(patched: pytest.MonkeyPatch) -> None:
    real = popularity._chosen

    def failing(train: Any, user: int, user_id: str, seed: int) -> Any:
        if user_id == "a0":
            raise ValueError("a0 cannot be counted")
        return real(train, user, user_id, seed)

    patched.setattr(popularity, "_chosen", failing)


def test_a_fault_on_one_user_leaves_the_others_counted(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all of them left out, that user's rows would move the counts by everybody's."""
    counting_fails_on_one(monkeypatch)
    here, there = play(STAR, "a0", only=lambda request: isinstance(request, Join))
    compare(here, there)
    assert any(released.vector.any() for released in here.released)
