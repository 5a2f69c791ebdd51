"""The large shop of a generated world: CSV events, products and profiles, JSON-lines reviews, Parquet image vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.random import Generator

from simulations.worlds import files
from simulations.worlds.crowd import Choice, Crowd, any_time
from simulations.worlds.products import Product
from simulations.worlds.taste import AXES
from simulations.worlds.vocabulary import TOPICS, headline, sentence
from simulations.worlds.writers import Writer

PLATFORM_FILE = """\
# A large shop. Everything in this file is public; the rows of its sources never leave the platform.
name = "shop"
users = {users}

[privacy]
epsilon = 8.0
delta = 1e-4

[sources.events]
kind = "interactions"
path = "shop/events.csv"
columns = {{ user = "customer", item = "product", event = "event", time = "time" }}
time_format = "unix"
events = {{ view = 0.2, cart = 0.5, buy = 1.0 }}  # any other event ("hide") is known, but not liked

[sources.products]
kind = "items"
path = "shop/products.csv"
columns = {{ item = "product", title = "title", category = "department", description = "description", key = "gtin" }}
keys = "gtin"
numbers = {{ price = {{ min = 0, max = 500, buckets = 4, words = ["very cheap", "cheap", "expensive", "very expensive"] }} }}

[sources.profiles]
kind = "profiles"
path = "shop/profiles.csv"
columns = {{ user = "customer" }}
text = ["gender"]
numbers = {{ age = {{ min = 16, max = 90, buckets = 4, words = ["young", "in mid-life", "older", "old"] }} }}
values = {{ gender = {{ M = "man", F = "woman" }} }}

[sources.reviews]
kind = "reviews"
path = "shop/reviews.jsonl"
columns = {{ user = "customer", item = "product", text = "text", stars = "stars", time = "time" }}

[sources.images]
kind = "vectors"
path = "shop/images.parquet"
columns = {{ item = "product", vector = "image" }}
bound = 1.5
"""

REPEATED, UNKNOWN, KEYLESS = 8, 4, 3
"""Planted in the events: rows written twice, rows of a product that is not sold, rows without a customer."""

_WIDTH = 24

_Row = dict[str, Any]


def write_shop(folder: Path, *, crowd: Crowd, rng: Generator) -> None:
    """The shop's files, under `folder/shop`."""
    writer = Writer(rng)
    customers = [f"C{number:06d}" for number in rng.permutation(10 * len(crowd.people))[: len(crowd.people)]]
    products = [f"P{number:04d}" for number in range(1, len(crowd.items) + 1)]
    choices = list(crowd.choices())
    place = folder / "shop"
    sold = zip(products, crowd.products, strict=True)
    files.write_csv(place / "products.csv", [_row_of(writer, number, product) for number, product in sold])
    files.write_csv(place / "profiles.csv", [_profile(rng, crowd, user, customer) for user, customer in enumerate(customers)])
    files.write_csv(place / "events.csv", _events(rng, crowd, choices, customers, products))
    files.write_jsonl(place / "reviews.jsonl", _reviews(writer, crowd, choices, customers, products))
    files.write_parquet(
        place / "images.parquet", _images(rng, crowd, products), schema={"product": pl.String, "image": pl.List(pl.Float32)}
    )


def _row_of(writer: Writer, number: str, product: Product) -> _Row:
    subject, thing = product.subject, product.thing
    topic = subject.topic

    def draft() -> str:
        return headline(
            writer.pick(
                (
                    f"{subject.era} {subject.price} {thing}, {subject.level} level",
                    f"{subject.level} {subject.price} {thing} in {subject.era} style",
                    f"{subject.price} {thing}, {subject.era} and {subject.level}",
                )
            )
        )

    besides = f" Also for {writer.pick(subject.second.doings)}." if subject.second else ""
    return {
        "product": number,
        "gtin": product.gtin,
        "title": writer.title(draft),
        "department": topic.department,
        "price": f"{product.price / 100:.2f}",
        "description": f"{sentence(f'for {writer.pick(topic.doings)} {writer.pick(topic.scenes)}')}{besides}",
    }


def _profile(rng: Generator, crowd: Crowd, user: int, customer: str) -> _Row:
    # The older, the fonder of what is classic: a weak hint, as real profiles give.
    age = 45.0 - 8.0 * crowd.people.style[user, AXES.index("era")] + rng.normal(0.0, 14.0)
    return {
        "customer": customer,
        "age": None if rng.random() < 0.1 else int(np.clip(age, 16, 90)),
        "gender": (None, "M", "F")[int(rng.integers(3))],
    }


def _events(rng: Generator, crowd: Crowd, choices: list[Choice], customers: list[str], products: list[str]) -> list[_Row]:
    rows: list[tuple[int, str | None, str, str]] = []  # time, customer, product, event
    for choice in choices:
        customer, product = customers[choice.user], products[choice.item]
        draw = rng.random() - 0.3 * choice.delight
        last = "buy" if draw < 0.4 else "cart" if draw < 0.65 else "view"
        if last != "view":
            rows.append((choice.time - 30, customer, product, "view"))
        rows.append((choice.time, customer, product, last))
    for user, chosen in enumerate(crowd.chosen):
        for item in crowd.unliked(rng, user, len(chosen) // 8):
            rows.append((any_time(rng), customers[user], products[item], "hide"))
    planted = rng.choice(len(rows), size=REPEATED + UNKNOWN + KEYLESS, replace=False)
    for number, row in enumerate(planted):
        time, customer_, product, event = rows[row]
        if number < REPEATED:
            rows.append(rows[row])
        elif number < REPEATED + UNKNOWN:
            rows.append((time, customer_, "P9999X", event))
        else:
            rows.append((time, None, product, event))
    rows.sort(key=lambda row: (row[0], row[1] or "", row[2], row[3]))
    return [{"customer": customer, "product": product, "event": event, "time": time} for time, customer, product, event in rows]


def _reviews(writer: Writer, crowd: Crowd, choices: list[Choice], customers: list[str], products: list[str]) -> list[_Row]:
    rows = []
    for choice in choices:
        if writer.rng.random() > 0.2:
            continue
        # Happy or not, people say which side of one axis they like.
        axis = writer.pick(AXES)
        wish = writer.manner(axis, int(np.sign(crowd.people.style[choice.user, AXES.index(axis)])))
        liked = f"{wish} {TOPICS[crowd.items.topics(choice.item)[0]].name} gear"
        rows.append(
            {
                "customer": customers[choice.user],
                "product": products[choice.item],
                "stars": int(np.clip(round(4 + choice.delight), 1, 5)),
                "time": choice.time + 86_400,
                "text": f"Very happy with it: I like {liked}." if choice.delight > 0.3 else f"Not bad, but I prefer {liked}.",
            }
        )
    return rows


def _images(rng: Generator, crowd: Crowd, products: list[str]) -> list[_Row]:
    # What a picture shows, topics, style and above all the look that no text says, through one fixed random camera; one product
    # in twenty has none.
    shown = np.hstack([0.4 * crowd.items.mix, 0.2 * crowd.items.style, crowd.items.look])
    camera = np.linalg.qr(rng.normal(size=(_WIDTH, shown.shape[1])))[0]
    images = shown @ camera.T + rng.normal(0.0, 0.05, size=(len(products), _WIDTH))
    pictured = rng.random(len(products)) < 0.95
    return [
        {"product": product, "image": image.round(4).tolist()}
        for product, image, has in zip(products, images, pictured, strict=True)
        if has
    ]
