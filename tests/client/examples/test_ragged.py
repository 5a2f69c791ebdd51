"""Lists of item numbers, one per row."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.evaluation.ranking_metrics import exclusion
from client.examples.split import ragged

LISTS = st.lists(st.lists(st.integers(0, 19), max_size=6, unique=True), min_size=1, max_size=9)
PICKS = st.lists(st.integers(0, 999), max_size=12)


@given(lists=LISTS, picks=PICKS)
def test_entries_are_the_rows_values_in_their_order(lists: list[list[int]], picks: list[int]) -> None:
    rows = np.asarray([pick % len(lists) for pick in picks], np.int64)
    found = ragged([np.asarray(one, np.int32) for one in lists]).entries(rows)
    assert all(part.dtype == np.int64 for part in found)
    expected = [(at, place, value) for at, row in enumerate(rows) for place, value in enumerate(lists[row])]
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@given(lists=LISTS, picks=PICKS)
def test_an_exclusion_marks_the_rows_values_and_no_others(lists: list[list[int]], picks: list[int]) -> None:
    rows = np.asarray([pick % len(lists) for pick in picks], np.int64)
    mask = exclusion(ragged([np.asarray(one, np.int32) for one in lists]), rows, 20)
    assert mask.shape == (len(rows), 20) and mask.dtype == torch.bool
    assert [set(row.nonzero().flatten().tolist()) for row in mask] == [set(lists[row]) for row in rows]
