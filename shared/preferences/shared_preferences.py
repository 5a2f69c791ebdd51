"""Released preferences as they are published: the noised sum, and factors of what is denoised of it, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, ProtocolError
from shared.preferences.denoising import MOST_FACTORS
from shared.preferences.item_index import Hashes, parse_items, places_of
from shared.preferences.popularity_axis import MOST_ALONG, PopularityAxis
from shared.preferences.sum_kind import triangle_size

FILE = "preferences.safetensors"
MOST_ITEMS = 1 << 14
"""Items of a release, at most: 2^27 numbers."""
_ROUNDING = 1e-3
_TYPES = {"items": "uint64", "factors": "float32", "popularity": "float32", "noised": "float32"}


@dataclass(frozen=True, kw_only=True)
class SharedPreferences:
    """What a federation knows together of which items are liked together.

    Args:
        items: Hashes of the items' public keys (`shared/preferences/item_index.py`), uint64 (m,), ascending.
        factors: float32 (rank, m). `factors.T @ factors` is what is known of the sum over users of x x' / |x|^2, x the indicator
            of what a user likes of these items; the first is the direction of popularity
            (`shared/preferences/popularity_axis.py`). A user counts more in the others the less they follow popularity.
        popularity: float32 (m,). The diagonal of that sum with its noise: each user counts some 1 / |x|^2 at every item in x.
        noise: Standard deviation of the noise in each entry of `popularity`, and sqrt(2) times that of each pair.
        users: Declared users of the platforms that are in the sum.
        noised: float32 (triangle_size(m),). The sum beside the direction of popularity as it was released, noise and all
            (`shared/preferences/packing.py`): whoever knows which items are alike reads more in it than in the factors
            (`shared/preferences/likeness_prior.py`). None: published by a version before 0.3.

    Raises:
        ProtocolError: shapes that do not fit together, values that are not finite.
    """

    items: Hashes = field(repr=False)
    factors: NDArray[np.float32] = field(repr=False)
    popularity: NDArray[np.float32] = field(repr=False)
    noise: float
    users: int
    noised: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        m = len(self.items)
        fits = self.factors.ndim == 2 and self.factors.shape[1] == m and self.popularity.shape == (m,)
        if not (fits and m <= MOST_ITEMS and len(self.factors) <= MOST_FACTORS):
            raise ProtocolError(f"preferences of {m} items with factors {self.factors.shape}")
        if not (np.isfinite(self.factors).all() and np.isfinite(self.popularity).all() and 0 <= self.noise < np.inf):
            raise ProtocolError("preferences that are not finite")
        if self.noised is not None:
            self._require_sum(self.noised)

    def _require_sum(self, noised: NDArray[np.float32]) -> None:
        m = len(self.items)
        if noised.shape != (triangle_size(m),) or not ((len(self.factors) and self.users > 0) or m == 0):
            raise ProtocolError(f"a sum of {noised.shape} numbers for the preferences of {m} items")
        if not np.isfinite(noised).all():
            raise ProtocolError("preferences that are not finite")
        if m:
            _ = self.axis

    @property
    def axis(self) -> PopularityAxis:
        """The direction of popularity, and how much of a user lies along it; of a release of at least one item.

        Raises:
            ProtocolError: the first factor is no such direction.
        """
        length = float(np.linalg.norm(self.factors[0].astype(np.float64)))
        direction, share = self.factors[0] / np.float32(max(length, 1e-30)), length**2 / self.users
        return PopularityAxis(direction=direction, share=min(share, MOST_ALONG) if share <= MOST_ALONG + _ROUNDING else share)

    def factors_on(self, hashes: Hashes) -> NDArray[np.float32]:
        """The factors on a platform's own catalogue, float32 (rank, items); zeros for an item that is not among these."""
        place = places_of(hashes, self.items)
        found = np.zeros((len(self.factors), len(hashes)), np.float32)
        found[:, place >= 0] = self.factors[:, place[place >= 0]]
        return found

    def popularity_on(self, hashes: Hashes) -> NDArray[np.float32]:
        """Popularity on a platform's own catalogue, float32 (items,), at least 0; NaN for an item that is not among these."""
        place = places_of(hashes, self.items)
        found = np.full(len(hashes), np.nan, np.float32)
        found[place >= 0] = np.maximum(self.popularity[place[place >= 0]], 0.0)
        return found


def save_preferences(path: Path, preferences: SharedPreferences) -> None:
    """Write them, for everybody to read.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {
        "items": preferences.items,
        "factors": preferences.factors,
        "popularity": preferences.popularity,
    }
    if preferences.noised is not None:
        tensors["noised"] = preferences.noised
    facts = {"noise": preferences.noise, "users": preferences.users}
    write_whole(path, save(tensors, metadata={"format": "np", "preferences": json.dumps(facts, sort_keys=True)}))


def load_preferences(path: Path) -> SharedPreferences:
    """Read them; somebody else may have written the file.

    Returns:
        `items`, uint64 (m,), hashes of public keys, ascending; `factors`, float32 (rank, m); `popularity`, float32 (m,); the
        standard deviation of the noise in each entry of `popularity`; the declared users.

    Raises:
        InputError: there are none, or they are damaged.

    | given | result |
    |---|---|
    | no such file | `InputError` |
    | an empty file, or half of one | `InputError` |
    | no item | read: factors of shape (0, 0) |
    """
    try:
        with safe_open(str(path), framework="np") as file:
            facts = json.loads((file.metadata() or {})["preferences"])
            written = set(file.keys())
            names = [name for name in _TYPES if name != "noised" or name in written]
            tensors = {name: file.get_tensor(name) for name in names}
        types = {name: str(value.dtype) for name, value in tensors.items()}
        if types != {name: _TYPES[name] for name in names}:
            raise ProtocolError(f"tensors of types {types}")
        return SharedPreferences(
            items=parse_items(tensors["items"].astype("<u8").tobytes(), most=MOST_ITEMS),
            factors=tensors["factors"],
            popularity=tensors["popularity"],
            noise=float(facts["noise"]),
            users=int(facts["users"]),
            noised=tensors.get("noised"),
        )
    except FileNotFoundError:
        raise InputError("there are no shared preferences", where=str(path), do="name the folder of a published model") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, ProtocolError) as error:
        raise InputError(f"the shared preferences are damaged ({error})", where=str(path), do="pull the model again") from None
