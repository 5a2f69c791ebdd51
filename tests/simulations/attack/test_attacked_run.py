"""What is attacked, and that all views of one attack share one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.base.settings import PreferenceSettings, Settings
from simulations.attack import attacked_run
from simulations.attack.attack_report import View
from simulations.attack.attacked_run import BLACK, DIFFERENCES, WHITE, attack_world
from simulations.attack.one_run import CanaryScores
from simulations.attack.preference_attack import PreferenceAttack
from simulations.attack.update_attack import UpdateAttack

WORLD: Any = None
DELTA = 1e-4


def scores(seed: int) -> CanaryScores:
    return CanaryScores(score=np.array([seed, 9.0]), inside=np.array([False, True]))


@pytest.mark.parametrize("canaries", [None, 50])
@pytest.mark.parametrize(
    ("settings", "release"),
    [
        (Settings(), "updates"),
        (Settings(strategy="preferences", preferences=PreferenceSettings(items=9, map=0)), "preferences"),
        (Settings(strategy="preferences", preferences=PreferenceSettings(items=9, map=4)), "preferences"),
        (Settings(strategy="preferences", preferences=PreferenceSettings(items=0, map=4)), "taste map"),
    ],
    ids=["updates", "preferences", "both", "taste map"],
)
def test_each_view_is_taken_at_its_part_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, release: str, canaries: int | None
) -> None:
    white, differences, black = map(scores, range(3))
    facts: dict[str, Any] = {"platform": "shop", "epsilon": 2.5, "delta": DELTA, "white_box": white, "black_box": black}
    asked: list[tuple[Any, ...]] = []

    def updates(*given: Any, **how: Any) -> UpdateAttack:
        asked.append((*given, how))
        return UpdateAttack(**facts, differences=differences, cosine=1.25)

    def preferences(*given: Any, **how: Any) -> PreferenceAttack:
        asked.append((*given, how))
        return PreferenceAttack(**facts, views={})

    def view_of(of: CanaryScores, delta: float, *, among: int = 1, estimate: float | None = None) -> View:
        assert delta == DELTA
        return View(canaries=int(of.score[0]), steinke=0.0, gaussian=0.0, area=0.5, low=float(among), estimate=estimate)

    monkeypatch.setattr(attacked_run, "view_of", view_of)
    monkeypatch.setattr(attacked_run, "attack_updates", updates)
    monkeypatch.setattr(attacked_run, "attack_preferences", preferences)
    report = attack_world(WORLD, settings, tmp_path, platform="shop", canaries=canaries)
    assert asked == [(WORLD, settings, tmp_path, {"platform": "shop", **({"most": 50} if canaries else {})})]
    assert (report.release, report.platform, report.claim, report.delta) == (release, "shop", 2.5, DELTA)
    if release == "updates":
        assert list(report.views) == [WHITE, DIFFERENCES, BLACK]
        expected = [(0, 3, 1.25), (1, 3, None), (2, 3, None)]
    else:
        assert list(report.views) == [WHITE, BLACK]
        expected = [(0, 2, None), (2, 2, None)]
    assert [(view.canaries, view.low, view.estimate) for view in report.views.values()] == expected
