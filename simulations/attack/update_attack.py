"""The attack on private training: gradient canaries on one platform, and what noised sums tell of them.

What is accounted is every step's noised sum. Under local noise that is what the white box sees, although what leaves is the
update that an optimizer makes of it. Under the secure sum it sees the sum over platforms, as the coordinator does. The black box
sees the published adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.config.platform_file import load
from client.model.prepared_platform import prepare
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial
from simulations.attack.cosine import cosine_epsilon, cosines
from simulations.attack.gradient_canaries import GradientCanaries, canaries_on
from simulations.attack.one_run import CanaryScores
from simulations.run import Simulation, federate_virtually
from simulations.worlds.world import World

MOST = 400
"""Canaries; each is a user who is drawn like the others, so that many of them make batches larger than was declared."""


@dataclass(frozen=True, kw_only=True)
class UpdateAttack:
    """What the attack saw.

    Args:
        platform: Where the canaries are.
        epsilon, delta: What the platform's ledger claims, when all was released.
        white_box: Along each canary's direction, all steps together.
        differences: The largest difference of two steps along it: what cancels there was no noise.
        black_box: Along it in the published adapter.
        cosine: Epsilon by the cosine statistic, an estimate.
    """

    platform: str
    epsilon: float
    delta: float
    white_box: CanaryScores
    differences: CanaryScores
    black_box: CanaryScores
    cosine: float


def attack_updates(world: World, settings: Settings, out: Path, *, platform: str = "", most: int = MOST) -> UpdateAttack:
    """Run the world once with gradient canaries on one platform, and score them.

    Args:
        out: A new folder for the run.
        platform: Where the canaries are; by default the first.
        most: Canaries, at most; half of them are in.

    Raises:
        InputError: there is no such platform, or the settings train nothing, or other factors in other rounds.
    """
    if not settings.trains:
        raise InputError("these settings train nothing", where="rounds", do="set rounds=... and a strategy that trains")
    files = {file.name: file for file in map(load, world.platforms)}
    target = platform or next(iter(files))
    if target not in files:
        raise InputError(f"no platform {target[:63]!r}", where="--platform", do=f"choose one of: {', '.join(files)}")
    out.mkdir(parents=True, exist_ok=True)
    prepared = {name: prepare(file, settings, cache=out / "state" / name / "trunk") for name, file in files.items()}
    canaries = GradientCanaries(count=most, seed=settings.seed)
    with canaries_on(target, canaries, summed=settings.distributed):
        outcome = federate_virtually(Simulation(world=world, settings=settings, out=out), "attack", prepared, out)
    ledger = read_ledger(out / "ledger" / f"{target}.jsonl")
    if not canaries.steps:
        raise InputError("the platform trained nothing", where=target, do="look at its budget")
    before, sent = initial(settings), [name for name in canaries.names if name in outcome.adapter]
    moved = np.concatenate(
        [
            (outcome.adapter[name] - before[name]).reshape(-1).astype(np.float64) if name in sent else np.zeros(size)
            for name, size in zip(canaries.names, canaries.sizes, strict=True)
        ]
    )
    inside, delta = canaries.inside, ledger.header.delta
    total = np.sum(canaries.steps, axis=0)
    return UpdateAttack(
        platform=target,
        epsilon=ledger.epsilon,
        delta=delta,
        white_box=CanaryScores(score=canaries.linear_scores(), inside=inside),
        differences=CanaryScores(score=canaries.spread_scores(), inside=inside),
        # An optimizer goes against the gradient.
        black_box=CanaryScores(score=-(canaries.directions @ moved), inside=inside),
        cosine=cosine_epsilon(cosines(canaries.directions[inside], total), dimension=len(total), delta=delta),
    )
