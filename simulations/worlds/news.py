"""The news site of a generated world: one SQLite database with clicks, articles that are new every day, and readers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.random import Generator

from simulations.worlds import files
from simulations.worlds.crowd import Crowd
from simulations.worlds.taste import AXES
from simulations.worlds.vocabulary import headline, sentence, with_article
from simulations.worlds.writers import Writer

PLATFORM_FILE = """\
# A news site. Everything in this file is public; the rows of its sources never leave the platform.
name = "news"
users = {users}

[privacy]
epsilon = 8.0
delta = 1e-4

[sources.clicks]
kind = "interactions"
url = "sqlite:///news/news.db"
table = "clicks"
columns = {{ user = "reader", item = "article", time = "clicked_at" }}
time_format = "%Y-%m-%d %H:%M:%S"

[sources.articles]
kind = "items"
url = "sqlite:///news/news.db"
query = "SELECT id, headline, section, body FROM articles ORDER BY id"
columns = {{ item = "id", title = "headline", category = "section", description = "body" }}

[sources.readers]
kind = "profiles"
url = "sqlite:///news/news.db"
table = "readers"
columns = {{ user = "reader" }}
text = ["country", "device"]
"""

UNKNOWN = 2
"""Planted: clicks on an article that was withdrawn."""

_COUNTRIES = ("Portugal", "Norway", "Ireland", "Austria", "Greece", "Poland")
_CHEAP, _DEAR = ("old phone", "shared computer"), ("tablet", "laptop")

_Row = dict[str, Any]


def write_news(folder: Path, *, crowd: Crowd, rng: Generator) -> None:
    """The news site's database, `folder/news/news.db`."""
    writer = Writer(rng)
    numbers = rng.permutation(1 << 20)[: len(crowd.people)]
    readers = [f"r-{number:05x}" for number in numbers]
    articles = [f"n{number:05d}" for number in range(1, len(crowd.items) + 1)]
    files.write_sqlite(
        folder / "news" / "news.db",
        {
            "articles": [_article(writer, crowd, item, article) for item, article in enumerate(articles)],
            "readers": [_reader(writer, crowd, user, reader) for user, reader in enumerate(readers)],
            "clicks": _clicks(rng, crowd, readers, articles),
        },
    )


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _article(writer: Writer, crowd: Crowd, item: int, article: str) -> _Row:
    assert crowd.published is not None
    subject = writer.subject(crowd.items, item)
    topic = subject.topic

    def draft() -> str:
        figure, thing, doing = writer.pick(topic.figures), writer.pick(topic.things), writer.pick(topic.doings)
        return headline(
            writer.pick(
                (
                    f"why {subject.level} {figure}s want {with_article(f'{subject.price} {subject.era} {thing}')}",
                    f"the {subject.era} {subject.price} {thing} that {subject.level} {figure}s love",
                    f"{doing}: {subject.era}, {subject.price}, {subject.level}",
                )
            )
        )

    story = f"{writer.pick(topic.figures)}s {writer.pick(topic.scenes)} talk of {writer.pick(topic.doings)}"
    besides = f" {sentence(f'they are also fond of {writer.pick(subject.second.doings)}')}" if subject.second else ""
    return {
        "id": article,
        "published": f"{_moment(int(crowd.published[item])):%Y-%m-%d %H:%M:%S}",
        "headline": writer.title(draft),
        "section": topic.section,
        "body": f"{sentence(story)}{besides}",
    }


def _reader(writer: Writer, crowd: Crowd, user: int, reader: str) -> _Row:
    # Who prefers what is cheap reads more often on a cheap device: a weak hint.
    cheap = writer.rng.random() < 0.5 - 0.2 * crowd.people.style[user, AXES.index("price")]
    country = None if writer.rng.random() < 0.1 else writer.pick(_COUNTRIES)
    return {"reader": reader, "country": country, "device": writer.pick(_CHEAP if cheap else _DEAR)}


def _clicks(rng: Generator, crowd: Crowd, readers: list[str], articles: list[str]) -> list[_Row]:
    rows = [(choice.time, readers[choice.user], articles[choice.item]) for choice in crowd.choices()]
    for row in rng.choice(len(rows), size=UNKNOWN, replace=False):
        time, reader, _ = rows[row]
        rows.append((time, reader, "withdrawn"))
    rows.sort()
    return [
        {"reader": reader, "article": article, "clicked_at": f"{_moment(time):%Y-%m-%d %H:%M:%S}"}
        for time, reader, article in rows
    ]
