"""One run of a world, attacked where its strategy releases something."""

from __future__ import annotations

from pathlib import Path

from shared.base.settings import Settings
from simulations.attack.attack_report import AttackReport, view_of
from simulations.attack.preference_attack import MOST, attack_preferences
from simulations.worlds.world import World

WHITE, BLACK = "white box", "black box"


def attack_world(world: World, settings: Settings, out: Path, *, platform: str = "", canaries: int = MOST) -> AttackReport:
    """Run the world once with canaries, and prove what can be proven.

    Args:
        out: A new folder for the run.
        platform: Where the canaries are; by default, where most can be.
        canaries: How many, at most.

    Raises:
        InputError: the world or the settings cannot be attacked.
    """
    found = attack_preferences(world, settings, out, platform=platform, most=canaries)
    return AttackReport(
        release="preferences",
        platform=found.platform,
        claim=found.epsilon,
        delta=found.delta,
        views={WHITE: view_of(found.white_box, found.delta), BLACK: view_of(found.black_box, found.delta)},
    )
