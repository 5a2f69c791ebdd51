"""A platform file drafted from two exports: what it guesses is read at once, and what cannot be drafted is said."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from client.config.platform_file import load
from client.setup.guess_table import guessed_tables
from client.setup.headerless import seems_headerless
from client.setup.schema_inference import guess
from client.setup.table_preview import Sample, sample_file
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


def test_a_table_without_a_header_is_drafted_by_what_it_holds(tmp_path: Path) -> None:
    rows = [f"{row % 9}\t{row % 7}\t{1 + row % 5}\t{1_600_000_000 + 86_400 * row}" for row in range(60)]
    (tmp_path / "u.data").write_text("\n".join(rows) + "\n")
    made = draft_platform([tmp_path / "u.data"], tmp_path / "world")
    source = load(made.path).sources["u"]
    assert source.columns == {"user": 1, "item": 2, "value": 3, "time": 4} and source.threshold == 3.0
    assert "guessed by what it holds" in made.path.read_text()
    tables = read_tables(load(made.path))
    assert (tables.users, tables.items, tables.reports[-1].read) == (9, 7, 60) and tables.interactions.time is not None
    (tmp_path / "u.txt").write_text("# a remark\n# of two lines\n" + "\n".join(rows) + "\n")
    made = draft_platform([tmp_path / "u.txt"], tmp_path / "world", name="remarked")
    assert 'comment = "#"' in made.path.read_text() and read_tables(load(made.path)).reports[-1].read == 60
    # Years are a header, too, and so is a number in front of columns that have names.
    for header in ("user,2019,2020", "1,hits"):
        (tmp_path / "t.csv").write_text(f"{header}\n" + "".join(f"{row % 9},{row},{row % 4}\n" for row in range(60)))
        assert not seems_headerless(sample_file(tmp_path / "t.csv"))
    # Where nothing tells who is who, the line to add is said.
    (tmp_path / "t.csv").write_text("".join(f"{row},{row}.5\n" for row in range(60)))
    with pytest.raises(InputError, match="no table looks like interactions") as error:
        draft_platform([tmp_path / "t.csv"], tmp_path / "world")
    assert "header = false" in error.value.do


def behaviours(*, header: bool) -> list[str]:
    """Impressions as MIND has them: who, when, what they had clicked before, and what was shown with what was clicked of it."""
    rows = ["impression_id\tuser_id\ttime\thistory\timpressions"] if header else []
    for row in range(60):
        history = " ".join(f"N{10_000 + (row * at) % 23}" for at in range(1, 1 + row % 5))
        shown = " ".join(f"N{10_000 + (row + at) % 23}-{int(at == 1)}" for at in range(1, 4))
        clock = f"11/{9 + row % 6}/2019 {1 + row % 11}:05:58 {'AM' if row % 2 else 'PM'}"
        rows.append(f"{row + 1}\tU{1000 + row % 17}\t{clock}\t{history}\t{shown}")
    return rows


@pytest.mark.parametrize("header", [True, False])
def test_histories_are_drafted_as_lists(header: bool, tmp_path: Path) -> None:
    (tmp_path / "behaviors.tsv").write_text("\n".join(behaviours(header=header)) + "\n")
    news = [
        f"N{10_000 + at}\tsports\tsoccer\tThe {at}th headline of the day\tWhat is said below the headline {at}\thttps://x.org/{at}\t[]"
        for at in range(23)
    ]
    head = ["id\tcategory\tsubcategory\ttitle\tabstract\turl\tentities"] if header else []
    (tmp_path / "news.tsv").write_text("\n".join([*head, *news]) + "\n")
    made = draft_platform([tmp_path / "behaviors.tsv", tmp_path / "news.tsv"], tmp_path / "world", name="mind")
    text, file = made.path.read_text(), load(made.path)
    assert "explode = true" in text and 'time_format = "%m/%d/%Y %I:%M:%S %p"' in text
    assert "entries end in -1 (clicked) or -0" in text and ("header = false" in text) is not header
    assert {source.kind for source in file.sources.values()} == {"interactions", "items"}
    tables = read_tables(file)
    assert tables.users == len({row % 17 for row in range(60) if row % 5}) and tables.items == 23
    assert tables.interactions.time is not None and "headline" in tables.item_titles[0]
    console = Console(file=io.StringIO(), width=140)
    console.print(guessed_tables(made.guesses, title="mind"))
    assert f"item: {'history' if header else 4} (lists)" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("ids", [list(range(100, 120)), [f"p{at}" for at in range(20)]])
def test_a_basket_is_a_list_and_no_vector(form: str, ids: list[int] | list[str], tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"customer": [f"c{row % 9}" for row in range(30)], "products_bought": [ids[row % 7 : row % 7 + 3] for row in range(30)]}
    )
    path = tmp_path / f"orders.{form}"
    if form == "csv":
        frame.with_columns(pl.col("products_bought").cast(pl.List(pl.String)).list.join(", ")).write_csv(path)
    else:
        (frame.write_parquet if form == "parquet" else frame.write_ndjson)(path)
    made = draft_platform([path], tmp_path / "world", name="shop")
    tables = read_tables(load(made.path))
    assert (tables.users, tables.items) == (9, 9) and "explode = true" in made.path.read_text()


def test_lists_of_words_and_of_numbers_are_no_histories() -> None:
    people = pl.DataFrame({"user": ["a", "b"], "interests": [["chess", "go"], ["tea"]], "town": ["Rome", "Rome"]})
    made = guess(Sample(name="people", keys={}, frame=people))
    assert made is None or made.kind == "profiles"
    vectors = pl.DataFrame({"user": ["a", "b"], "embedding": [[0.5, 1.0], [0.1, 0.2]]})
    made = guess(Sample(name="vectors", keys={}, frame=vectors))
    assert made is not None and made.kind == "vectors" and not made.explode


@pytest.mark.parametrize(
    "cells, time_format, said",
    [
        (["03/04/2021", "13/02/2021"], "%d/%m/%Y", False),
        (["02/13/2021 3:04 PM", "02/01/2021 3:04 AM"], "%m/%d/%Y %I:%M %p", False),
        (["03/04/2021", "05/06/2021"], "%d/%m/%Y", True),
        (["2021-04-03", "2021-06-05"], None, False),
        (["03.04.2021", "05.06.2021"], None, False),
    ],
)
def test_dates_with_slashes_are_drafted_with_their_format(
    cells: list[str], time_format: str | None, said: bool, tmp_path: Path
) -> None:
    rows = [f"u{row % 9},i{row % 7},{cells[row % len(cells)]}" for row in range(60)]
    (tmp_path / "log.csv").write_text("user,item,date\n" + "\n".join(rows) + "\n")
    made = draft_platform([tmp_path / "log.csv"], tmp_path / "world", name="shop")
    assert load(made.path).sources["log"].time_format == time_format
    assert ("the values do not tell whether it is" in made.path.read_text()) is said
    assert read_tables(load(made.path)).interactions.time is not None


@pytest.mark.parametrize("ends", [b"\r", b"\r\n", b"\n"])
def test_line_ends_of_joined_files_are_drafted(ends: bytes, tmp_path: Path) -> None:
    old, new = ([b"u%d,i%d" % (row % 9, row % 7) for row in range(begin, begin + 20)] for begin in (0, 20))
    joined = b"user,item\r\n" + b"".join(row + b"\r" for row in old) + b"".join(row + ends for row in new)
    (tmp_path / "log.csv").write_bytes(joined)
    made = draft_platform([tmp_path / "log.csv"], tmp_path / "world", name="shop")
    assert "carriage_returns = true" in made.path.read_text()
    assert read_tables(load(made.path)).reports[-1].read == 40
    # In a cell it ends nothing.
    (tmp_path / "notes.csv").write_bytes(b"user,item,note\r\n" + b"".join(row + b",so\rgood\r\n" for row in old))
    made = draft_platform([tmp_path / "notes.csv"], tmp_path / "world", name="notes")
    assert "carriage_returns" not in made.path.read_text() and read_tables(load(made.path)).reports[-1].read == 20


def test_a_key_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{row % 9},i{row % 7}\n" for row in range(60)))
    (tmp_path / "items.csv").write_text("item,title,isbn\n" + "".join(f"i{row},T{row},978000000{row}\n" for row in range(7)))
    text = draft_platform([tmp_path / "log.csv", tmp_path / "items.csv"], tmp_path / "world", name="s").path.read_text()
    assert "# isbn: named as a public key (isbn), but most of its cells are none that can be read" in text
    assert "numbers = { isbn" not in text and "# not read: 'isbn'" in text


def test_who_reviewed_an_item_has_met_it(tmp_path: Path) -> None:
    """A table of reviews alone was refused: it was no log."""
    rows = [
        {
            "user_id": f"A{row % 9}",
            "asin": f"B{row % 7}",
            "rating": 1.0 + row % 5,
            "text": f"It was rather {row}",
            "timestamp": 10**12 + row,
        }
        for row in range(60)
    ]
    (tmp_path / "Toys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = draft_platform([tmp_path / "Toys.jsonl"], tmp_path / "world")
    assert [guess.kind for _, guess in made.guesses if guess] == ["reviews", "interactions"]
    file = load(made.path)
    tables = read_tables(file)
    assert tables.users == 9 and len(tables.notes) == 1 and tables.interactions.time is not None
    assert 0 < tables.interactions.positive.sum() < len(tables.interactions.positive)


def test_partitions_in_folders_are_one_table(tmp_path: Path) -> None:
    for year in (2023, 2024):
        folder = tmp_path / "orders" / f"year={year}"
        folder.mkdir(parents=True)
        rows = [(f"u{row % 9}", f"i{(row + year) % 7}") for row in range(30)]
        pl.DataFrame(rows, schema=["user", "item"], orient="row").write_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()
    made = draft_platform([tmp_path / "orders"], tmp_path / "world")
    assert read_tables(load(made.path)).reports[-1].read == 60 and len(load(made.path).sources) == 1
    # What lies loose is all that is meant where there is some.
    pl.DataFrame({"user": ["a", "b"], "item": ["c", "d"]}).write_csv(tmp_path / "orders" / "log.csv")
    made = draft_platform([tmp_path / "orders"], tmp_path / "world", name="loose")
    assert read_tables(load(made.path)).reports[-1].read == 2


def test_a_sqlite_database_is_drafted_table_by_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        database.execute("create table orders (customer, sku, at)")
        rows = [(f"u{row % 9}", row % 7, f"2024-05-{1 + row % 28:02d}") for row in range(60)]
        database.executemany("insert into orders values (?, ?, ?)", rows)
        database.execute("create table products (sku, title)")
        database.executemany("insert into products values (?, ?)", [(row, f"Title {row}") for row in range(7)])
        database.commit()
    monkeypatch.chdir(tmp_path)
    made = draft_platform([Path("shop.db")], Path("world"))
    tables = read_tables(load(made.path))
    assert (made.name, tables.users, tables.items) == ("shop", 9, 7) and tables.interactions.time is not None
    with pytest.raises(InputError, match="cannot be read"):
        draft_platform([Path("nothing.db")], Path("world"), name="nothing")


def test_friends_in_a_list_are_drafted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{row % 9},i{row % 7}\n" for row in range(60)))
    (tmp_path / "ties.csv").write_text(
        "user,friends\n" + "".join(f'u{row},"u{(row + 1) % 9}, u{(row + 2) % 9}"\n' for row in range(9))
    )
    made = draft_platform([tmp_path / "log.csv", tmp_path / "ties.csv"], tmp_path / "world", name="shop")
    (ties,) = read_tables(load(made.path)).ties.values()
    assert len(ties.friend) == 18
