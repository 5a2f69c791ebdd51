"""What integer noise costs an adapter: the same private training with discrete Gaussians on a grid, and with float64 normals.

    python -m simulations.benchmarks.noise.adapters PLATFORM.toml [--epsilon 8 2] [--seeds 5] [--set KEY=VALUE ...] [--json]

Two sides in one process, in turn: ten rounds of `fedavg` on the platform alone, noise added by itself, as `fedfuse simulate`
runs it. One side releases integers, as it is done everywhere; on the other every noised sum of the run, of gradients, popularity
and metrics, has normals of the same multiplier, which keep no promise (`simulations/benchmarks/noise/integers.py`). NDCG@10 of
the adapter over the platform's users, ratios over seeds; a seed draws the same views and another noise.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from client.config.platform_file import load
from client.model.prepared_platform import PreparedPlatform, prepare
from client.privacy import mechanism
from client.privacy.noise_sources import NoiseSource
from shared.base.errors import PrivacyError
from shared.secagg.fixed_point import FixedPoint
from simulations.benchmarks.noise.integers import FLOATS, INTEGERS, QualityCost, quality_table
from simulations.benchmarks.sweep import TRAINED, run_sweep_cell
from simulations.commands import settings_from


def float_noise(vector: NDArray[np.float64], point: FixedPoint, random: NoiseSource) -> NDArray[np.float64]:
    """A vector with normals of the mechanism's multiplier, from the operating system's entropy."""
    normals = np.random.default_rng().standard_normal(len(vector))
    noised: NDArray[np.float64] = vector + point.noise_multiplier * point.clip * normals
    return noised


def adapter_cost(
    path: Path, platform: PreparedPlatform, *, epsilon: str, seeds: Sequence[int], words: Sequence[str]
) -> QualityCost:
    """Train with either noise.

    Raises:
        PrivacyError: the plan is refused as noise.
    """
    found: dict[str, list[float]] = {INTEGERS: [], FLOATS: []}
    for seed in seeds:
        settings = settings_from(None, [TRAINED, *words, f"seed={seed}", f"privacy.epsilon={epsilon}", "privacy.noise=local"])
        for side, quality in found.items():
            cell = {"platform": platform.name, "epsilon": epsilon, "seed": seed, "settings": list(words)}
            with mock.patch.object(mechanism, "_noised", mechanism._noised if side == INTEGERS else float_noise):
                result = run_sweep_cell(cell, platform, settings, path.parent)
            if result["ndcg"] is None:
                raise PrivacyError(result["refused"], do="more users, or a larger --epsilon")
            quality.append(float(result["ndcg"]))
    return QualityCost(epsilon=float(epsilon), quality=found)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", type=Path, help="a platform file, alone in its folder or beside others")
    parser.add_argument("--epsilon", nargs="+", default=["8", "2"])
    parser.add_argument("--seeds", type=int, default=5, help="how many, 2 at least")
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="any setting of the runs")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    seeds = range(max(2, chosen.seeds))
    with tempfile.TemporaryDirectory() as cache:
        plain = settings_from(None, [TRAINED, *chosen.words])
        platform = prepare(load(chosen.platform), plain, cache=Path(cache))
        costs = [
            adapter_cost(chosen.platform, platform, epsilon=epsilon, seeds=seeds, words=chosen.words)
            for epsilon in chosen.epsilon
        ]
    if chosen.json:
        print(json.dumps([{"epsilon": one.epsilon, "quality": one.quality, "ratio": one.ratio} for one in costs], indent=2))
    else:
        Console().print(quality_table(costs, title="An adapter with integer noise over one with floats"))


if __name__ == "__main__":
    main()
