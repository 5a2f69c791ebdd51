"""User examples: what a platform knows of a user, as a context to read and items to predict.

A *view* is one cut of a user's history: the items before it are the context, some items after it are the targets.
Everything in a view is the user's own, except the lines of friends, whose influence is bounded (`client/examples/friends.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.compute.feature_cache import Ids
from client.examples.friends import Friends
from client.examples.item_texts import ItemTexts
from client.examples.split import Ragged, Split, ragged, user_generator
from client.examples.texts import Piece, Texts
from client.sources.tables import Notes, Tables
from shared.base.settings import ModelSettings, TrainingSettings

_EARLIEST_CUT = 0.3  # a context shorter than this part of the history resembles no evaluation


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Sequences of users with what they predict.

    Args:
        user: int64 (rows,). The user of each row; rows of a user stand together.
        sequences: Token ids, one per row.
        targets: Per row, the items to predict.
        context: Per row, the items whose titles or vectors the row may show, newest first.
        excluded: Per row, items that are no candidates: known to the user and not a target.
    """

    user: NDArray[np.int64]
    sequences: list[Ids]
    targets: Ragged
    context: Ragged
    excluded: Ragged

    def __len__(self) -> int:
        return len(self.user)


class Reader:
    """Writes one user's sources as one token sequence.

    The order of importance is profiles, history, notes, friends, and within a kind the platform file's. The history takes what
    the others leave. A source takes at most its declared `tokens`, else its share of the budget: a profile source an eighth,
    notes a quarter together, friends an eighth together.

    Args:
        declared: Source name -> the most tokens that the platform file gives it.
    """

    def __init__(
        self,
        tables: Tables,
        catalogue: ItemTexts,
        texts: Texts,
        friends: Friends,
        model: ModelSettings,
        declared: Mapping[str, int] | None = None,
    ) -> None:
        declared = declared or {}
        self._tables, self._catalogue, self._texts, self._friends, self._most = (
            tables,
            catalogue,
            texts,
            friends,
            model.user_tokens,
        )
        most = model.user_tokens
        self._profiles = [
            (texts.tokenise(list(section), most=most), declared.get(name, max(4, most // 8)))
            for name, section in tables.user_text.items()
        ]
        self._notes = [
            (notes, texts.tokenise(list(notes.text), most=16), declared.get(name, max(4, most // 4 // len(tables.notes))))
            for name, notes in tables.notes.items()
        ]

    def sequence(self, user: int, context: NDArray[np.int32], *, serving: bool) -> Ids:
        """Token ids of what the user's sources say, given the history that may be shown (newest first)."""
        most = self._most
        pieces = [Piece(ids=section[user], share=share) for section, share in self._profiles]
        pieces.append(Piece(ids=self._titles(context, most)))
        for notes, ids, share in self._notes:
            pieces.append(Piece(ids=_on(notes, ids, user, context, share), share=share))
        shown = self._friends.shown(user, serving=serving)
        if len(shown):
            pieces.append(Piece(ids=self._titles(shown, most // 8), share=most // 8))
        return self._texts.join(pieces, most=most)

    def _titles(self, items: NDArray[np.int32], most: int) -> Ids:
        parts: list[Ids] = []
        taken = 0
        for item in items:
            if taken >= most:
                break
            parts.append(self._catalogue.titles[item])
            taken += len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def _on(notes: Notes, ids: Sequence[Ids], user: int, context: NDArray[np.int32], most: int) -> Ids:
    # Only notes on shown items: a note on a held-out or predicted item would give the answer away.
    rows = np.arange(notes.offsets[user], notes.offsets[user + 1])
    rows = rows[np.isin(notes.item[rows], context)][::-1]
    parts: list[Ids] = []
    seen: set[bytes] = set()
    taken = 0
    for row in rows:
        if taken >= most:
            break
        if ids[row].tobytes() not in seen:
            seen.add(ids[row].tobytes())
            parts.append(ids[row])
            taken += len(ids[row])
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def training_examples(tables: Tables, split: Split, reader: Reader, training: TrainingSettings, *, seed: int) -> Examples:
    """Several views of every user that has a positive item to train on."""
    rows: list[tuple[int, NDArray[np.int32], NDArray[np.int32]]] = []
    for user in range(split.users):
        liked = split.train[user]
        if not len(liked):
            continue
        random = user_generator(tables.user_ids[user], seed, "views")
        for view in range(training.views):
            order = liked if tables.interactions.time is not None else random.permutation(liked)
            first = int(_EARLIEST_CUT * len(order))
            # The last view always ends where the evaluation begins: the longest context.
            cut = len(order) - 1 if view == training.views - 1 else int(random.integers(first, len(order)))
            rows.append((user, order[:cut][::-1], order[cut : cut + training.targets]))
    return _examples(rows, split, reader, serving=False)


def held_out_examples(split: Split, reader: Reader, *, serving: bool = True) -> Examples:
    """One row per user with a held-out item: the whole training history, and that item to predict.

    Args:
        serving: Whether friends may speak without bound, as in recommendations that stay here.
    """
    users = [int(user) for user in np.flatnonzero(split.held >= 0)]
    rows = [(user, split.train[user][::-1], split.held[user : user + 1]) for user in users]
    return _examples(rows, split, reader, serving=serving)


def _examples(
    rows: Sequence[tuple[int, NDArray[np.int32], NDArray[np.int32]]], split: Split, reader: Reader, *, serving: bool
) -> Examples:
    return Examples(
        user=np.fromiter((user for user, _, _ in rows), np.int64, len(rows)),
        sequences=[reader.sequence(user, context, serving=serving) for user, context, _ in rows],
        targets=ragged([targets for _, _, targets in rows]),
        context=ragged([context for _, context, _ in rows]),
        excluded=ragged([np.setdiff1d(split.known[int(user)], targets) for user, _, targets in rows]),
    )


def no_examples() -> Examples:
    """Of nobody."""
    empty = ragged([])
    return Examples(user=np.zeros(0, np.int64), sequences=[], targets=empty, context=empty, excluded=empty)


def rows_by_user(examples: Examples, users: int) -> Mapping[int, NDArray[np.int64]]:
    """User -> its rows."""
    order = np.arange(len(examples))
    bounds = np.searchsorted(examples.user, np.arange(users + 1))
    return {user: order[bounds[user] : bounds[user + 1]] for user in range(users) if bounds[user] < bounds[user + 1]}
