"""The attack on what a run sums once: canary users on one platform, and what the sums and the published model tell of them.

The attacker knows all rows but the canaries', every setting, and what left: each platform's answers under local noise, the sums
over platforms under a secure sum. All sums count: that of single items, that of pairs, and that behind a taste map.

The black box sees the published model alone: how strongly it recommends each of a canary's items from the others; or, where a
taste map is all that is published, how much of a canary's taste is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, read_rows
from client.privacy.preference_release import bounded_likes, bounded_preferences
from client.privacy.taste_release import bounded_tastes, taste_of
from client.recommender.frozen_texts import frozen_item_vectors
from client.recommender.item_ridge import ItemRidge
from server.registry.publication import MODEL
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.preferences.denoising import public_ridge
from shared.preferences.item_index import Hashes, parse_items, places_of
from shared.preferences.packing import packed, unpacked
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.popularity_axis import parse_direction
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences
from shared.preferences.sum_kind import SumKind, sum_size
from shared.preferences.summed_preferences import PreferenceQuestion, PreferenceSum
from shared.preferences.taste_directions import item_directions
from shared.preferences.taste_map import FILE as TASTE_FILE
from shared.preferences.taste_map import load_taste_map
from shared.privacy.releases import ReleaseKind
from shared.protocol.messages import Answer, Prefer, Preferred, Request
from simulations.attack.canaries import Canaries, packed_canaries, with_canaries
from simulations.attack.linear_decoding import LinearView, decoded, likely_noise
from simulations.attack.one_run import CanaryScores, Floats
from simulations.run import Simulation, federate_virtually
from simulations.worlds.world import World

MOST = 1500
"""Canaries: more make the bound little better."""

_KINDS = {
    SumKind.TASTE: ReleaseKind.TASTE,
    SumKind.LIKES: ReleaseKind.POPULARITY,
    SumKind.PREFERENCES: ReleaseKind.PREFERENCES,
}


@dataclass(frozen=True, kw_only=True)
class PreferenceAttack:
    """What the attack saw.

    Args:
        platform: Where the canaries are.
        epsilon, delta: What the platform's ledger claims, when all was released.
        white_box: From the released sums.
        black_box: From the published model.
        views: Each sum, as the white box has it, with the noise that the ledger or the coordinator says.
    """

    platform: str
    epsilon: float
    delta: float
    white_box: CanaryScores
    black_box: CanaryScores
    views: Mapping[SumKind, LinearView]


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """One released sum.

    Args:
        direction: Of popularity, for one of pairs.
        noise: Standard deviation; None where the ledger says it.
    """

    of: SumKind
    items: Hashes
    direction: NDArray[np.float32] | None
    vector: Floats
    noise: float | None = None


@dataclass
class _Seen:
    """Releases of the platform that is attacked, as whoever asks for them sees them."""

    sums: dict[SumKind, _Sum] = field(default_factory=dict)

    def observe(self, request: Request, answer: Answer, seconds: float) -> None:
        if isinstance(request, Prefer) and isinstance(answer, Preferred):
            items = parse_items(request.items)
            direction = parse_direction(request.axis, items=len(items)) if request.axis else None
            vector = answer.sums[str(request.of)].astype(np.float64)
            self.sums[request.of] = _Sum(of=request.of, items=items, direction=direction, vector=vector)

    def summed(self, asked: PreferenceQuestion, found: PreferenceSum) -> None:
        self.sums[asked.of] = _Sum(
            of=asked.of, items=asked.items, direction=asked.direction, vector=found.vector, noise=found.noise
        )


def attack_preferences(world: World, settings: Settings, out: Path, *, platform: str = "", most: int = MOST) -> PreferenceAttack:
    """Run the world once with canaries on one platform, and score them.

    Args:
        out: A new folder for the run.
        platform: Where the canaries go; by default, where most items are shared.
        most: Canaries, at most; half of them are in.

    Raises:
        InputError: no two platforms share enough items, there is no such platform, or the settings share no preferences.
    """
    asked = settings.preferences
    if not asked.items and not asked.map:
        raise InputError("these settings share no preferences", where="preferences.items", do="attack a run that does")
    rows = {file.name: read_rows(file, settings) for file in map(load, world.platforms)}
    target, shared = _target(rows, platform, shared=bool(asked.items))
    random = np.random.default_rng([settings.seed, *b"canaries"])
    # A taste map is of all of a platform's items, and sums over items are of those that it shares.
    here = (
        np.flatnonzero(places_of(rows[target].item_hashes, shared) >= 0) if asked.items else np.arange(rows[target].tables.items)
    )
    if not asked.items:
        # In as many as it has numbers each is hidden among the others.
        most = min(most, max(20, sum_size(asked.map, SumKind.TASTE) // 2))
    canaries = packed_canaries(here, most=most, random=random)
    attacked = {**rows, target: with_canaries(rows[target], canaries)}
    seen, plan = _Seen(), Simulation(world=world, settings=settings, out=out)
    out.mkdir(parents=True, exist_ok=True)
    if settings.distributed:
        federate_virtually(plan, "attack", attacked, out, sums=seen.summed)
    else:
        federate_virtually(plan, "attack", attacked, out, observers={target: seen.observe})
    others = list(rows) if settings.distributed else [target]
    if (SumKind.PREFERENCES if asked.items else SumKind.TASTE) not in seen.sums:
        raise InputError("the platform released no preferences", where=target, do="look at its budget and its [federation] terms")
    ledger = read_ledger(out / "ledger" / f"{target}.jsonl")
    noise = {entry.kind: entry.noise_multiplier for entry in ledger.entries}
    mapped = {name: _directions(rows[name], settings, out) for name in others} if SumKind.TASTE in seen.sums else {}
    views: dict[SumKind, LinearView] = {}
    for kind, one in seen.sums.items():
        residual = one.vector - sum(_exact(rows[name], one, mapped.get(name)) for name in others)
        deviation = noise[_KINDS[kind]] if one.noise is None else one.noise
        if kind is SumKind.TASTE:
            views[kind] = _taste_view(residual, _tastes(mapped[target], canaries), noise=deviation)
        else:
            views[kind] = _view(one, residual, _contributions(one, rows[target], canaries), noise=deviation)
    if asked.items:
        black = _model_scores(load_preferences(out / MODEL / FILE), rows[target], canaries)
    else:
        black = _tastes(mapped[target], canaries) @ packed(load_taste_map(out / MODEL / TASTE_FILE).matrix.astype(np.float64))
    return PreferenceAttack(
        platform=target,
        epsilon=ledger.epsilon,
        delta=ledger.header.delta,
        white_box=CanaryScores(
            score=decoded([replace(view, noise=likely_noise(view)) for view in views.values()]), inside=canaries.inside
        ),
        black_box=CanaryScores(score=black, inside=canaries.inside),
        views=views,
    )


def _directions(rows: PlatformRows, settings: Settings, out: Path) -> Floats:
    """Directions of a platform's items, as it has them itself; public."""
    cache = out / "state" / rows.name / "trunk"
    vectors = frozen_item_vectors(rows.file, rows.tables, settings.model, cache=cache)
    return item_directions(vectors, settings.preferences.map)


def _tastes(directions: Floats, canaries: Canaries) -> Floats:
    """What each canary adds to a taste map, (m, size)."""
    return np.stack([packed(taste_of(directions[history])) for history in canaries.histories])


def _taste_view(residual: Floats, added: Floats, *, noise: float) -> LinearView:
    return LinearView(
        along=added @ residual, meeting=added @ added.T, noise=noise, energy=float(residual @ residual), size=len(residual)
    )


def _target(rows: Mapping[str, PlatformRows], platform: str, *, shared: bool) -> tuple[str, Hashes]:
    lists = [parse_items(one.item_list) for one in rows.values()] if shared else []
    common = PlatformLists.of(lists).shared() if shared else np.zeros(0, np.uint64)
    if platform and platform not in rows:
        raise InputError(f"no platform {platform[:63]!r}", where="--platform", do=f"choose one of: {', '.join(rows)}")
    count = {
        name: int((places_of(one.item_hashes, common) >= 0).sum()) if shared else one.tables.items for name, one in rows.items()
    }
    return platform or max(count, key=lambda name: count[name]), common


def _exact(rows: PlatformRows, asked: _Sum, directions: Floats | None = None) -> Floats:
    """What a platform's users other than canaries add.

    Args:
        directions: Of its items, for a taste map.
    """
    if asked.of is SumKind.TASTE:
        assert directions is not None
        return bounded_tastes(rows.split.train, directions).vector()
    place, items, liked = places_of(rows.item_hashes, asked.items), len(asked.items), rows.split.train
    if asked.direction is None:
        return bounded_likes(liked, place, items=items).vector()
    return bounded_preferences(liked, place, direction=asked.direction, items=items).vector()


def _contributions(asked: _Sum, rows: PlatformRows, canaries: Canaries) -> Floats:
    """The unit vector of each canary, (m, items), for pairs beside the axis; zeros where none of its items is asked for."""
    place = places_of(rows.item_hashes, asked.items)[canaries.histories]
    unit = np.zeros((len(canaries), len(asked.items)))
    row, column = np.nonzero(place >= 0)
    unit[row, place[row, column]] = 1.0
    if asked.direction is not None:
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1.0)
        axis = asked.direction.astype(np.float64) / np.linalg.norm(asked.direction.astype(np.float64))
        unit -= np.outer(unit @ axis, axis)
    return np.asarray(unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12), np.float64)


def _view(asked: _Sum, residual: Floats, unit: Floats, *, noise: float) -> LinearView:
    products, energy = unit @ unit.T, float(residual @ residual)
    if asked.direction is None:
        return LinearView(along=unit @ residual, meeting=products, noise=noise, energy=energy, size=len(residual))
    # The product of v v' with a matrix R is v' R v, and with w w' it is (v' w)^2.
    matrix = unpacked(residual, len(asked.items))
    along = np.einsum("mi,mi->m", unit @ matrix, unit)
    return LinearView(along=along, meeting=products**2, noise=noise, energy=energy, size=len(residual))


def _model_scores(published: SharedPreferences, rows: PlatformRows, canaries: Canaries) -> Floats:
    """How strongly the published model recommends each item of a canary from its others, as the model card says."""
    place, count = places_of(rows.item_hashes, published.items), len(published.items)
    scores = np.zeros(len(canaries))
    if not len(published.factors):
        return scores
    model = ItemRidge(scipy.sparse.csr_matrix(published.factors), ridge=public_ridge(count, published.noise))
    for number, history in enumerate(canaries.histories):
        at = place[history][place[history] >= 0]
        without = np.zeros((len(at), count), np.float32)
        without[:, at] = 1.0
        without[np.arange(len(at)), at] = 0.0
        told = model.scores(scipy.sparse.csr_matrix(without))
        scores[number] = float(np.asarray(told)[np.arange(len(at)), at].sum())
    return scores
