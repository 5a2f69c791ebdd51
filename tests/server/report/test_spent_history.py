"""What a ledger tells line by line: the last epsilon of every round, and which charges paid for what left; in bounded memory."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.report.spent_history import MOST_POINTS, HistoryTaker, thinned
from shared.ledger.format import Entry, IdentityRecord, ReleaseRecord, entry_of
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.5, sample_rate=0.25, steps=8, group_size=2)
MECHANISMS = (
    TRAIN,
    Release(kind=ReleaseKind.EVALUATE, noise_multiplier=10.0, sample_rate=1.0, steps=1, group_size=1),
    Release(
        kind=ReleaseKind.TRAIN,
        noise_multiplier=1.5,
        sample_rate=0.25,
        steps=3,
        group_size=2,
        integers=Integers(reach=6.0, dimension=4, failure=0.0, honest=2),
    ),
)


def charge(number: int, *, of: Release = TRAIN, run: str = "spring", round_: int = 1, epsilon: float = 1.0) -> Entry:
    return entry_of(
        of, seq=number, time="", run=run, round=round_, epsilon=epsilon, delta=1e-5, accountant=Method.PRV, previous="",
        hash=str(number),
    )  # fmt: skip


def left(charge: str) -> ReleaseRecord:
    return ReleaseRecord(seq=1, time="", run="spring", round=1, charge=charge, left="", previous="")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["spring", "autumn"]),
            st.integers(0, 2),
            st.sampled_from(MECHANISMS),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_every_round_ends_at_its_last_charge_and_every_answer_is_of_its_mechanism(
    told: list[tuple[str, int, Release, int, bool]],
) -> None:
    taker = HistoryTaker()
    for number, (run, round_, of, answers, rowless) in enumerate(told):
        taker.take(charge(number, of=of, run=run, round_=round_, epsilon=float(number)))
        for _ in range(answers):  # a second answer to the same charge is none that it paid for
            taker.take(left(str(number)))
        if rowless:
            taker.take(left(""))
            taker.take(IdentityRecord(seq=1, time="", identity="", previous=""))
    rounds = groupby(enumerate(told), key=lambda one: one[1][:2])
    last = [(*name, float([number for number, _ in these][-1])) for name, these in rounds]
    assert [(point.run, point.round, point.epsilon) for point in taker.points] == last
    counted = Counter((of.kind, of.integers) for _, _, of, answers, _ in told if answers)
    assert {(of.kind, of.integers): count for of, count in taker.left.items()} == counted
    assert all(of.steps == 1 and (of.noise_multiplier, of.sample_rate, of.group_size) in {
        (one.noise_multiplier, one.sample_rate, one.group_size) for one in MECHANISMS if one.kind is of.kind
    } for of in taker.left)  # fmt: skip


@pytest.mark.parametrize("rounds", [1, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, 4096, 4097, 10_000])
def test_of_any_number_of_rounds_a_bounded_number_is_kept_evenly(rounds: int) -> None:
    """Of more rounds than are held the early ones were halved again and again, so that a long history began with a long gap."""
    taker = HistoryTaker()
    for number in range(rounds):
        taker.take(charge(number, round_=number, epsilon=float(number)))
    points = [point.round for point in taker.points]
    assert len(points) == min(rounds, MOST_POINTS) and (points[0], points[-1]) == (0, rounds - 1)
    gaps = [after - before for before, after in pairwise(points)]
    assert min(gaps, default=1) >= 1 and max(gaps, default=1) <= 1.5 * max(1, rounds / MOST_POINTS) + 1
    assert len(taker._points) <= 4096


@pytest.mark.parametrize(("waiting", "counted"), [(1024, 1), (1025, 0)])
def test_an_answer_is_waited_for_while_a_bounded_number_of_charges_wait(waiting: int, counted: int) -> None:
    """A ledger of charges whose answers never left: the oldest is given up first, and the newest never."""
    taker = HistoryTaker()
    for number in range(waiting):
        taker.take(charge(number))
    taker.take(left("0"))
    assert taker.left.total() == counted
    taker.take(left(str(waiting - 1)))
    assert taker.left.total() == counted + 1


@given(st.integers(0, 60), st.integers(2, 40))
def test_a_choice_of_values_is_even_and_has_both_ends(count: int, most: int) -> None:
    values = list(range(count))
    chosen = thinned(values, most)
    assert len(chosen) == min(count, most) and chosen == sorted(set(chosen))
    if count > most:
        gaps = {after - before for before, after in pairwise(chosen)}
        assert (chosen[0], chosen[-1]) == (0, count - 1) and max(gaps) - min(gaps) <= 1
    else:
        assert chosen == values
