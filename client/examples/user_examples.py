"""User examples: what a platform knows of a user, as a context to read and items to predict.

A *view* is one cut of a user's history: the items before it are the context, some items after it are the targets.
Everything in a view is the user's own, except the lines of friends, whose influence is bounded (`client/examples/friends.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.examples.friends import Friends
from client.examples.item_texts import ItemTexts
from client.examples.split import Ragged, Split, ragged, user_generator
from client.examples.texts import Piece, Texts
from client.sources.tables import Notes, Tables
from shared.base.settings import ModelSettings, TrainingSettings

if TYPE_CHECKING:
    from client.compute.feature_cache import Ids

_EARLIEST_CUT = 0.3  # a context shorter than this part of the history resembles no evaluation
_NOTE_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Sequences of users with what they predict.

    Args:
        user: int64 (rows,). The user of each row; a user's rows are adjacent.
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

    def some(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the rows, in that order."""
        return Examples(
            user=self.user[rows],
            sequences=[self.sequences[row] for row in rows],
            targets=self.targets.some(rows),
            context=self.context.some(rows),
            excluded=self.excluded.some(rows),
        )


class Reader:
    """Writes a user's sources as one token sequence.

    A user's texts are tokenised when they are read, so that a reader costs nothing for users of whom nobody asks.

    The order of importance is profiles, history, notes, friends, and within a kind the platform file's. The history takes what
    the others leave. A source takes at most its declared `tokens`, else its share of the budget: profiles a third together,
    divided by what each needs; notes a quarter together, friends an eighth together.

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
        self._profiles = [(section, declared.get(name)) for name, section in tables.user_text.items()]
        self._notes = [
            (notes, declared.get(name, max(4, most // 4 // len(tables.notes)))) for name, notes in tables.notes.items()
        ]

    def sequence(self, user: int, context: NDArray[np.int32], *, serving: bool) -> Ids:
        """Token ids of what the user's sources say, given the history that may be shown (newest first)."""
        return self.sequences(np.asarray([user]), [context], serving=serving)[0]

    def sequences(self, users: NDArray[np.int64], contexts: Sequence[NDArray[np.int32]], *, serving: bool) -> list[Ids]:
        """`sequence` of each of many users, who may be there more than once."""
        most = self._most
        distinct, which = np.unique(users, return_inverse=True)
        profiles = [
            (self._texts.tokenise([texts[user] for user in distinct.tolist()], most=most), share)
            for texts, share in self._profiles
        ]
        notes = [(_written(notes, distinct, self._texts), share) for notes, share in self._notes]
        found = []
        for user, at, context in zip(users.tolist(), which.tolist(), contexts, strict=True):
            shares = profile_shares([(len(section[at]), share) for section, share in profiles], most=most)
            pieces = [
                Piece(ids=section[at], share=share, parts=True) for (section, _), share in zip(profiles, shares, strict=True)
            ]
            pieces.append(Piece(ids=self._titles(context, most)))
            for written, share in notes:
                pieces.append(Piece(ids=_on(written[at], context, share), share=share))
            shown = self._friends.shown(user, serving=serving)
            if len(shown):
                pieces.append(Piece(ids=self._titles(shown, most // 8), share=most // 8))
            found.append(self._texts.join(pieces, most=most))
        return found

    def _titles(self, items: NDArray[np.int32], most: int) -> Ids:
        parts: list[Ids] = []
        taken = 0
        for item in items:
            if taken >= most:
                break
            parts.append(self._catalogue.titles[item])
            taken += len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def profile_shares(needed: Sequence[tuple[int, int | None]], *, most: int) -> list[int]:
    """The tokens that each profile source of one user may take.

    Args:
        needed: Per source, the tokens of its text, and the most that it is declared to take. What is not declared is shared: a
            third of the budget together, of which a source that needs less leaves the rest to the others.
        most: The budget of the whole sequence.

    >>> profile_shares([(14, None)], most=64), profile_shares([(5, None), (40, None)], most=64)
    ([14], [5, 16])
    >>> profile_shares([(40, 9)], most=64)
    [9]
    """
    shares = [need if declared is None else min(need, declared) for need, declared in needed]
    free = sorted((need, at) for at, (need, declared) in enumerate(needed) if declared is None)
    room = max(4, most // 3)
    for left, (need, at) in zip(range(len(free), 0, -1), free, strict=True):
        shares[at] = min(need, room // left)
        room -= shares[at]
    return shares


def _written(notes: Notes, users: NDArray[np.int64], texts: Texts) -> list[list[tuple[int, Ids]]]:
    """Per user, the item and the token ids of each of their notes, the newest first."""
    rows = [range(notes.offsets[user], notes.offsets[user + 1])[::-1] for user in users]
    ids = iter(texts.tokenise([notes.text[row] for each in rows for row in each], most=_NOTE_TOKENS))
    return [[(int(notes.item[row]), next(ids)) for row in each] for each in rows]


def _on(written: Sequence[tuple[int, Ids]], context: NDArray[np.int32], most: int) -> Ids:
    # Only notes on shown items: a note on a held-out or predicted item would give the answer away.
    there = set(context.tolist())
    parts: list[Ids] = []
    seen: set[bytes] = set()
    taken = 0
    for item, ids in written:
        if taken >= most:
            break
        if item in there and ids.tobytes() not in seen:
            seen.add(ids.tobytes())
            parts.append(ids)
            taken += len(ids)
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


class TrainingViews:
    """Several views of every user that has a positive item to train on, each written when it is read.

    View v of user u is row u x views + v.
    """

    def __init__(self, tables: Tables, split: Split, reader: Reader, training: TrainingSettings, *, seed: int) -> None:
        self._tables, self._split, self._reader, self._seed = tables, split, reader, seed
        self.views, self._targets = training.views, training.targets

    def of(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of those of some users that have any, int64 (users that have rows, views)."""
        there = users[self._split.train.lengths()[users] > 0]
        return there[:, None] * self.views + np.arange(self.views)

    def read(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the rows, in that order."""
        users, views = np.divmod(rows, self.views)
        cuts = {user: self._cuts(user) for user in np.unique(users).tolist()}
        found = [(user, *cuts[user][view]) for user, view in zip(users.tolist(), views.tolist(), strict=True)]
        return _examples(found, self._split, self._reader, serving=False)

    def _cuts(self, user: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Context, newest first, and targets of each view."""
        liked = self._split.train[user]
        random = user_generator(self._tables.user_ids[user], self._seed, "views")
        found = []
        for view in range(self.views):
            order = liked if self._tables.interactions.time is not None else random.permutation(liked)
            first = int(_EARLIEST_CUT * len(order))
            # The last view always ends where the evaluation begins: the longest context.
            cut = len(order) - 1 if view == self.views - 1 else int(random.integers(first, len(order)))
            found.append((order[:cut][::-1], order[cut : cut + self._targets]))
        return found


class HeldOutViews:
    """One row per user with a held-out item, written when it is read: the whole training history, and that item to predict.

    Args:
        users: int64 (rows,). The user of each row.
    """

    def __init__(self, split: Split, reader: Reader) -> None:
        self._split, self._reader = split, reader
        self.users = np.flatnonzero(split.held >= 0)

    def __len__(self) -> int:
        return len(self.users)

    def read(self, rows: NDArray[np.int64], *, serving: bool = True) -> Examples:
        """Some of the rows, in that order.

        Args:
            serving: Whether friends may speak without bound, as in recommendations that stay here.
        """
        split = self._split
        found = [(user, split.train[user][::-1], split.held[user : user + 1]) for user in self.users[rows].tolist()]
        return _examples(found, split, self._reader, serving=serving)


def _examples(
    rows: Sequence[tuple[int, NDArray[np.int32], NDArray[np.int32]]], split: Split, reader: Reader, *, serving: bool
) -> Examples:
    users, contexts = np.fromiter((user for user, _, _ in rows), np.int64, len(rows)), [context for _, context, _ in rows]
    return Examples(
        user=users,
        sequences=reader.sequences(users, contexts, serving=serving),
        targets=ragged([targets for _, _, targets in rows]),
        context=ragged(contexts),
        excluded=ragged([np.setdiff1d(split.known[user], targets) for user, _, targets in rows]),
    )
