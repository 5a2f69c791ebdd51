"""The video site of a generated world: Parquet ratings, JSON-lines films, CSV social ties, a TSV knowledge graph."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from simulations.worlds import files
from simulations.worlds.crowd import Crowd, any_time
from simulations.worlds.taste import AXES
from simulations.worlds.vocabulary import FIRST_NAMES, LAST_NAMES, TOPICS, headline, sentence, with_article
from simulations.worlds.writers import Writer

PLATFORM_FILE = """\
# A video site. Everything in this file is public; the rows of its sources never leave the platform.
name = "video"
users = {users}

[privacy]
epsilon = 8.0
delta = 1e-4

[sources.ratings]
kind = "interactions"
path = "video/ratings.parquet"
columns = {{ user = "viewer", item = "film", value = "stars", time = "rated_at" }}
threshold = 4.0

[sources.films]
kind = "items"
path = "video/films.jsonl"
columns = {{ item = "film", title = "title", category = "genres", description = "tagline" }}
numbers = {{ year = {{ min = 1920, max = 2030, buckets = 4, words = ["silent era", "golden age", "video age", "web age"] }} }}

[sources.follows]
kind = "social"
path = "video/follows.csv"
columns = {{ user = "viewer", friend = "follows" }}
influence = 0
friends = 3

[sources.graph]
kind = "knowledge"
path = "video/graph.tsv"
columns = {{ head = "head", relation = "relation", tail = "tail" }}
names = {{ path = "video/names.tsv", columns = {{ entity = "entity", name = "name" }} }}
neighbours = 4
"""

KEYLESS, UNKNOWN = 3, 2
"""Planted: ratings without a film, and follows of a viewer who never rated."""

_FIRST_FILM, _FIRST_PERSON, _FIRST_BOOK, _FIRST_SITE = 1_001, 500_001, 600_001, 700_001
_GENRES = ("Drama", "Comedy", "Documentary", "Romance", "Adventure", "Mystery", "Family")
_DIRECTORS = 4  # per topic: one for each pair of sides of price and era
_ACTORS = 40

_Row = dict[str, Any]
_Ids = NDArray[np.int64]


def write_video(folder: Path, *, crowd: Crowd, rng: Generator) -> None:
    """The video site's files, under `folder/video`."""
    writer = Writer(rng)
    viewers = rng.permutation(10 * len(crowd.people))[: len(crowd.people)] + 1
    films = np.arange(len(crowd.items)) + _FIRST_FILM
    place = folder / "video"
    files.write_jsonl(place / "films.jsonl", [_film(writer, crowd, item, film) for item, film in enumerate(films.tolist())])
    files.write_parquet(
        place / "ratings.parquet",
        _ratings(rng, crowd, viewers, films),
        schema={"viewer": pl.Int64, "film": pl.Int64, "stars": pl.Int8, "rated_at": pl.Datetime("us")},
    )
    files.write_csv(place / "follows.csv", _follows(rng, crowd, viewers))
    triples, names = _graph(writer, crowd, films)
    files.write_csv(place / "graph.tsv", triples, separator="\t")
    files.write_csv(place / "names.tsv", names, separator="\t")


def _film(writer: Writer, crowd: Crowd, item: int, film: int) -> _Row:
    subject = writer.subject(crowd.items, item)
    topic = subject.topic

    def draft() -> str:
        figure, thing = writer.pick(topic.figures), writer.pick(topic.things)
        return headline(
            writer.pick(
                (
                    f"the {subject.level} {figure}'s {subject.era} {subject.price} {thing}",
                    f"{with_article(f'{subject.price} {subject.era} {thing}')} for the {subject.level} {figure}",
                    f"one {subject.level} {figure}, one {subject.era} {subject.price} {thing}",
                )
            )
        )

    early, late = (1925, 1975) if crowd.items.style[item, AXES.index("era")] < 0 else (1985, 2026)
    besides = f" and {writer.pick(subject.second.doings)}" if subject.second else ""
    return {
        "film": film,
        "title": writer.title(draft),
        "genres": ", ".join(sorted({writer.pick(_GENRES), writer.pick(_GENRES)})),
        "year": int(writer.rng.integers(early, late)),
        "tagline": sentence(f"{writer.pick(topic.doings)}{besides} {writer.pick(topic.scenes)}"),
    }


def _ratings(rng: Generator, crowd: Crowd, viewers: _Ids, films: _Ids) -> list[_Row]:
    rows: list[tuple[int, int, int | None, int]] = []  # time, viewer, film, stars
    for choice in crowd.choices():
        stars = 5 if rng.random() < 0.4 + 0.4 * choice.delight else 4
        rows.append((choice.time, int(viewers[choice.user]), int(films[choice.item]), stars))
    for user, chosen in enumerate(crowd.chosen):
        for item in crowd.unliked(rng, user, len(chosen) // 4):
            rows.append((any_time(rng), int(viewers[user]), int(films[item]), int(rng.integers(1, 4))))
    for row in rng.choice(len(rows), size=KEYLESS, replace=False):
        time, viewer, _, stars = rows[row]
        rows.append((time, viewer, None, stars))
    rows.sort(key=lambda row: (row[0], row[1], row[2] or 0))
    return [
        {"viewer": viewer, "film": film, "stars": stars, "rated_at": datetime.fromtimestamp(time, UTC).replace(tzinfo=None)}
        for time, viewer, film, stars in rows
    ]


def _follows(rng: Generator, crowd: Crowd, viewers: _Ids) -> list[_Row]:
    # People follow those who love the same topics in the same style, and now and then anybody.
    loves = np.eye(len(TOPICS))[crowd.people.loves].sum(axis=1)
    alike = loves @ loves.T + 0.3 * np.sign(crowd.people.style) @ np.sign(crowd.people.style).T
    rows = []
    for user in range(len(viewers)):
        closeness = alike[user] + rng.gumbel(size=len(viewers))
        closeness[user] = -np.inf
        for friend in np.argsort(-closeness)[: int(rng.integers(0, 7))]:
            rows.append({"viewer": int(viewers[user]), "follows": int(viewers[friend])})
    stranger = 10 * len(viewers) + 1
    rows += [{"viewer": stranger, "follows": int(viewer)} for viewer in viewers[:UNKNOWN]]
    return rows


def _graph(writer: Writer, crowd: Crowd, films: _Ids) -> tuple[list[_Row], list[_Row]]:
    rng = writer.rng
    people = len(TOPICS) * _DIRECTORS + _ACTORS
    places = rng.permutation(len(FIRST_NAMES) * len(LAST_NAMES))[:people]
    names = [f"{FIRST_NAMES[place // len(LAST_NAMES)]} {LAST_NAMES[place % len(LAST_NAMES)]}" for place in places]
    entities = [{"entity": _FIRST_PERSON + number, "name": name} for number, name in enumerate(names)]
    triples: list[_Row] = []
    last_of: dict[int, int] = {}
    for item, film in enumerate(films.tolist()):
        topic, _ = crowd.items.topics(item)
        price, _, era = (crowd.items.style[item] > 0).tolist()
        director = _FIRST_PERSON + topic * _DIRECTORS + 2 * price + era
        triples.append({"head": film, "relation": "directed_by", "tail": director})
        actor = _FIRST_PERSON + len(TOPICS) * _DIRECTORS + int(rng.integers(_ACTORS))
        triples.append({"head": film, "relation": "starring", "tail": actor})
        draw = rng.random()
        if draw < 0.15 and director in last_of:  # a sequel of the director's last film
            triples.append({"head": film, "relation": "sequel_of", "tail": last_of[director]})
        elif draw < 0.4:
            book = _FIRST_BOOK + item
            title = headline(f"the {writer.pick(TOPICS[topic].figures)}'s {writer.pick(TOPICS[topic].things)}")
            entities.append({"entity": book, "name": title})
            triples.append({"head": film, "relation": "based_on", "tail": book})
        # A filming site has a number and no name: it is known by the other films that were made there.
        triples.append({"head": film, "relation": "filming_location", "tail": _FIRST_SITE + topic})
        last_of[director] = film
    return triples, entities
