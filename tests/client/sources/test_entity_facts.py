"""What platforms publish of their items: read as it was written, and refused where it is anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.sources import entity_facts
from client.sources.entity_facts import (
    LONGEST,
    MOST_FACTS,
    MOST_KEYS,
    EntityFact,
    KnownItem,
    PublishedFacts,
    publishable,
    read_facts,
    write_facts,
)
from shared.base.errors import InputError

HEAD: dict[str, Any] = {"form": 1, "platform": "films", "items": 1}
ITEM: dict[str, Any] = {"keys": ["imdb:tt1"], "facts": [["director", "Ann Lee", "wikidata:Q1"], ["genre", "fantasy"]]}

texts = st.text(max_size=12)
facts = st.builds(EntityFact, relation=texts, tail=texts, keys=st.lists(texts.map("k:{}".format), max_size=6).map(tuple))
items = st.builds(
    KnownItem, keys=st.lists(texts.map("id:{}".format), max_size=6).map(tuple), facts=st.lists(facts, max_size=40).map(tuple)
)


def written(path: Path, *lines: object) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(items, max_size=5))
def test_whatever_a_graph_says_what_is_published_is_read_again(tmp_path: Path, several: list[KnownItem]) -> None:
    published = PublishedFacts(platform="films", items=publishable(several))
    write_facts(tmp_path / "facts.jsonl", published)
    assert read_facts(tmp_path / "facts.jsonl") == published


@pytest.mark.parametrize("letter", ["x", '"', "\u8a9e", "\U0001f600"])
def test_the_largest_item_that_is_published_is_read_again(letter: str, tmp_path: Path) -> None:
    """Other platforms refused it: in letters of three or four bytes its line was longer than what they read."""
    keys = tuple(f"k{at}:{letter * (LONGEST - 3)}" for at in range(MOST_KEYS))
    fact = EntityFact(relation=letter * LONGEST, tail=letter * LONGEST, keys=keys)
    item = KnownItem(keys=keys, facts=(fact,) * MOST_FACTS)
    published = PublishedFacts(platform="films", items=publishable([item]))
    assert published.items == [item]
    write_facts(tmp_path / "facts.jsonl", published)
    assert read_facts(tmp_path / "facts.jsonl") == published


def test_what_nobody_can_find_is_not_published() -> None:
    named, unnamed = EntityFact(relation="genre", tail="fantasy"), EntityFact(relation="by", tail="", keys=("wikidata:Q1",))
    assert publishable([KnownItem(keys=(), facts=(named,)), KnownItem(keys=("imdb:tt1",), facts=())]) == []
    kept = [KnownItem(keys=("imdb:tt1",), facts=(named,)), KnownItem(keys=(), facts=(named, unnamed))]
    assert publishable(kept) == kept


def test_a_file_as_it_is_written_is_read(tmp_path: Path) -> None:
    found = read_facts(written(tmp_path / "facts.jsonl", HEAD, ITEM))
    assert found.items[0].facts[0] == EntityFact(relation="director", tail="Ann Lee", keys=("wikidata:Q1",))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{**HEAD, "form": 2}, ITEM],
        [{**HEAD, "form": True}, ITEM],
        [{**HEAD, "platform": "../films"}, ITEM],
        [{**HEAD, "platform": 7}, ITEM],
        [{**HEAD, "items": 2}, ITEM],
        [{**HEAD, "items": 0}, ITEM],
        [{**HEAD, "items": -1}, ITEM],
        [{**HEAD, "items": 1.0}, ITEM],
        [{**HEAD, "items": 10**30}, ITEM],
        [{**HEAD, "further": 1}, ITEM],
        [[1], ITEM],
        [HEAD, [1]],
        [HEAD, {**ITEM, "further": 1}],
        [HEAD, {"keys": []}],
        [HEAD, {**ITEM, "keys": "imdb:tt1"}],
        [HEAD, {**ITEM, "keys": ["tt1"]}],
        [HEAD, {**ITEM, "keys": ["imdb:"]}],
        [HEAD, {**ITEM, "keys": ["imdb: tt1"]}],
        [HEAD, {**ITEM, "keys": [None]}],
        [HEAD, {**ITEM, "keys": ["imdb:" + "1" * LONGEST]}],
        [HEAD, {**ITEM, "keys": [f"imdb:tt{place}" for place in range(MOST_KEYS + 1)]}],
        [HEAD, {**ITEM, "facts": [["genre", "fantasy"]] * (MOST_FACTS + 1)}],
        [HEAD, {**ITEM, "facts": {"genre": "fantasy"}}],
        [HEAD, {**ITEM, "facts": ["genre"]}],
        [HEAD, {**ITEM, "facts": [["genre"]]}],
        [HEAD, {**ITEM, "facts": [["", "fantasy"]]}],
        [HEAD, {**ITEM, "facts": [["genre", 1e300]]}],
        [HEAD, {**ITEM, "facts": [["genre", "x" * (LONGEST + 1)]]}],
        [HEAD, {**ITEM, "facts": [["genre", "fan\u0007tasy"]]}],
        [HEAD, {**ITEM, "facts": [["genre", "\u202efantasy"]]}],
        [HEAD, {**ITEM, "facts": [["genre", "\ud800"]]}],
        [HEAD, {**ITEM, "facts": [["genre", "fantasy", "Q1"]]}],
        [HEAD, b"\xff\xfe\n"],
        [HEAD, b"[" * 60_000 + b"\n"],
        [HEAD, b'{"keys": [], "facts": [["a", ' + b"9" * 60_000 + b"]]}\n"],
        [HEAD, b'{"keys": ["' + b"x" * (1 << 16) + b'"]}\n'],
        [HEAD, json.dumps(ITEM).encode()],
    ],
)
def test_anything_else_is_refused(lines: list[object], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_facts(written(tmp_path / "facts.jsonl", *lines))
    assert len(str(error.value)) < 1000 and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "item",
    [
        {**ITEM, "facts": [["genre", "fantasy"]] * MOST_FACTS},
        {**ITEM, "facts": []},
        {**ITEM, "facts": [["g", ""]]},
        {**ITEM, "facts": [["g" * LONGEST, "x" * LONGEST]]},
        {**ITEM, "facts": [["genre", "fan\u200ctasy"]]},
        {**ITEM, "facts": [["genre", "fantasy", *(f"wikidata:Q{place}" for place in range(MOST_KEYS))]]},
        {**ITEM, "keys": []},
        {**ITEM, "keys": [f"imdb:tt{place}" for place in range(MOST_KEYS)]},
        {**ITEM, "keys": ["imdb:" + "1" * (LONGEST - 5)]},
        {**ITEM, "keys": ["a:1", "a-9:x y"]},
    ],
)
def test_at_every_bound_it_is_read(item: dict[str, Any], tmp_path: Path) -> None:
    found = read_facts(written(tmp_path / "facts.jsonl", HEAD, item))
    (got,) = found.items
    assert list(got.keys) == item["keys"]
    assert [[fact.relation, fact.tail, *fact.keys] for fact in got.facts] == item["facts"]
    assert found.platform == "films"


def test_a_file_without_items_is_read(tmp_path: Path) -> None:
    assert read_facts(written(tmp_path / "facts.jsonl", {**HEAD, "items": 0})).items == []


@pytest.mark.parametrize(
    ("lines", "found", "where"),
    [
        ([HEAD, ITEM, ITEM], "there are more than the 1 items that it names", ", line 3"),
        ([{**HEAD, "items": 3}, ITEM, ITEM], "it holds 2 of the 3 items that it names", ""),
        ([{**HEAD, "items": 2}, ITEM, {**ITEM, "keys": ["tt1"]}], "keys are no list of at most 4", ", line 3"),
        ([{**HEAD, "items": 2}, ITEM, [1]], "the line is no JSON object", ", line 3"),
        ([b"x\n"], "the line is no JSON in UTF-8", ", line 1"),
        ([{**HEAD, "form": 2}], "the facts are of form 2, this version reads 1", ""),
        ([{**HEAD, "platform": "A"}], "its platform has no name", ""),
        ([HEAD, {**ITEM, "facts": [["genre"]]}], "a fact is no relation and tail", ", line 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(lines: list[object], found: str, where: str, tmp_path: Path) -> None:
    path = written(tmp_path / "facts.jsonl", *lines)
    with pytest.raises(InputError, match=found) as error:
        read_facts(path)
    assert error.value.where == f"{path}{where}"


@pytest.mark.parametrize(("length", "whole"), [(1 << 18, True), ((1 << 18) + 1, False)])
def test_a_line_has_so_many_bytes_with_its_end(length: int, whole: bool, tmp_path: Path) -> None:
    line = json.dumps(ITEM).encode()
    path = written(tmp_path / "facts.jsonl", HEAD, line + b" " * (length - len(line) - 1) + b"\n")
    if whole:
        assert len(read_facts(path).items) == 1
    else:
        with pytest.raises(InputError, match="a line is longer than 262144 bytes, or cut short"):
            read_facts(path)


def test_of_more_than_a_file_holds_the_first_are_published() -> None:
    fact = EntityFact(relation="genre", tail="fantasy", keys=tuple(f"wikidata:Q{at}" for at in range(MOST_KEYS + 1)))
    item = KnownItem(keys=tuple(f"imdb:tt{at}" for at in range(MOST_KEYS + 1)), facts=(fact,) * (MOST_FACTS + 1))
    (kept,) = publishable([item])
    assert kept.keys == item.keys[:MOST_KEYS] and len(kept.facts) == MOST_FACTS
    assert all(one.keys == fact.keys[:MOST_KEYS] for one in kept.facts)


def test_all_facts_of_a_file_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = KnownItem(keys=("id:1",), facts=(EntityFact(relation="a", tail="b"),) * 3)
    published = PublishedFacts(platform="films", items=[item] * 2)
    write_facts(tmp_path / "facts.jsonl", published)
    monkeypatch.setattr(entity_facts, "MOST_FACTS_OF_ALL", 6)
    write_facts(tmp_path / "facts.jsonl", published)
    assert len(read_facts(tmp_path / "facts.jsonl").items) == 2
    monkeypatch.setattr(entity_facts, "MOST_FACTS_OF_ALL", 5)
    with pytest.raises(InputError, match="more than 5 facts"):
        read_facts(tmp_path / "facts.jsonl")
    with pytest.raises(InputError, match="6 facts of 2 items"):
        write_facts(tmp_path / "more.jsonl", published)
    assert not (tmp_path / "more.jsonl").exists()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(tmp_path / "facts.jsonl")
