"""The public side of a platform: one token sequence per item, and the short title that represents it in a history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.examples.texts import Piece, Texts
from client.sources.tables import Tables
from shared.base.settings import ModelSettings

if TYPE_CHECKING:
    from client.compute.feature_cache import Ids

_TITLE_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class ItemTexts:
    """Items as token ids.

    Args:
        sequences: One full text per item, for the item tower.
        titles: One short text per item, without special tokens and ending in a separator, for histories.
    """

    sequences: list[Ids]
    titles: list[Ids]


def build_catalogue(tables: Tables, texts: Texts, model: ModelSettings, declared: Mapping[str, int] | None = None) -> ItemTexts:
    """Join what the public sources say of each item, most important source first.

    The first source may take what the others leave; each further one has its declared tokens, else an equal share of half the
    budget.

    Args:
        declared: Source name -> the most tokens that the platform file gives it.
    """
    sections = [texts.tokenise(list(section), most=model.item_tokens) for section in tables.item_text.values()]
    if not sections:
        sections = [texts.tokenise(tables.item_titles, most=model.item_tokens)]
    share = max(1, model.item_tokens // 2 // max(1, len(sections) - 1))
    shares = [None, *((declared or {}).get(name, share) for name in list(tables.item_text)[1:])]
    sequences = []
    for parts in zip(*sections, strict=True):
        pieces = [Piece(ids=ids, share=most, parts=True) for ids, most in zip(parts, shares, strict=True)]
        sequences.append(texts.join(pieces, most=model.item_tokens))
    separator = texts.tokenise([";"], most=1)[0]
    titles = [np.concatenate([ids, separator]) for ids in texts.tokenise(tables.item_titles, most=_TITLE_TOKENS)]
    return ItemTexts(sequences=sequences, titles=titles)
