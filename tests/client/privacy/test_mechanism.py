"""The mechanism does what its accounting event says, measured from outside.

A claim of privacy needs a test that fails when the mechanism is broken: every check here is a function of a `Step`, and is
shown to fail on steps that are broken on purpose, each in a way that somebody has shipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from client.privacy.bounded_sum import BoundedSum, nothing, of_choices, of_contributions
from client.privacy.mechanism import CountMechanism, Mechanism, Quantile
from client.privacy.noise_sources import NoiseSource, SecureNoise, SeededNoise
from client.training.per_user_gradients import clip
from shared.base.errors import PrivacyError
from shared.base.settings import CLIPS
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import ReleaseKind

DELTA = 1e-3


def make(**over: float) -> Mechanism:
    values = {"users": 200, "sample_rate": 0.1, "clip": 0.5, "noise_multiplier": 1.5, "dimension": 2} | over
    return Mechanism(**values)  # type: ignore[arg-type]


Step = Callable[[Mechanism, Tensor, NoiseSource], Tensor]
"""Mechanism, every user's gradient (users, width), randomness -> one release (width,)."""


def clipped(mechanism: Mechanism, gradients: Tensor) -> BoundedSum:
    return clip({"w": gradients}, torch.ones(len(gradients), dtype=torch.bool), mechanism)


def of_total(mechanism: Mechanism, total: Tensor) -> BoundedSum:
    """A sum that claims its bound."""
    return BoundedSum(parts={"w": total.double()}, bound=mechanism.clip)


@lru_cache
def wide(mechanism: Mechanism, dimension: int) -> Mechanism:
    """Made once, not for every release: its grid is worked out when it is first used."""
    return replace(mechanism, dimension=dimension)


def released(mechanism: Mechanism, total: BoundedSum, random: NoiseSource) -> Tensor:
    gradient, _ = wide(mechanism, total.dimension).privatise(total, random)
    return gradient["w"]


def batch_of(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]


def real(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return released(mechanism, clipped(mechanism, batch_of(mechanism, gradients, random)), random)


def without_noise(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # NVFlare's hello-dp, after a restart.
    total = clipped(mechanism, batch_of(mechanism, gradients, random))
    return (total.parts["w"] / mechanism.expected_batch).float()


def half_noise(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    total = clipped(mechanism, batch_of(mechanism, gradients, random))
    return released(replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2), total, random)


def float_noise(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # What most libraries do: Gaussian noise of float32, whose low bits tell neighbours apart.
    total = clipped(mechanism, batch_of(mechanism, gradients, random)).parts["w"].float()
    generator = torch.Generator().manual_seed(int(random.integers(1, 1 << 30)[0]))
    noise = torch.randn(total.shape, generator=generator)
    return (total + mechanism.noise_multiplier * mechanism.clip * noise) / mechanism.expected_batch


def without_clip(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return released(mechanism, of_total(mechanism, batch_of(mechanism, gradients, random).sum(0)), random)


def coordinate_clip(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    batch = batch_of(mechanism, gradients, random)
    return released(mechanism, of_total(mechanism, batch.clamp(-mechanism.clip, mechanism.clip).sum(0)), random)


def by_real_batch(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # opacus#571, #819.
    chosen = mechanism.sample(len(gradients), random)
    mean = released(mechanism, clipped(mechanism, gradients[torch.from_numpy(chosen)]), random)
    return mean * mechanism.expected_batch / max(len(chosen), 1)


def by_present_users(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return real(mechanism, gradients, random) * mechanism.users / len(gradients)


def of_fixed_size(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # Accounted as Poisson, sampled by shuffling (jax_privacy#84).
    order = np.argsort(random.words(len(gradients)))
    batch = gradients[torch.from_numpy(order[: round(mechanism.sample_rate * len(gradients))])]
    return released(mechanism, clipped(mechanism, batch), random)


def of_everybody(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return released(mechanism, clipped(mechanism, gradients), random)


def of_neighbours(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # The right rate and the right variance of nothing: pairs of users come together.
    pairs = mechanism.sample(len(gradients) // 2, random)
    batch = gradients[torch.from_numpy(np.concatenate([2 * pairs, 2 * pairs + 1]))]
    return released(mechanism, clipped(mechanism, batch), random)


class Apart:
    """Coins and noise from two streams, so that a release with another number of coins has the same noise."""

    def __init__(self, seed: int) -> None:
        self._coins, self._noise = SeededNoise(seed, "coins"), SeededNoise(seed, "noise")

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        return self._coins.bernoulli(count, probability)

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        return self._coins.integers(count, below)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._noise.words(count)


def check_noise(step: Step) -> None:
    """The standard deviation is the event's multiple of the sensitivity, whatever the batch."""
    for users, gradient in ((4, 0.0), (0, 0.0), (400, 3.0)):
        mechanism = make()
        gradients = torch.zeros(users, 40_000)
        gradients[:, :1] = gradient
        noise = step(mechanism, gradients, SeededNoise(1))[1:]
        sensitivity = mechanism.clip / mechanism.expected_batch
        # At least what the event says; a hundredth more, for the rounding.
        assert 0.99 < float(noise.std()) / sensitivity / mechanism.release(1).noise_multiplier < 1.03
        assert abs(float(noise.mean())) < 5 * float(noise.std()) / 200


def check_sensitivity(step: Step) -> None:
    """One more user, of any gradient, moves the release by at most clip over the declared batch."""
    mechanism = make(sample_rate=1.0)
    sensitivity = mechanism.clip / mechanism.expected_batch
    generator = torch.Generator().manual_seed(0)
    reached = 0.0
    for scale in (1e-3, 1.0, 1e4):
        for others in (0, 1, 60):
            gradients = torch.randn(others + 1, 8, generator=generator) * scale
            with_user, without = (step(mechanism, gradients[:count], Apart(3)) for count in (others + 1, others))
            moved = float((with_user - without).norm())
            assert moved <= sensitivity * replace(mechanism, dimension=8).point.inflation * (1 + 1e-6)
            reached = max(reached, moved)
    assert reached > 0.99 * sensitivity  # else the bound would be no bound of this step


def check_divisor(step: Step) -> None:
    """The sum is divided by the declared expected batch, however many were sampled or present."""
    mechanism = make(noise_multiplier=0.01)
    for users in (1, 30, 500):
        random, twin = Apart(5), Apart(5)
        found = step(mechanism, torch.full((users, 1), mechanism.clip), random)
        batch = len(mechanism.sample(users, twin))
        torch.testing.assert_close(found, torch.tensor([batch * mechanism.clip / 20.0]), atol=2e-3, rtol=1e-4)


def check_sampling(step: Step) -> None:
    """Every user enters independently with the event's rate: read off releases in which each user has their own direction."""
    users, steps = 120, 2500
    mechanism, random = make(noise_multiplier=0.01), SeededNoise(3)
    rate = mechanism.release(1).sample_rate
    gradients = torch.eye(users) * mechanism.clip
    unit = mechanism.clip / mechanism.expected_batch
    entered = torch.stack([step(mechanism, gradients, random) / unit > 0.5 for _ in range(steps)]).numpy().astype(float)
    assert stats.binomtest(int(entered.sum()), entered.size, rate).pvalue > 1e-4
    by_user = entered.mean(0)
    assert np.abs(by_user - rate).max() < 6 * math.sqrt(rate * (1 - rate) / steps)
    # A fixed batch size has no variance; users that come together have too much.
    assert entered.sum(1).var() == pytest.approx(users * rate * (1 - rate), rel=0.15)
    together = entered.T @ entered / steps
    assert np.abs(together - np.diag(np.diag(together)) - rate**2 * (1 - np.eye(users))).max() < 6 * rate / math.sqrt(steps)
    assert np.abs((entered[:-1] * entered[1:]).mean(0) - rate**2).max() < 6 * rate / math.sqrt(steps)


def check_grid(step: Step) -> None:
    """Every release is whole steps of a public grid, whoever is in it, so that its low bits say nothing (Mironov 2012)."""
    mechanism = make(sample_rate=1.0, clip=1e-3)
    unit = replace(mechanism, dimension=64).point.scale * mechanism.expected_batch
    for users in (0, 1, 50):
        found = step(mechanism, torch.full((users, 64), 1e-4), SeededNoise(4, users)).double() * unit
        # A float32 holds whole numbers of this size to a part in ten million.
        assert (found - found.round()).abs().max() < 1e-6 * found.abs().max() < 0.05
        assert len(found.round().unique()) > 32


CHECKS = {
    "noise": check_noise,
    "sensitivity": check_sensitivity,
    "divisor": check_divisor,
    "sampling": check_sampling,
    "grid": check_grid,
}
BROKEN = [
    ("noise", without_noise),
    ("noise", half_noise),
    ("grid", float_noise),
    ("noise", by_real_batch),
    ("noise", by_present_users),
    ("sensitivity", without_clip),
    ("sensitivity", coordinate_clip),
    ("sensitivity", by_real_batch),
    ("divisor", by_real_batch),
    ("divisor", by_present_users),
    ("sampling", of_fixed_size),
    ("sampling", of_everybody),
    ("sampling", of_neighbours),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_step_keeps_its_event(check: str) -> None:
    CHECKS[check](real)


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=lambda part: getattr(part, "__name__", part))
def test_and_the_check_notices_a_broken_step(check: str, broken: Step) -> None:
    with pytest.raises(AssertionError):
        CHECKS[check](broken)


def attack(step: Step, mechanism: Mechanism, *, trials: int) -> float:
    """Lower bound of epsilon (99 % sure) that an attacker proves from releases with and without one user of a huge gradient.

    A threshold chosen on half of the trials, Clopper-Pearson bounds of its two error rates on the other half (Jagielski et al.
    2020, "Auditing differentially private machine learning").
    """
    random = SeededNoise(8)  # the audit is of the mechanism; the generators have tests of their own
    others, user = torch.zeros(3, 1), torch.full((1, 1), 50.0)
    there, gone = (
        np.array([float(step(mechanism, gradients, random)) for _ in range(trials)])
        for gradients in (torch.cat([others, user]), others)
    )
    half = trials // 2

    def gain(threshold: float) -> float:
        hit, miss = (there[:half] > threshold).mean(), (gone[:half] > threshold).mean()
        return float((hit - DELTA) / max(miss, 10 / half))

    threshold = max(np.quantile(np.concatenate([there[:half], gone[:half]]), np.linspace(0.02, 0.995, 60)), key=gain)
    hits, misses = int((there[half:] > threshold).sum()), int((gone[half:] > threshold).sum())
    low = stats.beta.ppf(0.005, hits, half - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.995, misses + 1, half - misses) if misses < half else 1.0
    return math.log(max(low - DELTA, 1e-12) / high)


def promised(mechanism: Mechanism) -> float:
    return PREFERRED.epsilon((mechanism.release(1),), DELTA).epsilon


class TestAttack:
    """An audit from outside: what an attacker proves must stay below what the accountant promises.

    With as many trials as find the mechanism broken in the way that is hardest to see.
    """

    whole = make(users=5, sample_rate=1.0, noise_multiplier=2.0)
    sampled = make(users=5, sample_rate=0.1, noise_multiplier=0.7)

    @pytest.mark.parametrize(("mechanism", "trials"), [(whole, 8000), (sampled, 4000)], ids=["whole", "sampled"])
    def test_the_mechanism_keeps_its_promise(self, mechanism: Mechanism, trials: int) -> None:
        assert attack(real, mechanism, trials=trials) <= promised(mechanism)

    @pytest.mark.parametrize(("broken", "trials"), [(without_noise, 1000), (without_clip, 1000), (half_noise, 8000)])
    def test_the_attack_finds_a_broken_mechanism(self, broken: Step, trials: int) -> None:
        assert attack(broken, self.whole, trials=trials) > promised(self.whole)

    def test_the_attack_finds_that_nobody_was_sampled(self) -> None:
        assert attack(of_everybody, self.sampled, trials=4000) > promised(self.sampled)


class TestMechanism:
    @given(st.lists(st.floats(0, 1e18), min_size=1, max_size=6), st.floats(1e-3, 10))
    @settings(deadline=None)
    def test_no_gradient_is_left_above_the_clip(self, norms: list[float], clip: float) -> None:
        weights = make(clip=clip).weights(torch.tensor(norms, dtype=torch.float32).square())
        assert ((weights * torch.tensor(norms)) <= clip * (1 + 1e-5)).all()
        assert ((weights >= 0) & (weights <= 1)).all()
        small = torch.tensor(norms) < clip * 0.999
        assert (weights[small] == 1).all()

    @pytest.mark.parametrize("noise", [0.0, 1.0])
    def test_a_norm_that_is_not_finite_weighs_nothing(self, noise: float) -> None:
        squared = torch.tensor([math.nan, math.inf, 0.0, 0.01])
        assert make(noise_multiplier=noise).weights(squared).tolist() == [0.0, 0.0, 1.0, 1.0]

    def test_every_tensor_has_noise_of_its_own(self) -> None:
        # A joint clip bounds all tensors together, so each coordinate of each has the whole noise.
        mechanism = make(dimension=60_000)
        noise, _ = mechanism.privatise(nothing({"a": (150, 200), "b": (30_000,)}, bound=mechanism.clip), SecureNoise())
        a, b = noise["a"].flatten().numpy(), noise["b"].numpy()
        expected = mechanism.point.noise / mechanism.expected_batch
        steps = 1 / (mechanism.point.scale * mechanism.expected_batch)
        for part in (a, b):
            spread = part + np.random.default_rng(0).uniform(-0.5, 0.5, len(part)) * steps
            assert stats.kstest(spread / expected, "norm").pvalue > 1e-6
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a))
        assert noise["a"].shape == (150, 200)

    def test_noise_is_new_every_time(self) -> None:
        random = SecureNoise()
        first, second = (make(dimension=64).privatise(nothing({"w": (64,)}, bound=0.5), random)[0]["w"] for _ in range(2))
        assert (first == second).sum() < 10

    def test_the_sums_are_not_changed_in_place(self) -> None:
        total = torch.ones(2, dtype=torch.float64)
        make().privatise(of_total(make(), total), SecureNoise())
        assert torch.equal(total, torch.ones(2, dtype=torch.float64))

    def test_without_privacy_it_is_the_plain_mean(self) -> None:
        mechanism = make(noise_multiplier=0.0, clip=math.inf)
        assert not mechanism.private
        assert mechanism.release(3).exact
        for count in (0, 3, 50):
            mean, _ = mechanism.privatise(clipped(mechanism, torch.full((count, 2), 9.0)), SecureNoise())
            torch.testing.assert_close(mean["w"], torch.full((2,), 9.0 * count / 20.0))

    def test_a_sum_of_another_bound_or_size_is_a_fault(self) -> None:
        for wrong in (nothing({"w": (2,)}, bound=0.6), nothing({"w": (3,)}, bound=0.5)):
            with pytest.raises(PrivacyError, match="a sum of bound"):
                make().privatise(wrong, SecureNoise())

    @pytest.mark.parametrize("clip_", CLIPS)
    def test_noise_survives_at_both_ends_of_the_clip(self, clip_: float) -> None:
        mechanism = make(clip=clip_, dimension=1000, noise_multiplier=0.05)
        noise, _ = mechanism.privatise(nothing({"w": (1000,)}, bound=clip_), SecureNoise())
        expected = mechanism.point.noise / mechanism.expected_batch
        assert float(noise["w"].std()) / expected == pytest.approx(1, rel=0.15)

    @given(
        users=st.integers(1, 10**6),
        rate=st.floats(0, 1, exclude_min=True),
        noise=st.floats(0.05, 50),
        group=st.integers(1, 9),
        steps=st.integers(1, 999),
    )
    def test_the_event_says_what_the_mechanism_is(self, users: int, rate: float, noise: float, group: int, steps: int) -> None:
        mechanism = Mechanism(users=users, sample_rate=rate, clip=0.3, noise_multiplier=noise, group_size=group, dimension=9)
        event = mechanism.release(steps)
        assert (event.kind, event.sample_rate, event.noise_multiplier) == (ReleaseKind.TRAIN, rate, noise)
        assert (event.group_size, event.steps) == (group, steps)
        assert event.integers is not None and (event.integers.dimension, event.integers.honest) == (9, 1)
        assert event.integers.norm == mechanism.point.norm
        assert mechanism.expected_batch == rate * users

    def test_a_sample_may_be_empty_or_everybody(self) -> None:
        assert len(make(sample_rate=1e-9).sample(10, SeededNoise(0))) == 0
        assert make(sample_rate=1.0).sample(10, SeededNoise(0)).tolist() == list(range(10))
        assert len(make().sample(0, SeededNoise(0))) == 0
        random = SecureNoise()
        sizes = {len(make(sample_rate=0.5).sample(2, random)) for _ in range(200)}
        assert sizes == {0, 1, 2}

    @pytest.mark.parametrize(
        "over",
        [
            {"users": 0},
            {"sample_rate": 0.0},
            {"sample_rate": 1.1},
            {"sample_rate": math.nan},
            {"clip": 0.0},
            {"clip": -1.0},
            {"clip": math.nan},
            {"clip": math.inf},
            {"noise_multiplier": -1.0},
            {"noise_multiplier": math.nan},
            {"noise_multiplier": math.inf},
            {"group_size": 0},
        ],
        ids=str,
    )
    def test_nonsense_is_refused(self, over: dict[str, float]) -> None:
        with pytest.raises(PrivacyError):
            make(**over)

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            make().noise_multiplier = 0.0  # type: ignore[misc]


class TestBoundedSum:
    """Whatever users bring, each is bounded where they are added up; nothing is refused."""

    @given(st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=3, max_size=3), max_size=5))
    @settings(deadline=None)
    def test_one_user_moves_the_sum_by_at_most_the_bound(self, rows: list[list[float]]) -> None:
        contributions = np.array(rows).reshape(-1, 3)
        whole = of_contributions(contributions)
        assert np.isfinite(whole.vector()).all() and whole.bound == 1.0
        for user in range(len(rows)):
            rest = of_contributions(np.delete(contributions, user, 0))
            assert np.linalg.norm(whole.vector() - rest.vector()) <= 1 + 1e-9

    def test_what_is_within_the_bound_is_kept_as_it_is(self) -> None:
        contributions = np.array([[0.6, 0.0], [0.0, 0.8]])
        assert of_contributions(contributions).vector().tolist() == [0.6, 0.8]

    @given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=6))
    @settings(deadline=None)
    def test_choices_have_norm_one_at_most(self, choices: list[list[int]]) -> None:
        rows = [np.array(chosen, np.int32) for chosen in choices]
        whole = of_choices(rows, width=10, most=4).vector()
        for user in range(len(rows)):
            rest = of_choices([row for at, row in enumerate(rows) if at != user], width=10, most=4).vector()
            assert np.linalg.norm(whole - rest) <= 1 + 1e-9
        if len(rows) == 1 and choices[0]:
            assert (whole > 0).sum() == min(4, len(set(choices[0])))

    def test_sums_add_up_and_refuse_strangers(self) -> None:
        one, other = (of_contributions(np.array([[0.5, 0.0]])) for _ in range(2))
        assert one.plus(other).vector().tolist() == [1.0, 0.0]
        with pytest.raises(PrivacyError, match="different bounds"):
            one.plus(of_contributions(np.zeros((1, 2)), bound=2.0))
        with pytest.raises(PrivacyError, match="float64"):
            BoundedSum(parts={"w": torch.zeros(2)}, bound=1.0)

    def test_gradients_that_are_not_numbers_are_nobodys(self) -> None:
        gradients = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [3e38, 3e38], [0.1, 0.0]])
        total = clipped(make(), gradients).parts["w"]
        expected = 0.5 * 2**-0.5
        torch.testing.assert_close(total, torch.tensor([expected + 0.1, expected], dtype=torch.float64), atol=1e-6, rtol=0)


class TestCountMechanism:
    mechanism = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=2.0, dimension=100_000)

    def test_the_noise_is_what_the_event_says(self) -> None:
        noised = self.mechanism.privatise(nothing({"sum": (100_000,)}, bound=1.0), SeededNoise(0))
        assert noised.std() == pytest.approx(self.mechanism.point.noise, rel=0.02)
        assert 2.0 < self.mechanism.point.noise < 2.0 * 1.02
        spread = noised + np.random.default_rng(0).uniform(-0.5, 0.5, noised.size) / self.mechanism.point.scale
        assert stats.kstest(spread / self.mechanism.point.noise, "norm").pvalue > 1e-4

    def test_what_leaves_is_whole_steps_of_the_grid(self) -> None:
        mechanism = replace(self.mechanism, dimension=4)
        for users in (0, 1, 300):
            contributions = np.random.default_rng(users).uniform(0, 0.5, (users, 4))
            steps = mechanism.privatise(of_contributions(contributions), SecureNoise()) * mechanism.point.scale
            assert np.abs(steps - np.rint(steps)).max() < 1e-6

    def test_neighbours_explain_every_answer_about_equally(self) -> None:
        """The likelihoods of what left, under two neighbouring sums: their ratio is a Gaussian's, never all or nothing.

        The low bits of floating-point noise told them apart for certain.
        """
        mechanism = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=2.0, dimension=4)
        contributions = np.random.default_rng(1).uniform(0, 0.5, (300, 4))
        contributions[-1] = 0.5
        sums = [of_contributions(contributions[:users]).vector() * mechanism.point.scale for users in (300, 299)]
        variance = mechanism.point.variance
        losses = []
        for trial in range(2000):
            left = mechanism.privatise(of_contributions(contributions), SeededNoise(trial)) * mechanism.point.scale
            here, there = (((np.rint(left) - total) ** 2).sum() / (2 * variance) for total in sums)
            losses.append(there - here)
        # Of a Gaussian mechanism with multiplier z the loss is normal with mean 1 / 2z^2 and deviation 1 / z.
        assert np.mean(losses) == pytest.approx(0.125, abs=0.05) and np.std(losses) == pytest.approx(0.5, rel=0.1)
        assert np.abs(losses).max() < 3.0

    def test_the_event_is_one_release_of_everybody(self) -> None:
        event = CountMechanism(kind=ReleaseKind.POPULARITY, noise_multiplier=3.0, dimension=7, group_size=4).release()
        assert (event.kind, event.steps, event.sample_rate, event.group_size) == (ReleaseKind.POPULARITY, 1, 1.0, 4)
        assert event.integers is not None and event.integers.dimension == 7

    def test_a_sample_is_of_the_event(self) -> None:
        """Every contribution enters independently, with the rate that the event is accounted with."""
        sampled, random, trials = replace(self.mechanism, dimension=4, sample_rate=0.3), SeededNoise(7), 3000
        rate = sampled.release().sample_rate
        assert rate == 0.3
        entered = np.zeros((trials, 50))
        for row in entered:
            row[sampled.sample(50, random)] = 1
        assert stats.binomtest(int(entered.sum()), entered.size, rate).pvalue > 1e-4
        assert np.abs(entered.mean(0) - rate).max() < 6 * math.sqrt(rate * (1 - rate) / trials)
        assert entered.sum(1).var() == pytest.approx(50 * rate * (1 - rate), rel=0.15)
        together = entered.T @ entered / trials
        assert np.abs(together - np.diag(np.diag(together)) - rate**2 * (1 - np.eye(50))).max() < 6 * rate / math.sqrt(trials)

    def test_a_sample_of_all_draws_nothing(self) -> None:
        random = SeededNoise(0)
        assert self.mechanism.sample(5, random).tolist() == [0, 1, 2, 3, 4]
        assert random.words(3).tolist() == SeededNoise(0).words(3).tolist()

    @pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
    def test_no_rate_is_refused(self, rate: float) -> None:
        with pytest.raises(PrivacyError, match="sample_rate"):
            replace(self.mechanism, sample_rate=rate)

    def test_nobody_is_noised_too(self) -> None:
        mechanism = replace(self.mechanism, dimension=5)
        assert mechanism.privatise(of_contributions(np.zeros((0, 5))), SeededNoise(0)).any()

    def test_without_noise_it_is_exact(self) -> None:
        exact = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=0.0, dimension=2)
        contributions = of_contributions(np.array([[0.6, 0.0], [0.0, 0.8]]))
        assert exact.privatise(contributions, SeededNoise(0)).tolist() == [0.6, 0.8]

    @pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
    def test_nonsense_is_refused(self, noise: float) -> None:
        with pytest.raises(PrivacyError):
            CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=noise, dimension=4)

    def test_a_sum_of_another_bound_is_a_fault(self) -> None:
        with pytest.raises(PrivacyError, match="a sum of bound"):
            replace(self.mechanism, dimension=1).privatise(of_contributions(np.ones((1, 1)), bound=2.0), SecureNoise())


class TestQuantile:
    """Adaptive clipping: what it costs, and that it goes where it should."""

    def adaptive(self, **over: float) -> Mechanism:
        return Mechanism(
            users=2000,
            sample_rate=0.1,
            clip=4.0,
            noise_multiplier=1.2,
            dimension=1,
            quantile=Quantile(**{"target": 0.5, "rate": 0.2, "noise": 10.0} | over),
        )

    def test_gradient_and_vote_together_are_one_vector_of_the_charged_multiplier(self) -> None:
        mechanism = self.adaptive()
        # A user moves the vector by at most (C, vote / 2); every coordinate has the same noise.
        longest = math.hypot(mechanism.clip, mechanism.vote / 2)
        noise = mechanism.noise_multiplier * longest
        assert noise / mechanism.vote == pytest.approx(10.0)
        assert mechanism.point.clip == pytest.approx(longest) and mechanism.point.dimension == 2
        assert mechanism.release(3).noise_multiplier == 1.2

    def test_the_noise_that_is_added_is_the_larger_one(self) -> None:
        mechanism = replace(self.adaptive(noise=0.7), dimension=200_000)
        found, _ = mechanism.privatise(nothing({"w": (200_000,)}, bound=4.0), SeededNoise(0))
        spread = float(found["w"].std()) * mechanism.expected_batch
        assert spread == pytest.approx(mechanism.point.noise, rel=0.01)
        assert spread > 1.9 * mechanism.noise_multiplier * 4.0

    def test_the_count_is_noised(self) -> None:
        mechanism, random = self.adaptive(), SeededNoise(1)
        total = BoundedSum(
            parts={"w": torch.zeros(1, dtype=torch.float64)}, bound=4.0, votes=torch.zeros((), dtype=torch.float64)
        )
        share = [math.log(mechanism.privatise(total, random)[1].clip / 4.0) / -0.2 + 0.5 for _ in range(3000)]
        assert np.mean(share) == pytest.approx(0.5, abs=0.005)
        assert np.std(share) == pytest.approx(10.0 / 200, rel=0.1)

    def test_a_users_vote_is_bounded(self) -> None:
        mechanism = self.adaptive()
        votes = [clipped(mechanism, torch.full((count, 1), size)).votes for count, size in ((1, 9.0), (1, 0.1), (3, 0.1))]
        assert [float(vote) for vote in votes if vote is not None] == [-0.5, 0.5, 1.5]

    def test_the_bound_finds_the_median_from_either_side(self) -> None:
        random, norms = SeededNoise(2), np.random.default_rng(0).lognormal(0.0, 0.5, (2000, 1))
        for start in (0.05, 20.0):
            mechanism = replace(self.adaptive(), clip=start)
            for _ in range(150):
                sample = mechanism.sample(2000, random)
                _, mechanism = mechanism.privatise(clipped(mechanism, torch.from_numpy(norms[sample]).float()), random)
            assert mechanism.clip == pytest.approx(1.0, rel=0.15)

    def test_without_privacy_or_quantile_nothing_moves(self) -> None:
        mechanism = make()
        assert mechanism.privatise(nothing({"w": (2,)}, bound=0.5), SeededNoise(0))[1] == mechanism

    def test_a_count_that_would_spend_more_than_the_step_is_refused(self) -> None:
        with pytest.raises(PrivacyError, match="would spend more"):
            self.adaptive(noise=0.6)
        with pytest.raises(PrivacyError, match="quantile"):
            Quantile(target=1.0, rate=0.2, noise=1.0)
