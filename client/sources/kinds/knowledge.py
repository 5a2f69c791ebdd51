"""Knowledge: an item's neighbourhood in a graph, as text.

A triple (head, relation, tail) whose head is an item becomes "relation: tail" where the tail can be read; else it says
which other items have the same: "same music artist origin as A, B".
"""

from __future__ import annotations

import re

import polars as pl

from client.config.source_schema import KnowledgeSource
from client.config.table_location import Linked
from client.sources.cell_values import LONGEST_TEXT, as_texts
from client.sources.cleaning import UNKNOWN_ITEM, Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.interactions import keyed
from client.sources.numbering import Numbering
from client.sources.source_rows import Wanted, read_source, read_table
from client.sources.tables import SourceReport

DUPLICATE = "duplicate triple"
LOOP = "tail is the head itself"
_ALIKE = 2  # other items that one phrase names


def relation_words(relation: str) -> str:
    """A relation's name as words.

    >>> relation_words("film.person_or_entity.film"), relation_words("http://schema.org/birthPlace")
    ('film person or entity film', 'birth place')
    """
    fragment = re.split(r"[/#]", relation.rstrip("/#"))[-1] if "://" in relation else relation
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", fragment)
    return " ".join(re.sub(r"[\W_]+", " ", spaced).lower().split())


def read_knowledge(
    source: KnowledgeSource, cleaning: Cleaning, items: Numbering, titles: list[str]
) -> tuple[list[str], SourceReport]:
    """One text per item: its first `neighbours` phrases, in the order of the file.

    Raises:
        InputError: the source, its links or its names cannot be read, or no head is an item.
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
    rows = rows.join(_alike(rows, titled), on="row", how="left", maintain_order="left")
    read = pl.concat_str("words", pl.lit(": "), "name")
    alike = pl.concat_str(pl.lit("same "), "words", pl.lit(" as "), "others")
    rows = rows.with_columns(pl.coalesce("name", "others").alias("told"), pl.coalesce(read, alike).alias("phrase")).drop_nulls(
        "phrase"
    )
    # Graphs say one thing under several relations; an item's text says it once.
    rows = rows.unique(["item", "told"], keep="first", maintain_order=True)
    shown = rows.group_by("item", maintain_order=True).agg(pl.col("phrase").head(source.neighbours).str.join(". "))
    return items.texts(shown["item"], shown["phrase"].str.head(LONGEST_TEXT)), report


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
    asked = [Wanted(name=role, column=table.columns.get(role, role), kind="text" if role == "name" else "id") for role in roles]
    return read_table(table, None, asked, source=f"{cleaning.source}.{key}", public=True, rules=cleaning.rules).frame
