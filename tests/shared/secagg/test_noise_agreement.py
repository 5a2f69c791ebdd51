"""Which catalogues are pooled, from what platforms signed; both sides count alike."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from client.privacy.popularity_release import log_popularity
from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.preferences.sum_kind import SumKind
from shared.privacy.plan import LIKES_NOISE
from shared.secagg.codec import encode
from shared.secagg.noise_agreement import MOST_NOISE, Agreement, declared_by, pooled, require_owners
from shared.secagg.quorum import quorum_of
from shared.secagg.roster import Roster, RosterEntry, SumTerms
from shared.secagg.shared_catalogues import (
    BOUND,
    COUNT_NOISES,
    MOST_CATALOGUES,
    MOST_COUNT,
    MOST_ITEMS,
    MOST_USERS,
    DeclaredCatalogue,
    Popularity,
    shared_catalogues,
)

HALF = Settings(training={"sample_rate": 0.5})  # type: ignore[arg-type]


def of(mark: int, *, items: int = 10, users: int = 5) -> DeclaredCatalogue:
    return DeclaredCatalogue(digest=bytes([mark]) * 32, items=items, users=users)


def roster(*catalogues: DeclaredCatalogue, colluders: int = 0) -> Roster:
    entries = tuple(
        RosterEntry(
            platform=f"p{at:02d}", identity=bytes([at]) * 32, keys=bytes(32), signature=bytes(64), declared=encode(catalogue)
        )
        for at, catalogue in enumerate(catalogues)
    )
    return Roster(terms=SumTerms(run="run", rounds=1, threshold=0.5, colluders=colluders), entries=entries)


@pytest.mark.parametrize("colluders", [0, 1, 3])
def test_a_catalogue_is_pooled_from_colluders_and_two_on(colluders: int) -> None:
    few, enough = [of(1)] * (colluders + 1), [of(2)] * (colluders + 1) + [of(2, users=9)]
    assert shared_catalogues([*few, *enough], colluders=colluders) == (of(2, users=9),)


def test_two_sizes_under_one_hash_are_two_catalogues_and_one_place() -> None:
    assert shared_catalogues([of(1), of(1, items=11)], colluders=0) == ()
    assert shared_catalogues([of(1), of(1), of(1, items=11), of(1, items=11)], colluders=0) == (of(1),)


def test_they_are_bounded() -> None:
    large = [of(mark, items=MOST_ITEMS // 2) for mark in (1, 2, 3) for _ in range(2)]
    assert [one.digest[0] for one in shared_catalogues([*large, of(4), of(4)], colluders=0)] == [1, 2]
    many = [of(mark) for mark in range(100) for _ in range(2)]
    assert len(shared_catalogues(many, colluders=0)) == MOST_CATALOGUES
    for bad in ({"items": MOST_ITEMS + 1}, {"items": 0}, {"users": 0}, {"users": 1 << 32}, {"digest": b""}):
        with pytest.raises(ProtocolError):
            replace(of(1), **bad)  # type: ignore[arg-type]


def test_an_agreement_is_what_was_signed() -> None:
    made = roster(of(1), of(1, users=8), of(2))
    good = Agreement(noise_multiplier=1.0, batch=4.0, catalogues=pooled(made.entries, colluders=0))
    assert good.catalogues == (of(1, users=8),)
    good.require_signed(made, HALF)
    for bad in ((), (of(1),), (of(1, users=8), of(2)), (of(2),), good.catalogues * 2):
        with pytest.raises(ProtocolError, match="signed"):
            replace(good, catalogues=bad).require_signed(made, HALF)
    with pytest.raises(ProtocolError, match="signed"):
        good.require_signed(roster(of(1), of(1, users=8), of(2), colluders=1), HALF)
    for bad in ({"batch": 4.5}, {"batch": 0.0}):
        with pytest.raises(ProtocolError, match="batches"):
            replace(good, **bad).require_signed(made, HALF)  # type: ignore[arg-type]
    for bad in ({"batch": 2.0**32}, {"batch": float("nan")}, {"noise_multiplier": 1.1e6}, {"noise_multiplier": -1.0}):
        with pytest.raises(ProtocolError, match="agreed"):
            replace(good, **bad)  # type: ignore[arg-type]


def test_what_cannot_be_read_names_its_platform() -> None:
    made = roster(of(1), of(2))
    broken = replace(made.entries[1], declared=b"x")
    with pytest.raises(ProtocolError, match="'p01'"):
        declared_by(broken)


@pytest.mark.parametrize(
    ("colluders", "survivors", "holds"),
    [
        (0, (0, 1, 2, 3), True),
        (0, (0, 2, 3), True),
        (0, (0, 3), False),
        (0, (3,), True),
        (1, (0, 1, 2), True),
        (1, (0, 1, 3), False),
    ],
)
def test_nobody_is_left_alone(colluders: int, survivors: tuple[int, ...], holds: bool) -> None:
    made = roster(of(1), of(1), of(1), of(2), colluders=colluders)
    if holds:
        require_owners(made, [of(1)], survivors)
    else:
        with pytest.raises(ProtocolError, match="are left"):
            require_owners(made, [of(1)], survivors)


def test_a_popularitys_digest_is_of_all_of_it() -> None:
    one = Popularity(counts=bytes(8), noise=1.0)
    assert len({one.digest, replace(one, noise=2.0).digest, replace(one, counts=bytes(4)).digest}) == 3


@pytest.mark.parametrize("name", ["noise_multiplier", "preference_noise", "taste_noise", "batch"])
def test_every_number_of_an_agreement_has_bounds(name: str) -> None:
    most = MOST_USERS if name == "batch" else MOST_NOISE
    good = Agreement(noise_multiplier=1.0, batch=4.0)
    for end in (0.0, float(most)):
        assert getattr(replace(good, **{name: end}), name) == end
    for beyond in (-1e-300, math.nextafter(most, math.inf), math.inf, math.nan):
        with pytest.raises(ProtocolError, match=f"agreed {name}"):
            replace(good, **{name: beyond})


def test_so_have_its_catalogues_together() -> None:
    full = (of(1, items=MOST_ITEMS - 1), of(2, items=1))
    assert Agreement(noise_multiplier=1.0, batch=4.0, catalogues=full).catalogues == full
    with pytest.raises(ProtocolError, match=f"{MOST_ITEMS + 1} items"):
        Agreement(noise_multiplier=1.0, batch=4.0, catalogues=(*full, of(3, items=1)))


@pytest.mark.parametrize("name", ["noise_multiplier", "preference_noise", "taste_noise"])
@pytest.mark.parametrize("noise", [0.0, 5e-324, 1.0, MOST_NOISE])
def test_popularities_are_noised_as_soon_as_any_platform_needs_noise(name: str, noise: float) -> None:
    agreed = replace(Agreement(noise_multiplier=0.0, batch=4.0, catalogues=(of(1),)), **{name: noise})
    settings, quorum = Settings(), quorum_of(3, threshold=0.6, colluders=0)
    assert agreed.private == (noise > 0)
    noised = agreed.popularity_point(quorum=quorum, settings=settings).noise_multiplier
    assert noised == (settings.privacy.prior_noise_multiplier if noise > 0 else 0.0) and settings.privacy.prior_noise_multiplier


@pytest.mark.parametrize("colluders", [0, 1])
def test_every_sum_is_of_the_agreed_noise_and_counts_on_those_who_do_not_collude(colluders: int) -> None:
    made = roster(of(1, users=9), of(1), of(1, users=40), of(2), colluders=colluders)
    agreed = Agreement(
        noise_multiplier=1.5, batch=4.0, preference_noise=2.5, taste_noise=3.5, catalogues=(of(1), of(3, items=7, users=8))
    )
    points = {of: agreed.preference_point(dimension=17, of=of, roster=made) for of in SumKind}
    trained = agreed.point(dimension=17, quorum=made.quorum, clip=0.25)
    counted = agreed.popularity_point(quorum=made.quorum, settings=Settings())
    for point in (*points.values(), trained, counted):
        assert (point.participants, point.honest) == (4, made.quorum.threshold - colluders)
        assert (point.dimension, point.clip) == (17, 0.25 if point is trained else 1.0)
    assert (trained.noise_multiplier, trained.batch) == (1.5, 4.0)
    noises = {SumKind.PREFERENCES: 2.5, SumKind.LIKES: LIKES_NOISE * 2.5, SumKind.TASTE: 3.5}
    assert {of: point.noise_multiplier for of, point in points.items()} == noises
    # A direction of texts may be everybody's of the largest platform; the only item that a tenth of it likes has room.
    assert {of: point.coordinate for of, point in points.items()} == {of: 40 if of is SumKind.TASTE else 4.0 for of in SumKind}
    assert counted.room == pytest.approx(8 / math.sqrt(BOUND))  # of an item that all of the largest catalogue's 8 users like


def test_so_has_a_popularity() -> None:
    def of_counts(*counts: float, noise: float = 1.0) -> Popularity:
        return Popularity(counts=np.asarray(counts, "<f4").tobytes(), noise=noise)

    for noise in (0.0, *COUNT_NOISES):
        assert np.isfinite(log_popularity(of_counts(-MOST_COUNT, 0.0, MOST_COUNT).values.astype(float), noise)).all()
        assert of_counts(1.0, noise=noise).noise == noise
    for noise in (-1.0, 5e-324, 0.9e-3, math.nextafter(COUNT_NOISES[1], math.inf), math.inf, math.nan):
        with pytest.raises(ProtocolError, match="noise"):
            of_counts(1.0, noise=noise)
    for count in (1.001 * MOST_COUNT, -1.001 * MOST_COUNT, math.inf, math.nan):
        with pytest.raises(ProtocolError, match="numbers"):
            of_counts(1.0, count)
