"""Integer noise: the law is the discrete Gaussian's to the last bit, and what is released is what is accounted for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from client.privacy import discrete_gaussian as discrete
from client.privacy.discrete_gaussian import LARGEST_TABLE, NoiseTable, discrete_gaussian, noise_share, noise_table
from client.privacy.noise_sources import SecureNoise, SeededNoise
from shared.base.errors import InputError
from shared.privacy.accountants import OPACUS
from shared.privacy.discrete_sum import SAMPLER_BITS
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.fixed_point import FixedPoint, Words

ALMOST_NEVER = 1e-7
"""Smallest probability of a right sampler's draws that is let pass."""


class Fixed:
    """Words that were chosen, in order; `drawn` counts them."""

    def __init__(self, *words: int) -> None:
        self._words, self.drawn = list(words), 0

    def words(self, count: int) -> NDArray[np.uint64]:
        part = self._words[self.drawn : self.drawn + count]
        assert len(part) == count, "more words were drawn than expected"
        self.drawn += count
        return np.array(part, np.uint64)


def parts(whole: int) -> list[int]:
    """A number of 512 bits as words, the first the highest."""
    return [whole >> (448 - 64 * at) & (2**64 - 1) for at in range(8)]


def law(variance: float, reach: int) -> NDArray[np.float64]:
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    masses = np.exp(-(k**2) / (2 * variance))
    return masses / masses.sum()


def fits(draws: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """P-value of a chi-square test of draws against the masses of -K ... K, rare values taken together."""
    reach = len(expected) // 2
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    wanted = expected * len(draws)
    # Neighbours are merged until about 40 are expected in each cell.
    cells = (np.cumsum(wanted) // 40).astype(int)
    seen, hoped = np.bincount(cells, counts), np.bincount(cells, wanted)
    kept = hoped > 5
    seen, hoped = np.append(seen[kept], seen[~kept].sum()), np.append(hoped[kept], hoped[~kept].sum())
    seen, hoped = seen[hoped > 0], hoped[hoped > 0]
    return float(stats.chisquare(seen, hoped * seen.sum() / hoped.sum()).pvalue)


Sampler = Callable[[float, int, Words], NDArray[np.int64]]


def right(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    return noise_table(variance).draw(count, random)


def too_little(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    return noise_table(variance * 0.94).draw(count, random)


def nothing(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    return np.zeros(count, np.int64)


def rounded(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    """A Gaussian rounded down: what one gets by forgetting that the law must be even."""
    return np.floor(np.random.default_rng(0).normal(0, math.sqrt(variance), count)).astype(np.int64)


def binomial(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    """The right variance, short tails."""
    trials = int(4 * variance)
    return np.random.default_rng(0).binomial(trials, 0.5, count) - trials // 2


class TestLaw:
    @pytest.mark.parametrize("variance", [0.3, 1.0, 9.7, 400.0, 250_000.0])
    @pytest.mark.parametrize("source", [SecureNoise, lambda: SeededNoise(11, "noise")], ids=["secure", "seeded"])
    def test_draws_follow_it(self, variance: float, source: Callable[[], Words]) -> None:
        draws = right(variance, 200_000, source())
        assert draws.dtype == np.int64
        exact = law(variance, int(12 * math.sqrt(variance)) + 5)
        assert fits(draws, exact) > ALMOST_NEVER
        spread = float((exact * np.arange(-(len(exact) // 2), len(exact) // 2 + 1) ** 2).sum())
        assert abs(draws.mean()) < 6 * math.sqrt(spread / len(draws))
        assert draws.var() == pytest.approx(spread, rel=6 * math.sqrt(3 / len(draws)))

    @pytest.mark.parametrize(("broken", "variance"), [(too_little, 400.0), (nothing, 9.7), (rounded, 9.7), (binomial, 1.5)])
    def test_a_broken_sampler_does_not(self, broken: Sampler, variance: float) -> None:
        draws = broken(variance, 200_000, SeededNoise(3))
        assert fits(draws, law(variance, int(12 * math.sqrt(variance)) + 5)) < ALMOST_NEVER

    def test_shares_sum_to_the_law_of_the_total(self) -> None:
        random = SecureNoise()
        shares = sum(right(30.0, 200_000, random) for _ in range(7))
        assert fits(np.asarray(shares), law(210.0, 200)) > ALMOST_NEVER
        assert fits(np.asarray(shares), law(180.0, 200)) < ALMOST_NEVER  # one share too few is seen

    def test_draws_are_independent(self) -> None:
        draws = right(50.0, 200_000, SecureNoise()).astype(np.float64)
        for lag in (1, 2, 1000):
            assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 6 / math.sqrt(len(draws))

    @pytest.mark.parametrize("variance", [0.01, 0.7, 8.0, 123.456])
    def test_thresholds_are_right_to_the_last_of_512_bits(self, variance: float) -> None:
        table = noise_table(variance)
        with localcontext(prec=300):
            half = 1 / (2 * Decimal(variance))
            reach = 500
            masses = {k: (-half * k * k).exp() for k in range(reach)}
            total = masses[0] + 2 * sum(masses[k] for k in range(1, reach))
            below = sum(masses[abs(k)] for k in range(-reach + 1, table.lowest))
            for at, threshold in enumerate(table.thresholds):
                below += masses[abs(table.lowest + at)]
                exact = below / total * Decimal(2) ** 512
                assert -2 < Decimal(threshold) - exact < 2
        assert table.thresholds == tuple(sorted(table.thresholds))

    def test_the_error_is_far_below_what_the_accountant_charges(self) -> None:
        large = noise_table(2.0**24)
        assert large.error < 2.0**-492
        # The largest table is twice as long, and a share is at most 64 draws of it.
        assert 64 * 2 * large.error < 2.0**-SAMPLER_BITS

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.001, 2 * LARGEST_TABLE])
    def test_the_variance_is_checked(self, bad: float) -> None:
        with pytest.raises(InputError, match="variance"):
            noise_table(bad)


class TestDraw:
    @given(whole=st.integers(0, 2**512 - 1), variance=st.sampled_from([0.5, 40.0, 3e4]))
    @settings(deadline=None, max_examples=150)
    def test_inverts_the_distribution_function(self, whole: int, variance: float) -> None:
        table = noise_table(variance)
        words = parts(whole)
        expected = table.lowest + sum(threshold <= whole for threshold in table.thresholds)
        random = Fixed(*words)
        assert table.draw(1, random).tolist() == [expected]
        assert random.drawn in (1, 8)

    @pytest.mark.parametrize("variance", [0.5, 40.0, 3e4])
    def test_ties_of_the_first_word_are_broken_by_the_others(self, variance: float) -> None:
        table = noise_table(variance)
        for at in sorted({0, 1, len(table.thresholds) // 3, len(table.thresholds) // 2, len(table.thresholds) - 1}):
            threshold = table.thresholds[at]
            reached = table.lowest + sum(other <= threshold for other in table.thresholds)
            assert table.draw(1, Fixed(*parts(threshold))).tolist() == [reached]
            just_below = threshold - 1
            below = table.lowest + sum(other <= just_below for other in table.thresholds)
            assert table.draw(1, Fixed(*parts(just_below))).tolist() == [below]
            assert below < reached

    def test_the_extreme_words(self) -> None:
        table = noise_table(100.0)
        lowest = table.draw(1, Fixed(*[0] * 8))
        highest = table.draw(1, Fixed(*[2**64 - 1] * 8))
        assert lowest.tolist() == [table.lowest]
        assert highest.tolist() == [table.lowest + len(table.thresholds)]
        assert abs(int(highest[0]) + table.lowest) <= 1  # as far as the other

    def test_no_draws_and_many(self) -> None:
        table = noise_table(1e6)
        assert table.draw(0, SecureNoise()).shape == (0,)
        random = SecureNoise()
        table.draw(10, random)
        best = min(_seconds(lambda: table.draw(300_000, random)) for _ in range(5))
        assert best < 0.1  # some 3 ms; the room is for a busy machine


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


class TestShare:
    def point(self, **changes: float) -> FixedPoint:
        values = {"dimension": 60_000, "participants": 4, "honest": 3, "clip": 1.0, "noise_multiplier": 1.0, **changes}
        return FixedPoint(**values)  # type: ignore[arg-type]

    def test_honest_shares_carry_the_noise_that_is_accounted_for(self) -> None:
        point = self.point()
        total = sum(noise_share(point, SecureNoise()) for _ in range(3)) / point.norm
        assert np.asarray(total).std() == pytest.approx(point.noise_multiplier, rel=6 / math.sqrt(2 * point.dimension))
        assert point.noise * point.scale == pytest.approx(point.noise_multiplier * point.norm)

    def test_no_privacy_is_no_noise(self) -> None:
        assert not noise_share(self.point(noise_multiplier=0.0), Fixed()).any()

    def test_a_large_variance_is_a_sum_of_draws(self) -> None:
        point = self.point(noise_multiplier=60.0, honest=1)
        assert point.share_variance > 2 * LARGEST_TABLE
        share = noise_share(point, SeededNoise(1))
        assert share.var() == pytest.approx(point.share_variance, rel=6 * math.sqrt(2 / point.dimension))

    @pytest.mark.parametrize("draws", [1, 2, 7, 1024])
    def test_a_sum_is_of_as_few_draws_as_the_largest_table_allows_and_of_1024_at_most(
        self, draws: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`shared/privacy/discrete_sum.py` proves what it says of sums of up to 1024 draws."""
        tables: list[float] = []
        monkeypatch.setattr(discrete, "LARGEST_TABLE", 16.0)
        monkeypatch.setattr(discrete, "noise_table", lambda variance: [tables.append(variance), noise_table(variance)][1])
        monkeypatch.setattr(NoiseTable, "draw", lambda table, count, random: np.ones(count, np.int64))
        for variance in (16.0 * draws, math.nextafter(16.0 * (draws - 1), math.inf) if draws > 1 else 8.0):
            assert discrete_gaussian(variance, 3, Fixed()).tolist() == [draws] * 3
            assert tables.pop() == pytest.approx(variance / draws, rel=1e-15) and not tables
        if draws == 1024:
            with pytest.raises(InputError, match="integer noise"):
                discrete_gaussian(math.nextafter(16.0 * draws, math.inf), 3, Fixed())

    def test_an_absurd_variance_is_refused(self) -> None:
        with pytest.raises(InputError, match="share"):
            noise_share(self.point(noise_multiplier=1e4, honest=1), Fixed())


class TestMechanism:
    """The whole way: encode, share, wrap, sum, decode. What comes out has the law that the accountant's tests integrate."""

    PLATFORMS, HONEST, STEP = 3, 2, 17.3

    def released(self, steps: float, noise: float = 1.0, count: int = 40_000) -> tuple[FixedPoint, NDArray[np.int64]]:
        """Sums of the honest platforms' integers, one coordinate, many times over; a platform holds `steps` steps."""
        point = FixedPoint(
            dimension=count, participants=self.PLATFORMS, honest=self.HONEST, clip=1.0, noise_multiplier=0.05 * noise
        )
        total = np.zeros(count, np.uint32)
        for platform in range(self.HONEST):
            random = SeededNoise(5, platform)
            real = np.full(count, steps / point.scale if platform == 0 else 0.0)
            total += point.wrap(point.encode(real, random) + noise_share(point, random))
        decoded = point.decode(total & np.uint32((1 << point.bits) - 1))
        return point, np.rint(decoded * point.scale).astype(np.int64)

    def expected(self, point: FixedPoint, steps: float) -> NDArray[np.float64]:
        base = law(point.variance, 1500)
        whole = math.floor(steps)
        return (1 - (steps - whole)) * np.roll(base, whole) + (steps - whole) * np.roll(base, whole + 1)

    def test_what_is_released_has_the_accounted_law(self) -> None:
        for steps in (0.0, self.STEP):
            point, seen = self.released(steps)
            assert fits(seen, self.expected(point, steps)) > ALMOST_NEVER

    def test_other_noise_or_another_rounding_has_not(self) -> None:
        point, seen = self.released(self.STEP, noise=0.8)
        honest = FixedPoint(dimension=40_000, participants=3, honest=2, clip=1.0, noise_multiplier=0.05)
        assert fits(seen, self.expected(honest, self.STEP)) < ALMOST_NEVER
        point, seen = self.released(self.STEP)
        assert fits(seen, self.expected(point, self.STEP + 4.0)) < ALMOST_NEVER

    def test_an_attacker_who_sees_the_sum_gains_no_more_than_epsilon_says(self) -> None:
        """The best test of one user's step against none, on what is really released: a lower bound of epsilon."""
        point, with_him = self.released(self.STEP)
        _, without = self.released(0.0)
        # In one of 40,000 coordinates the user's step is STEP of the accounted norm.
        noise = math.sqrt(point.variance) / self.STEP
        delta = 1e-3
        said = OPACUS.epsilon([Release(kind=ReleaseKind.TRAIN, noise_multiplier=noise)], delta).epsilon
        gained = 0.0
        for threshold in range(-100, 150, 5):
            hits, false = float((with_him >= threshold).mean()), float((without >= threshold).mean())
            if false > 2e-3:
                gained = max(gained, math.log(max(hits - delta, 1e-9) / false))
        assert 0.3 * said < gained <= said * 1.1
