"""What counts of a history, and products with sparse matrices: those of whole matrices, whatever is asked of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from client.examples.split import ragged
from client.recommender.histories import Histories, MetEntries


def drawn(seed: int, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.integers(1, 9, (rows, columns)) * (random.random((rows, columns)) < 0.3)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.lists(st.integers(0, 8), max_size=9, unique=True))
def test_what_each_item_adds_is_its_row_of_the_matrix(seed: int, width: int, columns: list[int]) -> None:
    history, matrix, some = drawn(seed, 1, width), drawn(seed + 1, width, 9), np.array(columns, np.int64)
    met = MetEntries.of(csr_matrix(history), csr_matrix(matrix))
    there = np.flatnonzero(history[0])
    np.testing.assert_array_equal(met.total(), (history @ matrix)[0])
    np.testing.assert_array_equal(met.by_item(some), (history[0, there, None] * matrix[there])[:, some])
    assert met.total().dtype == met.by_item(some).dtype == np.float32


def test_entries_that_are_named_twice_count_twice() -> None:
    matrix = csr_matrix((np.array([1.0, 2.0], np.float32), np.array([3, 3]), np.array([0, 2])), shape=(1, 5))
    met = MetEntries.of(csr_matrix(np.ones((1, 1), np.float32)), matrix)
    np.testing.assert_array_equal(met.total(), [0.0, 0.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(met.by_item(np.array([3, 0])), [[3.0, 0.0]])


@settings(max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([None, 2.0, 8.0]),
    st.sampled_from([{}, {"emphasis": 0.0}, {"emphasis": 0.5}, {"emphasis": 1.0}]),
    st.booleans(),
)
def test_an_item_counts_by_its_age_and_its_weight_where_these_are_asked_for(
    seed: int, ordered: bool, half_life: float | None, emphasis: dict[str, float], shortened: bool
) -> None:
    random = np.random.default_rng(seed)
    rows = [random.permutation(9)[: random.integers(0, 7)].astype(np.int32) for _ in range(random.integers(1, 6))]
    weight, offsets = random.uniform(0.2, 5.0, sum(map(len, rows))).astype(np.float32), np.cumsum([0, *map(len, rows)])
    users = random.integers(0, len(rows), 4)
    lengths = np.array([random.integers(0, len(rows[user]) + 1) if shortened else len(rows[user]) for user in users])
    expected = np.zeros((4, 9))
    for row, (user, count) in enumerate(zip(users, lengths, strict=True)):
        for place, item in enumerate(rows[user][:count]):
            age = count - 1 - place if ordered and half_life else 0
            heavy = float(weight[offsets[user] + place]) ** emphasis.get("emphasis", 0.0)
            expected[row, item] = 0.5 ** (age / (half_life or 1.0)) * heavy
    histories = Histories(liked=ragged(rows), items=9, ordered=ordered, weight=weight)
    found = histories.recent(users, half_life=half_life, lengths=lengths if shortened else None, **emphasis)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)
    assert found.has_sorted_indices and found.dtype == np.float32
