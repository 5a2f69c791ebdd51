"""Leave-one-out: what is held out, what trains, what is known; and that nobody's rows move another's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from client.examples.split import Split, leave_one_out, nothing_held_out
from client.sources.tables import Interactions, Tables


def some_tables(users: int, *, timed: bool, seed: int = 0, items: int = 30) -> Tables:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 9, users)
    rows = [random.choice(items, length, replace=False).astype(np.int32) for length in lengths]
    count = int(lengths.sum())
    return Tables(
        platform="some",
        item_ids=[f"i{item}" for item in range(items)],
        item_titles=[f"item {item}" for item in range(items)],
        item_keys=[""] * items,
        item_text={},
        user_ids=[f"u{user}" for user in range(users)],
        interactions=Interactions(
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            item=np.concatenate([np.zeros(0, np.int32), *rows]),
            weight=np.ones(count, np.float32),
            positive=random.random(count) < 0.7,
            time=np.arange(count) if timed else None,
        ),
    )


def without(tables: Tables, user: int) -> Tables:
    table = tables.interactions
    kept = np.repeat(np.arange(tables.users) != user, np.diff(table.offsets))
    lengths = np.delete(np.diff(table.offsets), user)
    return replace(
        tables,
        user_ids=[name for place, name in enumerate(tables.user_ids) if place != user],
        interactions=Interactions(
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            item=table.item[kept],
            weight=table.weight[kept],
            positive=table.positive[kept],
            time=None if table.time is None else table.time[kept],
        ),
    )


def of_user(split: Split, user: int) -> tuple[list[int], int, list[int]]:
    return split.train[user].tolist(), int(split.held[user]), split.known[user].tolist()


@pytest.mark.parametrize("timed", [True, False])
def test_a_users_last_liked_item_is_held_out(timed: bool) -> None:
    tables = some_tables(200, timed=timed)
    split, whole = leave_one_out(tables, seed=0), nothing_held_out(tables, seed=0)
    liked = whole.train
    table = tables.interactions
    for user in range(tables.users):
        rows = slice(table.offsets[user], table.offsets[user + 1])
        own = table.item[rows][table.positive[rows]]
        if timed:
            assert liked[user].tolist() == own.tolist()
        assert sorted(liked[user]) == sorted(own)
        held = int(liked[user][-1]) if len(own) >= 2 else -1
        train = liked[user][:-1] if len(own) >= 2 else liked[user]
        known = sorted(item for item in table.item[rows].tolist() if item != held)
        assert of_user(split, user) == (train.tolist(), held, known)
        assert of_user(whole, user) == (liked[user].tolist(), -1, sorted(table.item[rows].tolist()))
    assert split.train.values.dtype == split.known.values.dtype == split.held.dtype == np.int32


@pytest.mark.parametrize("timed", [True, False])
def test_a_user_more_or_less_moves_nobody_else(timed: bool) -> None:
    tables = some_tables(60, timed=timed)
    split = leave_one_out(tables, seed=0)
    for gone in (0, 7, 59):
        fewer = leave_one_out(without(tables, gone), seed=0)
        others = [user for user in range(60) if user != gone]
        assert [of_user(fewer, place) for place in range(59)] == [of_user(split, user) for user in others]


def test_without_times_each_order_is_as_likely_and_another_seed_gives_another() -> None:
    count = 1000
    tables = replace(
        some_tables(count, timed=False),
        interactions=Interactions(
            offsets=3 * np.arange(count + 1),
            item=np.tile(np.arange(3, dtype=np.int32), count),
            weight=np.ones(3 * count, np.float32),
            positive=np.ones(3 * count, np.bool_),
            time=None,
        ),
    )
    orders = nothing_held_out(tables, seed=0).train.values.reshape(-1, 3)
    _, times = np.unique(orders, axis=0, return_counts=True)
    # Six orders; 5 standard deviations of a count.
    assert len(times) == 6 and np.abs(times - count / 6).max() < 5 * np.sqrt(count * 5 / 36)
    assert not np.array_equal(nothing_held_out(tables, seed=1).train.values.reshape(-1, 3), orders)


def test_nobody() -> None:
    split = leave_one_out(some_tables(0, timed=True), seed=0)
    assert split.users == 0 and len(split.train) == len(split.known) == 0


@pytest.mark.parametrize("timed", [True, False])
def test_of_who_has_met_every_item_nothing_is_held_out(timed: bool) -> None:
    """It was the only candidate, and so first whatever the model was."""
    tables = some_tables(300, timed=timed, items=8)
    split, met = leave_one_out(tables, seed=0), np.diff(tables.interactions.offsets)
    liked = nothing_held_out(tables, seed=0).train
    everything = met == 8
    assert everything.any() and (split.held[everything] == -1).all()
    assert all(split.train[user].tolist() == liked[user].tolist() for user in np.flatnonzero(everything))
    assert ((split.held >= 0) == ((liked.lengths() >= 2) & ~everything)).all()
    # Among all items of a larger catalogue, of which these tables are a part, there are other candidates.
    assert ((leave_one_out(tables, seed=0, items=9).held >= 0) == (liked.lengths() >= 2)).all()


def test_of_many_held_out_items_some_are_looked_at() -> None:
    split = leave_one_out(some_tables(400, timed=True), seed=0)
    everybody = np.flatnonzero(split.held >= 0)
    some = split.holding_out(50, seed=0)
    drawn = np.flatnonzero(some.held >= 0)
    assert len(drawn) == 50 and set(drawn) < set(everybody)
    np.testing.assert_array_equal(some.held[drawn], split.held[drawn])
    # What is not looked at neither trains nor becomes known: models and candidates are the same.
    assert some.train is split.train and some.known is split.known
    np.testing.assert_array_equal(split.holding_out(50, seed=0).held, some.held)
    assert (split.holding_out(50, seed=1).held != some.held).any()
    for most in (len(everybody), len(everybody) + 1):
        assert split.holding_out(most, seed=0) is split
    assert (split.holding_out(len(everybody) - 1, seed=0).held >= 0).sum() == len(everybody) - 1


def test_each_held_out_item_is_as_likely_to_be_looked_at() -> None:
    split = leave_one_out(some_tables(60, timed=True), seed=0)
    users, draws, most = int((split.held >= 0).sum()), 600, 20
    times = sum((split.holding_out(most, seed=seed).held >= 0).astype(int) for seed in range(draws))
    expected = draws * most / users
    assert times[split.held < 0].sum() == 0
    assert np.abs(times[split.held >= 0] - expected).max() < 5 * np.sqrt(expected)
