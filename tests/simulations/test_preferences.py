"""Preferences end to end: what is published is what the platforms' users like together, found by the items' keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, read_rows
from server.monitoring.run_events import Event, Kind
from server.registry.pull import pull_model
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.preferences.item_index import places_of
from shared.preferences.packing import unpacked
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences
from shared.preferences.sum_kind import triangle_size
from shared.preferences.summed_preferences import PreferenceQuestion, PreferenceSum, combined_preferences
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def untrained(tiny_settings: Make) -> Make:
    def make(**over: Any) -> Settings:
        return tiny_settings(**{"strategy": "preferences", "rounds": 0, "preferences": {"items": 20}, **over})

    return make


@pytest.fixture
def world(write_platform: Write) -> World:
    """Three platforms of one catalogue, and one that has another."""
    for at, name in enumerate(("north", "south", "west")):
        write_platform(name, seed=at, users=30 + at)
    path = write_platform("alien", items=14, seed=5)
    return open_world(path.parent)


def run(world: World, settings: Settings, out: Path, **over: Any) -> tuple[SharedPreferences | None, list[Event]]:
    events: list[Event] = []
    run_simulation(Simulation(world=world, settings=settings, out=out, **over), events=events.append)
    found = out / "model" / FILE
    return (load_preferences(found) if found.exists() else None), events


def unit_vectors(rows: list[PlatformRows], items: np.ndarray) -> np.ndarray:
    """x / |x| of every user, (users, items)."""
    found = []
    for one in rows:
        place = places_of(one.item_hashes, items)
        for user in range(one.split.users):
            x = np.zeros(len(items))
            liked = place[one.split.train[user]]
            x[liked[liked >= 0]] = 1.0
            found.append(x / max(np.linalg.norm(x), 1.0))
    return np.array(found)


def popularity(rows: list[PlatformRows], items: np.ndarray) -> np.ndarray:
    return unit_vectors(rows, items).sum(0)


def exact(rows: list[PlatformRows], items: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The formula, user by user."""
    total = np.zeros((len(items), len(items)))
    for y in unit_vectors(rows, items):
        v = y - (y @ axis) * axis
        total += np.outer(v, v) / max(v @ v, 0.05)
    return total


def published(rows: list[PlatformRows], found: SharedPreferences) -> tuple[np.ndarray, np.ndarray]:
    """What is known of x x' / |x|^2 without noise, (items, items), and its part along popularity, (items,)."""
    likes = popularity(rows, found.items)
    axis = np.sqrt(likes) / np.linalg.norm(np.sqrt(likes))
    share = float(likes @ axis / found.users) ** 2
    beside = exact(rows, found.items, axis)
    assert beside.any() and 0.01 < share < 0.9
    along = math.sqrt(found.users * share) * axis
    return (1 - share) * beside + np.outer(along, along), along


def platforms(world: World, settings: Settings) -> list[PlatformRows]:
    return [read_rows(load(path), settings) for path in world.platforms]


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_without_noise_the_factors_are_what_users_like_together(
    world: World, untrained: Make, tmp_path: Path, noise: str
) -> None:
    settings = untrained(privacy={"epsilon": math.inf, "noise": noise})
    found, _ = run(world, settings, tmp_path / "run")
    assert found is not None and len(found.items) == 12 and found.noise == 0.0
    whole, axis = published(platforms(world, settings), found)
    # The grid of the sum is fine, not exact; what is no direction of likes is left out.
    np.testing.assert_allclose(found.factors.T @ found.factors, whole, atol=0.06)
    np.testing.assert_allclose(found.factors[0], axis, atol=0.02)
    np.testing.assert_allclose(found.popularity, np.diag(whole), atol=0.06)
    assert found.users == 3 * 40


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_with_noise_it_is_as_large_as_is_said(
    world: World, untrained: Make, tmp_path: Path, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[PreferenceQuestion, PreferenceSum]] = []

    def watched(shared: Any, *, ask: Any, **facts: Any) -> SharedPreferences:
        def seen(question: PreferenceQuestion) -> PreferenceSum:
            asked.append((question, ask(question)))
            return asked[-1][1]

        return combined_preferences(shared, ask=seen, **facts)

    module = "local_round" if noise == "local" else "secure_round"
    monkeypatch.setattr(f"server.run.{module}.combined_preferences", watched)
    off = []
    for seed in range(3):
        settings = untrained(privacy={"epsilon": 2.0, "noise": noise}, seed=seed)
        found, _ = run(world, settings, tmp_path / f"run-{seed}")
        assert found is not None
        (_, likes), (question, pairs) = asked
        asked.clear()
        rows, axis = platforms(world, settings), question.direction
        assert axis is not None
        off.append((likes.vector - popularity(rows, found.items)) / likes.noise)
        wrong = unpacked(pairs.vector, 12) - exact(rows, found.items, axis)
        off.append(np.concatenate([np.diag(wrong), math.sqrt(2) * wrong[np.triu_indices(12, 1)]]) / pairs.noise)
        for name in ("north", "south", "west"):
            ledger = read_ledger(tmp_path / f"run-{seed}" / "ledger" / f"{name}.jsonl")
            assert [str(entry.kind) for entry in ledger.entries] == ["popularity", "preferences"]
            assert ledger.entries[-1].epsilon <= 2.0
    errors = np.concatenate(off)
    assert len(errors) == 3 * (12 + triangle_size(12))
    assert errors.std() == pytest.approx(1.0, abs=0.15) and abs(errors.mean()) < 0.2


def test_where_more_is_shared_than_summed_the_most_popular_count(world: World, untrained: Make, tmp_path: Path) -> None:
    settings = untrained(privacy={"epsilon": math.inf}, preferences={"items": 5})
    found, _ = run(world, settings, tmp_path / "run")
    assert found is not None and len(found.items) == 5
    rows = platforms(world, settings)[1:]
    everything = np.unique(rows[0].item_hashes)
    likes = np.zeros(12)
    for one in rows:
        for user in range(one.split.users):
            liked = np.unique(one.split.train[user])
            likes[places_of(one.item_hashes[liked], everything)] += 1 / math.sqrt(max(len(liked), 1))
    assert set(found.items) == set(everything[np.argsort(-likes)[:5]])


def test_keys_find_what_ids_do_not(write_platform: Write, untrained: Make, tmp_path: Path) -> None:
    """Two shops number their items as they like; those with one ISBN are one item, however it is spelled."""
    tens = ["0306406152", "0140449132", "0486280616"]
    thirteens = ["978-0-306-40615-7", "9780140449136", "978-0486280615"]
    for name, ids, codes in (("big", range(12), tens), ("small", range(20, 9, -1), thirteens)):
        lines = [f"i{item},book {item},{codes[at] if at < 3 else ''}" for at, item in enumerate(ids)]
        path = write_platform(name, seed=len(name), files={f"{name}-items.csv": "\n".join(["item,title,isbn", *lines]) + "\n"})
        kind = 'kind = "items"'
        path.write_text(path.read_text().replace(kind, f'{kind}\nkeys = "isbn"\ncolumns = {{ key = "isbn" }}'))
    settings = untrained(privacy={"epsilon": math.inf, "noise": "local"})
    world = open_world(path.parent)
    found, _ = run(world, settings, tmp_path / "run")
    assert found is not None and len(found.items) == 3
    np.testing.assert_allclose(found.factors.T @ found.factors, published(platforms(world, settings), found)[0], atol=0.02)


def test_platforms_without_anything_in_common_say_so(write_platform: Write, untrained: Make, tmp_path: Path) -> None:
    for at, name in enumerate(("a", "b", "c")):
        path = write_platform(name, items=12 + at)
    found, events = run(open_world(path.parent), untrained(), tmp_path / "run")
    assert found is None
    assert any(event.kind is Kind.PREFERRED and "no two platforms" in event.text for event in events)
    assert not any(read_ledger(path).entries for path in (tmp_path / "run" / "ledger").glob("*.jsonl"))


def test_a_platform_may_keep_its_users_out(world: World, untrained: Make, tmp_path: Path) -> None:
    path = next(path for path in world.platforms if path.stem == "west")
    path.write_text(path.read_text().replace("[privacy]", "[federation]\npreferences = false\n[privacy]"))
    settings = untrained(strategy="fedavg", rounds=1, privacy={"epsilon": math.inf, "noise": "local"})
    found, _ = run(world, settings, tmp_path / "run")
    assert found is not None and found.users == 2 * 40
    truth, _ = published([one for one in platforms(world, settings) if one.name != "west"], found)
    np.testing.assert_allclose(found.factors.T @ found.factors, truth, atol=0.02)


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_before_training_they_share_the_budget(world: World, tiny_settings: Make, tmp_path: Path, noise: str) -> None:
    strategy = "fedavg" if noise == "local" else "secure-sum"
    settings = tiny_settings(strategy=strategy, preferences={"items": 20}, privacy={"noise": noise, "epsilon": 50.0})
    out = tmp_path / "run"
    found, _ = run(world, settings, out)
    assert found is not None and len(found.items) == 12
    kinds = {path.stem: [str(entry.kind) for entry in read_ledger(path).entries] for path in (out / "ledger").glob("*.jsonl")}
    assert all(
        value == ["popularity", "popularity", "preferences", "train", "train"] for name, value in kinds.items() if name != "alien"
    )
    assert kinds["alien"] == ["popularity", "train", "train"]
    assert all(read_ledger(path).entries[-1].epsilon <= 50.0 for path in (out / "ledger").glob("*.jsonl"))
    assert not [problem for one in audit_run(out).platforms for problem in one.problems]


def test_the_model_that_is_pulled_has_them(world: World, untrained: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found, _ = run(world, untrained(privacy={"epsilon": 8.0}), out)
    assert found is not None
    card = (out / "model" / "README.md").read_text()
    assert "preferences.safetensors" in card
    pulled = tmp_path / "pulled"
    pull_model(str(out / "model"), pulled, unsigned=True)
    again = load_preferences(pulled / FILE)
    assert np.array_equal(again.items, found.items) and np.array_equal(again.factors, found.factors)


def test_damaged_preferences_are_refused(world: World, untrained: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(world, untrained(), out)
    whole = (out / "model" / FILE).read_bytes()
    for bad in (b"", whole[:40], whole[:-8]):
        (tmp_path / FILE).write_bytes(bad)
        with pytest.raises(InputError, match="damaged"):
            load_preferences(tmp_path / FILE)
    with pytest.raises(InputError, match="no shared preferences"):
        load_preferences(tmp_path / "none")
