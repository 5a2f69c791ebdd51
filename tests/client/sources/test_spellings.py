"""Ids that differ in letters alone are spoken of where they are probably one, and not where chance makes them alike."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tomli_w
from typer.testing import CliRunner

from client.config.id_rules import USUAL_IDS, IdRules
from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.spellings import LETTERS, ZEROS, AlikeIds, alike_ids, known_but_for
from fedfuse import app

MAILS = [f"{name}.{number}@example.org" for number in range(500) for name in ("ann", "bob")]


def codes(count: int, length: int, seed: int = 0) -> list[str]:
    """Different random ids of letters and digits, all of which matter."""
    letters = np.array(list(string.ascii_letters + string.digits))
    drawn = np.random.default_rng(seed).choice(letters, (2 * count, length))
    return list(dict.fromkeys("".join(row) for row in drawn))[:count]


@pytest.mark.parametrize(
    "ids, count",
    [
        (MAILS, 0),
        ([*MAILS, "Ann.7@Example.org", "BOB.1@example.org"], 2),
        ([f"U{number:05}" for number in range(2000)] + [f"u{number:05}" for number in range(2000)], 2000),
        (["12", "\uff11\uff12", "13"], 1),
        (["\u00c5sa", "\u00e5sa", "\u212bsa", "Bo"], 2),
        (["\u00c5saB", "\u00e5saB", "aB"], 1),  # chance is reckoned from letters of ASCII, of which alike ones have none
        ([f"{number:06}" for number in range(1, 40)] + [str(number) for number in range(1, 40)], 39),
        (["007", "07", "a7", "a07", "0", "00"], 2),
        ([], 0),
    ],
)
def test_ids_in_other_letters_are_counted(ids: list[str], count: int) -> None:
    found = alike_ids(pl.Series(ids, dtype=pl.String), USUAL_IDS)
    alike = found[0] if found else None
    assert sum(one.count for one in found) == count
    assert alike is None or (all(one in ids for one in alike.pair) and alike.pair[0] != alike.pair[1])


@pytest.mark.parametrize("count, length", [(20_000, 4), (50_000, 5), (3_000, 3), (100_000, 6)])
def test_of_random_codes_of_which_some_are_alike_nothing_is_said(count: int, length: int) -> None:
    ids = codes(count, length)
    assert len({one.lower() for one in ids}) < len(ids)  # by chance some are
    assert alike_ids(pl.Series(ids), USUAL_IDS) == []
    # Another system's copy of a part of them in small letters is no chance.
    several = list(dict.fromkeys([*ids, *(one.lower() for one in ids[: count // 4])]))
    (alike,) = alike_ids(pl.Series(several), USUAL_IDS)
    assert alike.count > count // 5 and alike_ids(pl.Series(several), IdRules(folded=True)) == []
    known, others = pl.Series(ids[: count // 2]), pl.Series(ids[count // 2 :])
    assert known_but_for(others, known, USUAL_IDS) == []
    copied = [one.lower() for one in ids[:1000] if one.lower() not in set(known)]
    (found,) = known_but_for(pl.Series(copied), known, USUAL_IDS)
    assert found.count > 600


def test_rows_and_not_ids_are_counted_among_the_unknown() -> None:
    (found,) = known_but_for(pl.Series(["A1", "A1", "zz", None, "B2"]), pl.Series(["a1", "b2", "c3"]), USUAL_IDS)
    assert found == AlikeIds(count=3, pair=("A1", "a1"), difference=LETTERS)
    (found,) = known_but_for(pl.Series([7, 7, 8]), pl.Series(["007", "b2"]), USUAL_IDS)
    assert found == AlikeIds(count=2, pair=("7", "007"), difference=ZEROS)


def test_check_says_it_until_the_line_is_there(tmp_path: Path) -> None:
    """A person who is two is clipped twice: nothing of it was said."""
    rows = [f"{name}{number}@x.org,i{at}" for number in range(9) for at, name in enumerate(("ann", "Ann"))]
    (tmp_path / "log.csv").write_text("user,item\n" + "\n".join(rows) + "\nann0@x.org,I1\n", encoding="utf-8")
    (tmp_path / "items.csv").write_text("item,title\ni0,Zero\ni1,One\n", encoding="utf-8")
    (tmp_path / "people.csv").write_text("user,town\nANN0@x.org,Rome\nbob,Oslo\nann1@x.org,Bonn\n", encoding="utf-8")
    values = {
        "name": "p",
        "users": 20,
        "privacy": {"epsilon": 8.0},
        "sources": {
            "log": {"kind": "interactions", "path": "log.csv"},
            "items": {"kind": "items", "path": "items.csv"},
            "people": {"kind": "profiles", "path": "people.csv", "text": ["town"]},
        },
    }
    path = tmp_path / "p.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    shown = " ".join(CliRunner().invoke(app, ["check", str(path)]).output.split())
    assert "9 of 18 users differ from another in capital and small letters" in shown
    for what in ("item not in the catalogue", "user without interactions"):
        assert f"ids of rows that are left out ({what}) differ from known ones in capital and small letters" in shown
    assert "(rows: 1)" in shown and "folded = true under [ids]" in shown
    # Who sees nothing of it, a worker, does not look.
    assert not any("folded" in text for one in read_tables(load(path), lenient=True).reports for text in one.warnings)
    path.write_text(tomli_w.dumps({**values, "ids": {"folded": True}}), encoding="utf-8")
    shown = " ".join(CliRunner().invoke(app, ["check", str(path)]).output.split())
    assert "9 users with interactions" in shown and "differ from" not in shown
