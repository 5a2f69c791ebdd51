"""Neighbours whose platforms share preferences: as `test_neighbours.py`, by themselves and under the secure sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, Phase, given, settings

from client.privacy import preference_release
from client.privacy.mechanism import CountMechanism
from client.run import preference_session, run_context
from client.run.preference_session import AskedPreferences
from shared.base.settings import Settings, flatten, unflatten
from shared.ledger.reading import read_ledger
from shared.preferences.item_index import declared_items, item_hashes, parse_items
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.popularity_axis import declared_direction
from shared.preferences.sum_kind import SumKind, sum_size
from shared.protocol.messages import Join, Joined, Prefer, Preferred, Request, Summed
from shared.protocol.question import question_of, sum_number
from shared.secagg.codec import encode
from shared.secagg.masks import MaskFrame
from shared.secagg.shared_catalogues import catalogue_digest
from strategies.secure_sum.masked_sum import Round
from tests.client.worker.test_neighbours import worlds
from tests.client.worker.test_neighbours_summed import OTHERS, Deployed, masked
from tests.support.neighbours import (
    EVERYTHING,
    LAST,
    PLAIN,
    Released,
    Told,
    World,
    compare,
    held_noise,
    neighbours,
    require_noticed,
)

Make = Callable[..., Settings]
IDS = [f"i{number}" for number in range(PLAIN.items)]
HASHES = np.unique(item_hashes([""] * len(IDS), IDS, catalogue=catalogue_digest(IDS)))
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def asked(tiny_settings: Make) -> Make:
    """Settings of a deployed run that shares preferences alone."""

    def make(**over: Any) -> Settings:
        base = flatten(tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None}))
        alone = {"strategy": "preferences", "rounds": 0, "preferences.items": 4, "privacy.noise": "local"}
        return unflatten({**base, **alone, **over}, where="test")

    return make


AXES = {
    "flat": lambda items: np.full(items, items**-0.5),
    "one item": lambda items: np.eye(items)[0],
    "some items": lambda items: np.append(np.full(items - 1, (items - 1) ** -0.5), 0.0),
}
"""Directions that a coordinator may make up, users' own among them."""


def wanted(
    settings: Settings, *, of: SumKind, items: int = 4, axis: str = "flat", lists: bytes = b"", body: bytes = b""
) -> Prefer:
    direction = declared_direction(AXES[axis](items).astype(np.float32)) if of is SumKind.PREFERENCES else b""
    chosen = declared_items(HASHES[:items])
    return Prefer(run="run", settings=settings, items=chosen, of=of, axis=direction, lists=lists, body=body)


def questions(settings: Settings, *, axis: str = "flat") -> list[Request]:
    pairs = wanted(settings, of=SumKind.PREFERENCES, axis=axis)
    return [
        Join(run="run", settings=settings),
        wanted(settings, of=SumKind.LIKES, items=6),
        wanted(settings, of=SumKind.LIKES, items=5),
        pairs,
        pairs,
        wanted(settings, of=SumKind.PREFERENCES, axis="one item" if axis == "flat" else "flat"),
        wanted(settings, of=SumKind.PREFERENCES, items=3),
        wanted(settings, of=SumKind.PREFERENCES, items=6),
        wanted(settings, of=SumKind.LIKES, items=6),
    ]


@pytest.fixture
def play(asked: Make, tmp_path: Path) -> Callable[..., tuple[Told, Told]]:
    count = iter(range(10**6))

    def run(world: World, gone: str, **facts: Any) -> tuple[Told, Told]:
        chosen = asked()
        return neighbours(world, gone, chosen, questions(chosen, **facts), tmp_path / str(next(count)))

    return run


class Summing(Deployed):
    """Three deployed platforms that share preferences under the secure sum."""

    def prefer(self, *, of: SumKind, items: int) -> list[Any]:
        """One sum; the answers."""
        lists = PlatformLists.of([HASHES] * len(self.files)).text()
        request = wanted(self.settings, of=of, items=items, lists=lists)
        roster = self.coordinator.roster
        point = self.agreement.preference_point(dimension=sum_size(items, of), of=of, roster=roster)
        frame = MaskFrame(round=sum_number(request), length=point.dimension, bits=point.bits, question=question_of(request))
        work = Round(self.coordinator, frame)
        return [self.ask(at, replace(request, body=encode(work.mask_for(at)))) for at in range(len(self.files))]


def played(worlds_: list[World], chosen: Settings, root: Path) -> Told:
    with held_noise() as released:
        made = Summing(worlds_, chosen, root, released)
        try:
            made.set_up()
            made.prefer(of=SumKind.LIKES, items=6)
            made.prefer(of=SumKind.PREFERENCES, items=4)
            made.prefer(of=SumKind.PREFERENCES, items=4)
            made.prefer(of=SumKind.PREFERENCES, items=5)
        finally:
            made.close()
        return Told(answers=made.answers, released=list[Released](made.seen), charges=read_ledger(made.ledger(0)).entries)


@pytest.fixture
def play_summed(asked: Make, tmp_path: Path) -> Callable[..., tuple[Told, Told]]:
    def run(world: World, gone: str) -> tuple[Told, Told]:
        chosen = asked(**{"privacy.noise": "distributed", "server.minimum_platforms": 3})
        return (
            played([world, OTHERS, OTHERS], chosen, tmp_path / "with"),
            played([world.without(gone), OTHERS, OTHERS], chosen, tmp_path / "without"),
        )

    return run


WORLDS = {"plain": PLAIN, "last": LAST, "everything": EVERYTHING}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", WORLDS)
def test_neighbours_cannot_be_told_apart(play: Any, name: str, axis: str) -> None:
    here, there = play(WORLDS[name], "a", axis=axis)
    compare(here, there)
    joined, likes, _, pairs, again, *_ = here.answers
    assert isinstance(joined, Joined) and np.array_equal(parse_items(joined.item_list), HASHES)
    assert isinstance(likes, Preferred) and isinstance(pairs, Preferred)
    assert np.array_equal(again.sums["preferences"], pairs.sums["preferences"])
    assert [type(answer) for answer in here.answers].count(Preferred) == 3
    assert [str(entry.kind) for entry in here.charges] == ["popularity", "preferences"]


@pytest.mark.parametrize("name", WORLDS)
def test_nor_under_the_secure_sum(play_summed: Any, name: str) -> None:
    here, there = play_summed(WORLDS[name], "a")
    compare(here, there, skip=masked)
    assert [str(entry.kind) for entry in here.charges] == ["popularity", "preferences"]
    assert [type(answer) for answer in here.answers].count(Summed) == 3  # the same question has the same answer


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(world=worlds)
def test_no_world_tells_neighbours_apart(play: Any, world: World) -> None:
    compare(*play(world, min(world.users)))


def not_divided_by_the_norm(patched: pytest.MonkeyPatch) -> None:
    """Who likes much moves the sum by more."""
    patched.setattr(preference_release, "_BELOW", 2.0)


def liked_twice_counts_twice(patched: pytest.MonkeyPatch) -> None:
    real = preference_release._unit_rows

    def rows(liked: Any, place: Any, **facts: Any) -> Any:
        for unit in real(liked, place, **facts):
            yield scipy.sparse.csr_matrix(unit.sqrt())  # longer than 1 for whoever likes more than one item

    patched.setattr(preference_release, "_unit_rows", rows)


def axis_not_taken_off(patched: pytest.MonkeyPatch) -> None:
    """A vector is scaled by what it should have beside the axis, and still has what lies along it."""
    patched.setattr(preference_release, "subtract_products", lambda vector, left, right: None)


def noise_share_too_small(patched: pytest.MonkeyPatch) -> None:
    """The platform charges for twice the noise that it adds."""
    real, real_release = CountMechanism.release, preference_session.Release
    patched.setattr(CountMechanism, "release", lambda self: replace(real(self), noise_multiplier=2 * self.noise_multiplier))
    patched.setattr(
        preference_session,
        "Release",
        lambda **facts: real_release(**{**facts, "noise_multiplier": 2 * facts["noise_multiplier"]}),
    )


def never_charged(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(run_context.RunContext, "pay", lambda self, release, round_, question: None)


def charged_where_it_has_likes(patched: pytest.MonkeyPatch) -> None:
    """Whether there is a charge says whether anybody likes an item."""
    real = AskedPreferences.sums

    def sums(self: AskedPreferences, run: Any) -> Any:
        found = real(self, run)
        return None if found is None or not found.vector().any() else found

    patched.setattr(AskedPreferences, "sums", sums)


def listed_as_users_met_them(patched: pytest.MonkeyPatch) -> None:
    """The list of items is made of what users met, and not of the catalogue."""
    from client.run import joining

    def met(rows: Any, settings: Any) -> bytes:
        return declared_items(rows.item_hashes[np.unique(rows.tables.interactions.item)])

    patched.setattr(joining, "declared_list", met)
    patched.setattr("client.worker.request_handler.checked", lambda answer, **facts: answer)


FAULTS: dict[str, tuple[Plant, World]] = {
    "twice as long": (not_divided_by_the_norm, PLAIN),
    "longer where more is liked": (liked_twice_counts_twice, PLAIN),
    "the axis stays in": (axis_not_taken_off, PLAIN),
    "a noise share too small": (noise_share_too_small, PLAIN),
    "not charged": (never_charged, PLAIN),
    "charged where there are likes": (charged_where_it_has_likes, LAST),
    "the list is of what users met": (listed_as_users_met_them, LAST),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(play: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world = FAULTS[fault]
    require_noticed(plant, lambda: play(world, "a"), monkeypatch)


@pytest.mark.parametrize("fault", [name for name in FAULTS if "list" not in name])
def test_and_under_the_secure_sum(play_summed: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world = FAULTS[fault]
    require_noticed(plant, lambda: play_summed(world, "a"), monkeypatch, skip=masked)
