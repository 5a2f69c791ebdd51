"""Randomness: normal, independent, even; the secure one beyond every seed, the seeded one repeatable."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.privacy.noise_sources import NoiseSource, SecureNoise, SeededNoise

SOURCES: dict[str, Callable[[], NoiseSource]] = {"secure": SecureNoise, "seeded": lambda: SeededNoise(5, "movies", "train", 1)}
ALMOST_NEVER = 1e-7
"""Smallest probability of a right source's draws that is let pass: the secure one is new in every run."""


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> NoiseSource:
    return SOURCES[request.param]()


class TestContract:
    """What every source of randomness must keep to. A right one fails here once in a hundred thousand runs."""

    def test_a_second_call_goes_on(self, source: NoiseSource) -> None:
        first, second = source.words(64), source.words(64)
        assert not np.isin(first, second).any()

    def test_words_are_independent_of_one_another(self, source: NoiseSource) -> None:
        series = (source.words(100_000) >> np.uint64(11)).astype(float)
        for lag in (1, 2, 3, 25_000, 50_000):
            assert abs(np.corrcoef(series[:-lag], series[lag:])[0, 1]) < 6 / math.sqrt(len(series) - lag)

    @pytest.mark.parametrize("probability", [0.001, 0.08, 0.5, 0.97])
    def test_coins_have_their_probability(self, source: NoiseSource, probability: float) -> None:
        coins = source.bernoulli(200_000, probability)
        assert coins.dtype == np.bool_
        assert stats.binomtest(int(coins.sum()), len(coins), probability).pvalue > ALMOST_NEVER
        together = int((coins[:-1] & coins[1:]).sum())
        assert together == pytest.approx(probability**2 * len(coins), abs=6 * math.sqrt(probability**2 * len(coins)) + 5)

    def test_certain_coins(self, source: NoiseSource) -> None:
        assert source.bernoulli(10_000, 1.0).all()
        assert not source.bernoulli(10_000, 0.0).any()
        assert len(source.bernoulli(0, 0.5)) == 0

    @pytest.mark.parametrize("below", [1, 2, 6, 7])
    def test_integers_cover_their_range_evenly(self, source: NoiseSource, below: int) -> None:
        drawn = source.integers(60_000, below)
        assert drawn.dtype == np.int64
        counts = np.bincount(drawn, minlength=below)
        assert len(counts) == below
        assert below == 1 or stats.chisquare(counts).pvalue > ALMOST_NEVER

    def test_words_are_uniform_in_every_bit(self, source: NoiseSource) -> None:
        words = source.words(50_000)
        assert words.dtype == np.uint64
        for bit in range(64):
            ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
            assert stats.binomtest(ones, len(words), 0.5).pvalue > ALMOST_NEVER
        assert len(np.unique(words)) == len(words) and len(source.words(0)) == 0

    @given(count=st.integers(0, 50), below=st.integers(1, 2**40))
    @settings(deadline=None, max_examples=50)
    def test_integers_stay_below(self, count: int, below: int) -> None:
        for make in SOURCES.values():
            drawn = make().integers(count, below)
            assert len(drawn) == count
            assert ((drawn >= 0) & (drawn < below)).all()


class TestSecure:
    def draw(self) -> np.ndarray:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return SecureNoise().words(256)

    def test_two_never_repeat_whatever_is_seeded(self) -> None:
        first, second = self.draw(), self.draw()
        assert not np.isin(first, second).any()

    def test_uses_no_other_generator(self) -> None:
        np.random.seed(3)
        torch.manual_seed(3)
        before = (np.random.get_state()[1].tobytes(), torch.get_rng_state())
        source = SecureNoise()
        source.words(64), source.bernoulli(64, 0.5), source.integers(64, 9)
        assert np.random.get_state()[1].tobytes() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_each_has_its_own_key_from_the_operating_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []

        def entropy(count: int) -> bytes:
            asked.append(count)
            return bytes([len(asked)]) * count

        monkeypatch.setattr("client.privacy.noise_sources.os.urandom", entropy)
        first, second = SecureNoise().words(8), SecureNoise().words(8)
        assert asked == [32, 32]
        assert not (first == second).any()


class TestSeeded:
    def test_repeats(self) -> None:
        for _ in range(2):
            torch.manual_seed(torch.seed())
            one, other = SeededNoise(1, "a", 2), SeededNoise(1, "a", 2)
            assert (one.words(8) == other.words(8)).all()
            assert (one.bernoulli(50, 0.5) == other.bernoulli(50, 0.5)).all()
            assert (one.integers(50, 9) == other.integers(50, 9)).all()

    def test_seeds_platforms_purposes_and_rounds_have_streams_of_their_own(self) -> None:
        names = [
            (seed, platform, purpose, round_)
            for seed in (0, 1, 2**31 - 1)
            for platform in ("a", "b", "ab", "books", "a-very-long-name-of-a-platform-that-sells-only-blue-books-and-tea")
            for purpose in ("prior", "train", "evaluate-before", "evaluate-federated")
            for round_ in (0, 1, 2, 300)
        ]
        drawn = {tuple(SeededNoise(*name).words(4).tolist()) for name in names}
        assert len(drawn) == len(names)
