"""A platform as it would be without one of its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from client.config.platform_file import PlatformFile
from client.config.source_schema import ItemsSource, KnowledgeSource, ProfilesSource, ReviewsSource, VectorsSource
from client.sources.tables import Tables

Removal = Callable[[PlatformFile, Tables], Tables]
Named = TypeVar("Named")


def _named(file: PlatformFile, kind: type) -> set[str]:
    return {name for name, source in file.sources.items() if isinstance(source, kind)}


def _but(parts: Mapping[str, Named], gone: set[str]) -> dict[str, Named]:
    return {name: part for name, part in parts.items() if name not in gone}


def without_attributes(file: PlatformFile, tables: Tables) -> Tables:
    """Of items their titles alone: no categories, authors, descriptions and numbers."""
    described = _named(file, ItemsSource)
    texts = {name: tables.item_titles if name in described else text for name, text in tables.item_text.items()}
    return replace(tables, item_text=texts, item_vectors=_but(tables.item_vectors, described))


def without_texts(file: PlatformFile, tables: Tables) -> Tables:
    """Nothing that is written of items by their catalogue, titles included."""
    described, nothing = _named(file, ItemsSource), [""] * tables.items
    texts = {name: nothing if name in described else text for name, text in tables.item_text.items()}
    vectors = _but(tables.item_vectors, described)
    return replace(tables, item_text=texts or {"none": nothing}, item_titles=nothing, item_vectors=vectors)


def without_graph(file: PlatformFile, tables: Tables) -> Tables:
    """No knowledge graph, and so nothing that others know of its entities."""
    gone = _named(file, KnowledgeSource)
    return replace(tables, item_text=_but(tables.item_text, gone), item_elsewhere={})


def without_elsewhere(file: PlatformFile, tables: Tables) -> Tables:
    """Nothing that other platforms know of the items' entities."""
    return replace(tables, item_elsewhere={})


def without_vectors(file: PlatformFile, tables: Tables) -> Tables:
    """No pictures, sounds or other precomputed vectors."""
    gone = _named(file, VectorsSource)
    return replace(tables, item_vectors=_but(tables.item_vectors, gone), user_vectors=_but(tables.user_vectors, gone))


def without_profiles(file: PlatformFile, tables: Tables) -> Tables:
    """Nothing that users say of themselves."""
    gone = _named(file, ProfilesSource)
    return replace(tables, user_text=_but(tables.user_text, gone), user_vectors=_but(tables.user_vectors, gone))


def without_reviews(file: PlatformFile, tables: Tables) -> Tables:
    """No reviews and tags, neither as their authors' notes nor, where they are public, in items' texts."""
    gone = _named(file, ReviewsSource)
    return replace(tables, notes=_but(tables.notes, gone), item_text=_but(tables.item_text, gone))


def without_friends(file: PlatformFile, tables: Tables) -> Tables:
    """No social ties."""
    return replace(tables, ties={})


def without_weights(file: PlatformFile, tables: Tables) -> Tables:
    """Whatever is liked counts as 1, whichever event or value says so."""
    rows = tables.interactions
    return replace(tables, interactions=replace(rows, weight=np.where(rows.positive, np.float32(1.0), rows.weight)))


REMOVALS: dict[str, Removal] = {
    "attributes": without_attributes,
    "texts": without_texts,
    "knowledge graph": without_graph,
    "known elsewhere": without_elsewhere,
    "vectors": without_vectors,
    "profiles": without_profiles,
    "reviews": without_reviews,
    "friends": without_friends,
    "event weights": without_weights,
}
"""Name of a source -> the platform without it."""


def removed(file: PlatformFile, tables: Tables, source: str) -> Tables | None:
    """The platform without a source; None where it has none, so that nothing would change.

    Args:
        source: One of `REMOVALS`.
    """
    there = {
        "attributes": any(
            list(texts) != list(tables.item_titles)
            for name, texts in tables.item_text.items()
            if isinstance(file.sources.get(name), ItemsSource)
        ),
        "texts": any(map(any, tables.item_text.values())) or list(tables.item_titles) != list(tables.item_ids),
        "known elsewhere": bool(tables.item_elsewhere),
        "friends": bool(tables.ties),
        "event weights": len(np.unique(tables.interactions.weight[tables.interactions.positive])) > 1,
    }
    kinds = {"knowledge graph": KnowledgeSource, "vectors": VectorsSource, "profiles": ProfilesSource, "reviews": ReviewsSource}
    has = bool(_named(file, kinds[source])) if source in kinds else there[source]
    return REMOVALS[source](file, tables) if has else None
