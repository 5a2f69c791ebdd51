"""A world in which one platform's graph helps another's items: readers love a genre, and the film site alone knows the authors'.

The book site is a young one: its 600 books have two likes each, titles say nothing, and its graph says who wrote what, a book or
three of each author. The film site has films made of these authors' stories, and says what they are. No user and no item is on
both: the authors are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tomli_w

from client.config.platform_file import load
from client.examples.split import leave_one_out
from client.recommender.evidence import ELSEWHERE
from client.recommender.model_comparison import bootstrap_interval
from client.recommender.own_model import exact_ranks, fit_own
from client.sources.entity_facts import write_facts
from client.sources.platform_tables import read_public_facts, read_tables
from shared.protocol.quality import ndcg_at

GENRES, AUTHORS, BOOKS, READERS, LIKES = 30, 300, 600, 250, 5


def write_platform(folder: Path, name: str, rows: dict[str, list[tuple[str, ...]]], **graph: object) -> Path:
    """A platform file, its items, its graph and its log."""
    for table, columns in (("items", ["item", "title"]), ("graph", ["head", "relation", "tail"]), ("log", ["user", "item"])):
        pl.DataFrame(rows[table], schema=columns, orient="row").write_csv(folder / f"{name}-{table}.csv")
    sources = {
        "range": {"kind": "items", "path": f"{name}-items.csv"},
        "log": {"kind": "interactions", "path": f"{name}-log.csv"},
        "graph": {"kind": "knowledge", "path": f"{name}-graph.csv", "entities": "wikidata", **graph},
    }
    path = folder / f"{name}.toml"
    values = {"name": name, "users": READERS, "privacy": {"epsilon": 1.0}, "sources": sources}
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def write_films(folder: Path, genre: np.ndarray, seed: int) -> None:
    """What the film site publishes: two films of each author's stories, four of five of the author's genre."""
    random, graph, items = np.random.default_rng(seed), [], []
    for film in range(2 * AUTHORS):
        author = film % AUTHORS
        what = genre[author] if random.random() < 0.8 else random.integers(GENRES)
        items.append((f"f{film}", f"Film {film}"))
        graph += [(f"f{film}", "story by", f"Q{author}"), (f"f{film}", "genre", f"genre{what}")]
        graph.append((f"f{film}", "shot in", f"town{'uvwxyz'[random.integers(6)]}"))
    path = write_platform(folder, "films", {"items": items, "graph": graph, "log": [("v", "f0"), ("v", "f1")]}, publish=True)
    write_facts(folder / "films.facts.jsonl", read_public_facts(load(path)))


def ndcg_of_books(folder: Path, genre: np.ndarray, seed: int, **graph: object) -> tuple[np.ndarray, float]:
    """NDCG@10 of each reader's held-out book, and the weight of what others know."""
    random = np.random.default_rng(seed)
    author = random.integers(AUTHORS, size=BOOKS)
    log = []
    for reader in range(READERS):
        loved = np.flatnonzero(genre[author] == random.integers(GENRES))
        books = np.where(random.random(LIKES) < 0.9, random.choice(loved, LIKES), random.integers(BOOKS, size=LIKES))
        log += [(f"r{reader}", f"b{book}") for book in dict.fromkeys(books.tolist())]
    rows = {
        "items": [(f"b{book}", f"Book {book}") for book in range(BOOKS)],
        "graph": [(f"b{book}", "author", f"Q{author[book]}") for book in range(BOOKS)],
        "log": log,
    }
    tables = read_tables(load(write_platform(folder, "books", rows, **graph)))
    split = leave_one_out(tables, seed=0)
    model = fit_own(tables, split, seed=0).model
    ranks, _ = exact_ranks(model, split)
    return ndcg_at(ranks, 10), model.weights.get(ELSEWHERE, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_the_film_site_knows_helps_the_book_site(tmp_path: Path, seed: int) -> None:
    genre = np.random.default_rng(seed).permutation(np.arange(AUTHORS) % GENRES)
    alone, _ = ndcg_of_books(tmp_path, genre, seed)
    write_films(tmp_path, genre, seed)
    helped, weight = ndcg_of_books(tmp_path, genre, seed, elsewhere=["films.facts.jsonl"])
    gain = bootstrap_interval(helped - alone, seed=0)
    assert weight > 0 and gain.low > 0.02 and gain.mean > 0.15 * alone.mean()

    # The same facts of other authors: what gained is what they say, and validation lets nothing be lost by what says nothing.
    write_films(tmp_path, np.random.default_rng(seed + 10).permutation(genre), seed)
    wrong, _ = ndcg_of_books(tmp_path, genre, seed, elsewhere=["films.facts.jsonl"])
    assert abs((wrong - alone).mean()) < 0.1 * gain.mean
