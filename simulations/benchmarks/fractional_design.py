"""A balanced fraction of a grid of settings, and what each setting does in it.

Of k settings with L values each, L^(k-1) cells: the last setting's value is the sum of the others' modulo L. Every combination
of any k - 1 settings then occurs in just one cell (an orthogonal array of strength k - 1; Montgomery, Design and Analysis
of Experiments, ch. 9), so that a value's mean over its cells is not coloured by the other settings, and with five settings
neither is that of a pair of values. Seeds are dealt to the cells in the same way: each value meets every seed equally often.

Of five settings or more, L odd, a part of 1/L of those cells is balanced still: any two settings, and any setting and the seed,
meet in every combination. That is enough for what single settings do.

The whole grid has the fraction's cells, with the same seeds, and the others': a fraction that has run is a beginning of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution  # type: ignore[import-untyped]

Share = Literal["whole", "fraction", "part"]
"""How much of a grid: all of its cells, 1/L, or 1/L of those."""


def cross(
    factors: Mapping[str, Sequence[str]], seeds: Sequence[int], *, share: Share = "fraction"
) -> list[tuple[tuple[str, ...], int]]:
    """The cells of that share of the grid: `key=value` words and a seed.

    Args:
        factors: Values of each setting, equally many each.
        seeds: As many as values, or one.
        share: "part" tells what single settings do, "fraction" also what pairs do.

    >>> for words, seed in cross({"a": "01", "b": "01"}, [5, 6]): print(*words, seed)
    a=0 b=0 5
    a=1 b=1 6

    Raises:
        ValueError: fewer than two settings (for a part five, of an odd number of values each), or numbers of values or of seeds
            that do not fit.
    """
    counts = {key: len(values) for key, values in factors.items()}
    if len(counts) < 2 or len(set(counts.values())) != 1:
        raise ValueError(f"needs two settings or more with equally many values each, not {counts}")
    levels = next(iter(counts.values()))
    if len(seeds) not in (1, levels):
        raise ValueError(f"needs one seed, or one for each of the {levels} values, not {len(seeds)}")
    if share == "part" and (len(counts) < 5 or levels % 2 == 0):
        raise ValueError(f"a part of them needs five settings or more with an odd number of values each, not {counts}")
    found = []
    for free in product(range(levels), repeat=len(counts) - 1):
        # One more equation, in three settings: it has no two in common with that of the last setting or of the seed.
        if share == "part" and (free[0] - free[1] + free[3]) % levels:
            continue
        # Other weights than the last setting's, so that seed and setting do not move together.
        seed = sum(pick * (1 + at % 2) for at, pick in enumerate(free)) % len(seeds)
        for last in range(levels) if share == "whole" else [sum(free) % levels]:
            picks = (*free, last)
            words = tuple(f"{key}={values[pick]}" for (key, values), pick in zip(factors.items(), picks, strict=True))
            found.append((words, seeds[seed]))
    return found


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one setting, or a pair of them, does.

    Args:
        keys: One setting or two.
        means: Outcome by value, or by pair of values, in the mean over all values of the others.
        p: Chance of differences at least as large where there are none (F test).
    """

    keys: tuple[str, ...]
    means: Mapping[tuple[str, ...], float]
    p: float


def effects(cells: Sequence[Mapping[str, str]], outcomes: Sequence[float], *, pairs: bool = True) -> tuple[list[Effect], float]:
    """Analysis of variance of single settings, and of pairs of all but "seed", by least squares; single cells may be missing.

    A setting's values are coded so that their effects sum to zero; what a pair does is what it does beyond its two
    (Montgomery, ch. 5 and 15).

    Args:
        cells: Value of every setting, and of "seed", one mapping per cell.
        pairs: False takes what pairs do for noise, since too few cells are there to tell.

    Returns:
        The effects, single ones first, and the standard deviation of what they leave unexplained.

    Raises:
        ValueError: there are too few cells to tell noise from effect, or effects from one another.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    values = {key: list(dict.fromkeys(cell[key] for cell in cells)) for key in next(iter(cells), {})}
    keys = [key for key in values if len(values[key]) > 1]
    terms: list[tuple[str, ...]] = [(key,) for key in keys]
    if pairs:
        terms += combinations([key for key in keys if key != "seed"], 2)
    codes = {key: np.stack([_code(values[key], cell[key]) for cell in cells]) for key in keys}
    blocks = {term: _product([codes[key] for key in term]) for term in terms}
    whole = np.concatenate([np.ones((len(y), 1)), *blocks.values()], 1)
    left = len(y) - whole.shape[1]
    if left < 1 or np.linalg.matrix_rank(whole) < whole.shape[1]:
        raise ValueError(f"{len(y)} cells are too few for {len(keys)} settings" + " and their pairs" * pairs)
    weights = np.linalg.lstsq(whole, y, rcond=None)[0]
    unexplained = float(((y - whole @ weights) ** 2).sum()) / left
    ends = np.cumsum([1, *(block.shape[1] for block in blocks.values())])
    part = {term: weights[begin:end] for term, begin, end in zip(terms, ends, ends[1:], strict=False)}
    found = []
    for term, block in blocks.items():
        others = np.concatenate([np.ones((len(y), 1)), *(b for other, b in blocks.items() if other != term)], 1)
        ratio = (_squares(others, y) - unexplained * left) / block.shape[1] / unexplained if unexplained else np.inf
        within = [inner for inner in part if set(inner) <= set(term)]
        means = {}
        for chosen in product(*(values[key] for key in term)):
            at = {key: _code(values[key], value)[None] for key, value in zip(term, chosen, strict=True)}
            means[chosen] = float(weights[0] + sum((_product([at[k] for k in inner]) @ part[inner]).item() for inner in within))
        found.append(Effect(keys=term, means=means, p=float(f_distribution.sf(ratio, block.shape[1], left))))
    return found, float(np.sqrt(unexplained))


def _code(values: Sequence[str], value: str) -> NDArray[np.float64]:
    """One column for each value but the last, which is minus all of them."""
    at = values.index(value)
    return np.eye(len(values) - 1)[at] if at < len(values) - 1 else -np.ones(len(values) - 1)


def _product(codes: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Every column of one times every column of the other, row by row."""
    found = codes[0]
    for code in codes[1:]:
        found = (found[:, :, None] * code[:, None, :]).reshape(len(found), -1)
    return found


def _squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """What least squares leave of y."""
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())
