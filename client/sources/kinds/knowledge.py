"""Knowledge: an item's neighbourhood in a graph, as text.

A triple (head, relation, tail) whose head is an item becomes "relation: tail" where the tail can be read; else it says
which other items have the same: "same music artist origin as A, B".

Under public keys the same triples are facts that other platforms may read, and theirs are read here
(`client/sources/entity_facts.py`, `client/sources/facts_elsewhere.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from client.config.source_schema import KnowledgeSource
from client.config.table_location import Linked
from client.sources.cell_values import LONGEST_TEXT, as_texts
from client.sources.cleaning import UNKNOWN_ITEM, Cleaning
from client.sources.entity_facts import EntityFact, KnownItem, PublishedFacts, read_facts
from client.sources.facts_elsewhere import facts_from_elsewhere
from client.sources.ids import as_ids
from client.sources.item_keys import item_keys, spelled_keys
from client.sources.kinds.interactions import keyed
from client.sources.numbering import Numbering
from client.sources.readers.file_bytes import part_files
from client.sources.source_rows import Wanted, read_source, read_table
from client.sources.tables import SourceReport
from shared.base.errors import InputError

DUPLICATE = "duplicate triple"
LOOP = "tail is the head itself"
UNMATCHED = (
    "no item here is or has an entity that the files of `elsewhere` know: `entities`, `same` and items' keys say what everybody "
    "calls an entity"
)
_ALIKE = 2  # other items that one phrase names


def relation_words(relation: str) -> str:
    """A relation's name as words.

    >>> relation_words("film.person_or_entity.film"), relation_words("http://schema.org/birthPlace")
    ('film person or entity film', 'birth place')
    """
    fragment = re.split(r"[/#]", relation.rstrip("/#"))[-1] if "://" in relation else relation
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", fragment)
    return " ".join(re.sub(r"[\W_]+", " ", spaced).lower().split())


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a graph says of items.

    Args:
        texts: Per item, its first `neighbours` phrases, in the order of the file.
        facts: Per item, what the graph says of it under public keys; empty where nobody asks for it.
        elsewhere: Per item, what other platforms know of its entities; empty where no file of theirs is named.
    """

    texts: list[str] = field(repr=False)
    facts: Sequence[KnownItem] = field(default=(), repr=False)
    elsewhere: Sequence[str] = field(default=(), repr=False)
    report: SourceReport


def read_knowledge(
    source: KnowledgeSource,
    cleaning: Cleaning,
    items: Numbering,
    titles: list[str],
    keys: Sequence[str] = (),
    *,
    platform: str = "",
) -> Knowledge:
    """What a source says of each item.

    Args:
        keys: The items' own public keys, '' where one has none.
        platform: Whose source it is: what it has published itself is nothing that others know.

    Raises:
        InputError: the source, its tables or a file of another platform cannot be read, or no head is an item.
    """
    asked = [Wanted(name=role, column=source.column(role), key=True, kind="id") for role in ("head", "relation", "tail")]
    frame = keyed(read_source(source, cleaning, asked, public=True).frame, cleaning, ("head", "relation", "tail"))
    frame = cleaning.keep(frame, pl.col("head") != pl.col("tail"), otherwise=LOOP)
    unique = frame.unique(maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - unique.height)

    entities = _entities(source.links, items, cleaning)
    unique = cleaning.keep(unique, pl.lit(unique["head"].is_in(entities["entity"].implode())), otherwise=UNKNOWN_ITEM)
    report = cleaning.report(unique.height)
    # An entity may be several items: each gets the phrase.
    rows = unique.join(entities, left_on="head", right_on="entity", how="left", maintain_order="left").with_row_index("row")
    titled = pl.DataFrame({"item": pl.Series(range(len(titles)), dtype=pl.Int32), "title": pl.Series(titles, dtype=pl.String)})
    rows = rows.with_columns(_names(rows["tail"], source.names, entities.join(titled, on="item"), cleaning))
    relations = rows["relation"].unique().to_list()
    rows = rows.with_columns(pl.col("relation").replace_strict({name: relation_words(name) for name in relations}).alias("words"))
    facts: list[KnownItem] = []
    elsewhere: list[str] = []
    if source.publish or source.elsewhere:
        public = _public_keys(source, cleaning, rows["tail"], entities, keys)
        facts = _facts(rows, entities, public, keys, len(items))
    if source.elsewhere:
        others = _published(source.elsewhere, platform)
        elsewhere = facts_from_elsewhere(facts, others, most=source.neighbours)
        if others and not any(elsewhere):
            report = replace(report, warnings=(*report.warnings, UNMATCHED))
    rows = rows.join(_alike(rows, titled), on="row", how="left", maintain_order="left")
    read = pl.concat_str("words", pl.lit(": "), "name")
    alike = pl.concat_str(pl.lit("same "), "words", pl.lit(" as "), "others")
    rows = rows.with_columns(pl.coalesce("name", "others").alias("told"), pl.coalesce(read, alike).alias("phrase")).drop_nulls(
        "phrase"
    )
    # Graphs say one thing under several relations; an item's text says it once.
    rows = rows.unique(["item", "told"], keep="first", maintain_order=True)
    shown = rows.group_by("item", maintain_order=True).agg(pl.col("phrase").head(source.neighbours).str.join(". "))
    texts = items.texts(shown["item"], shown["phrase"].str.head(LONGEST_TEXT))
    return Knowledge(texts=texts, facts=facts, elsewhere=elsewhere, report=report)


def _public_keys(
    source: KnowledgeSource, cleaning: Cleaning, tails: pl.Series, entities: pl.DataFrame, keys: Sequence[str]
) -> Mapping[str, tuple[str, ...]]:
    """Entity -> its public keys: those of the items that it is, the declared kind's, and cross-references."""
    found: dict[str, dict[str, None]] = {}
    for entity, item in entities.iter_rows():
        if keys and keys[item]:
            found.setdefault(entity, {})[keys[item]] = None
    if source.entities is not None:
        # Where items are entities, their ids are the platform's own: "7" here is not "7" elsewhere.
        linked = (
            pl.concat([tails, entities["entity"]]) if source.links else tails.filter(~tails.is_in(entities["entity"].implode()))
        )
        ids = linked.unique(maintain_order=True)
        for entity, key in zip(ids, item_keys(ids, source.entities), strict=True):
            if key:
                found.setdefault(entity, {})[key] = None
    if source.same is not None:
        frame = _linked(source.same, ("entity", "key"), cleaning, "same")
        pairs = pl.DataFrame({"entity": as_ids(frame["entity"], cleaning.rules), "key": frame["key"]}).drop_nulls()
        for entity, spelled in pairs.iter_rows():
            for key in spelled_keys(spelled.strip(), ()):
                found.setdefault(entity, {})[key] = None
    return {entity: tuple(some) for entity, some in found.items()}


def _facts(
    rows: pl.DataFrame, entities: pl.DataFrame, public: Mapping[str, tuple[str, ...]], keys: Sequence[str], count: int
) -> list[KnownItem]:
    """What the graph says of each item, in the order of the file; of a tail without a name its keys alone."""
    own: list[dict[str, None]] = [dict.fromkeys(key for key in keys[item : item + 1] if key) for item in range(count)]
    for entity, item in entities.iter_rows():
        own[item] |= dict.fromkeys(public.get(entity, ()))
    facts: list[list[EntityFact]] = [[] for _ in range(count)]
    for item, words, tail, name in rows.select("item", "words", "tail", "name").iter_rows():
        if name or tail in public:
            facts[item].append(EntityFact(relation=words, tail=name or "", keys=public.get(tail, ())))
    return [KnownItem(keys=tuple(mine), facts=tuple(said)) for mine, said in zip(own, facts, strict=True)]


def _published(paths: Sequence[Path], platform: str) -> list[PublishedFacts]:
    """What other platforms have published, each once.

    Raises:
        InputError: a file is not what `fedfuse facts` writes, or two are of one platform.
    """
    found: dict[str, PublishedFacts] = {}
    for path in dict.fromkeys(part for named in paths for part in part_files(named)):
        one = read_facts(path)
        if one.platform in found:
            raise InputError(f"a second file of platform {one.platform!r}", where=str(path), do="name one of the two")
        found[one.platform] = one
    return [one for name, one in found.items() if name != platform]


def _entities(links: Linked | None, items: Numbering, cleaning: Cleaning) -> pl.DataFrame:
    """Which items an entity is: `entity` (id), `item` (number)."""
    if links is None:
        ids = pl.Series(items.ids, dtype=pl.String)
        return pl.DataFrame({"entity": ids, "item": items.numbers(ids)})
    frame = _linked(links, ("item", "entity"), cleaning, "links")
    pairs = pl.DataFrame(
        {"entity": as_ids(frame["entity"], cleaning.rules), "item": items.numbers(as_ids(frame["item"], cleaning.rules))}
    )
    return pairs.drop_nulls().unique(maintain_order=True)


def _names(tails: pl.Series, names: Linked | None, titled: pl.DataFrame, cleaning: Cleaning) -> pl.Series:
    """What each tail is called: an item's title, else its name, null where it has none."""
    if names is None:
        # A bare number tells a reader nothing.
        called = pl.DataFrame({"entity": tails.unique()}).with_columns(pl.col("entity").alias("name"))
        called = called.filter(~pl.col("entity").str.contains(r"^[\d.]+$"))
    else:
        frame = _linked(names, ("entity", "name"), cleaning, "names")
        called = pl.DataFrame({"entity": as_ids(frame["entity"], cleaning.rules), "name": as_texts(frame["name"], longest=200)})
    known = (
        pl.concat([titled.select("entity", pl.col("title").alias("name")), called])
        .drop_nulls()
        .unique("entity", keep="first", maintain_order=True)
    )
    return pl.DataFrame({"entity": tails}).join(known, on="entity", how="left", maintain_order="left")["name"]


def _alike(rows: pl.DataFrame, titled: pl.DataFrame) -> pl.DataFrame:
    """For each row whose tail cannot be read: the other items with the same relation and tail, in catalogue order."""
    bare = rows.filter(pl.col("name").is_null())
    # One more than is shown, since a row's own item is among them.
    groups = bare.group_by("relation", "tail").agg(pl.col("item").unique().sort().head(_ALIKE + 1).alias("other"))
    pairs = bare.select("row", "relation", "tail", "item").join(groups, on=["relation", "tail"]).explode("other")
    pairs = pairs.filter(pl.col("other") != pl.col("item")).join(titled, left_on="other", right_on="item")
    pairs = pairs.sort("row", "other")
    return pairs.group_by("row", maintain_order=True).agg(pl.col("title").head(_ALIKE).str.join(", ").alias("others"))


def _linked(table: Linked, roles: tuple[str, str], cleaning: Cleaning, key: str) -> pl.DataFrame:
    texts = ("name", "key")
    asked = [Wanted(name=role, column=table.columns.get(role, role), kind="text" if role in texts else "id") for role in roles]
    return read_table(table, None, asked, source=f"{cleaning.source}.{key}", public=True, rules=cleaning.rules).frame
