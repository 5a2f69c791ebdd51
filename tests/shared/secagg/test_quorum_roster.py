"""The numbers of a run keep their conditions, and the ring is regular."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import InputError, ProtocolError
from shared.protocol.messages import NAME as MESSAGE_NAME
from shared.secagg import roster as rosters
from shared.secagg.identity import Identity, digest_of
from shared.secagg.quorum import COMPLETE, MOST, Quorum, quorum_of
from shared.secagg.roster import MOST_ROUNDS, MOST_SHARES, Roster, RosterEntry, SumSession, SumTerms


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 260), threshold=st.floats(0.01, 1), colluders=st.integers(0, 40))
def test_every_quorum_keeps_the_conditions_of_the_argument(n: int, threshold: float, colluders: int) -> None:
    quorum = quorum_of(n, threshold=threshold, colluders=colluders)
    t, q, c, k = quorum.threshold, quorum.votes, quorum.colluders, quorum.degree
    assert c == min(colluders, n - 1)
    assert n >= t >= threshold * n - 1e-6
    assert t >= q and 2 * q > n + c and 2 * quorum.shares > k + 1 + c
    assert quorum.honest == t - c >= 1
    assert k == n - 1 or (k % 2 == 0 and k > n - t + c and n > COMPLETE)
    if n <= COMPLETE:
        assert quorum.complete and quorum.shares == t


def test_the_ring_outlives_dropouts_by_chance() -> None:
    """Simulated: t survivors drawn at random leave every neighbourhood with enough holders, in 2,000 draws of 2,000."""
    quorum = quorum_of(200, threshold=0.8, colluders=5)
    n, k = quorum.members, quorum.degree
    assert k < 100
    random = np.random.default_rng(0)
    for _ in range(2000):
        alive = np.zeros(n, bool)
        alive[random.permutation(n)[: quorum.threshold]] = True
        around = np.concatenate([alive[-(k // 2) :], alive, alive[: k // 2]])
        assert np.convolve(around, np.ones(k + 1), "valid").min() >= quorum.shares


RING = {"members": 20, "threshold": 17, "votes": 11, "colluders": 1, "degree": 6, "shares": 5}
"""On a ring: 2 q = 22 > n + c = 21, k = 6 > n - t + c = 4, and 2 t' = 10 > k + 1 + c = 8."""


@pytest.mark.parametrize("other", [{}, {"degree": 18, "shares": 11}, {"votes": 17}, {"shares": 7}, {"colluders": 2, "votes": 12}])
def test_a_ring_that_just_keeps_its_promise_is_made(other: dict[str, int]) -> None:
    Quorum(**{**RING, **other})


@pytest.mark.parametrize(
    "broken",
    [
        {"degree": 4, "shares": 4},  # all its neighbours that are left may collude or be lost
        {"degree": 5},
        {"degree": 20, "shares": 12},
        {"shares": 4},
        {"shares": 8},
        {"votes": 10},
        {"colluders": 2},  # 2 q = n + c
        {"votes": 18},
        {"colluders": -1},
    ],
)
def test_a_ring_that_just_does_not_is_not_made(broken: dict[str, int]) -> None:
    with pytest.raises(InputError, match="promise"):
        Quorum(**{**RING, **broken})


@pytest.mark.parametrize(
    "broken",
    [
        {"threshold": 3},
        {"votes": 3},
        {"shares": 3},
        {"shares": 7},
        {"colluders": 6},
        {"degree": 2},
        {"degree": 3},
        {"threshold": 7},
    ],
)
def test_a_quorum_that_cannot_keep_its_promise_is_not_made(broken: dict[str, int]) -> None:
    good = {"members": 6, "threshold": 5, "votes": 4, "colluders": 1, "degree": 5, "shares": 5}
    Quorum(**good)
    with pytest.raises(InputError):
        Quorum(**{**good, **broken})


def test_a_ring_with_too_few_neighbours_is_not_made() -> None:
    Quorum(members=12, threshold=11, votes=7, colluders=1, degree=4, shares=4)
    with pytest.raises(InputError):
        Quorum(members=12, threshold=10, votes=7, colluders=1, degree=2, shares=3)
    with pytest.raises(InputError):
        Quorum(members=12, threshold=10, votes=7, colluders=3, degree=4, shares=5)


def test_platform_names_are_those_of_messages() -> None:
    assert rosters.NAME.pattern == MESSAGE_NAME.pattern


def made(n: int, **over: object) -> Roster:
    terms = SumTerms(**{"run": "run", "rounds": 3, "threshold": 0.8, "colluders": 1, **over})  # type: ignore[arg-type]
    identities = [Identity(digest_of("test", bytes([at]))) for at in range(n)]
    entries = tuple(
        RosterEntry(platform=f"p{at:03d}", identity=one.public, keys=bytes([at]) * 32, signature=bytes(64))
        for at, one in enumerate(identities)
    )
    return Roster(terms=terms, entries=entries)


@pytest.mark.parametrize("n", [1, 2, 7, COMPLETE, 120])
def test_neighbours_are_mutual_and_as_many_as_the_degree(n: int) -> None:
    roster = made(n)
    for number in range(n):
        near = roster.neighbours(number)
        assert len(near) == len(set(near)) == roster.quorum.degree
        assert number not in near and list(near) == sorted(near)
        assert roster.holders(number) == tuple(sorted((*near, number)))
        assert all(number in roster.neighbours(other) for other in near)


def test_the_ring_depends_on_everybodys_keys() -> None:
    one, other = made(120), made(120, run="other")
    assert [one.neighbours(at) for at in range(120)] != [other.neighbours(at) for at in range(120)]


def test_the_digest_stands_for_everything() -> None:
    roster = made(5)
    first = roster.entries[0]
    different = [
        roster,
        made(4),
        *(
            made(5, **change)
            for change in (
                {"run": "r"},
                {"rounds": 4},
                {"threshold": 0.81},
                {"colluders": 2},
                {"least": 2},
                {"settings": b"s" * 32},
            )
        ),
        replace(roster, facts=b"other"),
        replace(roster, entries=(replace(first, keys=b"k" * 32), *roster.entries[1:])),
        replace(roster, entries=(replace(first, identity=b"i" * 32), *roster.entries[1:])),
        replace(roster, entries=(replace(first, platform="p"), *roster.entries[1:])),
        replace(roster, entries=(replace(first, declared=b"d"), *roster.entries[1:])),
    ]
    assert len({one.digest for one in different}) == len(different)


def test_a_session_stands_for_who_is_present() -> None:
    roster = made(6)
    whole, part = SumSession(roster=roster, present=tuple(range(6))), SumSession(roster=roster, present=(0, 1, 2, 4, 5))
    assert whole.digest != part.digest and whole.consent != part.consent
    lists = {whole.survivors(1, (0, 1, 2, 3, 4)), whole.survivors(2, (0, 1, 2, 3, 4)), whole.survivors(1, (0, 1, 2, 3, 5))}
    assert len(lists) == 3
    assert part.partners(4) == (0, 1, 2, 5)


@pytest.mark.parametrize("present", [(), (0, 1, 2), (0, 1, 2, 3, 3), (4, 3, 2, 1, 0), (0, 1, 2, 3, 6)])
def test_lists_that_are_none(present: tuple[int, ...]) -> None:
    roster = made(6)
    with pytest.raises(ProtocolError):
        SumSession(roster=roster, present=present)
    with pytest.raises(ProtocolError):
        SumSession(roster=roster, present=tuple(range(6))).survivors(1, present)


def test_a_run_too_long_for_its_neighbours_is_refused() -> None:
    with pytest.raises(InputError, match="rounds"):
        SumTerms(run="run", rounds=MOST_SHARES // 69 + 1, threshold=0.8, colluders=1).quorum(200)


@pytest.mark.parametrize(
    ("name", "held", "beyond"),
    [
        ("rounds", (1, MOST_ROUNDS), (0, MOST_ROUNDS + 1)),
        ("threshold", (5e-324, 1.0), (0.0, math.nextafter(1.0, 2.0), math.nan)),
        ("colluders", (0, MOST - 1), (-1, MOST)),
        ("least", (1, MOST), (0, MOST + 1)),
        ("settings", (bytes(32),), (bytes(31), bytes(33))),
    ],
)
def test_every_term_has_bounds(name: str, held: tuple[object, ...], beyond: tuple[object, ...]) -> None:
    good = SumTerms(run="run", rounds=3, threshold=0.8, colluders=1)
    for value in held:
        assert getattr(replace(good, **{name: value}), name) == value  # type: ignore[arg-type]
    for value in beyond:
        with pytest.raises(ProtocolError):
            replace(good, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [2, 30, 200])
def test_a_run_has_as_many_rounds_as_shares_can_be_kept_for(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = SumTerms(run="run", rounds=7, threshold=0.8, colluders=1)
    holders = terms.quorum(members).degree + 1
    monkeypatch.setattr(rosters, "MOST_SHARES", 7 * holders)
    assert terms.quorum(members).degree + 1 == holders
    monkeypatch.setattr(rosters, "MOST_SHARES", 7 * holders - 1)
    with pytest.raises(InputError, match="7 rounds") as caught:
        terms.quorum(members)
    assert "at most 6 rounds" in caught.value.do


def test_texts_of_a_roster_have_a_length() -> None:
    roster = made(3)
    first, *others = roster.entries
    entries = (replace(first, declared=bytes(256)), *others)
    assert replace(roster, facts=bytes(4096), entries=entries).entries == entries
    with pytest.raises(ProtocolError, match="facts"):
        replace(roster, facts=bytes(4097))
    for longer in ({"declared": bytes(257)}, {"identity": bytes(33)}, {"keys": bytes(31)}, {"signature": bytes(65)}):
        with pytest.raises(ProtocolError, match=first.platform):
            replace(first, **longer)  # type: ignore[arg-type]
    for wrong in ((), (first, first), (others[0], first), (first, replace(others[0], identity=first.identity))):
        with pytest.raises(ProtocolError):
            replace(roster, entries=wrong)


@pytest.mark.parametrize(
    "change", [{"run": "../x"}, {"rounds": 0}, {"threshold": 0.0}, {"threshold": float("nan")}, {"settings": b""}]
)
def test_terms_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        made(3, **change)
