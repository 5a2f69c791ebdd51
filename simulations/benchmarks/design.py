"""A balanced fraction of a grid of settings, and what each setting does in it.

Of k settings with L values each, L^(k-1) cells: the last setting's value is the sum of the others' modulo L. Every combination
of any k - 1 settings then occurs in just one cell (an orthogonal array of strength k - 1; Montgomery, Design and Analysis
of Experiments, ch. 9), so that a value's mean over its cells is not coloured by the other settings, and with five settings
neither is that of a pair of values. Seeds are dealt to the cells in the same way: each value meets every seed equally often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution  # type: ignore[import-untyped]


def cross(factors: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[tuple[tuple[str, ...], int]]:
    """The cells of the fraction: `key=value` words and a seed.

    Args:
        factors: Values of each setting, equally many each.
        seeds: As many as values, or one.

    >>> for words, seed in cross({"a": "01", "b": "01"}, [5, 6]): print(*words, seed)
    a=0 b=0 5
    a=1 b=1 6

    Raises:
        ValueError: fewer than two settings, or numbers of values or seeds that do not fit.
    """
    counts = {key: len(values) for key, values in factors.items()}
    if len(counts) < 2 or len(set(counts.values())) != 1:
        raise ValueError(f"needs two settings or more with equally many values each, not {counts}")
    levels = next(iter(counts.values()))
    if len(seeds) not in (1, levels):
        raise ValueError(f"needs one seed, or one for each of the {levels} values, not {len(seeds)}")
    found = []
    for free in product(range(levels), repeat=len(counts) - 1):
        picks = (*free, sum(free) % levels)
        # Other weights than the last setting's, so that seed and setting do not move together.
        seed = sum(pick * (1 + at % 2) for at, pick in enumerate(free)) % len(seeds)
        words = tuple(f"{key}={values[pick]}" for (key, values), pick in zip(factors.items(), picks, strict=True))
        found.append((words, seeds[seed]))
    return found


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one setting, or a pair of them, does.

    Args:
        keys: One setting or two.
        means: Mean outcome by value, or by pair of values.
        p: Chance of differences at least as large where there are none (F test).
    """

    keys: tuple[str, ...]
    means: Mapping[tuple[str, ...], float]
    p: float


def effects(cells: Sequence[Mapping[str, str]], outcomes: Sequence[float]) -> tuple[list[Effect], float]:
    """Analysis of variance of a balanced fraction: single settings, and pairs of all but "seed".

    Args:
        cells: Value of every setting, and of "seed", one mapping per cell.

    Returns:
        The effects, single ones first, and the standard deviation of what they leave unexplained.

    Raises:
        ValueError: the cells are not balanced (some are missing or there twice), or too few to tell noise from effect.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    y_of: dict[tuple[str, ...], tuple[dict[tuple[str, ...], float], float, int]] = {}
    keys = [key for key in cells[0] if len({cell[key] for cell in cells}) > 1]
    pairs: list[tuple[str, ...]] = [*((key,) for key in keys), *combinations([key for key in keys if key != "seed"], 2)]
    for pair in pairs:
        means, squares = _between(cells, pair, y)
        freedom = len(means) - 1
        if len(pair) == 2:
            # Of a pair, what is more than the sum of its two.
            squares -= sum(y_of[(key,)][1] for key in pair)
            freedom -= sum(y_of[(key,)][2] for key in pair)
        y_of[pair] = means, squares, freedom
    left = len(y) - 1 - sum(freedom for _, _, freedom in y_of.values())
    if left < 1:
        raise ValueError(f"{len(y)} cells are too few for {len(keys)} settings and their pairs")
    variance = max(float(((y - y.mean()) ** 2).sum()) - sum(squares for _, squares, _ in y_of.values()), 0.0) / left
    found = []
    for pair, (means, squares, freedom) in y_of.items():
        ratio = squares / freedom / variance if variance else np.inf
        found.append(Effect(keys=pair, means=means, p=float(f_distribution.sf(ratio, freedom, left))))
    return found, float(np.sqrt(variance))


def _between(
    cells: Sequence[Mapping[str, str]], keys: tuple[str, ...], y: NDArray[np.float64]
) -> tuple[dict[tuple[str, ...], float], float]:
    """Means by value, and the sum of squares between them."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, cell in enumerate(cells):
        groups.setdefault(tuple(cell[key] for key in keys), []).append(at)
    sizes = {len(group) for group in groups.values()}
    expected = np.prod([len({cell[key] for cell in cells}) for key in keys])
    if len(sizes) != 1 or len(groups) != expected:
        raise ValueError(f"the cells are not balanced over {' and '.join(keys)}: some are missing, or there twice")
    means = {values: float(y[group].mean()) for values, group in groups.items()}
    return means, float(sum(len(groups[values]) * (mean - y.mean()) ** 2 for values, mean in means.items()))
