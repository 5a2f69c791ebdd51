"""A few of a platform's users as the model reads them, without a model: what `fedfuse check` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.examples.friends import Friends
from client.examples.item_texts import build_catalogue
from client.examples.split import can_be_held_out, leave_one_out
from client.examples.texts import Texts
from client.examples.user_examples import Reader, profile_shares
from client.sources.tables import Interactions, Notes, Tables, Ties
from shared.base.settings import Settings
from shared.model.backbone import shape_of, tokenizer_of

LOOKED_AT = 1000
"""Texts of a source that are counted as whole or cut."""
SHOWN = 2
"""Users that are shown."""
ONE_LIKED, ALL_MET = "one liked item alone", "every item was met, so it would be the only candidate"
"""Why nothing of a user is held out."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a person sees before a run.

    Args:
        evaluated: Users with a held-out item.
        group_size: Training examples that one user may touch.
        item: An item's text.
        users: Of some users their id, text and held-out item, or why nothing is held out.
        cut: Source -> how many of the texts that were looked at are cut, of how many.
    """

    evaluated: int
    group_size: int
    item: str
    users: Sequence[Mapping[str, Any]]
    cut: Mapping[str, tuple[int, int]]


def preview(file: PlatformFile, settings: Settings, tables: Tables) -> Preview:
    """Texts of the first users that train, exactly as training would read them.

    Only the rows of these users, and of the friends who may speak in their texts, are looked at.

    Raises:
        InputError: the backbone's tokenizer cannot be used.
    """
    table = tables.interactions
    liked = np.diff(np.concatenate([[0], np.cumsum(table.positive)])[table.offsets])
    users = np.flatnonzero(liked)[:SHOWN]
    some, numbers = _circle(tables, users)
    split = leave_one_out(some, seed=settings.seed, items=tables.items)
    texts = Texts(tokenizer_of(settings.model.backbone), longest=shape_of(settings.model.backbone).positions)
    declared = {name: source.tokens for name, source in file.sources.items() if source.tokens is not None}
    catalogue = build_catalogue(some, texts, settings.model, declared)
    reader = Reader(some, catalogue, texts, Friends(some, split), settings.model, declared)
    shown = [
        {
            "user": some.user_ids[user],
            "text": texts.words(reader.sequence(user, split.train[user][::-1], serving=False)),
            "held_out": some.item_titles[split.held[user]] if split.held[user] >= 0 else None,
            "because": "" if split.held[user] >= 0 else ONE_LIKED if len(split.train[user]) < 2 else ALL_MET,
        }
        for user in numbers
    ]
    return Preview(
        evaluated=int(can_be_held_out(liked, np.diff(table.offsets), items=tables.items).sum()),
        group_size=1 + sum(ties.influence + ties.friends for ties in tables.ties.values() if ties.influence),
        item=texts.words(catalogue.sequences[0]),
        users=shown,
        cut=_cut(tables, texts, settings, declared),
    )


def _cut(tables: Tables, texts: Texts, settings: Settings, declared: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """How many texts of items and profiles are longer than what they may take, among the first `LOOKED_AT` that there are."""
    model = settings.model
    found: dict[str, tuple[int, int]] = {}
    lengths: dict[str, list[int]] = {}
    for name, profiles in tables.user_text.items():
        lengths[name] = [len(ids) for ids in texts.tokenise(profiles[:LOOKED_AT], most=model.user_tokens)]
    for at in range(min(LOOKED_AT, tables.users)):
        needed = [(lengths[name][at], declared.get(name)) for name in lengths]
        for name, (need, _), share in zip(lengths, needed, profile_shares(needed, most=model.user_tokens), strict=True):
            cut, of = found.get(name, (0, 0))
            found[name] = cut + (need > share), of + (need > 0)
    # The first source of items takes what the others leave, the others their shares.
    sections = list(tables.item_text.items())[:1]
    for name, described in sections:
        ids = texts.tokenise(described[:LOOKED_AT], most=model.item_tokens)
        found[name] = sum(len(one) > model.item_tokens - 2 for one in ids), sum(len(one) > 0 for one in ids)
    return found


def _circle(tables: Tables, users: NDArray[np.int64]) -> tuple[Tables, list[int]]:
    """The tables of these users, of whom they name, and of whoever else names those; and the users' numbers in them."""
    circle = set(users.tolist())
    for ties in tables.ties.values():
        named = {int(friend) for user in users for friend in ties.friend[ties.offsets[user] : ties.offsets[user + 1]]} - {-1}
        asking = np.searchsorted(ties.offsets, np.flatnonzero(np.isin(ties.friend, list(named))), side="right") - 1
        circle |= named | set(asking.tolist())
    kept = np.asarray(sorted(circle), np.int64)
    number = np.full(tables.users + 1, -1, np.int32)  # the last place is that of a friend who is no user
    number[kept] = np.arange(len(kept))
    rows = _rows(tables.interactions.offsets, kept)
    items = np.unique(np.concatenate([[0], tables.interactions.item[rows]]))
    item = np.full(tables.items + 1, -1, np.int32)
    item[items] = np.arange(len(items))
    table = tables.interactions
    some = replace(
        tables,
        item_ids=[tables.item_ids[at] for at in items],
        item_titles=[tables.item_titles[at] for at in items],
        item_keys=[tables.item_keys[at] for at in items],
        item_text={name: [texts[at] for at in items] for name, texts in tables.item_text.items()},
        item_vectors={},
        user_ids=[tables.user_ids[at] for at in kept],
        interactions=Interactions(
            offsets=_offsets(table.offsets, kept),
            item=item[table.item[rows]],
            weight=table.weight[rows],
            positive=table.positive[rows],
            time=None if table.time is None else table.time[rows],
        ),
        user_text={name: [texts[at] for at in kept] for name, texts in tables.user_text.items()},
        notes={name: _notes(notes, kept, item) for name, notes in tables.notes.items()},
        user_vectors={},
        ties={name: _ties(ties, kept, number) for name, ties in tables.ties.items()},
    )
    return some, [int(number[user]) for user in users]


def _rows(offsets: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(offsets[user], offsets[user + 1]) for user in kept)])


def _offsets(offsets: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(offsets[kept + 1] - offsets[kept])]).astype(np.int64)


def _notes(notes: Notes, kept: NDArray[np.int64], item: NDArray[np.int32]) -> Notes:
    rows = _rows(notes.offsets, kept)
    texts = [notes.text[row] for row in rows]
    return Notes(offsets=_offsets(notes.offsets, kept), item=item[notes.item[rows]], text=texts, public=notes.public)


def _ties(ties: Ties, kept: NDArray[np.int64], number: NDArray[np.int32]) -> Ties:
    return replace(ties, offsets=_offsets(ties.offsets, kept), friend=number[ties.friend[_rows(ties.offsets, kept)]])
