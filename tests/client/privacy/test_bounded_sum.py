"""Sums over users against the same sums by hand: no user is longer than the bound, and no part of another kind is added."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.bounded_sum import BoundedSum, nothing, of_choices, of_contributions
from shared.base.errors import PrivacyError


def of(bound: float = 1.0, votes: float | None = None, **parts: list[float]) -> BoundedSum:
    made = {name: torch.tensor(values, dtype=torch.float64) for name, values in parts.items()}
    return BoundedSum(parts=made, bound=bound, votes=None if votes is None else torch.tensor(votes, dtype=torch.float64))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_is_above_nothing(bound: float) -> None:
    with pytest.raises(PrivacyError):
        of(bound, a=[1.0])
    assert of(math.inf, a=[1.0]).dimension == 1  # where privacy is off


@pytest.mark.parametrize("kinds", [(torch.float32,), (torch.float64, torch.float32), (torch.int64, torch.float64)])
def test_every_part_is_of_float64(kinds: tuple[torch.dtype, ...]) -> None:
    with pytest.raises(PrivacyError, match="not all float64"):
        BoundedSum(parts={str(at): torch.zeros(2, dtype=kind) for at, kind in enumerate(kinds)}, bound=1.0)


def test_two_sums_are_added_part_by_part() -> None:
    one, other = of(2.0, 0.5, a=[1.0, 2.0], b=[3.0]), of(2.0, -1.5, a=[10.0, 20.0], b=[30.0])
    both = one.plus(other)
    assert both.vector().tolist() == [11.0, 22.0, 33.0] and both.bound == 2.0 and both.dimension == 3
    assert both.votes is not None and float(both.votes) == -1.0
    assert both.vector(["b"]).tolist() == [33.0] and both.vector(["b", "a"], vote=2.0).tolist() == [33.0, 11.0, 22.0, -2.0]
    assert both.vector([]).tolist() == [] and both.vector([], vote=1.0).tolist() == [-1.0]


@pytest.mark.parametrize("votes", [(None, 0.5), (0.5, None), (None, None)])
def test_where_one_has_no_votes_both_have_none(votes: tuple[float | None, float | None]) -> None:
    one, other = (of(1.0, each, a=[1.0]) for each in votes)
    assert one.plus(other).votes is None


@pytest.mark.parametrize("other", [of(1.5, a=[1.0], b=[1.0]), of(1.0, a=[1.0]), of(1.0, b=[1.0], a=[1.0])])
def test_sums_of_another_bound_or_other_parts_are_not_added(other: BoundedSum) -> None:
    one = of(1.0, a=[1.0], b=[1.0])
    for left, right in ((one, other), (other, one)):
        with pytest.raises(PrivacyError, match="different bounds or parts"):
            left.plus(right)


def test_nobodys_sum_changes_none() -> None:
    empty = nothing({"a": (2, 3), "b": ()}, bound=1.0)
    assert empty.dimension == 7 and not empty.vector(vote=1.0).any()
    one = BoundedSum(
        parts={"a": torch.ones(2, 3).double(), "b": torch.ones(()).double()}, bound=1.0, votes=torch.ones(()).double()
    )
    assert one.plus(empty).vector(vote=1.0).tolist() == one.vector(vote=1.0).tolist()


numbers = st.floats(-1e300, 1e300) | st.floats(-2, 2) | st.sampled_from([math.inf, -math.inf, math.nan, 1e-320, 0.0])


def shortened(row: tuple[float, ...], bound: float) -> list[float]:
    """By hand; divided by the largest number first, so that no square overflows."""
    if not all(map(math.isfinite, row)):
        return [0.0] * len(row)
    largest = max(map(abs, row)) or 1.0
    parts = [value / largest for value in row]
    length = math.hypot(*parts)
    return list(row) if length * largest <= bound else [part / length * bound for part in parts]


@given(rows=st.lists(st.tuples(numbers, numbers, numbers), max_size=5), bound=st.sampled_from([0.25, 1.0, 3.0]))
def test_each_users_vector_is_shortened_to_the_bound_and_not_turned(rows: list[tuple[float, ...]], bound: float) -> None:
    found = of_contributions(np.array(rows, np.float64).reshape(len(rows), 3), bound=bound)
    total = np.sum([shortened(row, bound) for row in rows] or [[0.0] * 3], axis=0)
    assert found.bound == bound and found.votes is None
    np.testing.assert_allclose(found.vector(), total, rtol=1e-9, atol=1e-12)


@given(choices=st.lists(st.lists(st.integers(0, 5), max_size=9), max_size=5), most=st.integers(1, 4))
def test_a_user_chooses_the_first_few_places_once_each(choices: list[list[int]], most: int) -> None:
    counts = [0] * 6
    for chosen in choices:
        for place in list(dict.fromkeys(chosen))[:most]:
            counts[place] += 1
    found = of_choices([np.array(chosen, np.int32) for chosen in choices], width=6, most=most)
    np.testing.assert_allclose(found.vector(), np.array(counts) / math.sqrt(most))
    assert found.bound == 1.0
