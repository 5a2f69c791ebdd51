"""What integer noise costs beside float noise that keeps no promise: quality of a release, and time.

    python -m simulations.benchmarks.noise.integers PLATFORM.toml [--items 256] [--epsilon 8 2] [--seeds 10] [--json]

Two sides in one process, in turn, on the same bounded sums of the same rows: what a release is (rounding to the grid, a discrete
Gaussian from a cryptographic generator), and the same sum with float64 normals of the same multiplier from numpy's generator,
whose low bits tell neighbours apart (`tests/client/privacy/test_low_bits.py`).

- Quality: NDCG@10 of what the platform's preferences, released, predict by themselves. Only the noise differs between seeds.
- Time: of the noise of one vector, without the sum that it is added to, and of the sum: of preferences, and of one training step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, read_rows
from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import SecureNoise
from client.privacy.preference_release import bounded_likes, bounded_preferences
from client.privacy.release_plan import plan_of
from client.recommender.global_model import GlobalModel
from client.recommender.own_model import exact_ranks, training_histories
from client.recommender.released_preferences import released_on
from shared.base.settings import Settings, build
from shared.preferences.item_index import places_of
from shared.preferences.sum_kind import SumKind, triangle_size
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum, combined_preferences
from shared.privacy.plan import sum_multiplier
from shared.privacy.releases import ReleaseKind
from shared.protocol.quality import METRICS, NDCG

INTEGERS, FLOATS = "integers", "floats"
STEP = 36_864
"""Parameters of rank 8 on query and value of two layers of MiniLM."""
_REPEATS = 7
Vector = NDArray[np.float64]
Noised = Callable[[BoundedSum, CountMechanism, int], Vector]


def as_integers(total: BoundedSum, mechanism: CountMechanism, seed: int) -> Vector:
    """The release; its generator takes no seed."""
    return mechanism.privatise(total, SecureNoise())


def as_floats(total: BoundedSum, mechanism: CountMechanism, seed: int) -> Vector:
    """The sum with float64 normals of the mechanism's multiplier."""
    return total.vector() + mechanism.noise_multiplier * np.random.default_rng(seed).standard_normal(total.dimension)


SIDES: dict[str, Noised] = {INTEGERS: as_integers, FLOATS: as_floats}


@dataclass(frozen=True, kw_only=True)
class QualityCost:
    """What both sides are worth at one budget.

    Args:
        quality: Side -> NDCG@10 with each seed.
    """

    epsilon: float
    quality: dict[str, list[float]]

    @property
    def ratio(self) -> tuple[float, float]:
        """Mean quality of integers over that of floats, and its standard error."""
        ours, theirs = (np.asarray(self.quality[side]) for side in (INTEGERS, FLOATS))
        ratio = float(ours.mean() / theirs.mean())
        spread = sum(float(one.var(ddof=1) / len(one) / one.mean() ** 2) for one in (ours, theirs))
        return ratio, ratio * spread**0.5


@dataclass(frozen=True, kw_only=True)
class NoiseCost(QualityCost):
    """The same, and what they take.

    Args:
        seconds: What -> side -> shortest time of the noise of one vector.
        sums: Seconds of the sum of preferences that the noise is added to.
    """

    seconds: dict[str, dict[str, float]]
    sums: float


class _Nowhere:
    """Nothing is chosen before, and nothing kept."""

    def chosen(self) -> ChosenItems | None:
        """Nothing."""
        return None

    def choose(self, chosen: ChosenItems) -> None:
        """There is no run to go on with."""


def releasing_settings(items: int) -> Settings:
    """A run that releases preferences of so many items."""
    return build(
        {"strategy": "preferences", "preferences": {"items": items}, "privacy": {"noise": "local"}}, where="this benchmark"
    )


def noise_cost(rows: PlatformRows, *, items: int, epsilon: float, seeds: Sequence[int]) -> NoiseCost:
    """Release the platform's preferences with either noise, and see what they are worth to its own users."""
    settings = releasing_settings(items)
    plan = plan_of(rows.file, settings, budget=epsilon, group_size=1, parameters=1, items=rows.tables.items)
    liked, shared = rows.split.train, np.unique(rows.item_hashes)
    histories = training_histories(rows.tables, rows.split)
    took: list[float] = []

    def summed(question: PreferenceQuestion) -> BoundedSum:
        place, count = places_of(rows.item_hashes, question.items), len(question.items)
        if question.direction is None:
            return bounded_likes(liked, place, items=count)
        began = time.perf_counter()
        total = bounded_preferences(liked, place, direction=question.direction, items=count)
        took.append(time.perf_counter() - began)
        return total

    def quality(noised: Noised, seed: int) -> float:
        def ask(question: PreferenceQuestion) -> PreferenceSum:
            total = summed(question)
            kind = question.of
            multiplier = sum_multiplier(kind, preference_noise=plan.preference_noise, taste_noise=plan.taste_noise)
            released = ReleaseKind.POPULARITY if kind is SumKind.LIKES else ReleaseKind.PREFERENCES
            mechanism = CountMechanism(kind=released, noise_multiplier=multiplier, dimension=total.dimension)
            return PreferenceSum(vector=noised(total, mechanism, seed), noise=multiplier, users=rows.file.users)

        made = combined_preferences(shared, most=items, ask=ask, store=_Nowhere())
        model = GlobalModel(histories, preferences=released_on(made, rows.item_hashes), text=None)
        rank, candidates = exact_ranks(model, rows.split)
        return float(METRICS[NDCG].per_user(rank, candidates.astype(np.float64)).mean())

    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in seeds:
        for side, noised in SIDES.items():
            found[side].append(quality(noised, seed))
    sizes = (("preferences", triangle_size(items)), ("a step", STEP))
    seconds = {f"{what}, {size:,} numbers": noise_seconds(size) for what, size in sizes}
    return NoiseCost(epsilon=epsilon, quality=found, seconds=seconds, sums=min(took))


def noise_seconds(dimension: int) -> dict[str, float]:
    """Side -> seconds of the noise of one vector, the shortest of some in turn."""
    nothing = BoundedSum(parts={"sum": torch.zeros(dimension, dtype=torch.float64)}, bound=1.0)
    mechanism = CountMechanism(kind=ReleaseKind.PREFERENCES, noise_multiplier=1.0, dimension=dimension)
    found = dict.fromkeys(SIDES, np.inf)
    for seed in range(_REPEATS):
        for side, noised in SIDES.items():
            began = time.perf_counter()
            noised(nothing, mechanism, seed)
            found[side] = min(found[side], time.perf_counter() - began)
    return found


def quality_table(costs: Sequence[QualityCost], *, title: str) -> Table:
    """A row for each budget."""
    made = Table("epsilon", "NDCG@10, integers", "floats", "ratio", title=title)
    for cost in costs:
        ratio, error = cost.ratio
        ours, theirs = (float(np.mean(cost.quality[side])) for side in (INTEGERS, FLOATS))
        made.add_row(f"{cost.epsilon:g}", f"{ours:.4f}", f"{theirs:.4f}", f"{ratio:.3f} ± {error:.3f}")
    return made


def cost_table(costs: Sequence[NoiseCost]) -> Table:
    """What people read."""
    made = quality_table(costs, title="Integer noise over float noise")
    for what, sides in costs[-1].seconds.items():
        ours, theirs = sides[INTEGERS], sides[FLOATS]
        made.add_row(what, f"{1000 * ours:.1f} ms", f"{1000 * theirs:.1f} ms", f"{ours / theirs:.1f}")
    made.add_row("the sum of preferences itself", f"{1000 * costs[-1].sums:.1f} ms", "the same", "")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", type=Path, help="a platform file")
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 2.0])
    parser.add_argument("--seeds", type=int, default=10, help="how many draws of the noise, 2 at least")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    rows = read_rows(load(chosen.platform), releasing_settings(chosen.items))
    seeds = range(max(2, chosen.seeds))
    costs = [noise_cost(rows, items=chosen.items, epsilon=epsilon, seeds=seeds) for epsilon in chosen.epsilon]
    if chosen.json:
        found = [{"epsilon": one.epsilon, "quality": one.quality, "seconds": one.seconds, "ratio": one.ratio} for one in costs]
        print(json.dumps(found, indent=2))
    else:
        Console().print(cost_table(costs))


if __name__ == "__main__":
    main()
