"""A platform file drafted from two exports: what it guesses is read at once, and what cannot be drafted is said."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from client.config.platform_file import load
from client.setup.guess_table import guessed_tables
from client.setup.world_draft import draft_platform
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError


@pytest.fixture
def exports(tmp_path: Path) -> list[Path]:
    orders = ["customer;product;date"]
    orders += [f"c{number % 12};p{number * 7 % 9};{1 + number % 28:02d}.{1 + number % 12:02d}.2023" for number in range(80)]
    products = ["product;title;author", *(f"p{number};Buch {number};Autor {number % 3}" for number in range(9))]
    for name, lines in (("Orders 2023", orders), ("products", products)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [tmp_path / "Orders 2023.csv", tmp_path / "products.csv"]


def test_two_exports_are_a_platform(exports: list[Path], tmp_path: Path) -> None:
    made = draft_platform(exports, tmp_path / "world")
    assert made.path == tmp_path / "world" / "orders-2023.toml" and made.users == 20
    file = load(made.path)
    tables = read_tables(file)
    assert file.users == 20 and tables.users == 12 and tables.items == 9
    assert tables.interactions.time is not None
    assert "author" in made.path.read_text()
    assert [guess.kind for _, guess in made.guesses if guess] == ["interactions", "items"]


def test_a_world_can_be_moved_with_its_tables(exports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = [path.relative_to(tmp_path) for path in exports]
    text = draft_platform(here, Path("world"), name="shop").path.read_text()
    assert 'path = "../Orders 2023.csv"' in text and str(tmp_path) not in text
    absolute = draft_platform(exports, Path("world"), name="video").path.read_text()
    assert f'path = "{exports[0]}"' in absolute


def test_an_existing_platform_is_not_overwritten(exports: list[Path], tmp_path: Path) -> None:
    draft_platform(exports, tmp_path / "world", name="shop")
    before = (tmp_path / "world" / "shop.toml").read_bytes()
    with pytest.raises(InputError, match="there already"):
        draft_platform(exports, tmp_path / "world", name="shop")
    assert (tmp_path / "world" / "shop.toml").read_bytes() == before


@pytest.mark.parametrize("name", ["Shop", "a b", "", "../x"])
def test_a_name_that_is_none(exports: list[Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no name"):
        draft_platform(exports, tmp_path / "world", name=name)


def test_without_interactions_nothing_is_written(exports: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="interactions"):
        draft_platform(exports[1:], tmp_path / "world")
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("column", "cells", "kind"),
    [
        ("ISBN", ["9780306406157", "0-306-40615-2", "", "080442957X"], "isbn"),
        ("EAN-Code", ["4006381333931", "036000291452"], "gtin"),
        ("ean", ["4006381333932", "1"], None),
        ("imdbId", ["tt0111161", "tt0068646"], "imdb"),
        ("isbn", ["none", "to follow", "9780306406157"], None),
        ("isbnote", ["9780306406157"], None),
    ],
)
def test_public_keys_are_found_where_most_cells_are_keys(tmp_path: Path, column: str, cells: list[str], kind: str | None) -> None:
    orders = ["Kunde,Artikel,Datum", *(f"k{number % 5},a{number % len(cells)},0{1 + number % 9}.05.2024" for number in range(30))]
    products = [f"Artikel,Titel,{column}", *(f"a{number},Buch {number},{cell}" for number, cell in enumerate(cells))]
    for name, lines in (("orders", orders), ("products", products)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = draft_platform([tmp_path / "orders.csv", tmp_path / "products.csv"], tmp_path / "world")
    assert [guess.keys for _, guess in made.guesses if guess and guess.kind == "items"] == [kind]
    tables = read_tables(load(made.path))
    assert tables.users == 5 and tables.interactions.time is not None
    assert any(tables.item_keys) == (kind is not None)


@pytest.mark.parametrize(("cell", "taken"), [("{:02d}.05.2024", True), ("{}", False)])
def test_the_time_is_found_by_what_it_holds_where_no_name_says_so(tmp_path: Path, cell: str, taken: bool) -> None:
    rows = [f"k{row % 9};a{row % 7};{cell.format(row % 28 + 1)}" for row in range(90)]
    table = tmp_path / "orders.csv"
    table.write_text("kunde;artikel;wann\n" + "\n".join(rows) + "\n")
    catalogue = tmp_path / "things.csv"
    catalogue.write_text("artikel;name\n" + "".join(f"a{item};thing {item}\n" for item in range(7)))
    drafted = draft_platform([table, catalogue], tmp_path / "world", name="laden")
    source = load(drafted.path).sources["orders"]
    assert (source.columns.get("time") == "wann") is taken
    assert ("was taken for the time by what it holds" in drafted.path.read_text()) is taken


def test_what_is_not_read_is_said_and_a_decimal_comma_is_a_number(tmp_path: Path) -> None:
    """German ratings were left out, and no column that is not read was named."""
    rows = [f"k{row % 9};a{row % 7};{'3,0' if row % 7 < 2 else '4,5'};x{row}" for row in range(90)]
    (tmp_path / "log.csv").write_text("kunde;artikel;bewertung;vorgang_id\n" + "\n".join(rows) + "\n")
    drafted = draft_platform([tmp_path / "log.csv"], tmp_path / "world", name="laden")
    text = drafted.path.read_text()
    assert 'value = "bewertung"' in text and "threshold = " in text and "# not read: 'vorgang_id'" in text
    console = Console(file=io.StringIO(), width=100)
    console.print(guessed_tables(drafted.guesses, title="laden"))
    assert "not read: vorgang_id" in console.file.getvalue()  # type: ignore[attr-defined]
    tables = read_tables(load(drafted.path))
    assert 0 < tables.interactions.positive.sum() < len(tables.interactions.positive)


@pytest.mark.parametrize(
    "header, user", [("follower,followee", "follower"), ("followee_id,follower_id", "follower_id"), ("user,friend", "user")]
)
def test_who_follows_whom_is_a_source_of_ties(header: str, user: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{row % 9},i{row % 7}\n" for row in range(60)))
    (tmp_path / "ties.csv").write_text(header + "\n" + "".join(f"u{row % 9},u{(row + 1) % 9}\n" for row in range(9)))
    file = load(draft_platform([tmp_path / "log.csv", tmp_path / "ties.csv"], tmp_path / "world", name="shop").path)
    assert file.sources["ties"].kind == "social" and file.sources["ties"].columns["user"] == user


def test_a_table_without_a_header_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("".join(f"{row % 9},{row % 7},5\n" for row in range(60)))
    with pytest.raises(InputError, match="no table looks like interactions") as error:
        draft_platform([tmp_path / "log.csv"], tmp_path / "world")
    assert "header = false" in error.value.do


def test_a_key_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{row % 9},i{row % 7}\n" for row in range(60)))
    (tmp_path / "items.csv").write_text("item,title,isbn\n" + "".join(f"i{row},T{row},978000000{row}\n" for row in range(7)))
    text = draft_platform([tmp_path / "log.csv", tmp_path / "items.csv"], tmp_path / "world", name="s").path.read_text()
    assert "# isbn: named as a public key (isbn), but most of its cells are none that can be read" in text
    assert "numbers = { isbn" not in text and "# not read: 'isbn'" in text
