"""Dealing a world: nobody is lost, nobody is twice, and a part says of a user what the whole said."""

from __future__ import annotations

import sqlite3
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import load
from client.config.source_schema import KINDS
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import InputError
from simulations.worlds.generated import write_world
from simulations.worlds.repartition import deal_world, part_of
from simulations.worlds.world import World, open_world

USERS = [f"u{number}" for number in range(40)]
EVERY_KIND = """
name = "shop"
users = 43
state = "elsewhere"

[privacy]
epsilon = 3.0
delta = 1e-4

[sources.clicks]
kind = "interactions"
path = ["clicks-1.csv", "clicks-2.csv"]
header = false
separator = ";"
columns = { user = 1, item = 2, time = 4 }

[sources.sales]
kind = "interactions"
url = "sqlite:///shop.db"
query = "select buyer, item, stars from sales"
columns = { user = "buyer", value = "stars" }
threshold = 3.0

[sources.items]
kind = "items"
path = "items.tsv"

[sources.people]
kind = "profiles"
path = "people.txt"
separator = "|"
header = false
columns = { user = 1, job = 3, age = 4 }
text = [2, "job"]
lookup = { job = { path = "jobs.csv", key = "code", value = "word" } }
numbers = { age = { min = 0, max = 100, words = ["young", "old"] } }

[sources.forms]
kind = "profiles"
path = "forms.jsonl"
text = ["Home_Town"]

[sources.named]
kind = "profiles"
path = "named.csv"
text = [2]

[sources.notes]
kind = "reviews"
path = "notes.parquet"

[sources.friends]
kind = "social"
path = "friends.csv"

[sources.faces]
kind = "vectors"
path = "faces.npy"
ids = "faces.ids"
columns = { user = 1 }

[sources.moods]
kind = "vectors"
path = "moods.csv"
columns = { user = "who", vector = ["a", "b"] }

[sources.lists]
kind = "vectors"
path = "lists.parquet"
width = 2

[sources.covers]
kind = "vectors"
path = "covers.parquet"
columns = { item = "item" }
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One platform that has every kind of source of users' rows, in every kind of file."""
    at = tmp_path / "world"
    at.mkdir()
    random = np.random.default_rng(3)
    (at / "shop.toml").write_text(EVERY_KIND, encoding="utf-8")
    clicks = [f"{user};i{item};x;{1_700_000_000 + k}" for user in USERS for k, item in enumerate(random.permutation(9)[:5])]
    (at / "clicks-1.csv").write_text("\n".join(clicks[:80]) + "\n;i3;x;1700000000\n", encoding="utf-8")
    (at / "clicks-2.csv").write_text("\n".join(clicks[80:]) + "\n", encoding="utf-8")
    with sqlite3.connect(at / "shop.db") as database:
        database.execute("create table sales (buyer text, item text, stars integer)")
        database.executemany("insert into sales values (?, ?, ?)", [(user, f"i{k % 9}", k % 6) for k, user in enumerate(USERS)])
    (at / "items.tsv").write_text("item\ttitle\n" + "".join(f"i{k}\tThing {k}\n" for k in range(9)), encoding="utf-8")
    people = [f" {user} |town {k}|{k % 3}|{k}" for k, user in enumerate(USERS)]
    (at / "people.txt").write_text("\n".join(people) + "\n", encoding="utf-8")
    (at / "jobs.csv").write_text("code,word\n0,baker\n1,smith\n2,nurse\n", encoding="utf-8")
    (at / "forms.jsonl").write_text("".join(f'{{"user": "{u}", "Home_Town": "Rome {u}"}}\n' for u in USERS[5:]), encoding="utf-8")
    (at / "named.csv").write_text("user,Favourite_Dish\n" + "".join(f"{u},soup {u}\n" for u in USERS), encoding="utf-8")
    pl.DataFrame({"user": USERS, "item": ["i1"] * 40, "text": [f"nice {u}" for u in USERS]}).write_parquet(at / "notes.parquet")
    ties = [f"{u},{f}" for u in USERS for f in random.choice(USERS, 4, replace=False)]
    (at / "friends.csv").write_text("user,friend\n" + "\n".join(ties) + "\n", encoding="utf-8")
    np.save(at / "faces.npy", random.normal(size=(40, 3)))
    (at / "faces.ids").write_text("\n".join(USERS) + "\n", encoding="utf-8")
    (at / "moods.csv").write_text(
        "who,a,b\n" + "".join(f"{u},{k / 50},{-k / 60}\n" for k, u in enumerate(USERS)), encoding="utf-8"
    )
    pl.DataFrame({"user": USERS, "vector": random.normal(size=(40, 2)).tolist()}).write_parquet(at / "lists.parquet")
    covers = {"item": [f"i{k}" for k in range(9)], "vector": random.normal(size=(9, 2)).tolist()}
    pl.DataFrame(covers).write_parquet(at / "covers.parquet")
    return open_world(at)


def said(tables: Tables) -> dict[str, Any]:
    """User -> all that the tables hold of them, in terms that do not depend on numbering."""
    told = {}
    for number, user in enumerate(tables.user_ids):
        of = slice(tables.interactions.offsets[number], tables.interactions.offsets[number + 1])
        met = tables.interactions
        told[user] = {
            "met": [tables.item_ids[item] for item in met.item[of]],
            "liked": met.positive[of].tolist(),
            "text": {name: texts[number] for name, texts in tables.user_text.items()},
            "vectors": {name: v.values[number].tolist() for name, v in tables.user_vectors.items() if v.present[number]},
            "notes": {
                name: notes.text[notes.offsets[number] : notes.offsets[number + 1]] for name, notes in tables.notes.items()
            },
        }
    return told


def ties(tables: Tables) -> Counter[tuple[str, str]]:
    (held,) = tables.ties.values()
    return Counter(
        (user, tables.user_ids[friend])
        for number, user in enumerate(tables.user_ids)
        for friend in held.friend[held.offsets[number] : held.offsets[number + 1]]
        if friend >= 0
    )


def test_every_kind_of_users_rows_is_dealt_here(world: World) -> None:
    there = {source.kind for source in load(world.platforms[0]).sources.values()}
    assert there >= {name for name, kind in KINDS.items() if "user" in kind.roles}


@pytest.mark.parametrize("parts", [1, 3])
def test_a_part_says_of_its_users_what_the_whole_said(world: World, tmp_path: Path, parts: int) -> None:
    whole = read_tables(load(world.platforms[0]))
    made = deal_world(world, tmp_path / "dealt", parts=parts)
    assert len(made.platforms) == parts
    dealt: dict[str, Any] = {}
    for part, path in enumerate(made.platforms):
        tables = read_tables(load(path))
        assert all(part_of(user, parts) == part for user in tables.user_ids)
        assert list(tables.item_ids) == list(whole.item_ids) and tables.item_titles == whole.item_titles
        for name, vectors in whole.item_vectors.items():
            assert (tables.item_vectors[name].values == vectors.values).all()
        assert not dealt.keys() & set(tables.user_ids)
        dealt |= said(tables)
    assert dealt == said(whole)
    assert dealt["u7"]["text"]["people"] == "age: young. town 7. job: smith"  # a column without a name, a code, a number
    assert dealt["u7"]["text"]["named"] == "favourite dish: soup u7"


def test_ties_within_a_part_stay_and_others_keep_their_place(world: World, tmp_path: Path) -> None:
    whole = ties(read_tables(load(world.platforms[0])))
    made = deal_world(world, tmp_path / "dealt", parts=3)
    parts = [read_tables(load(path)) for path in made.platforms]
    expected = Counter({pair: n for pair, n in whole.items() if part_of(pair[0], 3) == part_of(pair[1], 3)})
    assert sum((ties(tables) for tables in parts), Counter()) == expected
    assert 0 < len(expected) < len(whole)
    assert sum(len(tables.ties["friends"].friend) for tables in parts) == sum(whole.values())


def test_declared_users_and_everything_else_of_the_file(world: World, tmp_path: Path) -> None:
    made = deal_world(world, tmp_path / "dealt", parts=3)
    files = [load(path) for path in made.platforms]
    assert [file.name for file in files] == ["shop-1", "shop-2", "shop-3"]
    assert [file.users for file in files] == [15, 14, 14]  # of 43 declared, whatever there are
    assert all((file.privacy.epsilon, file.privacy.delta) == (3.0, 1e-4) for file in files)
    assert len({file.state for file in files}) == 3  # a ledger is nobody else's


def test_tables_of_users_are_for_their_owner_alone(world: World, tmp_path: Path) -> None:
    deal_world(world, tmp_path / "dealt", parts=2)
    tables = [path for path in (tmp_path / "dealt").rglob("*") if path.is_file() and path.suffix not in (".toml", ".md")]
    assert len(tables) == 2 * 11
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tables)


def test_the_same_seed_deals_the_same_and_another_does_not(world: World, tmp_path: Path) -> None:
    def content(name: str, seed: int) -> dict[str, bytes]:
        folder = tmp_path / name
        deal_world(world, folder, parts=2, seed=seed)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content("a", 0) == content("b", 0) != content("c", 1)


def test_parts_are_even_enough() -> None:
    counts = Counter(part_of(f"user {number}", 8) for number in range(8000))
    assert set(counts) == set(range(8)) and all(900 < count < 1100 for count in counts.values())


def test_a_declared_catalogue_stays_whole_and_where_it_is(tmp_path: Path) -> None:
    at = tmp_path / "world"
    at.mkdir()
    (at / "log.csv").write_text("user,item\n" + "".join(f"{user},i{k % 3}\n" for k, user in enumerate(USERS)), encoding="utf-8")
    (at / "items.csv").write_text("id\ni0\ni1\ni9\n", encoding="utf-8")
    (at / "shop.toml").write_text(
        'name = "shop"\nusers = 40\ncatalogue = { path = "items.csv", column = "id" }\n[privacy]\nepsilon = 3.0\n'
        '[sources.log]\nkind = "interactions"\npath = "log.csv"\n',
        encoding="utf-8",
    )
    for path in deal_world(open_world(at), tmp_path / "dealt", parts=2).platforms:
        tables = read_tables(load(path))
        assert tables.catalogue_public and list(tables.item_ids) == ["i0", "i1", "i9"]


def test_a_source_that_says_nothing_of_a_part_is_left_out_there(tmp_path: Path, write_platform: Any) -> None:
    write_platform(
        "shop", extra='[sources.p]\nkind = "profiles"\npath = "p.csv"\ntext = ["town"]', files={"p.csv": "user,town\nu3,Rome\n"}
    )
    made = deal_world(open_world(tmp_path / "world"), tmp_path / "dealt", parts=2)
    having = ["p" in load(path).sources for path in made.platforms]
    assert sorted(having) == [False, True] and having[part_of("u3", 2)]
    for path in made.platforms:
        read_tables(load(path))


def test_what_cannot_be_dealt(tmp_path: Path, write_platform: Any) -> None:
    write_platform("shop", users=2, declared=40)
    small = open_world(tmp_path / "world")
    with pytest.raises(InputError, match="got no interaction"):
        deal_world(small, tmp_path / "a", parts=8)
    with pytest.raises(InputError, match="40 users are declared for 41 parts"):
        deal_world(small, tmp_path / "b", parts=41)
    for parts in (0, 1001):
        with pytest.raises(InputError, match="parts is"):
            deal_world(small, tmp_path / "c", parts=parts)
    with pytest.raises(InputError, match="not empty"):
        deal_world(small, small.folder, parts=1)


def test_the_command_deals_the_generated_world(tmp_path: Path) -> None:
    write_world(tmp_path / "made", scale=0.1)
    out = tmp_path / "dealt"
    done = CliRunner().invoke(fedfuse.app, ["world", "deal", str(tmp_path / "made"), "--parts", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "8 platforms" in done.output
    before, after = (sum(len(read_tables(load(p)).user_ids) for p in open_world(f).platforms) for f in (tmp_path / "made", out))
    assert before == after
