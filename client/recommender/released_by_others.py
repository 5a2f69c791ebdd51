"""Released preferences without a platform's own part in them.

A platform that took part finds its own users in what was released. They count in its own matrix already, exactly; and a left-out
point of theirs is no test of a release that holds the item to be predicted. On a generated shop that made up two thirds of the
sum validation promised a gain of .005 and held-out items lost .014 (NDCG@10 -14 %).

The platform knows its part S exactly, but of the noised sum A = S + R (R: the others and the noise) only what denoising left of
it: f(A) = sum of t_i u_i u_i', with t and l = t + e^2 / (4 t) as in `shared/preferences/denoising.py`. To first order in S

    f(A) - f(A - S) = P S P + P S Q + Q S P,   P the projection on the u_i, Q = I - P,

where the coefficient of P S Q is the mean of t_i / (l_i - l) over the eigenvalues l of the noise, t_i times the semicircle's
Stieltjes transform, which is 1 / t_i; that of P S P is 1 / (1 - e^2 / (4 t_i t_j)), near enough to 1 for what stands out of the
noise. P S P alone leaves most of the leak, since a user's item to be predicted is mostly outside of P: on the same shop and its
small neighbour validation promised .007 and .067, held-out items gave -.001 and .020, with the whole term .002 and .039, and .001
and .025.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]

from client.examples.split import Ragged
from client.privacy.preference_release import exact_part
from shared.preferences.denoising import MOST_FACTORS
from shared.preferences.item_index import Hashes, places_of
from shared.preferences.shared_preferences import SharedPreferences

_NOTHING = 1e-6
"""Share of the largest eigenvalue that is rounding."""


def released_by_others(shared: SharedPreferences, liked: Ragged, hashes: Hashes) -> SharedPreferences:
    """What was released, less what this platform put in; for its own use alone, since its part is exact.

    Args:
        liked: What the platform's users like, as it was summed.
        hashes: Of the platform's items, in the order of its catalogue.
    """
    place = places_of(hashes, shared.items)
    lengths = np.linalg.norm(shared.factors.astype(np.float64), axis=1)
    if not lengths.any() or not (place >= 0).any():
        return shared
    # The first is the axis of popularity, sqrt(users x its share) long; the others are of the sum without it, scaled by the rest.
    along, axis = lengths[0] ** 2, shared.factors[0].astype(np.float64) / max(lengths[0], np.finfo(float).tiny)
    rest = 1.0 - along / shared.users
    values = lengths[1:] ** 2
    directions = shared.factors[1:].astype(np.float64).T / np.maximum(lengths[1:], np.finfo(float).tiny)
    own = exact_part(liked, place, direction=axis.astype(np.float32), vectors=directions)
    # Everything lies in the span of the directions and of what S makes of them.
    basis, _ = np.linalg.qr(np.hstack([directions, own.moved]))
    inside, moved = basis.T @ directions, rest * (basis.T @ own.moved)
    crossed = moved @ inside.T
    both = crossed + crossed.T - inside @ (inside.T @ moved) @ inside.T
    found, turned = scipy.linalg.eigh((inside * values) @ inside.T - both, check_finite=False)
    kept = np.flatnonzero(found > _NOTHING * max(float(values.max(initial=0.0)), 1.0))[::-1]
    factors = (np.sqrt(found[kept]) * (basis @ turned[:, kept])).T
    popularity = shared.popularity - (rest * own.diagonal + own.along * axis**2)
    return replace(
        shared,
        factors=np.vstack([np.sqrt(max(along - own.along, 0.0)) * axis[None], factors]).astype(np.float32)[:MOST_FACTORS],
        popularity=np.maximum(popularity, 0.0).astype(np.float32),
    )
