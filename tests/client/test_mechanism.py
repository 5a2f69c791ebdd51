"""The mechanism does what its accounting event says, measured; and each check fails when the mechanism is broken on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.mechanism import CountMechanism, Mechanism
from client.noise import NoiseSource, SecureNoise, SeededNoise
from shared.errors import PrivacyError
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import ReleaseKind


def make(**over: float) -> Mechanism:
    values = {"users": 200, "sample_rate": 0.1, "clip": 0.5, "noise_multiplier": 1.5} | over
    return Mechanism(**values)  # type: ignore[arg-type]


Release = Callable[[Mechanism, torch.Tensor, NoiseSource], torch.Tensor]


def real(mechanism: Mechanism, gradients: torch.Tensor, random: NoiseSource) -> torch.Tensor:
    weights = mechanism.weights(gradients.square().sum(1))
    return mechanism.privatise({"w": (weights[:, None] * gradients).sum(0)}, random)["w"]


def without_noise(mechanism: Mechanism, gradients: torch.Tensor, random: NoiseSource) -> torch.Tensor:
    weights = mechanism.weights(gradients.square().sum(1))
    return (weights[:, None] * gradients).sum(0) / mechanism.expected_batch


def half_noise(mechanism: Mechanism, gradients: torch.Tensor, random: NoiseSource) -> torch.Tensor:
    exact = without_noise(mechanism, gradients, random)
    return exact + (real(mechanism, gradients, random) - exact) / 2


def without_clip(mechanism: Mechanism, gradients: torch.Tensor, random: NoiseSource) -> torch.Tensor:
    return mechanism.privatise({"w": gradients.sum(0)}, random)["w"]


def by_real_batch(mechanism: Mechanism, gradients: torch.Tensor, random: NoiseSource) -> torch.Tensor:
    return real(mechanism, gradients, random) * mechanism.expected_batch / max(len(gradients), 1)


def attack(release: Release, mechanism: Mechanism, *, trials: int = 4000) -> float:
    """Lower bound of epsilon that an attacker proves from outputs with and without one user (99.9 % confidence).

    The user has a huge gradient and is in every batch. Clopper-Pearson on a threshold chosen on half of the trials (Jagielski et
    al. 2020); one step without sampling, delta 1e-3.
    """
    random, delta = SecureNoise(), 1e-3
    others = torch.zeros(3, 4)
    user = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    outputs = [
        np.array([float(release(mechanism, torch.cat([others, user]) if there else others, random)[0]) for _ in range(trials)])
        for there in (True, False)
    ]
    half = trials // 2
    best, threshold = -math.inf, 0.0
    for candidate in np.quantile(np.concatenate([outputs[0][:half], outputs[1][:half]]), np.linspace(0.02, 0.98, 49)):
        hit, miss = (outputs[0][:half] > candidate).mean(), (outputs[1][:half] > candidate).mean()
        gain = (hit - delta) / max(miss, 1 / half)
        if gain > best:
            best, threshold = gain, candidate
    hits, misses = int((outputs[0][half:] > threshold).sum()), int((outputs[1][half:] > threshold).sum())
    low = stats.beta.ppf(0.0005, hits, half - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.9995, misses + 1, half - misses) if misses < half else 1.0
    return math.log(max(low - delta, 1e-12) / high)


class TestAttack:
    mechanism = make(users=5, sample_rate=1.0, noise_multiplier=1.5)

    def promised(self) -> float:
        return PREFERRED.epsilon((self.mechanism.release(1),), 1e-3).epsilon

    def test_the_mechanism_keeps_its_promise(self) -> None:
        assert attack(real, self.mechanism) <= self.promised()

    @pytest.mark.parametrize("broken", [without_noise, without_clip])
    def test_the_attack_finds_a_broken_mechanism(self, broken: Release) -> None:
        assert attack(broken, self.mechanism) > self.promised()

    def test_the_attack_finds_half_of_the_noise(self) -> None:
        # Needs a promise that is small enough to be overtaken with this many trials.
        mechanism = make(users=5, sample_rate=1.0, noise_multiplier=4.0)
        promised = PREFERRED.epsilon((mechanism.release(1),), 1e-3).epsilon
        assert attack(real, mechanism, trials=20_000) <= promised
        quarter = make(users=5, sample_rate=1.0, noise_multiplier=1.0)
        assert attack(lambda m, g, r: real(quarter, g, r), mechanism, trials=20_000) > promised


class TestMechanism:
    def measured(self, release: Release, mechanism: Mechanism, gradients: torch.Tensor, width: int = 100_000) -> torch.Tensor:
        wide = torch.zeros(len(gradients), width)
        wide[:, : gradients.shape[1]] = gradients
        return release(mechanism, wide, SeededNoise(1))

    def assert_noise_is_the_event(self, release: Release) -> None:
        mechanism = make()
        noise = self.measured(release, mechanism, torch.zeros(4, 2))
        sensitivity = mechanism.clip / mechanism.expected_batch
        assert float(noise.std()) / sensitivity == pytest.approx(mechanism.release(1).noise_multiplier, rel=0.02)

    def test_the_noise_is_what_the_event_says(self) -> None:
        self.assert_noise_is_the_event(real)

    @pytest.mark.parametrize("broken", [without_noise, half_noise, by_real_batch])
    def test_and_the_check_notices_when_it_is_not(self, broken: Release) -> None:
        with pytest.raises(AssertionError):
            self.assert_noise_is_the_event(broken)

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.floats(1e-3, 10))
    @settings(deadline=None)
    def test_no_gradient_is_left_above_the_clip(self, norms: list[float], clip: float) -> None:
        weights = make(clip=clip).weights(torch.tensor(norms, dtype=torch.float32).square())
        assert ((weights * torch.tensor(norms)) <= clip * (1 + 1e-5)).all()
        assert ((weights >= 0) & (weights <= 1)).all()
        small = torch.tensor(norms) < clip * 0.999
        assert (weights[small] == 1).all()

    def test_the_divisor_is_declared(self) -> None:
        mechanism = make(noise_multiplier=0.0, clip=math.inf)
        for count in (0, 3, 50):
            total = real(mechanism, torch.ones(count, 2), SeededNoise(0))
            torch.testing.assert_close(total, torch.full((2,), count / 20.0))

    def test_samples_are_poisson(self) -> None:
        mechanism, random = make(), SeededNoise(3)
        samples = [mechanism.sample(150, random) for _ in range(3000)]
        sizes = np.array([len(sample) for sample in samples])
        # A fixed batch size (shuffling) has no variance: accounted as Poisson it is wrong (jax_privacy#84).
        assert sizes.mean() == pytest.approx(15, rel=0.03)
        assert sizes.var() == pytest.approx(150 * 0.1 * 0.9, rel=0.1)
        together = np.zeros((150, len(samples)))
        for at, sample in enumerate(samples):
            together[sample, at] = 1
        assert np.abs(np.corrcoef(together) - np.eye(150)).max() < 6 / math.sqrt(len(samples))

    def test_a_sample_may_be_empty_or_everybody(self) -> None:
        assert len(make(sample_rate=1e-9).sample(10, SeededNoise(0))) == 0
        assert make(sample_rate=1.0).sample(10, SeededNoise(0)).tolist() == list(range(10))
        assert len(make().sample(0, SeededNoise(0))) == 0

    @pytest.mark.parametrize(
        "over",
        [
            {"users": 0},
            {"sample_rate": 0.0},
            {"sample_rate": 1.1},
            {"clip": 0.0},
            {"clip": math.inf},
            {"noise_multiplier": -1.0},
            {"noise_multiplier": math.nan},
            {"group_size": 0},
        ],
    )
    def test_nonsense_is_refused(self, over: dict[str, float]) -> None:
        with pytest.raises(PrivacyError):
            make(**over)


class TestCountMechanism:
    mechanism = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=2.0)

    def test_a_contribution_above_its_bound_is_refused(self) -> None:
        with pytest.raises(PrivacyError, match="above its bound"):
            self.mechanism.privatise(np.array([[0.9, 0.9]]), SeededNoise(0))

    def test_the_noise_is_what_the_event_says(self) -> None:
        noised = self.mechanism.privatise(np.zeros((3, 100_000)), SeededNoise(0))
        assert noised.std() == pytest.approx(self.mechanism.release().noise_multiplier, rel=0.02)

    def test_without_noise_it_is_exact(self) -> None:
        exact = CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=0.0)
        assert exact.privatise(np.array([[0.6, 0.0], [0.0, 0.8]]), SeededNoise(0)).tolist() == [0.6, 0.8]
