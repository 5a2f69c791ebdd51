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

from dataclasses import dataclass, field, replace
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
from shared.preferences.packing import diagonal_of, working_matrix
from shared.preferences.shared_preferences import SharedPreferences

Floats = NDArray[np.float32]

_OF_POSTERIOR = 0.3
"""The ridge of factors that are a posterior mean, whose noise is damped already, against that of published ones."""


@dataclass(frozen=True, kw_only=True)
class ReleasedPreferences:
    """A release on a platform's own catalogue; it is read when its factors are asked for, which takes seconds where it is large.

    Args:
        shared: As it was published.
        hashes: Of the platform's items, in the order of its catalogue.
        words: Of the items' texts (`client.recommender.evidence.word_vectors`); None, or a release without its sum: the published
            factors are taken.
    """

    shared: SharedPreferences = field(repr=False)
    hashes: Hashes = field(repr=False)
    words: Sparse | None = field(repr=False)

    @cached_property
    def popularity(self) -> Floats:
        """Popularity, float32 (items,), NaN for an item that is not in the release."""
        return self.shared.popularity_on(self.hashes)

    @property
    def released(self) -> NDArray[np.bool_]:
        """Whether each of the platform's items is in the release, bool (items,)."""
        return ~np.isnan(self.popularity)

    @cached_property
    def factors(self) -> Floats:
        """Factors, float32 (rank, items), zeros for an item that is not in the release."""
        noised = _sum_of(self.shared)
        if noised is None or self.words is None:
            return self.shared.factors_on(self.hashes)
        return _read_anew(self.shared, noised.astype(np.float64), self.hashes, words=self.words).factors_on(self.hashes)

    @cached_property
    def ridge(self) -> ItemRidge:
        """The regression of every item on the others, by a public rule."""
        penalty = public_ridge(len(self.shared.items), self.shared.noise)
        if _sum_of(self.shared) is not None and self.words is not None:
            penalty = max(_OF_POSTERIOR * penalty, 1.0)
        return ItemRidge(scipy.sparse.csr_matrix(self.factors), ridge=penalty)


def released_on(shared: SharedPreferences, hashes: Hashes, *, words: Sparse | None = None) -> ReleasedPreferences:
    """A release on the items of a platform; as `ReleasedPreferences`."""
    return ReleasedPreferences(shared=shared, hashes=hashes, words=words)


def released_by_others(
    shared: SharedPreferences, hashes: Hashes, *, words: Sparse, liked: Ragged
) -> tuple[Floats | None, Floats | None]:
    """Factors and popularity of what others released, as `fused_with` takes them; None where the release has no sum.

    Args:
        hashes, words: As `ReleasedPreferences`.
        liked: What the platform's users like, as it was summed.

    Returns:
        float32 (rank, items); float32 (items,), NaN for an item that is not in the release.
    """
    noised = _sum_of(shared)
    if noised is None:
        return None, None
    axis, items, place = shared.axis, len(shared.items), places_of(hashes, shared.items)
    mine = bounded_preferences(liked, place, direction=axis.direction, items=items).vector()
    along = length_along(liked, place, direction=axis.direction, items=items)
    _, put_in = axis.put_back(np.zeros((0, items), np.float32), diagonal_of(mine, items), users=shared.users, along=along)
    left = max(shared.users * axis.share - along, 0.0)
    others = _read_anew(replace(shared, popularity=shared.popularity - put_in), noised - mine, hashes, words=words, along=left)
    return others.factors_on(hashes), others.popularity_on(hashes)


def _sum_of(shared: SharedPreferences) -> NDArray[np.float32] | None:
    """The sum that can be read anew, float32 (triangle_size(m),)."""
    return shared.noised if len(shared.factors) else None


def _read_anew(
    shared: SharedPreferences, noised: NDArray[np.float64], hashes: Hashes, *, words: Sparse, along: float | None = None
) -> SharedPreferences:
    """The release with factors of what its sum says of the items of a catalogue.

    Args:
        noised: float64 (triangle_size(m),). The sum beside the axis.
        along: As `PopularityAxis.put_back`.
    """
    axis, items = shared.axis, len(shared.items)
    # An item that is listed twice counts once.
    here, first = np.unique(places_of(hashes, shared.items), return_index=True)
    here, first = here[here >= 0], first[here >= 0]
    own = words[first]
    cosines = np.asarray((own @ own.T).toarray(), np.float64)
    matrix = working_matrix(noised, items)[np.ix_(here, here)]
    read = posterior_factors(matrix, cosines, noise=shared.noise / (1.0 - axis.share))
    beside = np.zeros((len(read), items), np.float32)
    beside[:, here] = read
    factors, _ = axis.put_back(beside, np.zeros(items), users=shared.users, along=along)
    return replace(shared, factors=factors, noised=None)
