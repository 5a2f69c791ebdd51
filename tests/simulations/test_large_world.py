"""Worlds of any size: as large as asked, the same each time, worth learning, and drawn a block at a time."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import load
from client.examples.split import leave_one_out
from client.recommender.own_model import exact_ranks, fit_own
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import InputError
from shared.protocol.quality import NDCG, mean_quality
from simulations.worlds import large
from simulations.worlds.large import LargeSizes, draw_events, ranges, write_large_world

SIZES = LargeSizes(users=600, items=200, events=9000)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    world = write_large_world(tmp_path_factory.mktemp("large") / "world", SIZES)
    return read_tables(load(world.platforms[0]))


def digests(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_it_has_the_users_items_and_events_that_were_asked_for(tables: Tables) -> None:
    assert tables.users == SIZES.users and tables.items == SIZES.items
    (orders,) = (report for report in tables.reports if report.source == "orders")
    assert orders.read == SIZES.events and orders.kept > 0.98 * orders.read
    assert {drop.reason for drop in orders.dropped} <= {"duplicate (user, item)"}
    assert all(tables.item_keys) and len(set(tables.item_keys)) == SIZES.items


def test_popularity_and_histories_have_long_tails(tables: Tables) -> None:
    counts = np.sort(np.bincount(tables.interactions.item, minlength=SIZES.items))[::-1]
    assert counts[0] > 8 * np.median(counts)
    lengths = np.diff(tables.interactions.offsets)
    assert lengths.min() >= 1 and lengths.max() > 3 * np.median(lengths) and lengths.max() <= SIZES.items // 4


def test_its_tastes_can_be_learned(tables: Tables) -> None:
    split = leave_one_out(tables, seed=0)
    users = np.flatnonzero(split.held >= 0)
    counts = np.bincount(split.train.values, minlength=tables.items)
    place = np.argsort(np.argsort(-counts))
    popular = 1.0 + np.array(
        [place[split.held[user]] - (place[split.known[user]] < place[split.held[user]]).sum() for user in users], float
    )
    among = np.full(len(users), tables.items)
    own = mean_quality(*exact_ranks(fit_own(tables, split, seed=0).model, split)).means[NDCG]
    assert own > 1.2 * mean_quality(popular, among).means[NDCG]


def test_same_seed_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    small = LargeSizes(users=40, items=40, events=120, platforms=2)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_large_world(tmp_path / name, small, seed=seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "again") != digests(tmp_path / "other")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_platforms_have_the_share_in_common_that_was_asked_for(tmp_path: Path, share: float) -> None:
    sizes = LargeSizes(users=30, items=40, events=90, platforms=3, in_common=share)
    world = write_large_world(tmp_path / "world", sizes, kind="csv")
    read = [read_tables(load(path)) for path in world.platforms]
    keys = [set(tables.item_keys) for tables in read]
    for one, other in pairwise(keys):
        assert len(one & other) == len(set.intersection(*keys)) == round(40 * share)
    titles = [dict(zip(tables.item_keys, tables.item_titles, strict=True)) for tables in read]
    assert all(titles[0][key] == titles[1][key] for key in keys[0] & keys[1])
    assert len({tables.platform for tables in read}) == 3


def test_blocks_and_files_change_nothing_about_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_EVENTS_AT_ONCE", 100)
    monkeypatch.setattr(large, "_BLOCKS_PER_FILE", 2)
    world = write_large_world(tmp_path / "world", LargeSizes(users=100, items=60, events=700))
    file = load(world.platforms[0])
    source = file.sources["orders"]
    assert source.path is not None and len(source.path) >= 3
    tables = read_tables(file)
    assert tables.users == 100 and tables.reports[0].read == 700


def test_an_item_is_drawn_from_its_theme_in_proportion_to_popularity() -> None:
    (sold,) = ranges(LargeSizes(users=10, items=2000, events=10), seed=3)
    theme = np.repeat(np.arange(sold.themes), 2000)
    item = sold.draw(np.random.default_rng(0), theme)
    assert (sold.theme[item] == theme).all()
    weight = np.diff(sold.rising)
    share = np.bincount(item, minlength=2000) / 2000
    expected = weight / np.bincount(sold.theme, weights=weight)[sold.theme]
    assert np.abs(share - expected).max() < 0.06
    anywhere = sold.draw(np.random.default_rng(0), np.full(100_000, -1))
    assert np.abs(np.bincount(anywhere, minlength=2000) / 100_000 - weight).max() < 0.006


def test_events_are_in_order_and_hardly_ever_repeated() -> None:
    (sold,) = ranges(LargeSizes(users=10, items=500, events=10), seed=0)
    user, item, time = draw_events(np.random.default_rng(0), sold, np.full(300, 20))
    assert (np.diff(user) >= 0).all() and (np.diff(time)[np.diff(user) == 0] >= 0).all()
    assert len(np.unique(user * 500 + item)) > 0.98 * len(user)


@pytest.mark.parametrize(
    "sizes",
    [
        {"users": 9},
        {"items": 19},
        {"events": 599},
        {"events": 15_001},
        {"platforms": 0},
        {"platforms": 2, "in_common": 1.5},
        {"platforms": 2, "in_common": float("nan")},
    ],
)
def test_sizes_that_do_not_go_together_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LargeSizes(**{"users": 600, "items": 200, "events": 9000, **sizes})  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    def call(*words: str) -> object:
        return CliRunner().invoke(fedfuse.app, ["world", "new", str(tmp_path / "world"), *words]).exception

    assert isinstance(call("--items", "100"), InputError)
    assert isinstance(call("--users", "100", "--scale", "1"), InputError)
    assert not (tmp_path / "world").exists()
    assert call("--users", "20", "--items", "100", "--events", "100", "--platforms", "2", "--csv") is None
    assert load(tmp_path / "world" / "shop-01.toml").users == 20
    assert isinstance(call("--users", "20"), InputError)
