"""Shared preferences of a run on disk: the items that were chosen, before they are asked about, and what was made of the sums."""

from __future__ import annotations

from pathlib import Path

from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import FedfuseError, StorageError
from shared.preferences.item_index import Hashes, declared_items, parse_items
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences, save_preferences

_CHOSEN = "preference-items.bin"


class PreferenceStore:
    """The files of one run.

    Args:
        out: The run's folder.
    """

    def __init__(self, out: Path) -> None:
        self._chosen, self.path = out / _CHOSEN, out / FILE

    def chosen(self) -> Hashes | None:
        """Items that the run has asked about, or is about to; None before.

        Raises:
            StorageError: the file is damaged.
        """
        if not self._chosen.exists():
            return None
        try:
            return parse_items(read_checked(self._chosen))
        except (OSError, ValueError, FedfuseError) as error:
            raise StorageError(
                f"the chosen items cannot be read: {error}", where=str(self._chosen), do="start the run anew"
            ) from None

    def choose(self, items: Hashes) -> None:
        """Remember them."""
        write_checked(self._chosen, declared_items(items))

    def load(self) -> SharedPreferences | None:
        """What the run has made of its sums; None before.

        Raises:
            InputError: it is damaged.
        """
        return load_preferences(self.path) if self.path.exists() else None

    def save(self, preferences: SharedPreferences) -> None:
        """Keep it."""
        save_preferences(self.path, preferences)
