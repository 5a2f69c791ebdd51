"""A release without noise of what a platform's users like, for the tests of what is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.examples.split import Ragged
from client.privacy.preference_release import bounded_preferences
from client.sources.tables import Tables
from shared.preferences.denoising import preference_factors
from shared.preferences.item_index import item_hashes
from shared.preferences.packing import unpacked
from shared.preferences.shared_preferences import FILE, SharedPreferences, save_preferences
from shared.secagg.shared_catalogues import catalogue_digest


def release_of(tables: Tables, liked: Ragged, *, items: np.ndarray | None = None, noise: float = 0.0) -> SharedPreferences:
    """The preferences of all who like any of some items; by default of all items."""
    hashes = item_hashes(tables.item_keys, tables.item_ids, catalogue=catalogue_digest(tables.item_ids))
    chosen = np.arange(tables.items) if items is None else items
    order = chosen[np.argsort(hashes[chosen])]
    place = np.full(tables.items, -1)
    place[order] = np.arange(len(order))
    off = np.zeros(len(order), np.float32)
    vector = bounded_preferences(liked, place, direction=off, items=len(order)).vector()
    matrix = unpacked(vector + np.random.default_rng(0).normal(size=vector.size) * noise, len(order))
    return SharedPreferences(
        items=hashes[order],
        factors=preference_factors(matrix, noise=noise),
        popularity=np.diag(matrix).astype(np.float32),
        noise=noise,
        users=len(liked),
    )


def write_release(folder: Path, preferences: SharedPreferences) -> Path:
    """A model's folder with preferences alone."""
    folder.mkdir(parents=True, exist_ok=True)
    save_preferences(folder / FILE, preferences)
    return folder
