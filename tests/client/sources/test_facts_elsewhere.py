"""An entity under one public key is one entity: what other platforms' catalogues know of it reaches the items here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from client.config.platform_file import load
from client.sources.entity_facts import EntityFact, KnownItem, PublishedFacts, read_facts, write_facts
from client.sources.facts_elsewhere import MOST_NEIGHBOURS, facts_from_elsewhere
from client.sources.kinds.knowledge import UNMATCHED
from client.sources.platform_tables import read_public_facts, read_tables
from client.sources.tables import Tables
from fedfuse import app
from shared.base.errors import InputError, PrivacyError

AUTHOR, OTHER, BOOK = ("wikidata:author",), ("wikidata:other",), ("isbn:9780306406157",)


def film(number: int, *facts: tuple[str, str, tuple[str, ...]]) -> KnownItem:
    told = tuple(EntityFact(relation=relation, tail=tail, keys=keys) for relation, tail, keys in facts)
    return KnownItem(keys=(f"imdb:tt{number}",), facts=told)


def book(keys: tuple[str, ...], *authors: tuple[str, ...]) -> KnownItem:
    return KnownItem(keys=keys, facts=tuple(EntityFact(relation="author", tail="somebody", keys=keys) for keys in authors))


FILMS = PublishedFacts(
    platform="films",
    items=[
        film(1, ("story by", "somebody", AUTHOR), ("genre", "fantasy", ()), ("country", "everywhere", ())),
        film(2, ("story by", "somebody", AUTHOR), ("genre", "fantasy", ()), ("country", "everywhere", ())),
        film(3, ("story by", "somebody", AUTHOR), ("genre", "western", ()), ("country", "everywhere", ())),
        film(4, ("story by", "another", OTHER), ("genre", "western", ()), ("country", "everywhere", ())),
        film(5, ("based on", "a book", BOOK), ("genre", "noir", ()), ("country", "everywhere", ())),
    ],
)


def told(item: KnownItem, *published: PublishedFacts, most: int = 9) -> list[str]:
    (text,) = facts_from_elsewhere([item], published, most=most)
    return text.split(". ") if text else []


def test_of_an_author_is_told_what_their_films_are_more_often_than_others() -> None:
    # Two of three of the author's films are fantasy, of all two of five; a third are westerns, as of all two fifths are.
    assert told(book((), AUTHOR), FILMS) == ["genre: fantasy"]
    assert told(book((), OTHER), FILMS) == ["genre: western"]


def test_an_item_is_told_of_what_is_made_of_it_and_of_itself() -> None:
    assert told(book(BOOK), FILMS) == ["genre: noir"]
    assert told(KnownItem(keys=("imdb:tt4",), facts=()), FILMS) == ["story by: another", "genre: western"]


def test_what_is_known_here_is_not_told_again_and_phrases_have_a_bound() -> None:
    own = KnownItem(keys=("imdb:tt4",), facts=(EntityFact(relation="genre", tail="western"),))
    assert told(own, FILMS) == ["story by: another"]
    assert told(KnownItem(keys=("imdb:tt4",), facts=()), FILMS, most=1) == ["story by: another"]


def test_an_entity_of_other_keys_is_another_one() -> None:
    assert told(book(("isbn:9780804429573",), ("freebase:author",)), FILMS) == []
    assert told(book((), ()), FILMS) == [] == told(book((), AUTHOR))


def test_an_entity_that_everything_has_tells_nothing() -> None:
    items = [film(n, ("language", "English", ("wikidata:en",)), ("genre", "abc"[n % 3], ())) for n in range(6)]
    assert told(book((), ("wikidata:en",)), PublishedFacts(platform="films", items=items)) == []


def test_cross_references_make_two_names_one_entity_and_no_item_counts_twice() -> None:
    both = (*AUTHOR, "freebase:author")
    films = [film(1, ("story by", "x", both), ("genre", "fantasy", ())), film(2, ("genre", "noir", ()), ("by", "y", OTHER))]
    once = facts_from_elsewhere([book((), AUTHOR), book((), both)], [PublishedFacts(platform="films", items=films)], most=4)
    assert once == ["genre: fantasy"] * 2


def test_an_entity_is_judged_by_the_first_of_many_items() -> None:
    items = [film(n, ("story by", "x", AUTHOR), ("genre", "late" if n >= MOST_NEIGHBOURS else "early", ())) for n in range(600)]
    assert told(book((), AUTHOR), PublishedFacts(platform="films", items=items)) == ["genre: early"]


# From files


def platform(folder: Path, name: str, **graph: Any) -> Path:
    """A platform of one book by an author whose id is `Q1`, and of another one by nobody who is known."""
    (folder / "books.csv").write_text("item,title,key\nb1,A book,0-306-40615-2\nb2,Another,\n", encoding="utf-8")
    (folder / "log.csv").write_text("user,item\nu1,b1\nu1,b2\n", encoding="utf-8")
    (folder / "graph.csv").write_text("head,relation,tail\nb1,author,Q1\nb2,author,Q2\nb2,subject,ships\n", encoding="utf-8")
    sources = {
        "books": {"kind": "items", "path": "books.csv", "keys": "isbn", "columns": {"key": "key"}},
        "log": {"kind": "interactions", "path": "log.csv"},
        "graph": {"kind": "knowledge", "path": "graph.csv", **graph},
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({"name": name, "users": 4, "privacy": {"epsilon": 1.0}, "sources": sources}), encoding="utf-8")
    return path


def texts(path: Path) -> tuple[Tables, list[str]]:
    tables = read_tables(load(path))
    return tables, list(tables.item_elsewhere.get("graph", []))


@pytest.fixture
def films(tmp_path: Path) -> Path:
    items = [
        film(1, ("story by", "somebody", ("wikidata:Q1",)), ("genre", "fantasy", ())),
        film(2, ("story by", "another", ("imdb:nm2",)), ("genre", "western", ())),
        film(3, ("based on", "a book", BOOK), ("tone", "dark", ())),
        film(4, ("genre", "noir", ())),
    ]
    write_facts(tmp_path / "films.facts.jsonl", PublishedFacts(platform="films", items=items))
    return tmp_path


def test_by_the_items_keys_by_the_entities_kind_and_by_cross_references(films: Path) -> None:
    (films / "same.csv").write_text("entity,key\nQ2,imdb:nm2\nQ2,\n,imdb:nm1\nQ9,nothing\n", encoding="utf-8")
    elsewhere = {"elsewhere": ["films.facts.jsonl"]}
    assert texts(platform(films, "books", **elsewhere))[1] == ["tone: dark", ""]
    assert texts(platform(films, "books", entities="wikidata", **elsewhere))[1] == ["genre: fantasy. tone: dark", ""]
    same = {"same": {"path": "same.csv"}}
    assert texts(platform(films, "books", **same, **elsewhere))[1] == ["tone: dark", "genre: western"]
    own, of_own = texts(platform(films, "books"))
    assert of_own == [] and own.item_text == texts(platform(films, "books", **elsewhere))[0].item_text


def test_a_platform_passes_over_its_own_file_and_says_where_nothing_fits(films: Path) -> None:
    tables, none = texts(platform(films, "films", entities="wikidata", elsewhere=["films.facts.jsonl"]))
    assert none == [] and not tables.reports[2].warnings
    unfit = PublishedFacts(platform="songs", items=[film(7, ("genre", "noir", ()))])
    write_facts(films / "songs.jsonl", unfit)
    tables, none = texts(platform(films, "books", elsewhere=["songs.jsonl"]))
    assert none == [] and tables.reports[2].warnings == (UNMATCHED,)


def test_two_files_of_one_platform_and_one_that_is_none_are_refused(films: Path) -> None:
    (films / "again.jsonl").write_bytes((films / "films.facts.jsonl").read_bytes())
    with pytest.raises(InputError, match="second file of platform 'films'"):
        texts(platform(films, "books", elsewhere=["*.jsonl"]))
    (films / "again.jsonl").write_text('{"form": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match="no facts"):
        texts(platform(films, "books", elsewhere=["again.jsonl"]))


def test_what_is_published_is_of_public_tables_alone(tmp_path: Path) -> None:
    path = platform(tmp_path, "books", entities="wikidata", publish=True)
    (tmp_path / "log.csv").unlink()
    found = read_public_facts(load(path))
    write_facts(tmp_path / "books.facts.jsonl", found)
    assert read_facts(tmp_path / "books.facts.jsonl") == found
    assert [item.keys for item in found.items] == [("isbn:9780306406157",), ()]
    assert found.items[0].facts == (EntityFact(relation="author", tail="Q1", keys=("wikidata:Q1",)),)
    assert "u1" not in (tmp_path / "books.facts.jsonl").read_text(encoding="utf-8")


def test_nothing_is_published_unasked_and_no_catalogue_of_users_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="publish = true"):
        read_public_facts(load(platform(tmp_path, "books", entities="wikidata")))
    path = platform(tmp_path, "books", entities="wikidata", publish=True)
    text = path.read_text(encoding="utf-8")
    cut = text[text.index("[sources.books]") : text.index("[sources.log]")]
    path.write_text(text.replace(cut, ""), encoding="utf-8")
    with pytest.raises(PrivacyError, match="users' rows"):
        read_public_facts(load(path))


def test_what_others_told_is_not_published_on(films: Path) -> None:
    path = platform(films, "books", entities="wikidata", publish=True, elsewhere=["films.facts.jsonl"])
    assert "fantasy" not in repr(read_public_facts(load(path)))
    (films / "films.facts.jsonl").unlink()
    assert "fantasy" not in repr(read_public_facts(load(path)))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({"entities": "Wiki data"}, "entities"),
        ({"elsewhere": []}, "elsewhere"),
        ({"same": {"path": "x", "columns": {"item": 1}}}, "same"),
    ],
)
def test_a_mistake_in_the_platform_file_is_named(graph: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        load(platform(tmp_path, "books", **graph))


def test_the_command_writes_what_another_platform_reads(tmp_path: Path) -> None:
    path, out = platform(tmp_path, "books", entities="wikidata", publish=True), tmp_path / "books.facts.jsonl"
    done = CliRunner().invoke(app, ["facts", str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"out": str(out), "items": 2, "facts": 3, "keys": 4}
    assert out.stat().st_mode & 0o777 == 0o644
    shop = platform(tmp_path, "shop", entities="wikidata", elsewhere=[out.name])
    (tmp_path / "graph.csv").write_text("head,relation,tail\nb1,author,Q1\nb2,author,Q2\n", encoding="utf-8")
    assert texts(shop)[1] == ["", "subject: ships"]
