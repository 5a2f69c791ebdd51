"""What anybody runs on a platform's own rows: the recommenders that an own model must not be worse than.

Each has its settings tuned, one at a time, by the last item that trains of every user, predicted from the items before it;
held-out items are not looked at. The measure is that of the own model's validation (`client/recommender/left_out.py`).

- "popularity": how many users like an item.
- "attributes x popularity": the same, weighted by how an item's attributes (all words of its text but its title: author,
  category, genre) agree with the most frequent ones of the user's items, rarer words counting more.
- "ease": item-item ridge regression (Steck 2019), without recency.
- "item-knn": cosines of items' likes, shrunk (Bell & Koren 2007, "Scalable collaborative filtering"), of the nearest neighbours.
- "als": implicit matrix factorisation by alternating least squares (Hu, Koren & Volinsky 2008).
- "bpr": matrix factorisation by pairwise ranking (Rendle et al. 2009), with item biases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-not-found,import-untyped,unused-ignore]

from client.examples.split import Split, ragged
from client.recommender.histories import Sparse
from client.recommender.item_ridge import ItemRidge, spectrum_of
from client.recommender.left_out import gain, mean_gain
from client.recommender.own_model import UserScores, exact_ranks, training_histories
from client.sources.tables import Tables

Floats = NDArray[np.float32]
Settings = Mapping[str, float]

FACTORS = 64
_MOST_TUNED = 2000
_AT_ONCE = 512
_AGREES_LEAST = 1e-3


@dataclass(frozen=True)
class ScoredRows:
    """Scores of all items for some rows of the fitted matrix."""

    by_row: Callable[[NDArray[np.int64]], Floats] = field(repr=False)

    def scores(self, users: NDArray[np.int64]) -> Floats:
        """As `UserScores`."""
        return self.by_row(users)


class Baseline(Protocol):
    """One of them, with all that does not depend on its settings.

    Attributes:
        grid: Setting -> values to choose from.
    """

    grid: Mapping[str, Sequence[float]]

    def fit(self, settings: Settings) -> ScoredRows:
        """Fitted on the rows it was made of."""


class _Popularity:
    grid: Mapping[str, Sequence[float]] = {}

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._counts = rows.sum(0).A1.astype(np.float32)

    def fit(self, settings: Settings) -> ScoredRows:
        return ScoredRows(lambda users: np.tile(self._counts, (len(users), 1)))


class _AttributesPopularity:
    grid: Mapping[str, Sequence[float]] = {"most": (10, 3, 30, 1000), "power": (1.0, 0.3, 3.0), "popularity": (1.0, 0.5)}

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._rows, self._attributes = rows, attribute_vectors(tables)
        self._counts = rows.sum(0).A1.astype(np.float32)

    def fit(self, settings: Settings) -> ScoredRows:
        popular = self._counts ** np.float32(settings["popularity"])

        def by_row(users: NDArray[np.int64]) -> Floats:
            taste = (self._rows[users] @ self._attributes).toarray()
            most = int(settings["most"])
            if most < taste.shape[1]:
                taste[taste < np.partition(taste, -most, axis=1)[:, -most, None]] = 0.0
            taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-9)
            agrees = np.asarray((self._attributes @ taste.T).T, np.float32)
            scores: Floats = (_AGREES_LEAST + agrees) ** np.float32(settings["power"]) * popular
            return scores

        return ScoredRows(by_row)


class _Ease:
    grid: Mapping[str, Sequence[float]] = {"ridge": (100.0, 10.0, 30.0, 300.0, 1000.0, 3000.0)}

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._rows, self._spectrum = rows, spectrum_of(rows)

    def fit(self, settings: Settings) -> ScoredRows:
        model = ItemRidge(self._rows, ridge=settings["ridge"], spectrum=self._spectrum)
        return ScoredRows(lambda users: model.scores(self._rows[users]))


class _ItemNeighbours:
    grid: Mapping[str, Sequence[float]] = {"shrinkage": (10.0, 0.0, 30.0, 100.0), "neighbours": (100, 10, 30, 300)}

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._rows, self._by_item = rows, rows.T.tocsr()
        self._length = np.sqrt(rows.sum(0).A1).astype(np.float32)

    def fit(self, settings: Settings) -> ScoredRows:
        items, most = self._rows.shape[1], min(int(settings["neighbours"]), self._rows.shape[1])
        liked = np.flatnonzero(self._length)
        blocks = [np.zeros((3, 0))]
        for some in np.array_split(liked, max(1, len(liked) // _AT_ONCE)):
            alike = (self._by_item[some] @ self._rows).toarray().astype(np.float32)
            alike /= self._length[some, None] * self._length + np.float32(settings["shrinkage"] + 1e-9)
            alike[np.arange(len(some)), some] = 0.0
            near = np.argpartition(alike, -most, axis=1)[:, -most:]
            found = np.stack([np.repeat(some, most), near.ravel(), np.take_along_axis(alike, near, 1).ravel()])
            blocks.append(found[:, found[2] > 0])
        item, other, value = np.concatenate(blocks, axis=1)
        places = (other.astype(np.int64), item.astype(np.int64))
        near_items = scipy.sparse.csr_matrix((value.astype(np.float32), places), shape=(items, items))
        return ScoredRows(lambda users: np.asarray((self._rows[users] @ near_items).toarray(), np.float32))


class _LeastSquares:
    grid: Mapping[str, Sequence[float]] = {"confidence": (5.0, 1.0, 20.0), "ridge": (10.0, 1.0, 100.0)}
    turns = 10

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._rows, self._by_item = rows, rows.T.tocsr()

    def fit(self, settings: Settings) -> ScoredRows:
        random = np.random.default_rng(0)
        items = (0.1 * random.normal(size=(self._rows.shape[1], FACTORS))).astype(np.float32)
        items[np.diff(self._by_item.indptr) == 0] = 0.0
        users = np.zeros((self._rows.shape[0], FACTORS), np.float32)
        for _ in range(self.turns):
            users = self._solved(self._rows, items, settings)
            items = self._solved(self._by_item, users, settings)
        users = self._solved(self._rows, items, settings)
        return ScoredRows(lambda rows: users[rows] @ items.T)

    @staticmethod
    def _solved(rows: Sparse, others: Floats, settings: Settings) -> Floats:
        found = np.zeros((rows.shape[0], FACTORS), np.float32)
        fixed = others.T @ others + np.float32(settings["ridge"]) * np.eye(FACTORS, dtype=np.float32)
        more = np.float32(settings["confidence"])
        for row in np.flatnonzero(np.diff(rows.indptr)):
            mine = others[rows.indices[rows.indptr[row] : rows.indptr[row + 1]]]
            _, found[row], _ = scipy.linalg.lapack.sposv(fixed + more * (mine.T @ mine), (1 + more) * mine.sum(0))
        return found


class _PairwiseRanking:
    grid: Mapping[str, Sequence[float]] = {"ridge": (0.01, 0.001, 0.03), "epochs": (20, 60)}
    rate, batch = 0.05, 256

    def __init__(self, rows: Sparse, tables: Tables) -> None:
        self._rows = rows.tocoo()

    def fit(self, settings: Settings) -> ScoredRows:
        count, width = self._rows.shape
        random = torch.Generator().manual_seed(0)
        users, items = (0.1 * torch.randn(size, FACTORS, generator=random) for size in (count, width))
        bias, ridge = torch.zeros(width), float(settings["ridge"])
        user, liked = torch.from_numpy(self._rows.row.astype(np.int64)), torch.from_numpy(self._rows.col.astype(np.int64))
        pairs = np.unique(self._rows.row.astype(np.int64) * width + self._rows.col)
        for _ in range(int(settings["epochs"])):
            order = torch.randperm(len(user), generator=random)
            drawn = torch.randint(width, (len(user),), generator=random)
            fresh = torch.from_numpy(~np.isin(user[order].numpy() * width + drawn.numpy(), pairs, assume_unique=False))
            order, drawn = order[fresh], drawn[fresh]
            for begin in range(0, len(order), self.batch):
                some, other = order[begin : begin + self.batch], drawn[begin : begin + self.batch]
                u, i = user[some], liked[some]
                mine, better, worse = users[u], items[i], items[other]
                ahead = (mine * (better - worse)).sum(1) + bias[i] - bias[other]
                pull = self.rate * torch.sigmoid(-ahead)[:, None]
                keep = self.rate * ridge
                users.index_add_(0, u, pull * (better - worse) - keep * mine)
                items.index_add_(0, i, pull * mine - keep * better)
                items.index_add_(0, other, -pull * mine - keep * worse)
                bias.index_add_(0, i, pull[:, 0] - keep * bias[i])
                bias.index_add_(0, other, -pull[:, 0] - keep * bias[other])
        return ScoredRows(lambda rows: (users[rows] @ items.T + bias).numpy())


BASELINES: Mapping[str, Callable[[Sparse, Tables], Baseline]] = {
    "popularity": _Popularity,
    "attributes x popularity": _AttributesPopularity,
    "ease": _Ease,
    "item-knn": _ItemNeighbours,
    "als": _LeastSquares,
    "bpr": _PairwiseRanking,
}


def fit_baselines(
    tables: Tables, split: Split, *, seed: int, tell: Callable[[str], None] = lambda _: None
) -> dict[str, UserScores]:
    """Each of `BASELINES`, tuned, and fitted on all that trains.

    Args:
        seed: Of the choice among more users than settings are tuned by.
        tell: Called with what was chosen.
    """
    shorter = validation_cut(split, seed=seed)
    before, all_rows = training_histories(tables, shorter).rows(), training_histories(tables, split).rows()
    found: dict[str, UserScores] = {}
    for name, made in BASELINES.items():
        tuning, whole = made(before, tables), made(all_rows, tables)
        # Their products are small: a second thread is waited for longer than it helps.
        with threadpool_limits(1):
            settings, gained = _tuned(tuning, shorter)
            found[name] = whole.fit(settings)
        tell(f"{name}: {', '.join(f'{key} {value:g}' for key, value in settings.items()) or 'nothing to choose'} ({gained:.4f})")
    return found


def _tuned(baseline: Baseline, cut: Split) -> tuple[Settings, float]:
    """The best settings, found one after the other, and their mean gain."""

    def gained(settings: Settings) -> float:
        return mean_gain(gain(exact_ranks(baseline.fit(settings), cut)[0]))

    best = {name: values[0] for name, values in baseline.grid.items()}
    most = gained(best)
    for name, values in baseline.grid.items():
        for value in values[1:]:
            tried = {**best, name: value}
            if (now := gained(tried)) > most:
                best, most = tried, now
    return best, most


def validation_cut(split: Split, *, seed: int) -> Split:
    """The split of what trains: the last item of users with two or more is to be predicted, of at most 2,000 of them."""
    lengths = split.train.lengths()
    chosen = np.flatnonzero(lengths >= 2)
    if len(chosen) > _MOST_TUNED:
        chosen = np.random.default_rng(seed).choice(chosen, _MOST_TUNED, replace=False)
    held = np.full(split.users, -1, np.int32)
    train, known = [], []
    for user in range(split.users):
        train.append(split.train[user])
        known.append(split.known[user])
    for user in chosen.tolist():
        held[user] = train[user][-1]
        train[user] = train[user][:-1]
        known[user] = known[user][known[user] != held[user]]
    return Split(train=ragged(train), held=held, known=ragged(known))


def attribute_vectors(tables: Tables) -> Sparse:
    """Words of items' texts without titles, weighted by log(items / items with it), of length 1, float32 (items, words)."""
    words = [
        list(dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text.removeprefix(title).lower())))
        for title, *texts in zip(tables.item_titles, *tables.item_text.values(), strict=True)
    ]
    times = Counter(word for some in words for word in some)
    number = {word: place for place, word in enumerate(sorted(word for word, count in times.items() if count >= 2))}
    entries = [(item, number[word]) for item, some in enumerate(words) for word in some if word in number]
    item, word = np.asarray(entries, np.int64).reshape(-1, 2).T
    rarity = np.log(len(words) / np.array([times[name] for name in number], np.float64)).astype(np.float32)
    vectors = scipy.sparse.csr_matrix((rarity[word], (item, word)), shape=(len(words), max(len(number), 1)), dtype=np.float32)
    length = np.sqrt(vectors.multiply(vectors).sum(1).A1)
    unit: Sparse = (scipy.sparse.diags((1.0 / np.maximum(length, 1e-9)).astype(np.float32)) @ vectors).tocsr()
    return unit
