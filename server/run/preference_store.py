"""What a run sums once, on disk: what was chosen by the first sum, before the second is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import FedfuseError, StorageError
from shared.preferences.item_index import parse_items
from shared.preferences.popularity_axis import PopularityAxis, parse_direction
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences, save_preferences
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum
from shared.preferences.taste_map import FILE as TASTE_FILE
from shared.preferences.taste_map import TasteMap, load_taste_map, save_taste_map

_CHOSEN = "preference-items.safetensors"

Ask = Callable[[PreferenceQuestion], PreferenceSum]
"""Sums over platforms."""
SumWatcher = Callable[[PreferenceQuestion, PreferenceSum], None]


class PreferenceStore:
    """The files of one run.

    Args:
        out: The run's folder.
        told: Called with every noised sum as the coordinator has it; for simulations that are attacked.
    """

    def __init__(self, out: Path, *, told: SumWatcher | None = None) -> None:
        self._chosen, self.path, self._taste, self._told = out / _CHOSEN, out / FILE, out / TASTE_FILE, told

    def watched(self, ask: Ask) -> Ask:
        """The same question, whose answer the watchers get."""
        told = self._told
        if told is None:
            return ask

        def asking(question: PreferenceQuestion) -> PreferenceSum:
            found = ask(question)
            told(question, found)
            return found

        return asking

    def chosen(self) -> ChosenItems | None:
        """What the run has asked about, or is about to; None before.

        Raises:
            StorageError: the file is damaged.
        """
        if not self._chosen.exists():
            return None
        try:
            tensors = load(read_checked(self._chosen))
            items = parse_items(tensors["items"].astype("<u8").tobytes())
            direction = parse_direction(tensors["direction"].astype("<f4").tobytes(), items=len(items))
            axis = PopularityAxis(direction=direction, share=float(tensors["share"]))
            return ChosenItems(items=items, axis=axis)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, FedfuseError) as error:
            raise StorageError(
                f"the chosen items cannot be read: {error}", where=str(self._chosen), do="start the run anew"
            ) from None

    def choose(self, chosen: ChosenItems) -> None:
        """Remember it."""
        axis = chosen.axis
        write_checked(
            self._chosen, save({"items": chosen.items, "direction": axis.direction, "share": np.array(axis.share, np.float64)})
        )

    def load(self) -> SharedPreferences | None:
        """What the run has made of its sums; None before.

        Raises:
            InputError: it is damaged.
        """
        return load_preferences(self.path) if self.path.exists() else None

    def save(self, preferences: SharedPreferences) -> None:
        """Keep it."""
        save_preferences(self.path, preferences)

    def load_taste(self) -> TasteMap | None:
        """The taste map of the run; None before.

        Raises:
            InputError: it is damaged.
        """
        return load_taste_map(self._taste) if self._taste.exists() else None

    def save_taste(self, taste: TasteMap) -> None:
        """Keep it."""
        save_taste_map(self._taste, taste)
