"""Training: it learns, it repeats to the bit, and no arrangement of batches changes what a user gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from client.compute.feature_cache import TrunkCache
from client.evaluation.ranking_metrics import exclusion, ranks
from client.examples.split import ragged
from client.examples.user_examples import Examples
from client.examples.vectors import VectorRows
from client.fusion.operators import fusion_named
from client.model.towers import Towers, cached_rows
from client.model.user_rows import KnownRows, UserBatch
from client.privacy.failure_guard import Silent
from client.privacy.mechanism import Mechanism, Quantile
from client.privacy.noise_sources import SecureNoise, SeededNoise
from client.run.run_state import RunState, load_run_state, save_run_state
from client.training.adam import Adam
from client.training.losses import CLICK_BIAS, initial_bias
from client.training.trainer import Trainer, TrainingData
from shared.base.settings import Settings
from shared.model.adapter import initial, layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder
from shared.protocol.quality import NDCG, mean_quality

USERS, KINDS, EACH = 24, 4, 3
ITEMS = KINDS * EACH


class Problem:
    """Four kinds of users that like three items each; a user's kind is a word of their text, an item's name says nothing."""

    def __init__(self, settings: Settings, folder: Path, *, fusion: str = "attention") -> None:
        random = np.random.default_rng(0)
        self.settings = settings
        encoder = Encoder(load_backbone(settings.model.backbone), settings.model, device=torch.device("cpu"), dtype=torch.float32)
        towers = Towers(encoder, fusion_named(fusion))
        cache = TrunkCache(folder, encoder)
        users = np.repeat(np.arange(USERS), 2)
        kind = users % KINDS
        sequences = [
            np.asarray([2, 30 + kind[row], *random.integers(60, 90, random.integers(1, 25)), 3], np.int32)
            for row in range(len(users))
        ]
        targets = [np.asarray([EACH * kind[row] + (users[row] // KINDS + row) % EACH], np.int32) for row in range(len(users))]
        self.examples = Examples(
            user=users,
            sequences=sequences,
            targets=ragged(targets),
            context=ragged([np.zeros(0, np.int32) for _ in users]),
            excluded=ragged([np.zeros(0, np.int32) for _ in users]),
        )
        source = VectorRows(
            values={"mood": random.normal(0, 1, (len(users), 3)).astype(np.float32)},
            present={"mood": random.random(len(users)) < 0.5},
        )
        items = VectorRows(values={"mood": np.zeros((ITEMS, 3), np.float32)}, present={"mood": np.zeros(ITEMS, bool)})
        self.batch = UserBatch(examples=self.examples, rows=cached_rows(cache, sequences, source))
        self.by_user = np.arange(2 * USERS).reshape(USERS, 2)
        self.data = TrainingData(
            rows=KnownRows(self.batch, self.by_user),
            prior=torch.full((ITEMS,), -math.log(ITEMS)),
            users=USERS,
        )
        self.towers = towers
        self.layout = layout_of(encoder.backbone.shape, settings.model)
        self.parameters: dict[str, Tensor] = {name: torch.from_numpy(value) for name, value in initial(settings).items()}
        self.parameters |= towers.fusion.initial({"mood": 3}, encoder.hidden, random)
        if settings.training.objective == "click":
            self.parameters |= initial_bias(self.data.prior, 1)
        self.trained = list(self.parameters)
        titles = [np.asarray([2, 40 + item, 3], np.int32) for item in range(ITEMS)]
        self.bank = towers.encode(cached_rows(cache, titles, items), self.parameters)

    def mechanism(self, **over: float) -> Mechanism:
        size = sum(value.numel() for value in self.parameters.values())
        values = {"users": USERS, "sample_rate": 0.5, "clip": math.inf, "noise_multiplier": 0.0, "dimension": size} | over
        return Mechanism(**values)  # type: ignore[arg-type]

    def trainer(self, *, mechanism: Mechanism | None = None, data: TrainingData | None = None, **more: Any) -> Trainer:
        return Trainer(
            towers=self.towers,
            data=data or self.data,
            settings=self.settings,
            mechanism=mechanism or self.mechanism(),
            **more,
        )

    def run(self, *, steps: int, seed: int = 0, mechanism: Mechanism | None = None, rate: float = 0.02) -> dict[str, Tensor]:
        return self.trainer(mechanism=mechanism).run(
            self.parameters, self.trained, self.bank, Adam(learning_rate=rate), steps=steps, random=SeededNoise(seed)
        )

    def stirred(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in self.parameters.items()}

    @torch.no_grad()
    def loss(self, parameters: dict[str, Tensor]) -> float:
        rows = np.arange(len(self.examples))
        return float(self.trainer().losses(self.batch, rows, self.bank, {})(parameters).mean())

    def ndcg(self, parameters: dict[str, Tensor]) -> float:
        scores = self.towers.encode(self.batch.rows, parameters) @ self.bank.T
        targets = torch.from_numpy(self.examples.targets.values.astype(np.int64))
        rank, candidates = ranks(scores, targets, exclusion(self.examples.excluded, np.arange(len(self.examples)), ITEMS))
        return mean_quality(rank.numpy(), candidates.numpy())[NDCG]


@pytest.fixture
def make_problem(tiny_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Problem]:
    def make(fusion: str = "attention", **training: object) -> Problem:
        settings = tiny_settings(model={"rank": 4, "temperature": 0.1, "fusion": fusion}, training={"targets": 2, **training})
        return Problem(settings, tmp_path, fusion=fusion)

    return make


@pytest.fixture
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestLearning:
    """Who knows nothing has a loss of log(items) nats; below it, something was learned."""

    @pytest.mark.parametrize(("objective", "steps"), [("softmax", 60), ("click", 120)])
    def test_the_loss_falls_and_the_ranking_rises(self, make_problem: Callable[..., Problem], objective: str, steps: int) -> None:
        problem = make_problem(objective=objective)
        after = problem.run(steps=steps)
        assert problem.loss(after) < 0.8 * problem.loss(problem.parameters)
        assert problem.ndcg(after) > problem.ndcg(problem.parameters) + 0.15

    def test_it_learns_under_some_noise(self, problem: Problem) -> None:
        after = problem.run(steps=60, mechanism=problem.mechanism(clip=1.0, noise_multiplier=0.3))
        assert problem.loss(after) < 0.9 * math.log(ITEMS)

    def test_it_learns_nothing_from_noise_alone(self, problem: Problem) -> None:
        # What it learned above, it learned from the users.
        after = problem.run(steps=60, mechanism=problem.mechanism(clip=1.0, noise_multiplier=100.0))
        assert problem.loss(after) > 0.95 * math.log(ITEMS)


class TestRepeating:
    @pytest.mark.parametrize("private", [False, True])
    def test_the_same_seed_gives_the_same_bits(self, problem: Problem, private: bool) -> None:
        mechanism = problem.mechanism(clip=1.0, noise_multiplier=1.0) if private else None
        first, again, other = (problem.run(steps=4, seed=seed, mechanism=mechanism) for seed in (1, 1, 2))
        assert equal(first, again)
        assert not equal(first, other)

    def test_global_generators_have_no_say(self, problem: Problem) -> None:
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            found.append(problem.run(steps=3, mechanism=problem.mechanism(clip=1.0, noise_multiplier=1.0)))
        assert equal(*found)

    def test_a_run_resumed_from_disk_is_the_run_that_never_stopped(self, problem: Problem, tmp_path: Path) -> None:
        def noise() -> SeededNoise:
            return SeededNoise(9)

        mechanism = problem.mechanism(clip=1.0, noise_multiplier=1.0)
        trainer = problem.trainer(mechanism=mechanism)
        whole = trainer.run(problem.parameters, problem.trained, problem.bank, Adam(learning_rate=0.01), steps=6, random=noise())
        random, current = noise(), dict(problem.parameters)
        optimizer = Adam(learning_rate=0.01)
        for _ in range(3):
            current = trainer.run(current, problem.trained, problem.bank, optimizer, steps=2, random=random)
            path = tmp_path / "memory"
            save_run_state(path, RunState(settings="s", local=current, moments=optimizer.moments()))
            back = load_run_state(path)
            assert back is not None
            current = dict(back.local)
            optimizer = Adam(learning_rate=0.01, moments=back.moments)
        assert equal(current, whole)

    def test_without_its_moments_it_is_another_run(self, problem: Problem) -> None:
        # So that the test above cannot pass by luck.
        trainer, random = problem.trainer(), SeededNoise(9)
        current = dict(problem.parameters)
        for _ in range(3):
            current = trainer.run(current, problem.trained, problem.bank, Adam(learning_rate=0.01), steps=2, random=random)
        whole = trainer.run(
            problem.parameters, problem.trained, problem.bank, Adam(learning_rate=0.01), steps=6, random=SeededNoise(9)
        )
        assert not equal(current, whole)


class TestGradient:
    @pytest.mark.parametrize("fusion", ["attention", "vote"])
    def test_micro_batches_of_any_size_give_the_same_sum(self, make_problem: Callable[..., Problem], fusion: str) -> None:
        problem = make_problem(fusion=fusion)
        mechanism = problem.mechanism(clip=0.05, noise_multiplier=1.0)
        rows = np.arange(0, 2 * USERS, 2)
        parameters = problem.stirred()
        sums = [
            problem.trainer(mechanism=mechanism, micro_batch=size)
            .gradient(parameters, problem.trained, problem.bank, rows[:, None])
            .parts
            for size in (1, 2, 3, 5, 23, 24, 32, 64)
        ]
        norm = torch.cat([value.flatten() for value in sums[0].values()]).norm()
        assert norm > 0.05
        for other in sums[1:]:
            gap = torch.cat([(other[name] - sums[0][name]).flatten() for name in sums[0]]).norm()
            assert gap <= 1e-5 * norm

    def test_the_order_of_the_users_does_not_matter(self, problem: Problem) -> None:
        rows, parameters = np.arange(0, 40, 2), problem.stirred()
        trainer = problem.trainer(mechanism=problem.mechanism(clip=0.05, noise_multiplier=1.0), micro_batch=4)
        first, turned = (
            trainer.gradient(parameters, problem.trained, problem.bank, order[:, None]).parts
            for order in (rows, rows[::-1].copy())
        )
        for name in first:
            torch.testing.assert_close(turned[name], first[name], atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("micro_batch", [1, 4, 32])
    def test_one_user_moves_the_sum_by_at_most_the_clip(self, problem: Problem, micro_batch: int) -> None:
        mechanism, rows, parameters = problem.mechanism(clip=0.05, noise_multiplier=1.0), np.arange(0, 20, 2), problem.stirred()
        trainer = problem.trainer(mechanism=mechanism, micro_batch=micro_batch)
        whole = trainer.gradient(parameters, problem.trained, problem.bank, rows[:, None]).parts
        moved = []
        for left_out in range(len(rows)):
            left = np.delete(rows, left_out)[:, None]
            without = trainer.gradient(parameters, problem.trained, problem.bank, left).parts
            moved.append(float(torch.cat([(whole[name] - without[name]).flatten() for name in whole]).norm()))
        assert max(moved) <= 0.05 * (1 + 1e-4)
        assert max(moved) > 0.049

    def test_nobody_gives_zero(self, problem: Problem) -> None:
        found = problem.trainer().gradient(problem.parameters, problem.trained, problem.bank, np.zeros((0, 1), np.int64)).parts
        assert found.keys() == problem.parameters.keys()
        assert not any(value.any() for value in found.values())

    def test_it_is_the_gradient_of_the_summed_loss(self, problem: Problem) -> None:
        rows, parameters = np.asarray([0, 3, 8, 11]), problem.stirred()
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        losses = problem.trainer().losses(problem.batch, rows, problem.bank, {})(leaves)
        expected = torch.autograd.grad(losses.sum(), list(leaves.values()))
        found = problem.trainer().gradient(parameters, problem.trained, problem.bank, rows[:, None]).parts
        for (name, value), gradient in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(value.float(), gradient, atol=1e-5, rtol=1e-4, msg=name)

    def test_the_bank_and_the_prior_enter_the_scores(self, problem: Problem) -> None:
        rows = np.asarray([0, 1])
        vectors = problem.towers.vectors(*problem.batch.rows.take(rows, torch.device("cpu")), problem.parameters)
        prior = torch.randn(ITEMS, generator=torch.Generator().manual_seed(0))
        scores = vectors @ problem.bank.T / problem.settings.model.temperature + prior
        targets = torch.from_numpy(problem.examples.targets.values[rows].astype(np.int64))
        trainer = problem.trainer(data=replace(problem.data, prior=prior))
        torch.testing.assert_close(
            trainer.losses(problem.batch, rows, problem.bank, {})(problem.parameters),
            torch.nn.functional.cross_entropy(scores, targets, reduction="none"),
            atol=1e-4,
            rtol=1e-4,
        )


class TestStep:
    def test_an_empty_sample_is_noised_like_any_other(self, problem: Problem) -> None:
        # Else the release would tell that nobody was sampled.
        mechanism = problem.mechanism(sample_rate=1e-12, clip=1.0, noise_multiplier=1.0)
        after = problem.run(steps=1, mechanism=mechanism)
        # In whole steps of a grid noise is 0 now and then, where floating-point noise never is.
        moved = torch.cat([(after[name] != value).flatten() for name, value in problem.parameters.items()])
        assert moved.float().mean() > 0.99

    def test_only_what_trains_moves_and_the_given_values_stay(self, problem: Problem) -> None:
        before = {name: value.clone() for name, value in problem.parameters.items()}
        only_b = [name for name in problem.layout if name.endswith("lora_B")]
        size = sum(problem.parameters[name].numel() for name in only_b)
        mechanism = problem.mechanism(clip=1.0, noise_multiplier=1.0, dimension=size)
        after = problem.trainer(mechanism=mechanism).run(
            problem.parameters, only_b, problem.bank, Adam(learning_rate=0.01), steps=2, random=SecureNoise()
        )
        assert equal(problem.parameters, before)
        assert {name for name in after if not torch.equal(after[name], before[name])} == set(only_b)

    def test_each_sampled_user_gives_one_row_of_his_own(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[np.ndarray] = []
        sampled: list[np.ndarray] = []
        mechanism = problem.mechanism(dimension=problem.parameters[problem.trained[0]].numel())
        trainer = problem.trainer(mechanism=mechanism)
        gradient, sample = Trainer.gradient, Mechanism.sample
        monkeypatch.setattr(Trainer, "gradient", lambda self, *rest: (asked.append(rest[-1]), gradient(self, *rest))[1])
        monkeypatch.setattr(Mechanism, "sample", lambda self, *rest: (sampled.append(sample(self, *rest)), sampled[-1])[1])
        trainer.run(
            problem.parameters, problem.trained[:1], problem.bank, Adam(learning_rate=0.01), steps=12, random=SeededNoise(0)
        )
        assert len(asked) == len(sampled) == 12
        for rows, users in zip(asked, sampled, strict=True):
            assert sorted(problem.examples.user[rows[:, 0]]) == sorted(users)
        # By chance, so both rows of a user come up.
        assert set(np.concatenate(asked)[:, 0] % 2) == {0, 1}
        assert mechanism.users == USERS

    def test_a_user_without_rows_is_sampled_and_gives_nothing(self, problem: Problem) -> None:
        without = np.where(np.arange(USERS)[:, None] == 3, -1, problem.by_user)
        data = replace(problem.data, rows=KnownRows(problem.batch, without))
        mechanism = problem.mechanism(sample_rate=1.0)
        runs = []
        for users in (USERS, USERS + 5):  # the last five have no row either
            trainer = problem.trainer(mechanism=mechanism, data=replace(data, users=users))
            rows = trainer.sample(SeededNoise(0))
            runs.append(sorted(problem.examples.user[rows[:, 0]]))
        assert runs[0] == runs[1] == [user for user in range(USERS) if user != 3]

    def test_a_user_on_whom_reading_fails_is_left_out_alone(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        mechanism = problem.mechanism(sample_rate=1.0, clip=1.0, noise_multiplier=1.0)
        without = problem.by_user[np.arange(USERS) != 7]
        expected = problem.trainer(mechanism=mechanism).gradient(
            problem.stirred(), problem.trained, problem.bank, np.sort(without[:, :1], axis=0)
        )
        real = KnownRows.read

        def broken(self: KnownRows, rows: np.ndarray) -> UserBatch:
            if np.isin(rows, problem.by_user[7]).any():
                raise OSError(5, "Input/output error")
            return real(self, rows)

        monkeypatch.setattr(KnownRows, "read", broken)
        monkeypatch.setattr(Trainer, "sample", lambda self, random: problem.by_user[:, :1])
        guard = Silent()
        found = problem.trainer(mechanism=mechanism, guard=guard).contribution(
            problem.stirred(), problem.trained, problem.bank, SeededNoise(0)
        )
        assert guard.failures
        for name, value in found.parts.items():
            torch.testing.assert_close(value, expected.parts[name], atol=1e-6, rtol=1e-5)
        with pytest.raises(OSError, match="Input/output"):
            problem.trainer(mechanism=mechanism).contribution(problem.stirred(), problem.trained, problem.bank, SeededNoise(0))

    def test_a_large_sample_is_read_by_parts(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, sizes, real = problem.by_user[:, :1], [], KnownRows.read
        expected = problem.trainer().gradient(problem.stirred(), problem.trained, problem.bank, rows)
        monkeypatch.setattr("client.training.trainer.SEQUENCES_READ", 10)
        monkeypatch.setattr(KnownRows, "read", lambda self, rows: (sizes.append(len(rows)), real(self, rows))[1])
        found = problem.trainer().gradient(problem.stirred(), problem.trained, problem.bank, rows)
        assert sizes == [10, 10, 4]
        for name, value in found.parts.items():
            torch.testing.assert_close(value, expected.parts[name], atol=1e-5, rtol=1e-4)

    def test_progress_is_told_once_a_step(self, problem: Problem) -> None:
        seen: list[int] = []
        mechanism = problem.mechanism(dimension=problem.parameters[problem.trained[0]].numel())
        problem.trainer(mechanism=mechanism).run(
            problem.parameters,
            problem.trained[:1],
            problem.bank,
            Adam(learning_rate=0.01),
            steps=3,
            random=SeededNoise(0),
            progress=lambda: seen.append(1),
        )
        assert len(seen) == 3

    def test_the_bias_of_clicks_trains(self, make_problem: Callable[..., Problem]) -> None:
        problem = make_problem(objective="click")
        after = problem.run(steps=2)
        assert not torch.equal(after[CLICK_BIAS], problem.parameters[CLICK_BIAS])


class TestAdam:
    @given(
        shapes=st.lists(st.sampled_from([(1,), (3,), (2, 4)]), min_size=1, max_size=3),
        steps=st.integers(1, 6),
        rate=st.floats(1e-4, 1.0),
        seed=st.integers(0, 99),
    )
    @hypothesis_settings(deadline=None, max_examples=40)
    def test_is_torchs_adam(self, shapes: list[tuple[int, ...]], steps: int, rate: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        ours = {str(at): torch.randn(shape, generator=generator, dtype=torch.float64) for at, shape in enumerate(shapes)}
        theirs = {name: value.clone().requires_grad_() for name, value in ours.items()}
        reference, optimizer = torch.optim.Adam(theirs.values(), lr=rate), Adam(learning_rate=rate)
        for _ in range(steps):
            gradients = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in ours.items()}
            optimizer.step(ours, gradients)
            for name, value in theirs.items():
                value.grad = gradients[name].clone()
            reference.step()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value.detach(), atol=1e-9, rtol=1e-6)

    def test_each_tensor_counts_its_own_steps(self) -> None:
        # With alternating factors a tensor may rest for a round; its bias correction must not go on.
        one, other = {"a": torch.ones(2), "b": torch.ones(2)}, {"b": torch.ones(2)}
        gradient = torch.tensor([0.5, -2.0])
        first, second = Adam(learning_rate=0.1), Adam(learning_rate=0.1)
        for _ in range(3):
            first.step(one, {"a": gradient})
        first.step(one, {"b": gradient})
        second.step(other, {"b": gradient})
        assert torch.equal(one["b"], other["b"])

    def test_its_state_is_not_shared(self) -> None:
        first = Adam(learning_rate=0.1)
        first.step({"a": torch.ones(2)}, {"a": torch.ones(2)})
        moments = {name: value.clone() for name, value in first.moments().items()}
        second = Adam(learning_rate=0.1, moments=first.moments())
        second.step({"a": torch.ones(2)}, {"a": torch.ones(2)})
        assert equal(first.moments(), moments)


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
    )
    def test_out_of_memory_halves_the_micro_batch_and_goes_on(
        self, problem: Problem, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ) -> None:
        rows, parameters = np.arange(0, 40, 2)[:, None], problem.stirred()
        expected = problem.trainer().gradient(parameters, problem.trained, problem.bank, rows)
        trainer, losses, sizes = problem.trainer(micro_batch=32), Trainer.losses, list[int]()

        def small(self: Trainer, batch: UserBatch, picked: np.ndarray, *rest: Any) -> Any:
            sizes.append(len(picked))
            if len(picked) > 8:
                raise error
            return losses(self, batch, picked, *rest)

        monkeypatch.setattr(Trainer, "losses", small)
        found = trainer.gradient(parameters, problem.trained, problem.bank, rows)
        assert sizes == [24, 16, 8, 8, 8]
        assert found.bound == expected.bound
        for name, value in expected.parts.items():
            torch.testing.assert_close(found.parts[name], value, atol=1e-5, rtol=1e-4)
        trainer.gradient(parameters, problem.trained, problem.bank, rows[:9])
        assert sizes[5:] == [8, 8]  # it has learnt

    def test_another_error_is_not_taken_for_it(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: Trainer, *rest: Any) -> Any:
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(Trainer, "losses", broken)
        with pytest.raises(RuntimeError, match="shapes differ"):
            problem.trainer().gradient(problem.parameters, problem.trained, problem.bank, np.asarray([[0]]))


class TestSequences:
    def test_a_step_reads_several_views_of_a_user_and_takes_their_mean(self, make_problem: Callable[..., Problem]) -> None:
        one, two = make_problem(), make_problem(sequences=2)
        picked = two.trainer(mechanism=two.mechanism(sample_rate=1.0)).sample(SeededNoise(0))
        assert picked.shape == (USERS, 2) and all(set(rows) == {rows.min(), rows.min() + 1} for rows in picked)
        parameters = two.stirred()
        found = two.trainer().gradient(parameters, two.trained, two.bank, picked).parts
        halves = [one.trainer().gradient(parameters, one.trained, one.bank, picked[:, view : view + 1]).parts for view in (0, 1)]
        for name, value in found.items():
            torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, atol=1e-5, rtol=1e-4, msg=name)

    def test_where_nobody_is_drawn_nobody_is_read(self, make_problem: Callable[..., Problem]) -> None:
        problem = make_problem(sequences=2)
        picked = problem.trainer(mechanism=problem.mechanism(sample_rate=1e-9)).sample(SeededNoise(0))
        assert (picked.shape, picked.dtype) == ((0, 2), np.int64)

    def test_a_user_with_one_row_has_it_twice(self, make_problem: Callable[..., Problem]) -> None:
        problem = make_problem(sequences=2)
        data = replace(problem.data, rows=KnownRows(problem.batch, problem.by_user[:, :1]))
        picked = problem.trainer(mechanism=problem.mechanism(sample_rate=1.0), data=data).sample(SeededNoise(0))
        assert (picked[:, 0] == picked[:, 1]).all()


def test_adaptive_clipping_moves_the_bound_during_a_run(problem: Problem) -> None:
    mechanism = problem.mechanism(clip=1e-3, noise_multiplier=0.01)
    mechanism = replace(mechanism, quantile=Quantile(target=0.5, rate=0.2, noise=1.0))
    trainer = problem.trainer(mechanism=mechanism)
    trainer.run(problem.parameters, problem.trained, problem.bank, Adam(learning_rate=1e-3), steps=10, random=SeededNoise(0))
    assert trainer.mechanism.clip > 1.5e-3


def test_both_engines_train_the_same_model(make_problem: Callable[..., Problem]) -> None:
    ends = []
    for engine in ("batched", "opacus"):
        problem = make_problem(engine=engine)
        trainer = problem.trainer(mechanism=problem.mechanism(clip=0.1, noise_multiplier=0.5), micro_batch=5)
        optimizer = Adam(learning_rate=0.01)
        ends.append(trainer.run(problem.parameters, problem.trained, problem.bank, optimizer, steps=3, random=SeededNoise(0)))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-4, rtol=1e-3, msg=name)
