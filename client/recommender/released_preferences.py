"""Released preferences on a platform's catalogue: all of them, or without the platform's own part.

What is published is the noised sum itself, beside its strongest directions. A platform knows more of the items than whoever made
the sum: their texts. So it reads the sum anew, by what their words have in common (`shared/preferences/likeness_prior.py`); words
are public, and who likes what here is not looked at.

A platform that took part finds its own users in the sum. They count in its own matrix already, exactly; and a left-out point of
theirs is no test of a release that holds the item to be predicted. On a generated shop that made up two thirds of the sum
validation promised a gain of .005 and held-out items lost .014 (NDCG@10 -14 %). So it takes out what it put in, which it knows
exactly, before it fuses. What remains is the others' sum and the noise, for its own use alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.preference_release import bounded_preferences, length_along
from client.recommender.histories import Sparse
from client.recommender.item_ridge import ItemRidge
from shared.preferences.denoising import public_ridge
from shared.preferences.item_index import Hashes, places_of
from shared.preferences.likeness_prior import posterior_factors
from shared.preferences.packing import diagonal_of, unpacked
from shared.preferences.shared_preferences import SharedPreferences

Floats = NDArray[np.float32]

_DOUBLE = 2048
"""Items up to which is computed in float64; more take half the memory."""
_OF_POSTERIOR = 0.3
"""The ridge of factors that are a posterior mean, whose noise is damped already, against that of published ones."""


@dataclass(frozen=True, kw_only=True)
class ReleasedPreferences:
    """A release on a platform's own catalogue.

    Args:
        factors: float32 (rank, items), zeros for an item that is not in the release.
        popularity: float32 (items,), NaN for an item that is not in the release.
        penalty: Of a regression on these factors alone, a public rule.
    """

    factors: Floats = field(repr=False)
    popularity: Floats = field(repr=False)
    penalty: float

    @property
    def released(self) -> NDArray[np.bool_]:
        """Whether each of the platform's items is in the release, bool (items,)."""
        return ~np.isnan(self.popularity)

    @cached_property
    def ridge(self) -> ItemRidge:
        """The regression of every item on the others."""
        return ItemRidge(scipy.sparse.csr_matrix(self.factors), ridge=self.penalty)


def released_on(shared: SharedPreferences, hashes: Hashes, *, words: Sparse | None = None) -> ReleasedPreferences:
    """A release on the items of a platform.

    Args:
        hashes: Of the platform's items, in the order of its catalogue.
        words: Of the items' texts (`client.recommender.evidence.word_vectors`); None, or a release without its sum: the published
            factors.
    """
    penalty, popularity = public_ridge(len(shared.items), shared.noise), shared.popularity_on(hashes)
    if shared.noised is None or words is None or not len(shared.factors):
        return ReleasedPreferences(factors=shared.factors_on(hashes), popularity=popularity, penalty=penalty)
    factors = _read_anew(shared, shared.noised.astype(np.float64), hashes, words=words, axis=shared.factors[0])
    return ReleasedPreferences(factors=factors, popularity=popularity, penalty=max(_OF_POSTERIOR * penalty, 1.0))


def released_by_others(
    shared: SharedPreferences, hashes: Hashes, *, words: Sparse, liked: Ragged
) -> tuple[Floats | None, Floats | None]:
    """Factors and popularity of what others released, as `fused_with` takes them; None where the release has no sum.

    Args:
        hashes, words: As `released_on`.
        liked: What the platform's users like, as it was summed.

    Returns:
        float32 (rank, items); float32 (items,), NaN for an item that is not in the release.
    """
    if shared.noised is None or not len(shared.factors):
        return None, None
    place, items = places_of(hashes, shared.items), len(shared.items)
    along, axis = _axis_of(shared)
    mine = bounded_preferences(liked, place, direction=axis, items=items).vector()
    along_mine = length_along(liked, place, direction=axis, items=items)
    left = float(np.sqrt(max(along - along_mine, 0.0)))
    factors = _read_anew(shared, shared.noised - mine, hashes, words=words, axis=(left * axis).astype(np.float32))
    put_in = (1.0 - along / shared.users) * diagonal_of(mine, items) + along_mine * axis.astype(np.float64) ** 2
    found = np.full(len(hashes), np.nan, np.float32)
    found[place >= 0] = np.maximum(shared.popularity - put_in, 0.0)[place[place >= 0]]
    return factors, found


def _axis_of(shared: SharedPreferences) -> tuple[float, Floats]:
    """Squared length of the sum along the axis of popularity, and its direction, float32 (m,)."""
    length = float(np.linalg.norm(shared.factors[0]))
    direction: Floats = shared.factors[0] / np.float32(max(length, 1e-30))
    return length**2, direction


def _read_anew(shared: SharedPreferences, noised: NDArray[np.float64], hashes: Hashes, *, words: Sparse, axis: Floats) -> Floats:
    """Factors on the catalogue, float32 (rank, items), the axis first.

    Args:
        noised: float64 (triangle_size(m),). The sum beside the axis.
        axis: float32 (m,). What is put back.
    """
    items = len(shared.items)
    place = places_of(hashes, shared.items)
    # An item that stands in a catalogue twice is one.
    here, first = np.unique(place, return_index=True)
    here, first = here[here >= 0], first[here >= 0]
    rest = 1.0 - _axis_of(shared)[0] / shared.users
    noise = shared.noise / rest
    own = words[first]
    cosines = np.asarray((own @ own.T).toarray(), np.float64)
    matrix = unpacked(noised, items, single=items > _DOUBLE)[np.ix_(here, here)]
    beside = np.sqrt(np.float32(rest)) * posterior_factors(matrix, cosines, noise=noise)
    among = np.vstack([axis[here][None], beside])
    found = np.zeros((len(among), len(hashes)), np.float32)
    found[:, place >= 0] = among[:, np.searchsorted(here, place[place >= 0])]
    return found
