"""The mechanism does what its accounting event says, measured from outside.

A claim of privacy needs a test that fails when the mechanism is broken: every check here is a function of a `Step`, and is
shown to fail on steps that are broken on purpose, each in a way that somebody has shipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from client.mechanism import CountMechanism, Mechanism, Quantile
from client.noise import NoiseSource, SecureNoise, SeededNoise
from shared.errors import PrivacyError
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import ReleaseKind

DELTA = 1e-3


def make(**over: float) -> Mechanism:
    values = {"users": 200, "sample_rate": 0.1, "clip": 0.5, "noise_multiplier": 1.5} | over
    return Mechanism(**values)  # type: ignore[arg-type]


Step = Callable[[Mechanism, Tensor, NoiseSource], Tensor]
"""Mechanism, every user's gradient (users, width), randomness -> one release (width,)."""


def clipped(mechanism: Mechanism, gradients: Tensor) -> Tensor:
    return (mechanism.weights(gradients.square().sum(1))[:, None] * gradients).sum(0)


def real(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    batch = gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]
    return mechanism.privatise({"w": clipped(mechanism, batch)}, random)["w"]


def without_noise(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # NVFlare's hello-dp, after a restart.
    batch = gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]
    return clipped(mechanism, batch) / mechanism.expected_batch


def half_noise(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    batch = gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]
    half = Mechanism(**{**vars(mechanism), "noise_multiplier": mechanism.noise_multiplier / 2})
    return half.privatise({"w": clipped(mechanism, batch)}, random)["w"]


def without_clip(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    batch = gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]
    return mechanism.privatise({"w": batch.sum(0)}, random)["w"]


def coordinate_clip(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    batch = gradients[torch.from_numpy(mechanism.sample(len(gradients), random))]
    return mechanism.privatise({"w": batch.clamp(-mechanism.clip, mechanism.clip).sum(0)}, random)["w"]


def by_real_batch(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # opacus#571, #819.
    chosen = mechanism.sample(len(gradients), random)
    released = mechanism.privatise({"w": clipped(mechanism, gradients[torch.from_numpy(chosen)])}, random)["w"]
    return released * mechanism.expected_batch / max(len(chosen), 1)


def by_present_users(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return real(mechanism, gradients, random) * mechanism.users / len(gradients)


def of_fixed_size(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # Accounted as Poisson, sampled by shuffling (jax_privacy#84).
    order = np.argsort(random.normal((len(gradients),)).numpy())
    batch = gradients[torch.from_numpy(order[: round(mechanism.sample_rate * len(gradients))])]
    return mechanism.privatise({"w": clipped(mechanism, batch)}, random)["w"]


def of_everybody(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    return mechanism.privatise({"w": clipped(mechanism, gradients)}, random)["w"]


def of_neighbours(mechanism: Mechanism, gradients: Tensor, random: NoiseSource) -> Tensor:
    # The right rate and the right variance of nothing: pairs of users come together.
    pairs = mechanism.sample(len(gradients) // 2, random)
    batch = gradients[torch.from_numpy(np.concatenate([2 * pairs, 2 * pairs + 1]))]
    return mechanism.privatise({"w": clipped(mechanism, batch)}, random)["w"]


class Apart:
    """Coins and normals from two streams, so that a release with another number of coins has the same noise."""

    def __init__(self, seed: int) -> None:
        self._coins, self._normals = SeededNoise(seed, "coins"), SeededNoise(seed, "normals")

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self._normals.normal(shape)

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        return self._coins.bernoulli(count, probability)

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        return self._coins.integers(count, below)


def check_noise(step: Step) -> None:
    """The standard deviation is the event's multiple of the sensitivity, whatever the batch."""
    for users, gradient in ((4, 0.0), (0, 0.0), (400, 3.0)):
        mechanism = make()
        gradients = torch.zeros(users, 40_000)
        gradients[:, :1] = gradient
        noise = step(mechanism, gradients, SeededNoise(1))[1:]
        sensitivity = mechanism.clip / mechanism.expected_batch
        assert float(noise.std()) / sensitivity == pytest.approx(mechanism.release(1).noise_multiplier, rel=0.02)
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
            assert moved <= sensitivity * (1 + 1e-3)
            reached = max(reached, moved)
    assert reached > 0.99 * sensitivity  # else the bound would be no bound of this step


def check_divisor(step: Step) -> None:
    """The sum is divided by the declared expected batch, however many were sampled or present."""
    mechanism = make(noise_multiplier=1e-7)
    for users in (1, 30, 500):
        random, twin = Apart(5), Apart(5)
        released = step(mechanism, torch.full((users, 1), mechanism.clip), random)
        batch = len(mechanism.sample(users, twin))
        torch.testing.assert_close(released, torch.tensor([batch * mechanism.clip / 20.0]), atol=1e-6, rtol=1e-4)


def check_sampling(step: Step) -> None:
    """Every user enters independently with the event's rate: read off releases in which every user has a direction of his own."""
    users, steps = 120, 2500
    mechanism, random = make(noise_multiplier=1e-6), SeededNoise(3)
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


CHECKS = {"noise": check_noise, "sensitivity": check_sensitivity, "divisor": check_divisor, "sampling": check_sampling}
BROKEN = [
    ("noise", without_noise),
    ("noise", half_noise),
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
    """An audit from outside: what an attacker proves must stay below what the accountant promises."""

    whole = make(users=5, sample_rate=1.0, noise_multiplier=2.0)
    sampled = make(users=5, sample_rate=0.1, noise_multiplier=0.7)

    @pytest.mark.parametrize("mechanism", [whole, sampled], ids=["whole", "sampled"])
    def test_the_mechanism_keeps_its_promise(self, mechanism: Mechanism) -> None:
        assert attack(real, mechanism, trials=8000) <= promised(mechanism)

    @pytest.mark.parametrize(("broken", "trials"), [(without_noise, 2000), (without_clip, 2000), (half_noise, 16_000)])
    def test_the_attack_finds_a_broken_mechanism(self, broken: Step, trials: int) -> None:
        assert attack(broken, self.whole, trials=trials) > promised(self.whole)

    def test_the_attack_finds_that_nobody_was_sampled(self) -> None:
        assert attack(of_everybody, self.sampled, trials=8000) > promised(self.sampled)


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
        mechanism = make()
        noised = mechanism.privatise({"a": torch.zeros(150, 200), "b": torch.zeros(30_000)}, SecureNoise())
        a, b = noised["a"].flatten().numpy(), noised["b"].numpy()
        expected = mechanism.noise_multiplier * mechanism.clip / mechanism.expected_batch
        for part in (a, b):
            assert stats.kstest(part / expected, "norm").pvalue > 1e-6
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a))
        assert noised["a"].shape == (150, 200)

    def test_noise_is_new_every_time(self) -> None:
        random = SecureNoise()
        first, second = (make().privatise({"w": torch.zeros(64)}, random)["w"] for _ in range(2))
        assert not torch.isin(first, second).any()

    def test_the_sums_are_not_changed_in_place(self) -> None:
        total = torch.ones(4)
        make().privatise({"w": total}, SecureNoise())
        assert torch.equal(total, torch.ones(4))

    def test_without_privacy_it_is_the_plain_mean(self) -> None:
        mechanism = make(noise_multiplier=0.0, clip=math.inf)
        assert not mechanism.private
        assert mechanism.release(3).exact
        for count in (0, 3, 50):
            total = mechanism.privatise({"w": clipped(mechanism, torch.full((count, 2), 9.0))}, SecureNoise())["w"]
            torch.testing.assert_close(total, torch.full((2,), 9.0 * count / 20.0))

    @given(
        users=st.integers(1, 10**6),
        rate=st.floats(0, 1, exclude_min=True),
        noise=st.floats(0.01, 50),
        group=st.integers(1, 9),
        steps=st.integers(1, 999),
    )
    def test_the_event_says_what_the_mechanism_is(self, users: int, rate: float, noise: float, group: int, steps: int) -> None:
        mechanism = Mechanism(users=users, sample_rate=rate, clip=0.3, noise_multiplier=noise, group_size=group)
        event = mechanism.release(steps)
        assert (event.kind, event.sample_rate, event.noise_multiplier) == (ReleaseKind.TRAIN, rate, noise)
        assert (event.group_size, event.steps) == (group, steps)
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


class TestCountMechanism:
    mechanism = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=2.0)

    @pytest.mark.parametrize("row", [[0.9, 0.9], [-1.1, 0.0], [math.inf, 0.0], [math.nan, 0.0]], ids=str)
    def test_a_contribution_above_its_bound_is_refused(self, row: list[float]) -> None:
        with pytest.raises(PrivacyError, match="above its bound"):
            self.mechanism.privatise(np.array([[0.1, 0.1], row]), SeededNoise(0))

    def test_the_noise_is_what_the_event_says(self) -> None:
        noised = self.mechanism.privatise(np.zeros((3, 100_000)), SeededNoise(0))
        assert noised.std() == pytest.approx(self.mechanism.release().noise_multiplier, rel=0.02)
        assert stats.kstest(noised / 2.0, "norm").pvalue > 1e-4

    def test_the_event_is_one_release_of_everybody(self) -> None:
        event = CountMechanism(kind=ReleaseKind.POPULARITY, noise_multiplier=3.0, group_size=4).release()
        assert (event.kind, event.steps, event.sample_rate, event.group_size) == (ReleaseKind.POPULARITY, 1, 1.0, 4)

    def test_nobody_is_noised_too(self) -> None:
        assert self.mechanism.privatise(np.zeros((0, 5)), SeededNoise(0)).all()

    def test_without_noise_it_is_exact(self) -> None:
        exact = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=0.0)
        assert exact.privatise(np.array([[0.6, 0.0], [0.0, 0.8]]), SeededNoise(0)).tolist() == [0.6, 0.8]

    @pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
    def test_nonsense_is_refused(self, noise: float) -> None:
        with pytest.raises(PrivacyError):
            CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=noise)


class TestQuantile:
    """Adaptive clipping: what it costs, and that it goes where it should."""

    def adaptive(self, **over: float) -> Mechanism:
        return Mechanism(
            users=2000,
            sample_rate=0.1,
            clip=4.0,
            noise_multiplier=1.2,
            quantile=Quantile(**{"target": 0.5, "rate": 0.2, "noise": 10.0} | over),
        )

    def test_the_two_releases_together_are_one_of_the_charged_multiplier(self) -> None:
        mechanism = self.adaptive()
        # A user moves (sum / C, centred count) by at most (1, 1/2); divided by each one's noise, that has norm 1 / z.
        together = (1 / mechanism.gradient_noise**2 + 0.5**2 / 10.0**2) ** -0.5
        assert together == pytest.approx(mechanism.noise_multiplier)
        assert mechanism.gradient_noise > mechanism.noise_multiplier
        assert mechanism.release(3).noise_multiplier == 1.2

    def test_the_noise_that_is_added_is_the_larger_one(self) -> None:
        mechanism = self.adaptive(noise=0.7)
        found = mechanism.privatise({"w": torch.zeros(200_000)}, SeededNoise(0))["w"] * mechanism.expected_batch
        assert float(found.std()) == pytest.approx(mechanism.gradient_noise * 4.0, rel=0.01)
        assert mechanism.gradient_noise > 1.9 * mechanism.noise_multiplier

    def test_the_count_is_noised(self) -> None:
        mechanism, random = self.adaptive(), SeededNoise(1)
        share = [math.log(mechanism.follow(100, 200, random).clip / 4.0) / -0.2 + 0.5 for _ in range(3000)]
        assert np.mean(share) == pytest.approx(0.5, abs=0.005)
        assert np.std(share) == pytest.approx(10.0 / 200, rel=0.1)

    def test_the_bound_finds_the_median_from_either_side(self) -> None:
        random, norms = SeededNoise(2), np.random.default_rng(0).lognormal(0.0, 0.5, 2000)
        for start in (0.05, 20.0):
            mechanism = replace(self.adaptive(), clip=start)
            for _ in range(150):
                sample = mechanism.sample(2000, random)
                mechanism = mechanism.follow(float((norms[sample] <= mechanism.clip).sum()), len(sample), random)
            assert mechanism.clip == pytest.approx(1.0, rel=0.15)

    def test_without_privacy_or_quantile_nothing_moves(self) -> None:
        assert make().follow(3, 9, SeededNoise(0)) == make()

    def test_a_count_that_would_spend_more_than_the_step_is_refused(self) -> None:
        with pytest.raises(PrivacyError, match="would spend more"):
            self.adaptive(noise=0.6)
        with pytest.raises(PrivacyError, match="quantile"):
            Quantile(target=1.0, rate=0.2, noise=1.0)
