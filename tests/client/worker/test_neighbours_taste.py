"""Neighbours whose platforms sum a taste map: as `test_neighbours_preferences.py`, by themselves and under the secure sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from client.privacy import taste_release
from client.run import run_context
from shared.base.settings import Settings, flatten, unflatten
from shared.ledger.reading import read_ledger
from shared.preferences.sum_kind import SumKind
from shared.protocol.messages import Join, Prefer, Preferred, Request, Summed
from shared.protocol.question import question_of, sum_number
from shared.secagg.codec import encode
from shared.secagg.masks import MaskFrame
from strategies.secure_sum.masked_sum import Round
from tests.client.worker.test_neighbours import worlds
from tests.client.worker.test_neighbours_preferences import never_charged, noise_share_too_small
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
Plant = Callable[[pytest.MonkeyPatch], None]
DIRECTIONS = 5


@pytest.fixture
def asked(tiny_settings: Make) -> Make:
    """Settings of a deployed run that sums a taste map alone."""

    def make(**over: Any) -> Settings:
        base = flatten(tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None}))
        alone = {"strategy": "preferences", "rounds": 0, "preferences.items": 0, "preferences.map": DIRECTIONS}
        return unflatten({**base, **alone, "privacy.noise": "local", **over}, where="test")

    return make


def wanted(chosen: Settings, body: bytes = b"") -> Prefer:
    return Prefer(run="run", settings=chosen, items=b"", of=SumKind.TASTE, axis=b"", lists=b"", body=body)


@pytest.fixture
def play(asked: Make, tmp_path: Path) -> Callable[..., tuple[Told, Told]]:
    count = iter(range(10**6))

    def run(world: World, gone: str) -> tuple[Told, Told]:
        chosen = asked()
        requests: list[Request] = [
            Join(run="run", settings=chosen),
            wanted(chosen),
            wanted(chosen),
            replace(wanted(chosen), items=b"12345678"),
            replace(wanted(chosen), of=SumKind.LIKES, items=b"12345678"),
        ]
        return neighbours(world, gone, chosen, requests, tmp_path / str(next(count)))

    return run


class Tasting(Deployed):
    """Three deployed platforms that sum a taste map under the secure sum."""

    def prefer(self) -> list[Any]:
        """One sum; the answers."""
        request, roster = wanted(self.settings), self.coordinator.roster
        point = self.agreement.preference_point(dimension=request.size, of=SumKind.TASTE, roster=roster)
        frame = MaskFrame(round=sum_number(request), length=point.dimension, bits=point.bits, question=question_of(request))
        work = Round(self.coordinator, frame)
        return [self.ask(at, replace(request, body=encode(work.mask_for(at)))) for at in range(len(self.files))]


def played(worlds_: list[World], chosen: Settings, root: Path) -> Told:
    with held_noise() as released:
        made = Tasting(worlds_, chosen, root, released)
        try:
            made.set_up()
            made.prefer()
            made.prefer()
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


@pytest.mark.parametrize("name", WORLDS)
def test_neighbours_cannot_be_told_apart(play: Any, name: str) -> None:
    here, there = play(WORLDS[name], "a")
    compare(here, there)
    _, first, again, *_ = here.answers
    assert isinstance(first, Preferred) and first.sums["taste"].shape == (DIRECTIONS * (DIRECTIONS + 1) // 2,)
    assert np.array_equal(again.sums["taste"], first.sums["taste"])
    assert [type(answer) for answer in here.answers].count(Preferred) == 2
    assert [str(entry.kind) for entry in here.charges] == ["taste"]


@pytest.mark.parametrize("name", WORLDS)
def test_nor_under_the_secure_sum(play_summed: Any, name: str) -> None:
    here, there = play_summed(WORLDS[name], "a")
    compare(here, there, skip=masked)
    assert [str(entry.kind) for entry in here.charges] == ["taste"]
    assert [type(answer) for answer in here.answers].count(Summed) == 2  # the same question has the same answer


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(world=worlds)
def test_no_world_tells_neighbours_apart(play: Any, world: World) -> None:
    compare(*play(world, min(world.users)))


def longer_than_one(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(taste_release, "_BELOW", 2.0)


def not_divided_by_the_norm(patched: pytest.MonkeyPatch) -> None:
    """Who likes much moves the sum by more."""

    def pairs(directions: Any) -> Any:
        together = directions.sum(0)
        return np.outer(together, together) - directions.T @ directions

    patched.setattr(taste_release, "taste_of", pairs)


def centred_on_what_users_like(patched: pytest.MonkeyPatch) -> None:
    """The mean of the directions is of liked items, and not of the catalogue: one user moves everybody's part."""
    real = run_context.RunContext.sum_over_users

    def centred(self: Any, contributions: Any, **facts: Any) -> Any:
        vectors, liked = self.item_vectors(), np.unique(self.rows.split.train.values)
        moved = vectors - vectors[liked].mean(0)
        self.__dict__["directions"] = moved[:, :DIRECTIONS] / np.linalg.norm(moved[:, :DIRECTIONS], axis=1, keepdims=True)
        return real(self, contributions, **facts)

    patched.setattr(run_context.RunContext, "sum_over_users", centred)


WIDE = World(users={name: replace(user, items=tuple((n, True) for n in range(6))) for name, user in PLAIN.users.items()})
APART = World(
    users={
        "a": replace(next(iter(PLAIN.users.values())), items=tuple((n, True) for n in range(PLAIN.items))),
        **{name: replace(user, items=((0, True), (1, True), (2, True))) for name, user in PLAIN.users.items() if name != "a"},
    }
)
FAULTS: dict[str, tuple[Plant, World]] = {
    "twice as long": (longer_than_one, WIDE),
    "not divided by the norm": (not_divided_by_the_norm, WIDE),
    "centred on what users like": (centred_on_what_users_like, APART),
    "a noise share too small": (noise_share_too_small, WIDE),
    "not charged": (never_charged, PLAIN),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(play: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world = FAULTS[fault]
    require_noticed(plant, lambda: play(world, "a"), monkeypatch)


@pytest.mark.parametrize("fault", [name for name in FAULTS if "centred" not in name])
def test_and_under_the_secure_sum(play_summed: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world = FAULTS[fault]
    require_noticed(plant, lambda: play_summed(world, "a"), monkeypatch, skip=masked)
