"""The small shop of a generated world: a till's lines and the range of goods, as CSV with semicolons, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.random import Generator

from simulations.worlds import files
from simulations.worlds.crowd import Crowd
from simulations.worlds.products import Product
from simulations.worlds.vocabulary import headline, sentence
from simulations.worlds.writers import Writer

PLATFORM_FILE = """\
# A small shop. Everything in this file is public; the rows of its sources never leave the platform.
name = "corner"
users = {users}

[privacy]
epsilon = 8.0
delta = 1e-4

[sources.till]
kind = "interactions"
path = "corner/till.csv"
separator = ";"
columns = {{ user = "card", item = "article", time = "sold" }}
time_format = "%d.%m.%Y %H:%M"

[sources.range]
kind = "items"
path = "corner/range.csv"
separator = ";"
columns = {{ item = "article", title = "name", category = "shelf", description = "note", key = "barcode" }}
keys = "gtin"
numbers = {{ cents = {{ min = 0, max = 60000, buckets = 4, words = ["very cheap", "cheap", "expensive", "very expensive"] }} }}
"""

UNKNOWN, KEYLESS = 2, 5
"""Planted in the till: lines of an article that is no longer sold, and of customers without a card."""

_Row = dict[str, Any]


def write_corner(folder: Path, *, crowd: Crowd, rng: Generator) -> None:
    """The small shop's files, under `folder/corner`."""
    writer = Writer(rng)
    cards = [str(number) for number in rng.permutation(9_000)[: len(crowd.people)] + 41_000]
    articles = [f"{1000 + number}" for number in range(len(crowd.items))]
    place = folder / "corner"
    stocked = zip(articles, crowd.products, strict=True)
    files.write_csv(place / "range.csv", [_article(writer, article, product) for article, product in stocked], separator=";")
    files.write_csv(place / "till.csv", _sales(rng, crowd, cards, articles), separator=";")


def barcode(gtin: str) -> str:
    """A GTIN-13 as the small shop's scanner writes it: a UPC in its 12 digits, any other as a GTIN-14.

    >>> barcode("0614141000012"), barcode("9520000000073")
    ('614141000012', '09520000000073')
    """
    return gtin[1:] if gtin.startswith("0") else f"0{gtin}"


def _article(writer: Writer, article: str, product: Product) -> _Row:
    subject = product.subject

    def draft() -> str:
        return headline(
            writer.pick(
                (
                    f"{product.thing} ({subject.level}, {subject.price}, {subject.era})",
                    f"{subject.era} {product.thing}, {subject.price}, {subject.level}",
                )
            )
        )

    return {
        "article": article,
        "barcode": barcode(product.gtin),
        "name": writer.title(draft),
        "shelf": subject.topic.name,
        "note": sentence(writer.pick(subject.topic.doings)),
        "cents": round(product.price * writer.rng.uniform(1.0, 1.2)),  # dearer than the large shop
    }


def _sales(rng: Generator, crowd: Crowd, cards: list[str], articles: list[str]) -> list[_Row]:
    rows: list[tuple[int, str | None, str]] = [  # time, card, article
        (choice.time, cards[choice.user], articles[choice.item]) for choice in crowd.choices()
    ]
    for number, row in enumerate(rng.choice(len(rows), size=UNKNOWN + KEYLESS, replace=False)):
        time, card, article = rows[row]
        rows.append((time, card, "0999") if number < UNKNOWN else (time, None, article))
    rows.sort(key=lambda row: (row[0], row[1] or "", row[2]))
    return [
        {"sold": datetime.fromtimestamp(time, UTC).strftime("%d.%m.%Y %H:%M"), "card": card, "article": article}
        for time, card, article in rows
    ]
