"""The attack on the preference release: it proves no more than is claimed of a correct run, and more of a broken one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import CountMechanism
from client.run import preference_session
from shared.base.errors import InputError
from shared.ledger.audit import AuditVerdict, audit_run
from shared.preferences.packing import packed
from shared.preferences.sum_kind import SumKind
from shared.privacy.releases import ReleaseKind
from shared.secagg.fixed_point import FixedPoint
from simulations.attack import preference_attack
from simulations.attack.attack_report import AttackReport, View, render_attack, view_of
from simulations.attack.canaries import packed_canaries
from simulations.attack.linear_decoding import likely_noise
from simulations.attack.preference_attack import PreferenceAttack, attack_preferences
from simulations.commands import settings_from
from simulations.worlds.generated import write_world
from simulations.worlds.world import World, open_world

CLAIM = 3.0
Attack = Callable[..., PreferenceAttack]
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, seed=1, scale=0.3)
    return open_world(folder)


@pytest.fixture
def attack(world: World, tmp_path: Path) -> Attack:
    def run(noise: str = "local", **over: Any) -> PreferenceAttack:
        words = {"strategy": "preferences", "privacy.noise": noise, "privacy.epsilon": CLAIM, **over}
        return attack_preferences(
            world, settings_from(None, [f"{key}={value}" for key, value in words.items()]), tmp_path / "run"
        )

    return run


def white(found: PreferenceAttack) -> View:
    return view_of(found.white_box, found.delta)


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_correct_run_is_not_refuted(attack: Attack, noise: str, tmp_path: Path) -> None:
    found = attack(noise)
    assert 0.9 * CLAIM < found.epsilon <= CLAIM
    view = white(found)
    # The white box sees what is there to be seen, and proves less than the claim.
    assert view.area > 0.6 and 0 <= view.bound < found.epsilon
    assert view_of(found.black_box, found.delta).bound < found.epsilon
    # What it takes the release to be is what it is: canaries that are in, and noise of the deviation that was charged.
    seen = found.views[SumKind.PREFERENCES]
    rest = seen.along - seen.meeting @ found.white_box.inside
    assert np.diag(seen.meeting) == pytest.approx(1.0)
    assert rest.std() == pytest.approx(seen.noise, rel=0.2) and abs(rest.mean()) < seen.noise / 2
    for one in found.views.values():
        assert likely_noise(one) == pytest.approx(one.noise, rel=0.2)
    # The run that was attacked is a run like any other: its ledger holds.
    assert all(one.verdict is AuditVerdict.SOUND for one in audit_run(tmp_path / "run").platforms if one.entries)


def test_on_a_claim_of_8_the_white_box_proves_at_least_2(world: World, tmp_path: Path) -> None:
    settings = settings_from(None, ["strategy=preferences", "privacy.noise=local", "privacy.epsilon=8"])
    found = attack_preferences(world, settings, tmp_path / "run")
    assert 7 < found.epsilon <= 8
    assert 2 <= white(found).bound < found.epsilon


def no_noise(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(CountMechanism, "privatise", lambda self, sums, random: sums.vector())


def a_quarter_of_the_noise(patched: pytest.MonkeyPatch, *, part: int = 4) -> None:
    real = CountMechanism.privatise

    def less(self: CountMechanism, sums: Any, random: Any) -> Any:
        exact = sums.vector()
        return exact + (real(self, sums, random) - exact) / part

    patched.setattr(CountMechanism, "privatise", less)


def a_tenth_of_the_noise(patched: pytest.MonkeyPatch) -> None:
    a_quarter_of_the_noise(patched, part=10)


def no_clipping(patched: pytest.MonkeyPatch) -> None:
    """v v' as it is: a user counts as often as they like items."""

    def raw(liked: Any, place: Any, *, direction: Any, items: int, only: Any = None) -> BoundedSum:
        users = np.arange(len(liked)) if only is None else only
        row, _, item = liked.entries(users)
        likes = np.zeros((len(users), items))
        likes[row[place[item] >= 0], place[item][place[item] >= 0]] = 1.0
        beside = likes - np.outer(likes @ direction, direction)
        return BoundedSum(parts={"sum": torch.from_numpy(packed(beside.T @ beside))}, bound=1.0)

    patched.setattr(preference_session, "bounded_preferences", raw)
    patched.setattr(preference_attack, "bounded_preferences", raw)  # the attacker knows what everybody else adds


def unbounded_influence(patched: pytest.MonkeyPatch) -> None:
    """Each user's rows are counted four times, as those of four people."""
    real = preference_session.bounded_preferences

    def often(*args: Any, **kwargs: Any) -> Any:
        once = real(*args, **kwargs)
        return replace(once, parts={name: 4 * part for name, part in once.parts.items()})

    patched.setattr(preference_session, "bounded_preferences", often)
    patched.setattr(preference_attack, "bounded_preferences", often)


def exact_popularity(patched: pytest.MonkeyPatch) -> None:
    """The sum of single items alone is without noise."""
    real = CountMechanism.privatise

    def partly(self: CountMechanism, sums: Any, random: Any) -> Any:
        return sums.vector() if self.kind is ReleaseKind.POPULARITY else real(self, sums, random)

    patched.setattr(CountMechanism, "privatise", partly)


@pytest.mark.parametrize("plant", [no_noise, a_quarter_of_the_noise, no_clipping, unbounded_influence])
def test_a_planted_fault_is_refuted(attack: Attack, monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    with monkeypatch.context() as patched:
        plant(patched)
        found = attack()
    assert found.epsilon <= CLAIM  # the ledger knows nothing of it
    assert white(found).bound > CLAIM


@pytest.mark.parametrize("canaries", [60, 1500])
def test_an_exact_popularity_is_refuted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canaries: int) -> None:
    """The attacker finds out by itself that this sum has no noise. It has 72 numbers, which tell no more of a claim of 3."""
    with monkeypatch.context() as patched:
        exact_popularity(patched)
        settings = settings_from(None, ["strategy=preferences", "privacy.noise=local", "privacy.epsilon=1"])
        found = attack_preferences(world, settings, tmp_path / "run", most=canaries)
    assert found.epsilon <= 1 < white(found).bound
    assert likely_noise(found.views[SumKind.LIKES]) < found.views[SumKind.LIKES].noise / 20
    assert likely_noise(found.views[SumKind.PREFERENCES]) == pytest.approx(found.views[SumKind.PREFERENCES].noise, rel=0.1)


class TestATasteMap:
    """It is of all items of a platform, and needs none in common."""

    @pytest.fixture
    def mapped(self, world: World, tiny_bert: str, tmp_path: Path) -> Attack:
        def run(noise: str = "local", epsilon: float = CLAIM) -> PreferenceAttack:
            words = {
                "strategy": "preferences",
                "privacy.noise": noise,
                "privacy.epsilon": epsilon,
                "preferences.items": 0,
                "preferences.map": 24,
                "model.backbone": tiny_bert,
            }
            return attack_preferences(
                world, settings_from(None, [f"{key}={value}" for key, value in words.items()]), tmp_path / "run"
            )

        return run

    @pytest.mark.parametrize("noise", ["local", "distributed"])
    def test_a_correct_run_is_not_refuted(self, mapped: Attack, noise: str) -> None:
        found = mapped(noise)
        assert 0.9 * CLAIM < found.epsilon <= CLAIM and list(found.views) == [SumKind.TASTE]
        view, (seen,) = white(found), found.views.values()
        assert view.area > 0.6 and view.bound < found.epsilon and view_of(found.black_box, found.delta).bound < found.epsilon
        assert np.diag(seen.meeting) == pytest.approx(1.0) and likely_noise(seen) == pytest.approx(seen.noise, rel=0.25)
        rest = seen.along - seen.meeting @ found.white_box.inside
        assert rest.std() == pytest.approx(seen.noise, rel=0.25) and abs(rest.mean()) < seen.noise / 2

    @pytest.mark.parametrize("plant", [no_noise, a_tenth_of_the_noise])
    def test_a_planted_fault_is_refuted(self, mapped: Attack, monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
        """A quarter is too much: canaries' tastes meet, in few directions of texts, and 150 of them prove 1.9 then."""
        with monkeypatch.context() as patched:
            plant(patched)
            found = mapped()
        assert found.epsilon <= CLAIM < white(found).bound


def test_a_share_of_the_noise_that_is_too_small_is_refuted(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the secure sum: each platform adds a share of a 36th of the variance that it should."""
    real = preference_session.noised_steps

    def less(vector: Any, point: FixedPoint, random: Any) -> Any:
        exact = np.rint(np.asarray(vector) * point.scale)
        return np.rint(exact + (real(vector, point, random) - exact) / 6).astype(np.int64)

    monkeypatch.setattr(preference_session, "noised_steps", less)
    found = attack("distributed")
    assert found.epsilon <= CLAIM < white(found).bound


def test_canaries_share_no_pair() -> None:
    made = packed_canaries(np.arange(100, 160), most=1000, random=np.random.default_rng(0))
    pairs = [frozenset((int(a), int(b))) for one in made.histories for a in one for b in one if a < b]
    assert len(pairs) == len(set(pairs)) == 10 * len(made) and len(made) > 60
    assert made.histories.min() >= 100 and made.histories.max() < 160
    assert 0.3 < made.inside.mean() < 0.7
    assert len(packed_canaries(np.arange(60), most=7, random=np.random.default_rng(0))) == 7
    with pytest.raises(InputError, match="too few"):
        packed_canaries(np.arange(9), most=7, random=np.random.default_rng(0))


def test_the_report(attack: Attack, world: World, tmp_path: Path) -> None:
    view = View(canaries=100, steinke=1.0, gaussian=2.5, area=0.8, low=0.2)
    report = AttackReport(release="preferences", platform="shop", claim=2.0, delta=1e-4, views={"white box": view})
    assert report.refuted and json.loads(report.to_json())["views"]["white box"]["bound"] == 2.5
    assert not replace(report, claim=float("inf")).refuted
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_attack(report), render_attack(replace(report, claim=3.0)))
    said = console.export_text()
    assert "REFUTED: an attack proves more" in said and "not refuted, which confirms nothing" in said
    with pytest.raises(InputError, match="no platform"):
        attack_preferences(world, settings_from(None, ["strategy=preferences"]), tmp_path / "a", platform="nobody")
    with pytest.raises(InputError, match="share no preferences"):
        attack_preferences(world, settings_from(None, ["strategy=fedavg"]), tmp_path / "b")
