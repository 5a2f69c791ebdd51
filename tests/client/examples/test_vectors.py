"""Source vectors as rows see them: against the plain loop over users and items."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.examples.split import ragged
from client.examples.user_examples import Examples
from client.examples.vectors import item_vectors, user_vectors
from client.sources.tables import Interactions, Tables, Vectors


def tables_of(users: int, items: int, *, seed: int, widths: dict[str, int]) -> Tables:
    """Item sources "cover" and "price", user source "face", with holes; absent rows hold zeros as the readers leave them."""
    random = np.random.default_rng(seed)

    def vectors(count: int, width: int) -> Vectors:
        present = random.random(count) < 0.6
        values = random.normal(0, 1, (count, width)).astype(np.float32) * present[:, None]
        return Vectors(values=values, present=present)

    nothing = np.zeros(0)
    return Tables(
        platform="shop",
        item_ids=[f"i{item}" for item in range(items)],
        item_titles=[f"i{item}" for item in range(items)],
        item_keys=[f"i{item}" for item in range(items)],
        item_text={},
        user_ids=[f"u{user}" for user in range(users)],
        interactions=Interactions(
            offsets=np.zeros(users + 1, np.int64),
            item=nothing.astype(np.int32),
            weight=nothing.astype(np.float32),
            positive=nothing.astype(bool),
            time=None,
        ),
        item_vectors={name: vectors(items, widths[name]) for name in ("cover", "price")},
        user_vectors={"face": vectors(users, widths["face"])},
    )


def examples_of(users: list[int], contexts: list[list[int]]) -> Examples:
    empty = ragged([np.zeros(0, np.int32) for _ in users])
    return Examples(
        user=np.asarray(users, np.int64),
        sequences=[np.asarray([2, 3], np.int32) for _ in users],
        targets=empty,
        context=ragged([np.asarray(context, np.int32) for context in contexts]),
        excluded=empty,
    )


WIDTHS = {"cover": 4, "price": 1, "face": 3}


@given(rows=st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 5), max_size=5)), max_size=6), seed=st.integers(0, 999))
@settings(deadline=None)
def test_a_users_row_is_his_own_and_the_mean_of_his_context(rows: list[tuple[int, list[int]]], seed: int) -> None:
    tables = tables_of(5, 6, seed=seed, widths=WIDTHS)
    found = user_vectors(tables, examples_of([user for user, _ in rows], [context for _, context in rows]))
    assert set(found.values) == set(found.present) == set(tables.vector_widths) == set(WIDTHS)
    for at, (user, context) in enumerate(rows):
        face = tables.user_vectors["face"]
        assert (found.values["face"][at] == face.values[user]).all()
        assert found.present["face"][at] == face.present[user]
        for name in ("cover", "price"):
            own = tables.item_vectors[name]
            shown = [own.values[item] for item in context if own.present[item]]
            expected = np.mean(shown, 0) if shown else np.zeros(WIDTHS[name])
            np.testing.assert_allclose(found.values[name][at], expected, atol=1e-6)
            assert found.present[name][at] == bool(shown)


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_an_items_row_is_its_own_and_no_users(seed: int) -> None:
    tables = tables_of(5, 6, seed=seed, widths=WIDTHS)
    found = item_vectors(tables)
    assert set(found.values) == set(WIDTHS)
    for name, own in tables.item_vectors.items():
        assert (found.values[name] == own.values).all()
        assert (found.present[name] == own.present).all()
    assert found.values["face"].shape == (6, 3)
    assert not found.values["face"].any() and not found.present["face"].any()


def test_another_users_rows_do_not_matter() -> None:
    tables = tables_of(5, 6, seed=1, widths=WIDTHS)
    alone = user_vectors(tables, examples_of([2], [[0, 1, 3]]))
    among = user_vectors(tables, examples_of([0, 2, 4], [[5, 5], [0, 1, 3], []]))
    for name in WIDTHS:
        assert (among.values[name][1] == alone.values[name][0]).all()


def test_a_mean_stays_within_the_bound_of_what_it_averages() -> None:
    # The reader divides by the declared bound, so norms are at most 1; a mean of such cannot be louder.
    tables = tables_of(3, 6, seed=1, widths=WIDTHS)
    cover = tables.item_vectors["cover"]
    cover.values[:] /= np.maximum(np.linalg.norm(cover.values, axis=1, keepdims=True), 1e-9)
    found = user_vectors(tables, examples_of([0, 1], [[0, 1, 2, 3, 4, 5], [1, 1]]))
    assert (np.linalg.norm(found.values["cover"], axis=1) <= 1 + 1e-6).all()


def test_nobody_and_no_source() -> None:
    tables = tables_of(3, 4, seed=0, widths=WIDTHS)
    found = user_vectors(tables, examples_of([], []))
    assert {name: value.shape for name, value in found.values.items()} == {"face": (0, 3), "cover": (0, 4), "price": (0, 1)}
    bare = Tables(**{**vars(tables), "item_vectors": {}, "user_vectors": {}})
    assert bare.vector_widths == {}
    assert item_vectors(bare).take(np.asarray([0, 1]), torch.device("cpu")) == {}
    assert user_vectors(bare, examples_of([1], [[2]])).values == {}


def test_rows_are_taken_as_float32_and_bool() -> None:
    tables = tables_of(5, 6, seed=0, widths=WIDTHS)
    rows = item_vectors(tables)
    for chosen in (np.asarray([4, 0, 4]), slice(1, 3)):
        for name, (values, present) in rows.take(chosen, torch.device("cpu")).items():
            assert (values.dtype, present.dtype) == (torch.float32, torch.bool)
            assert (values.numpy() == rows.values[name][chosen]).all()
            assert (present.numpy() == rows.present[name][chosen]).all()
