"""The catalogue is public: it comes from a public table, and users' rows cannot add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import InputError

LOG = "user,item\nann,1\nann,2\nbob,3\nbob,own-0\n"
REVIEWS = "user,item,text\nann,1,fine\nann,own-1,mine\n"
GRAPH = "head,relation,tail\n1,sequel,2\nown-0,made_in,Peru\n"


def read(folder: Path, *, catalogue: Any = None, items: str = "id\n1\n2\n 3.0 \n1\n\n9\n", log: str = LOG, **more: Any) -> Tables:
    files = {"log.csv": log, "items.csv": items, "said.csv": REVIEWS, "graph.csv": GRAPH}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    sources = {
        "log": {"kind": "interactions", "path": "log.csv"},
        "said": {"kind": "reviews", "path": "said.csv"},
        "graph": {"kind": "knowledge", "path": "graph.csv"},
        **more,
    }
    values: dict[str, Any] = {"name": "p", "users": 2, "privacy": {"epsilon": 1.0}, "sources": sources}
    values |= {} if catalogue is None else {"catalogue": catalogue}
    (folder / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return read_tables(load(folder / "p.toml"))


DECLARED = {"path": "items.csv", "column": "id"}


def test_a_declared_list_is_the_catalogue(tmp_path: Path) -> None:
    tables = read(tmp_path, catalogue=DECLARED)
    assert tables.catalogue_public
    assert list(tables.item_ids) == tables.item_titles == ["1", "2", "3", "9"]
    listed, log, *_ = tables.reports
    assert (listed.source, listed.kind, listed.read, listed.kept) == ("catalogue", "catalogue", 6, 4)
    assert {drop.reason: drop.rows for drop in listed.dropped} == {"missing item": 1, "duplicate item": 1}
    assert {drop.reason: drop.rows for drop in log.dropped} == {"item not in the catalogue": 1}


def test_a_user_with_items_of_their_own_changes_nothing_of_the_catalogue(tmp_path: Path) -> None:
    """The attack: 300 items that only one user has were everybody's negatives, and their number left the platform."""
    own = LOG + "".join(f"eve,eve-{number}\n" for number in range(300)) + "eve,1\n"
    for catalogue, public in ((DECLARED, True), ("from-interactions", False), (None, False)):
        with_eve, without = read(tmp_path, catalogue=catalogue, log=own), read(tmp_path, catalogue=catalogue)
        assert with_eve.catalogue_public is without.catalogue_public is public
        same = [list(tables.item_ids) for tables in (with_eve, without)]
        assert (same[0] == same[1]) is public
        if public:
            assert with_eve.item_text == without.item_text and with_eve.item_titles == without.item_titles
            # Notes on an item that is not listed are on no item.
            assert with_eve.notes["said"].item.tolist() == [-1, 0] or with_eve.notes["said"].item.tolist() == [0, -1]
        else:
            assert with_eve.items == without.items + 300


@pytest.mark.parametrize(
    ("suffix", "content", "keys"),
    [
        (".txt", "1\n2\n3\n", {"header": False, "column": 1}),
        (".jsonl", '{"sku": 1}\n{"sku": "2"}\n{"sku": 3.0}\n', {"column": "sku"}),
        (".csv", "name;sku\nA;1\nB;2\nC;3\n", {"column": "sku", "separator": ";"}),
    ],
)
def test_every_format_can_list_it(suffix: str, content: str, keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / f"list{suffix}").write_text(content, encoding="utf-8")
    assert list(read(tmp_path, catalogue={"path": f"list{suffix}", **keys}).item_ids) == ["1", "2", "3"]


def test_a_list_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'sku'"):
        read(tmp_path, catalogue={"path": "items.csv", "column": "sku"})
    with pytest.raises(InputError, match=r"'catalogue' is empty"):
        read(tmp_path, catalogue=DECLARED, items="id\n")
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path, catalogue={"path": "none.csv"})
