"""What is run of a grid is balanced, and its analysis finds what was put in and nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from simulations.benchmarks.fractional_design import Share, cross, effects

FACTORS = {key: ["low", "middle", "high"] for key in "abcde"}
AMOUNT = {"low": -1.0, "middle": 0.0, "high": 1.0}


def _cells(share: Share = "fraction") -> list[dict[str, str]]:
    runs = cross(FACTORS, [0, 1, 2], share=share)
    return [dict(word.split("=") for word in words) | {"seed": str(seed)} for words, seed in runs]


def _outcomes(cells: list[dict[str, str]], *, noise: float = 0.01) -> list[float]:
    random = np.random.default_rng(3)
    return [
        1
        + 0.1 * AMOUNT[cell["a"]]
        + 0.1 * AMOUNT[cell["b"]] * AMOUNT[cell["c"]]
        + 0.05 * int(cell["seed"])
        + random.normal(0, noise)
        for cell in cells
    ]


class TestCross:
    def test_any_four_of_five_settings_meet_in_every_combination_once(self) -> None:
        cells = _cells()
        assert len(cells) == 81
        for four in combinations(FACTORS, 4):
            assert len({tuple(cell[key] for key in four) for cell in cells}) == 81

    @pytest.mark.parametrize("settings", [2, 3, 4, 5, 6])
    def test_every_value_meets_every_seed_equally_often(self, settings: int) -> None:
        cells = cross({str(at): ["0", "1", "2"] for at in range(settings)}, [7, 8, 9])
        for at in range(settings):
            assert len(set(Counter((words[at], seed) for words, seed in cells).values())) == 1, at

    @pytest.mark.parametrize("levels", [3, 5])
    @pytest.mark.parametrize("settings", [5, 6])
    def test_in_a_part_any_two_settings_and_the_seed_still_meet_equally_often(self, levels: int, settings: int) -> None:
        factors = {str(at): [str(value) for value in range(levels)] for at in range(settings)}
        fraction, part = (cross(factors, range(levels), share=share) for share in ("fraction", "part"))
        assert set(part) < set(fraction) and len(part) * levels == len(fraction)
        columns = [*zip(*(words for words, _ in part), strict=True), tuple(seed for _, seed in part)]
        for one, other in combinations(columns, 2):
            together = Counter(zip(one, other, strict=True))
            assert len(together) == levels**2 and len(set(together.values())) == 1

    @pytest.mark.parametrize("settings", [3, 5])
    def test_the_whole_has_every_combination_once_and_begins_with_the_fraction(self, settings: int) -> None:
        factors = {str(at): ["0", "1", "2"] for at in range(settings)}
        whole = cross(factors, [7, 8, 9], share="whole")
        assert len({words for words, _ in whole}) == len(whole) == 3**settings
        assert set(cross(factors, [7, 8, 9])) < set(whole)
        columns = [*zip(*(words for words, _ in whole), strict=True), tuple(seed for _, seed in whole)]
        for one, other in combinations(columns, 2):
            together = Counter(zip(one, other, strict=True))
            assert len(together) == 9 and len(set(together.values())) == 1

    @pytest.mark.parametrize("factors", [dict.fromkeys("abcd", "012"), dict.fromkeys("abcde", "0123")])
    def test_too_small_a_cross_has_no_part(self, factors: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="a part of them needs five"):
            cross(factors, [0], share="part")

    @pytest.mark.parametrize("factors", [{"a": ["0", "1"]}, {"a": ["0", "1"], "b": ["0"]}, {}])
    def test_settings_that_do_not_cross_are_refused(self, factors: dict[str, list[str]]) -> None:
        with pytest.raises(ValueError, match="equally many"):
            cross(factors, [0])

    def test_seeds_that_cannot_be_dealt_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs one seed, or one for each of the 3"):
            cross(FACTORS, [0, 1])


class TestEffects:
    def test_finds_what_was_put_in_and_nothing_else(self) -> None:
        cells = _cells()
        found, unexplained = effects(cells, _outcomes(cells))
        strong = {effect.keys for effect in found if effect.p < 1e-6}
        assert strong == {("a",), ("seed",), ("b", "c")}
        by_keys = {effect.keys: effect for effect in found}
        means = by_keys["a",].means
        assert means["high",] - means["low",] == pytest.approx(0.2, abs=0.01)
        assert means["middle",] - means["low",] == pytest.approx(0.1, abs=0.01)
        # Of b and c alone nothing is to be seen: they act as a pair.
        assert by_keys["b",].p > 0.001 and by_keys["c",].p > 0.001
        assert unexplained == pytest.approx(0.01, rel=0.4)

    def test_one_seed_is_no_setting(self) -> None:
        cells = [cell | {"seed": "0"} for cell in _cells()]
        found, _ = effects(cells, _outcomes(cells))
        assert ("seed",) not in {effect.keys for effect in found}

    def test_means_are_the_plain_ones_where_nothing_is_missing(self) -> None:
        cells = _cells()
        outcomes = np.asarray(_outcomes(cells))
        for effect in effects(cells, outcomes.tolist())[0]:
            for values, mean in effect.means.items():
                there = [all(cell[key] == value for key, value in zip(effect.keys, values, strict=True)) for cell in cells]
                assert mean == pytest.approx(outcomes[there].mean(), abs=1e-9), effect.keys

    def test_with_some_cells_missing_the_means_are_of_the_same_others(self) -> None:
        # Without them a value's plain mean would be that of a luckier choice of the other settings.
        kept = [cell for cell in _cells() if not (cell["a"] == "low" and cell["b"] == "low" and cell["d"] == "high")]
        assert len(kept) == 78
        by_keys = {effect.keys: effect for effect in effects(kept, _outcomes(kept))[0]}
        assert by_keys["a",].p < 1e-6 and by_keys["b", "c"].p < 1e-6
        for value in FACTORS["b"]:
            assert by_keys["b",].means[(value,)] == pytest.approx(1.05, abs=0.01)

    def test_a_part_tells_what_single_settings_do(self) -> None:
        cells = _cells("part")
        outcomes = [1 + 0.1 * AMOUNT[cell["a"]] + 0.05 * int(cell["seed"]) for cell in cells]
        noisy = np.random.default_rng(3).normal(outcomes, 0.01).tolist()
        found, unexplained = effects(cells, noisy, pairs=False)
        assert {effect.keys for effect in found if effect.p < 1e-4} == {("a",), ("seed",)}
        assert len(found) == 6 and unexplained == pytest.approx(0.01, rel=0.4)
        with pytest.raises(ValueError, match="and their pairs"):
            effects(cells, noisy)

    def test_too_few_cells_are_said(self) -> None:
        cells = [dict(word.split("=") for word in words) for words, _ in cross({"a": "012", "b": "012", "c": "012"}, [0])]
        with pytest.raises(ValueError, match="too few"):
            effects(cells, [0.0] * len(cells))

    def test_no_cells_at_all_are_too_few(self) -> None:
        with pytest.raises(ValueError, match="0 cells are too few"):
            effects([], [])

    def test_effects_that_cannot_be_told_apart_are_said(self) -> None:
        cells = [cell for cell in _cells() if not (cell["a"] == "low" and cell["b"] == "low")]
        with pytest.raises(ValueError, match="too few"):
            effects(cells, _outcomes(cells))
