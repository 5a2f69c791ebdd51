"""One run of a world, attacked where its strategy releases something."""

from __future__ import annotations

from pathlib import Path

from shared.base.settings import Settings
from simulations.attack.attack_report import AttackReport, view_of
from simulations.attack.preference_attack import attack_preferences
from simulations.attack.update_attack import attack_updates
from simulations.worlds.world import World

WHITE, DIFFERENCES, BLACK = "white box", "white box, differences", "black box"


def attack_world(world: World, settings: Settings, out: Path, *, platform: str = "", canaries: int | None = None) -> AttackReport:
    """Run the world once with canaries, and prove what can be proven: of its updates where it trains, else of its preferences.

    Args:
        out: A new folder for the run.
        platform: Where the canaries are; by default, where most can be.
        canaries: How many, at most; by default, as many as are worth it.

    Raises:
        InputError: the world or the settings cannot be attacked.
    """
    most = {} if canaries is None else {"most": canaries}
    if settings.trains:
        trained = attack_updates(world, settings, out, platform=platform, **most)
        views = {
            WHITE: view_of(trained.white_box, trained.delta, among=3, estimate=trained.cosine),
            DIFFERENCES: view_of(trained.differences, trained.delta, among=3),
            BLACK: view_of(trained.black_box, trained.delta, among=3),
        }
        return AttackReport(release="updates", platform=trained.platform, claim=trained.epsilon, delta=trained.delta, views=views)
    found = attack_preferences(world, settings, out, platform=platform, **most)
    views = {
        WHITE: view_of(found.white_box, found.delta, among=2),
        BLACK: view_of(found.black_box, found.delta, among=2),
    }
    release = "preferences" if settings.preferences.items else "taste map"
    return AttackReport(release=release, platform=found.platform, claim=found.epsilon, delta=found.delta, views=views)
