"""A platform that joins after the run: what was released, and rows of its first users.

Of one platform the users of some parts take no part in the federation: as many parts more than it is dealt to as hold
`LEAST_USERS` users beside the largest number of first users that is asked for. Together they are the newcomer's, in an order by
chance. The first k of them are on the newcomer when models are fitted; all models rank the held-out items of those after the
largest k, who bring their own history and have no row in any model. So every k is measured on the same users.

With 0 users the own model is what is shown without any interaction, the catalogue in its order: chance, unless that order says
something (a list that is sorted by rating does). "fused" is the release, as for any platform without likes. Beside these, "words"
is likeness to the texts of the visitor's own history, and "popularity" that of all other users of the platform, the federation's
included: no newcomer knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Split, ragged
from client.model.prepared_platform import PlatformRows
from client.recommender.evidence import NOBODY, WORDS, Alike, ScoredFor, word_vectors
from client.recommender.fused_model import fused_with
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories
from client.recommender.model_comparison import RankedUsers, rank_users
from client.recommender.own_model import UserScores, fit_own, training_histories
from client.recommender.released_preferences import released_on
from client.sources.tables import Tables, Ties
from shared.preferences.shared_preferences import SharedPreferences
from simulations.worlds.repartition import part_of

LEAST_USERS = 50
"""Users of a part, and users by whom a newcomer is measured, at least."""
SEGMENT = "newcomer-{}"

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class VisitorScores(Protocol):
    """A model that answers people who are in no table."""

    def scores_of(self, histories: Histories) -> Floats:
        """Scores of all items, float32 (n, items)."""


@dataclass(frozen=True)
class _Visitors:
    """A model asked for people who are in no table of it."""

    model: VisitorScores
    histories: Histories = field(repr=False)

    def scores(self, users: Numbers) -> Floats:
        rows = [self.histories.liked[int(user)] for user in users]
        return self.model.scores_of(replace(self.histories, liked=ragged(rows), weight=None))


@dataclass(frozen=True)
class _Constant:
    """The same scores for everybody."""

    item_scores: Floats = field(repr=False)

    def scores_of(self, histories: Histories) -> Floats:
        return np.tile(self.item_scores, (histories.users, 1))


@dataclass(frozen=True)
class _Words:
    """Likeness of texts to a history's."""

    alike: Alike = field(repr=False)

    def scores_of(self, histories: Histories) -> Floats:
        people = np.arange(histories.users)
        asked = ScoredFor(history=histories.recent(people, half_life=None), users=np.full(len(people), NOBODY))
        return self.alike.scores(asked)


def further_parts(users: int, dealt: int, sizes: Sequence[int]) -> int | None:
    """How many parts beside the federation's hold a newcomer's users; None where the federation's would be too small.

    >>> further_parts(1000, 8, [0, 50, 200]), further_parts(4714, 64, [200]), further_parts(300, 8, [200])
    (3, 4, None)
    """
    wanted = max(sizes) + LEAST_USERS
    if users - wanted < LEAST_USERS * dealt:
        return None
    return math.ceil(wanted * dealt / (users - wanted))


def newcomer_users(rows: PlatformRows, *, dealt: int, parts: int, seed: int) -> Numbers:
    """Users of the whole platform who are in no part of the federation, in an order by chance.

    Args:
        parts: To which the platform was dealt in all; the first `dealt` form the federation.
    """
    users = [user for user, name in enumerate(rows.tables.user_ids) if part_of(name, parts, seed=seed) >= dealt]
    return np.random.default_rng(seed).permutation(np.asarray(users, np.int64))


def rank_newcomer(
    rows: PlatformRows, users: Numbers, shared: SharedPreferences | None, *, sizes: Sequence[int], seed: int
) -> dict[str, RankedUsers]:
    """Segment -> the models' ranks of the held-out items of users who are not among the first.

    Args:
        rows: Of the whole platform.
        users: As `newcomer_users` finds them.
        shared: What the federation released, None where it released nothing.
        sizes: Numbers of first users whose rows the newcomer has.
    """
    tables, split = only_users(rows.tables, rows.split, users[max(sizes) :])
    histories, words = training_histories(tables, split), word_vectors(tables)
    released = None if shared is None else released_on(shared, rows.item_hashes, words=words)
    if released is not None and not released.factors.any():
        released = None
    found = {}
    for size in sizes:
        models: dict[str, VisitorScores] = {}
        if released is not None:
            models["global"] = GlobalModel(histories, preferences=released, text=None, words=words)
        if size:
            own = fit_own(*only_users(rows.tables, rows.split, users[:size]), seed=seed)
            models |= {"own": own.model, "fused": own.model}
            if released is not None:
                models["fused"] = fused_with(own, factors=released.factors, popularity=released.popularity)
        else:
            others = np.setdiff1d(np.arange(rows.tables.users), users[max(sizes) :])
            _, _, liked = rows.split.train.entries(others)
            popular = np.bincount(liked, minlength=tables.items).astype(np.float32)
            models |= {
                "own": _Constant(-np.arange(tables.items, dtype=np.float32)),
                "words": _Words(Alike(words, name=WORDS)),
            }
            models |= {"popularity": _Constant(popular), "fused": models.get("global", models["own"])}
        asked: dict[str, UserScores] = {name: _Visitors(model, histories) for name, model in models.items()}
        ranked = rank_users(asked, split)
        found[SEGMENT.format(size)] = replace(ranked, segments={SEGMENT.format(size): ranked.segments["all"]})
    return found


def only_users(tables: Tables, split: Split, users: Numbers) -> tuple[Tables, Split]:
    """A platform as if it had these users alone: what an own model reads of them; profiles and notes are left out."""
    table = tables.interactions
    lengths = np.diff(table.offsets)[users]
    kept = np.repeat(table.offsets[users] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(lengths.sum())
    interactions = replace(
        table,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item=table.item[kept],
        weight=table.weight[kept],
        positive=table.positive[kept],
        time=None if table.time is None else table.time[kept],
    )
    number = np.full(tables.users + 1, -1, np.int32)
    number[users] = np.arange(len(users))
    smaller = replace(
        tables,
        user_ids=[tables.user_ids[int(user)] for user in users],
        interactions=interactions,
        ties={name: _ties_of(ties, users, number) for name, ties in tables.ties.items()},
        user_text={},
        notes={},
        user_vectors={},
    )
    train, known = ([part[int(user)] for user in users] for part in (split.train, split.known))
    return smaller, Split(train=ragged(train), held=split.held[users], known=ragged(known))


def _ties_of(ties: Ties, users: Numbers, number: NDArray[np.int32]) -> Ties:
    """Args: number: int32 (users + 1,). New number of each user, -1 for the others and in the last place."""
    friends = ragged([number[ties.friend[ties.offsets[user] : ties.offsets[user + 1]]] for user in users])
    return replace(ties, offsets=friends.offsets, friend=friends.values)
