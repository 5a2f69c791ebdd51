"""Preferences of a platform's own rows and of released factors: what is predicted, and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.config.platform_file import load
from client.examples.split import leave_one_out, nothing_held_out, ragged
from client.recommender.histories import Histories, liked_histories
from client.recommender.item_preferences import EMPHASES, _climb, emphasised, fit_preferences, own_preferences
from client.recommender.item_ridge import ItemRidge
from client.recommender.left_out import LeftOut, Validation, gain, left_out, mean_gain, met_before, ranks_among
from client.sources.platform_tables import read_tables

GROUPS = 4


def histories_of(users: int, *, seed: int = 0, items: int = 40, likes: int = 7, ordered: bool = True) -> Histories:
    """Users who like items of one group of four, and one item of any."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(users):
        group = random.integers(GROUPS)
        inside = random.choice(np.arange(items)[np.arange(items) % GROUPS == group], likes, replace=False)
        rows.append(np.append(random.choice(items, 1), inside).astype(np.int32))
    rows = [row[np.sort(np.unique(row, return_index=True)[1])] for row in rows]
    return Histories(liked=ragged(rows), items=items, ordered=ordered)


def test_rows_and_recent_histories() -> None:
    histories = Histories(liked=ragged([np.array([2, 0, 1], np.int32), np.zeros(0, np.int32)]), items=4, ordered=True)
    assert histories.rows().toarray().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    users = np.array([0, 1, 0])
    assert histories.recent(users, half_life=1.0).toarray().tolist() == [[0.5, 1, 0.25, 0], [0] * 4, [0.5, 1, 0.25, 0]]
    shorter = histories.recent(users, half_life=None, lengths=np.array([2, 0, 0]))
    assert shorter.toarray().tolist() == [[1, 0, 1, 0], [0] * 4, [0] * 4]


def test_very_old_items_stay_in_a_history() -> None:
    """In float32, half of half of ... is 0 after some 150 times."""
    long = Histories(liked=ragged([np.arange(700, dtype=np.int32)]), items=701, ordered=True)
    history = long.recent(np.zeros(1, np.int64), half_life=2.0)
    assert history.nnz == 700 and (history.data > 0).all()
    scores = ItemRidge(long.rows(), ridge=1.0).scores(history)
    assert np.isfinite(scores).all()


def test_points_are_the_last_items_but_the_first() -> None:
    rows = [np.arange(count, dtype=np.int32) for count in (0, 1, 2, 14)]
    points = left_out(Histories(liked=ragged(rows), items=20, ordered=True), seed=0)
    assert list(zip(points.user, points.place, points.target, strict=True)) == [
        (2, 1, 1), *((3, place, place) for place in range(4, 14))
    ]  # fmt: skip


def test_ranks_leave_out_what_was_met_before() -> None:
    liked, known = ragged([np.array([0, 1, 2], np.int32)]), ragged([np.array([0, 1, 2, 5], np.int32)])
    points = LeftOut(user=np.array([0, 0]), place=np.array([1, 2]), target=np.array([1, 2]))
    scores = np.array([[9, 3, 8, 3, 1, 9], [9, 9, 1, 3, 2, 9]], np.float32)
    # Of the first: 2 was liked later and is better, 3 is as good; 0 and 5 were met.
    met = met_before(points, known, liked=liked, items=6)
    assert ranks_among(scores, points.target, met).tolist() == [2.5, 3.0]
    assert mean_gain(gain(np.array([1.0, 3.0]))) == 0.75 and mean_gain(np.zeros(0)) == 0.0


def test_it_finds_what_is_liked_together() -> None:
    histories = histories_of(60)
    fitted = fit_preferences(Validation(histories, histories.liked, seed=0))
    scores = fitted.scores(histories, np.arange(60))
    for user in range(60):
        group = np.bincount(histories.liked[user] % GROUPS).argmax()
        unmet = np.setdiff1d(np.arange(40), histories.liked[user])
        best = unmet[np.argsort(-scores[user, unmet])[:2]]
        assert (best % GROUPS == group).all()


def test_released_factors_help_those_who_have_few_users_and_are_left_where_they_do_not() -> None:
    few, many = histories_of(8, seed=1, items=160), histories_of(800, seed=2, items=160)
    rows = many.rows().toarray()
    values, vectors = np.linalg.eigh(rows.T @ rows)
    factors = (np.sqrt(np.maximum(values, 0))[:, None] * vectors.T).astype(np.float32)
    validation = Validation(few, few.liked, seed=0)
    alone, helped = fit_preferences(validation), fit_preferences(validation, [factors])
    assert helped.share > 0 == alone.share and helped.gain > alone.gain
    nonsense = np.random.default_rng(0).normal(size=(5, 160)).astype(np.float32)
    assert fit_preferences(validation, [1e3 * nonsense]).share == 0


@pytest.mark.parametrize("ordered", [True, False])
def test_recency_is_looked_at_only_where_there_is_an_order(ordered: bool) -> None:
    known = ragged([np.zeros(0, np.int32)] * 30)
    fitted = fit_preferences(Validation(histories_of(30, ordered=ordered), known, seed=0))
    assert ordered or fitted.half_life is None


def test_nobody_to_predict() -> None:
    nobody = Histories(liked=ragged([np.array([1], np.int32), np.zeros(0, np.int32)]), items=3, ordered=True)
    fitted = fit_preferences(Validation(nobody, nobody.liked, seed=0))
    assert fitted.gain == 0.0 and np.isfinite(fitted.scores(nobody, np.arange(2))).all()


def test_a_climb_ends_where_neither_neighbour_is_better_and_fits_nothing_twice() -> None:
    """Up one side as far as it rises; down the other only where the first step up was none. Fits are what takes long."""
    for gains in product(range(3), repeat=4):
        for start in range(4):
            seen: list[int] = []

            def fit(place: int, gains: tuple[int, ...] = gains, seen: list[int] = seen) -> Any:
                seen.append(place)
                return SimpleNamespace(gain=gains[place], place=place)

            at = start
            while at < 3 and gains[at + 1] > gains[at]:
                at += 1
            while at <= start and at > 0 and gains[at - 1] > gains[at]:
                at -= 1
            assert _climb(fit, 4, start).place == at, (gains, start)
            assert len(seen) == len(set(seen)) and (at <= start or min(seen) == start), (gains, start)


def weighted(users: int, *, telling: bool) -> Histories:
    """Users who buy items of one group of four and click on any; a purchase weighs ten times a click, or either by chance."""
    random = np.random.default_rng(5)
    rows, weights = [], []
    for _ in range(users):
        group = random.integers(GROUPS)
        bought = random.choice(np.arange(60)[np.arange(60) % GROUPS == group], 6, replace=False)
        clicked = random.choice(np.setdiff1d(np.arange(60), bought), 6, replace=False)
        items, weight = np.concatenate([bought[1:], clicked]), np.repeat([1.0, 0.1], [5, 6])
        order = random.permutation(len(items))
        rows.append(np.append(items[order], bought[:1]).astype(np.int32))
        weights.append(np.append((weight if telling else random.permutation(weight))[order], 1.0))
    weight = np.concatenate(weights).astype(np.float32)
    return Histories(liked=ragged(rows), items=60, ordered=True, weight=weight / np.exp(np.log(weight).mean()))


def test_weights_of_events_count_where_they_predict_the_next_item() -> None:
    histories = weighted(150, telling=True)
    validation = Validation(histories, histories.liked, seed=0)
    without = own_preferences(validation)
    found = emphasised(validation, without)
    assert [one.emphasis for one in found] == list(EMPHASES) and without.emphasis == 0
    assert min(one.gain for one in found) > without.gain + 0.01
    users = np.arange(150)
    expected = histories.recent(users, half_life=without.half_life, emphasis=EMPHASES[0])
    assert np.array_equal(found[0].scores(histories, users), without.model.scores(expected))
    nothing = replace(histories, weight=None)
    assert not emphasised(Validation(nothing, nothing.liked, seed=0), without)


def test_weights_are_those_of_the_pair_of_user_and_item(write_platform: Callable[..., Path]) -> None:
    rows = "user,item,event,time\n" + "".join(
        f"u{user},i{(user + 5 * item) % 12},{('view', 'cart', 'buy')[(user + item) % 3]},{100 * user + item}\n"
        for user in range(9)
        for item in range(2 + user % 4)
    )
    path = write_platform(files={"shop-events.csv": rows})
    text = path.read_text()
    for events, timed in (("{ view = 0.5, cart = 1.0, buy = 2.0 }", True), ("{ view = 0.5, cart = 1, buy = 2 }", False)):
        path.write_text(text.replace('path = "shop-events.csv"', f'path = "shop-events.csv"\nevents = {events}'))
        if not timed:
            (path.parent / "shop-events.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in rows.splitlines()))
        tables = read_tables(load(path))
        for split in (leave_one_out(tables, seed=1), nothing_held_out(tables, seed=1)):
            histories = liked_histories(tables, split.train)
            assert histories.weight is not None and histories.ordered == timed
            assert np.log(histories.weight).mean() == pytest.approx(0, abs=1e-6)
            known = {
                (tables.interactions.offsets.searchsorted(row, side="right") - 1, item): weight
                for row, (item, weight) in enumerate(zip(tables.interactions.item, tables.interactions.weight, strict=True))
            }
            user, _, item = split.train.entries(np.arange(len(split.train)))
            expected = np.array([known[pair] for pair in zip(user, item, strict=True)])
            assert np.allclose(histories.weight / histories.weight[0], expected / expected[0])
    path.write_text(
        text.replace('path = "shop-events.csv"', 'path = "shop-events.csv"\nevents = { view = 3, cart = 3, buy = 3 }')
    )
    tables = read_tables(load(path))
    assert liked_histories(tables, nothing_held_out(tables, seed=0).train).weight is None
    with pytest.raises(ValueError, match="weights"):
        replace(weighted(3, telling=True), weight=np.ones(2, np.float32))
