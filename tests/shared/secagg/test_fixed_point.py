"""Fixed point: sums come back, nothing overflows, and rounding keeps the bound that is accounted for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.base.errors import InputError, PrivacyError
from shared.privacy.discrete_sum import gaussian
from shared.privacy.groups import Removal
from shared.privacy.rounding import rounded_norm
from shared.secagg.fixed_point import FAILURE, SLACK, WRAP, FixedPoint, planning, stretch


class Chance:
    """Uniform words from a seed; in the project itself they come from `client.privacy.noise_sources`."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._random.integers(0, 1 << 64, size=count, dtype=np.uint64)


class Constant:
    """The same word again and again."""

    def __init__(self, word: int) -> None:
        self._word = word

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.full(count, self._word, np.uint64)


def point(**changes: Any) -> FixedPoint:
    values: dict[str, Any] = {"dimension": 1000, "participants": 5, "honest": 2, "clip": 0.5, "noise_multiplier": 1.0}
    return FixedPoint(**{**values, **changes})


facts = st.fixed_dictionaries(
    {
        "dimension": st.sampled_from([3, 1000, 40_000, 300_000, 3_000_000]),
        "participants": st.integers(1, 400),
        "honest": st.just(1),
        "clip": st.sampled_from([1e-3, 0.7, 1.0, 30.0]),
        "noise_multiplier": st.sampled_from([0.0, 0.5, 1.3, 6.0]),
        "batch": st.sampled_from([0.0, 1.0, 80.0, 2000.0]),
    }
)


class TestRange:
    @given(values=facts, share=st.floats(0.3, 1.0))
    @settings(deadline=None, max_examples=200)
    def test_no_sum_of_the_declared_platforms_can_overflow(self, values: dict[str, Any], share: float) -> None:
        # So many shares of one coordinate's noise would be below the variance that is accounted for.
        assume(values["dimension"] > 3 or values["participants"] < 60)
        made = point(**{**values, "honest": max(1, int(values["participants"] * share))})
        assert made.participants * made.box + made.tail <= 2 ** (made.bits - 1) - 1
        assert made.box >= made.least_room * made.clip_steps - 1
        assert 1 <= made.inflation <= 1.05 + 1e-9
        # Chernoff for the noise of all platforms, over all coordinates.
        total = made.share_variance * made.participants
        if total:
            assert 2 * made.dimension * math.exp(-((made.tail) ** 2) / (2 * total)) <= WRAP * (1 + 1e-9)

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("word", [0, 2**64 - 1])
    def test_the_largest_data_and_noise_come_back(self, sign: int, word: int) -> None:
        made = point(participants=7, honest=3)
        largest = made.encode(np.full(made.dimension, sign * 1e300), Constant(word))
        assert (largest == sign * made.box).all()
        total = np.zeros(made.dimension, np.uint32)
        for _ in range(made.participants):
            total += made.wrap(largest)
        total += made.wrap(np.full(made.dimension, sign * made.tail, np.int64))
        decoded = made.decode(total & np.uint32((1 << made.bits) - 1))
        assert decoded == pytest.approx(sign * (made.participants * made.box + made.tail) / made.scale)

    @pytest.mark.parametrize("dimension", [36_864, 300_000, 3_000_000])
    @pytest.mark.parametrize("noise", [0.0, 0.9, 2.0])
    def test_fifty_platforms_send_at_most_eighteen_bits(self, dimension: int, noise: float) -> None:
        made = point(dimension=dimension, participants=50, honest=25, noise_multiplier=noise)
        assert made.bits / 16 <= 1.15

    def test_less_room_than_the_batch_wants_rather_than_wider_words(self) -> None:
        roomy = point(dimension=36_864, participants=3, honest=2, batch=250.0)
        assert roomy.box >= 10 * roomy.clip_steps and roomy.inflation <= 1.0101
        narrow = point(dimension=36_864, participants=50, honest=30, batch=250.0)
        assert narrow.bits == 18
        assert narrow.clip_steps <= narrow.box < 10 * narrow.clip_steps

    def test_everybody_derives_the_same_from_the_same_facts(self) -> None:
        one, other = point(clip=0.1 + 0.2), point(clip=0.30000000000000004)
        assert (one.bits, one.box, one.clip_steps, one.variance) == (other.bits, other.box, other.clip_steps, other.variance)

    def test_the_scale_does_not_depend_on_the_unit(self) -> None:
        assert point(clip=0.001).clip_steps == point(clip=1000.0).clip_steps

    @pytest.mark.parametrize(
        "bad",
        [
            {"dimension": 0},
            {"dimension": 1.5},
            {"dimension": 1 << 40},
            {"participants": 0},
            {"participants": True},
            {"honest": 0},
            {"honest": 6},
            {"clip": 0.0},
            {"clip": math.inf},
            {"clip": "1"},
            {"noise_multiplier": -1.0},
            {"noise_multiplier": math.nan},
            {"batch": -1.0},
        ],
    )
    def test_facts_are_checked(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(bad))):
            point(**bad)

    def test_noise_that_needs_more_than_32_bits_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"bits|variance"):
            point(noise_multiplier=1e8)

    def test_shares_that_are_too_small_to_be_accounted_for_are_refused(self) -> None:
        with pytest.raises(InputError, match="squared steps"):
            point(noise_multiplier=1e-3)


class TestCoding:
    @given(seed=st.integers(0, 2**32), dimension=st.sampled_from([1, 17, 1000]), platforms=st.integers(1, 9))
    @settings(deadline=None, max_examples=60)
    def test_the_sum_comes_back_within_one_step_a_platform(self, seed: int, dimension: int, platforms: int) -> None:
        made = point(dimension=dimension, participants=platforms, honest=1)
        random = np.random.default_rng(seed)
        sums = random.uniform(-1, 1, (platforms, dimension)) * made.box / made.scale
        total = np.zeros(dimension, np.uint32)
        for number, real in enumerate(sums):
            total += made.wrap(made.encode(real, Chance(seed + number)))
        back = made.decode(total & np.uint32((1 << made.bits) - 1))
        assert np.abs(back - sums.sum(0)).max() <= platforms / made.scale

    def test_is_unbiased_and_rounds_to_the_two_neighbours(self) -> None:
        made = point(dimension=200_000)
        for steps in (0.25, -0.25, 17.9, -3.5, 1e-3):
            encoded = made.encode(np.full(made.dimension, steps / made.scale), Chance(3))
            assert set(np.unique(encoded)) <= {math.floor(steps), math.floor(steps) + 1}
            spread = 5 * math.sqrt((steps % 1) * (1 - steps % 1) / made.dimension)
            assert encoded.mean() == pytest.approx(steps, abs=spread + 1e-9)

    def test_whole_steps_stay_what_they_are(self) -> None:
        made = point(clip=1.0, dimension=1)
        grid = FixedPoint(dimension=1, participants=1, honest=1, clip=float(made.clip_steps), noise_multiplier=0.0)
        for value in (-5.0, -1.0, 0.0, 2.0, 40.0):
            for word in (0, 2**63, 2**64 - 1):
                assert grid.encode(np.array([value]), Constant(word)).tolist() == [value]

    def test_coordinates_beyond_the_box_are_cut_to_it_and_counted(self) -> None:
        made = point(dimension=4)
        edge = made.box / made.scale
        real = np.array([3 * edge, -3 * edge, edge / 2, 0.0])
        assert made.encode(real, Chance()).tolist()[:2] == [made.box, -made.box]
        assert made.beyond(real) == 2

    def test_only_finite_float64_of_the_right_shape_is_encoded(self) -> None:
        made = point(dimension=3)
        for wrong in (np.zeros(4), np.zeros((3, 1)), np.zeros(3, np.float32)):
            with pytest.raises(InputError, match="the sum"):
                made.encode(wrong, Chance())
        for broken in (math.nan, math.inf, -math.inf):
            with pytest.raises(PrivacyError, match="not finite"):
                made.encode(np.array([0.0, broken, 1.0]), Chance())

    def test_only_words_of_b_bits_are_decoded(self) -> None:
        made = point(dimension=2)
        word = 1 << made.bits
        for wrong in (np.zeros(2, np.int64), np.zeros(3, np.uint32), np.array([0, word], np.uint32)):
            with pytest.raises(InputError, match="the sum"):
                made.decode(wrong)


class TestSensitivity:
    """What one user changes in the integers: the bound that the accountant relies on."""

    def shifts(self, made: FixedPoint, step: NDArray[np.float64], tries: int, base: float = 2.0) -> NDArray[np.float64]:
        """L2 norms of what adding `step` changes, the same chance on both sides."""
        start = np.random.default_rng(1).normal(0, base * made.clip, made.dimension)
        changes = [
            made.encode(start + step, Chance(seed)).astype(np.float64) - made.encode(start, Chance(seed)) for seed in range(tries)
        ]
        return np.linalg.norm(np.array(changes), axis=1)

    @pytest.mark.parametrize("kind", ["even", "halves", "one coordinate", "random"])
    def test_a_user_never_moves_the_integers_further_than_accounted(self, kind: str) -> None:
        made = point(dimension=20_000, participants=50, honest=1, noise_multiplier=2.0, batch=1000.0)  # a coarse scale
        step = {
            "even": np.ones(made.dimension),
            "halves": np.where(np.arange(made.dimension) % 2, 0.5, 1.5),
            "one coordinate": np.eye(1, made.dimension)[0],
            "random": np.random.default_rng(5).normal(size=made.dimension),
        }[kind]
        step *= made.clip / np.linalg.norm(step)
        moved = self.shifts(made, step, 60)
        assert moved.max() <= made.norm
        if kind == "random":
            # Without d/4 for rounding the bound would be false: this is what is paid for.
            assert moved.min() > made.clip_steps * (1 + SLACK)

    def test_the_bound_that_always_holds_always_holds(self) -> None:
        made = point(dimension=50)
        step = np.full(50, made.clip / math.sqrt(50))
        always = rounded_norm(made.clip_steps * (1 + SLACK), dimension=50, failure=0.0)
        assert self.shifts(made, step, 500).max() <= always

    def test_the_box_never_lengthens_a_shift(self) -> None:
        made = point(dimension=500)
        step = np.full(500, made.clip / math.sqrt(500))
        far = self.shifts(made, step, 50, base=100.0)  # most coordinates lie beyond the box
        assert far.max() < self.shifts(made, step, 50, base=0.1).max()

    @pytest.mark.parametrize(("norm", "dimension"), [(3.0, 100), (40.0, 100), (10.0, 3)])
    def test_hoeffding_is_an_upper_bound_on_how_often_rounding_goes_further(self, norm: float, dimension: int) -> None:
        random = np.random.default_rng(2)
        step = np.full(dimension, norm / math.sqrt(dimension))
        start = random.uniform(0, 1, (50_000, dimension))
        squares = (np.floor(start + step) ** 2).sum(1)  # start: base and chance together, uniform
        assert squares.mean() <= norm**2 + dimension / 4 + 5 * squares.std() / math.sqrt(len(squares))
        for failure in (0.5, 0.05, 0.005):
            often = (squares > rounded_norm(norm, dimension=dimension, failure=failure) ** 2).mean()
            assert often <= failure

    def test_rounding_costs_nothing_in_the_end(self) -> None:
        ratios = [rounded_norm(scale, dimension=1000, failure=FAILURE) / scale for scale in (10.0, 100.0, 1e3, 1e5)]
        assert ratios == sorted(ratios, reverse=True)
        assert ratios[-1] == pytest.approx(1, abs=1e-4)

    @pytest.mark.parametrize("bad", [(-1.0, 2, 0.1), (1.0, 0, 0.1), (1.0, 2, 1.0), (math.nan, 2, 0.1), (1.0, 2, -0.1)])
    def test_its_arguments_are_checked(self, bad: tuple[float, int, float]) -> None:
        with pytest.raises(InputError, match="rounded vector"):
            rounded_norm(bad[0], dimension=bad[1], failure=bad[2])


def test_what_suffices_at_the_planning_scale_suffices_at_every_scale() -> None:
    def accounted(part: Any) -> float:
        found = gaussian([Removal(noise_multiplier=1.1, sample_rate=0.1, examples=1, steps=3, integers=part)])
        assert found is not None
        return found[0].noise_multiplier

    for dimension in (1, 64, 36_864, 3_000_000):
        for values in ({"batch": 1.0}, {"batch": 1000.0, "participants": 50}, {"noise_multiplier": 8.0, "participants": 50}):
            made = point(dimension=dimension, honest=2, **{"participants": 5, **values})
            assert accounted(planning()) <= accounted(made.integers) <= 1.1
    assert accounted(planning()) > 1.1 * (1 - 3e-4)


@pytest.mark.parametrize("local", [0, 200, 200_000])
def test_a_platform_gets_the_noise_that_it_asked_for(local: int) -> None:
    """Not a float's rounding less: it refuses every round of a sum with less than its plan."""
    random = np.random.default_rng(0)
    for need in random.uniform(0.2, 3.0, 200):
        dimension = int(random.integers(100, 40_000))
        agreed = float(need) * stretch(dimension, local)
        point = FixedPoint(dimension=dimension, participants=3, honest=3, clip=1.0, noise_multiplier=agreed)
        assert point.multiplier_with(local) >= need
