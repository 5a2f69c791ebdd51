"""The three real platforms, as their authors ship them; skipped where the data are not at hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables

WORLD = Path(__file__).parents[3] / "simulations" / "worlds" / "movies-music-books"

pytestmark = pytest.mark.skipif(not os.environ.get("FEDFUSE_DATA"), reason="FEDFUSE_DATA is not set")


def tables(name: str) -> Tables:
    file = load(WORLD / f"{name}.toml")
    begin = time.perf_counter()
    found = read_tables(file)
    assert time.perf_counter() - begin < 10  # about half a second; the bound only catches work by row
    assert found.users == file.users
    return found


def counts(found: Tables) -> dict[str, tuple[int, int]]:
    return {report.source: (report.read, report.kept) for report in found.reports}


def test_movies() -> None:
    found = tables("movies")
    read, kept = counts(found)["ratings"]
    assert read == kept in (100_000, 99_999)  # some copies lack the first line, a rating of 3
    assert {**counts(found), "ratings": ()} == {"films": (1682, 1682), "ratings": (), "people": (943, 943)}
    assert found.item_text["films"][0] == "Toy Story (1995). category: Animation, Children's, Comedy"
    assert found.item_titles[0] == "Toy Story (1995)"
    assert found.user_text["people"][found.user_ids.index("1")] == "man. age: twenties. occupation: technician"
    assert found.interactions.time is not None
    assert found.interactions.positive.sum() == 55_375


def test_music() -> None:
    found = tables("music")
    assert counts(found) == {
        "artists": (17_632, 17_632),
        "plays": (92_834, 92_834),
        "tags": (186_479, 186_476),
        "friends": (25_434, 25_434),
        "graph": (15_518, 15_469),
    }
    assert found.item_titles[found.item_ids.index("14728")]
    assert found.interactions.weight.max() == pytest.approx(np.log1p(352_698), rel=1e-6)
    assert "seen live" in set(found.notes["tags"].text)
    assert not found.notes["tags"].public
    assert list(found.item_text) == ["artists", "graph"]
    assert found.item_text["graph"][1] == "same music artist origin as Feindflug, And One"


def test_books() -> None:
    found = tables("books")
    assert counts(found) == {
        "books": (17_384, 17_384),
        "ratings": (62_656, 62_656),
        "history": (272_678, 210_022),
        "readers": (2946, 2946),
    }
    assert found.item_text["books"][0] == "Decision in Normandy. by Carlo D'Este. published: 1990s"
    assert found.user_text["readers"][0] == "age: twenties or thirties. from minneapolis, minnesota, usa"
    reasons = {drop.reason: drop.rows for report in found.reports for drop in report.dropped}
    assert reasons["age: outside 5 to 100 (row kept)"] == 16
    assert found.interactions.time is None
