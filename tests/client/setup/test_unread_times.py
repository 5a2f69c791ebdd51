"""The hint that a column looks like the time of events: given for times in any spelling, and not for ids, prices or birthdays."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.setup.unread_times import unread_time
from tests.support.called_command import called

ROWS = 400
SECONDS = np.sort(np.random.default_rng(0).integers(1_500_000_000, 1_560_000_000, ROWS))
MOMENTS = [dt.datetime.fromtimestamp(int(one), dt.UTC) for one in SECONDS]
USERS, ITEMS = [f"u{at % 40}" for at in range(ROWS)], [f"i{at * 7 % 60}" for at in range(ROWS)]

SPELLED: dict[str, Callable[[dt.datetime], object]] = {
    "seconds": lambda one: int(one.timestamp()),
    "milliseconds": lambda one: int(one.timestamp() * 1000) + 123,
    "microseconds": lambda one: int(one.timestamp() * 1e6) + 123_456,
    "nanoseconds": lambda one: int(one.timestamp()) * 10**9,
    "seconds with decimals": lambda one: one.timestamp() + 0.25,
    "ISO": lambda one: one.isoformat(),
    "ISO with Z": lambda one: f"{one:%Y-%m-%dT%H:%M:%SZ}",
    "days": lambda one: f"{one:%Y-%m-%d}",
    "days in digits": lambda one: int(f"{one:%Y%m%d}"),
    "German": lambda one: f"{one:%d.%m.%Y %H:%M}",
}


def platform(folder: Path, source: str, *, kind: str = "interactions") -> Path:
    path = folder / "shop.toml"
    path.write_text(
        f"""name = "shop"
users = 100
catalogue = "from-interactions"
[privacy]
epsilon = 8.0
delta = 1e-4
[sources.events]
kind = "{kind}"
{source}
"""
    )
    return path


def hint(folder: Path, **columns: Sequence[object]) -> str:
    """Of a CSV file with users, items and these columns."""
    pl.DataFrame({"user": USERS, "item": ITEMS, **columns}, strict=False).write_csv(folder / "events.csv")
    return unread_time(load(platform(folder, 'path = "events.csv"')).sources["events"])


@pytest.mark.parametrize("spelling", SPELLED)
def test_times_are_seen_in_whatever_spelling(spelling: str, tmp_path: Path) -> None:
    said = hint(tmp_path, menge=[1] * ROWS, gekauft=[SPELLED[spelling](one) for one in MOMENTS])
    assert "column 'gekauft' looks like one (2017-07-" in said and 'columns = { time = "gekauft" }' in said, said


def numbers(draw: st.DrawFn) -> list[object]:
    """Numbers of events that are no times: of an order, of a customer, prices, random ids, a year."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    digits = draw(st.integers(1, 19))
    kind = draw(st.sampled_from(["numbered", "several a number", "random", "prices", "snowflake", "years", "of an item", "isbn"]))
    start = int(random.integers(10 ** (digits - 1), min(10**digits, 2**62)))
    if kind == "numbered":
        return list(start + np.arange(ROWS))
    if kind == "several a number":
        return list(start + np.arange(ROWS) // draw(st.integers(1, 6)))
    if kind == "random":
        return list(random.integers(10 ** (digits - 1), min(10**digits, 2**62), ROWS))
    if kind == "prices":
        return list(np.round(random.lognormal(3, 1, ROWS), 2))
    if kind == "snowflake":
        return list((SECONDS - 1_288_834_974) * 1000 * 2**22 + random.integers(0, 2**22, ROWS))
    if kind == "years":
        return list(random.integers(1990, 2035, ROWS))
    of = {name: int(random.integers(1_000_000_000, 2_000_000_000)) for name in set(ITEMS)}
    if kind == "isbn":
        return [f"978{of[item]}" for item in ITEMS]
    return [of[item] for item in ITEMS]


@settings(max_examples=150, deadline=None)
@given(st.composite(numbers)())
def test_ids_and_prices_are_no_times(tmp_path_factory: pytest.TempPathFactory, cells: list[object]) -> None:
    assert hint(tmp_path_factory.mktemp("shop"), nummer=cells) == ""


def test_what_belongs_to_an_item_or_a_user_is_no_time_of_an_event(tmp_path: Path) -> None:
    published = {item: MOMENTS[at * 3].date().isoformat() for at, item in enumerate(sorted(set(ITEMS)))}
    joined = {user: MOMENTS[at * 5].date().isoformat() for at, user in enumerate(sorted(set(USERS)))}
    assert hint(tmp_path, erschienen=[published[item] for item in ITEMS], seit=[joined[user] for user in USERS]) == ""


def test_few_rows_gaps_and_other_centuries_are_no_times(tmp_path: Path) -> None:
    gaps = [one.isoformat() if at % 10 else None for at, one in enumerate(MOMENTS)]
    old = [(one - dt.timedelta(days=365 * 40)).date().isoformat() for one in MOMENTS]
    words = [one.isoformat() if at % 10 else "later" for at, one in enumerate(MOMENTS)]
    one_day = ["2019-01-01"] * ROWS
    assert hint(tmp_path, gaps=gaps, old=old, words=words, one_day=one_day) == ""
    pl.DataFrame({"user": USERS, "item": ITEMS, "wann": [one.isoformat() for one in MOMENTS]}).head(10).write_csv(
        tmp_path / "events.csv"
    )
    assert unread_time(load(tmp_path / "shop.toml").sources["events"]) == ""


def test_the_column_with_the_finest_times_is_named(tmp_path: Path) -> None:
    said = hint(tmp_path, tag=[f"{one:%Y-%m-%d}" for one in MOMENTS], moment=[int(one) for one in SECONDS])
    assert "'moment'" in said and "'tag'" not in said


def test_other_tables_and_declared_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"kunde": USERS, "artikel": ITEMS, "gekauft": MOMENTS})
    frame.write_parquet(tmp_path / "events.parquet")
    frame.with_columns(pl.col("gekauft").dt.epoch("s")).write_ndjson(tmp_path / "events.jsonl")
    frame.with_columns(pl.col("gekauft").dt.epoch("s")).write_csv(tmp_path / "events.csv", separator=";", include_header=False)
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("create table events (kunde, artikel, gekauft)")
        database.executemany(
            "insert into events values (?, ?, ?)", zip(USERS, ITEMS, [f"{one:%Y-%m-%d %H:%M:%S}" for one in MOMENTS], strict=True)
        )
    columns = 'columns = { user = "kunde", item = "artikel" }'
    line = 'columns = { user = "kunde", item = "artikel", time = "gekauft" }'
    for source in (
        'path = "events.parquet"',
        'path = "events.jsonl"',
        f'url = "sqlite:///{tmp_path}/shop.db"\ntable = "events"',
    ):
        file = load(platform(tmp_path, f"{source}\n{columns}"))
        assert line in unread_time(file.sources["events"]), source
    headless = 'path = "events.csv"\nseparator = ";"\nheader = false\ncolumns = { user = 1, item = 2 }'
    said = unread_time(load(platform(tmp_path, headless)).sources["events"])
    assert "column 3 looks like" in said and "columns = { user = 1, item = 2, time = 3 }" in said


def test_check_says_it_until_the_line_is_there(tmp_path: Path) -> None:
    pl.DataFrame({"user": USERS, "item": ITEMS, "gekauft": SECONDS}).write_csv(tmp_path / "events.csv")
    path = platform(tmp_path, 'path = "events.csv"')

    def warnings() -> list[str]:
        done = called("check", path, "--json")
        return [one for one in json.loads(done.stdout)["warnings"] if "looks like" in one]

    (said,) = warnings()
    assert said.startswith("source 'events': no column is read as time, and column 'gekauft' looks like one")
    line = said.partition("if it is: ")[2]
    path = platform(tmp_path, f'path = "events.csv"\n{line}')
    assert warnings() == []
    assert load(path).sources["events"].columns == {"time": "gekauft"}
