"""A platform's own model: what it recommends, to whom, and how good that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.config.platform_file import load
from client.examples.split import leave_one_out
from client.recommender.own_model import exact_ranks, fit_own
from client.sources.platform_tables import read_tables
from shared.protocol.quality import mean_quality

Write = Callable[..., Path]


def test_its_quality_is_that_of_its_ranks(write_platform: Write) -> None:
    tables = read_tables(load(write_platform(users=60)))
    split = leave_one_out(tables, seed=0)
    model = fit_own(tables, split, seed=0).model
    ranks, among = [], []
    for user in np.flatnonzero(split.held >= 0):
        scores = model.scores(np.array([user]))[0]
        candidates = np.setdiff1d(np.arange(tables.items), split.known[user])
        own = scores[split.held[user]]
        ranks.append(1 + (scores[candidates] > own).sum() + ((scores[candidates] == own).sum() - 1) / 2)
        among.append(len(candidates))
    expected = mean_quality(np.asarray(ranks), np.asarray(among))
    assert mean_quality(*exact_ranks(model, split)).means == pytest.approx(expected.means)


def test_what_nobody_liked_comes_last(write_platform: Write) -> None:
    events = "user,item,time\n" + "".join(f"u{user},i{item},{user + item}\n" for user in range(9) for item in range(user % 4 + 1))
    tables = read_tables(load(write_platform(files={"shop-events.csv": events})))
    split = leave_one_out(tables, seed=0)
    model = fit_own(tables, split, seed=0).model
    shown = model.scores(np.array([0]))[0]
    unmet = np.setdiff1d(np.arange(tables.items), split.train[0])
    counts = np.bincount(split.train.values, minlength=tables.items)
    never = unmet[counts[unmet] == 0]
    assert shown[never].max() <= shown[unmet[counts[unmet] > 0]].min()


def test_it_reads_nothing_that_is_held_out(write_platform: Write) -> None:
    tables = read_tables(load(write_platform(users=40)))
    split = leave_one_out(tables, seed=0)
    other = replace(split, held=np.where(split.held >= 0, (split.held + 1) % tables.items, -1).astype(np.int32))
    one, two = fit_own(tables, split, seed=0).model, fit_own(tables, other, seed=0).model
    users = np.arange(tables.users)
    assert np.array_equal(one.scores(users), two.scores(users)) and one.weights == two.weights
    assert one.histories.rows().sum() == len(split.train.values)


@pytest.mark.parametrize("telling", [True, False])
def test_weights_count_in_histories_where_they_surely_predict(write_platform: Write, telling: bool) -> None:
    """What is bought is of one group of four, what is viewed of any; or either by chance."""
    random = np.random.default_rng(7)
    rows = ["user,item,event,time"]
    for user in range(80):
        group = random.integers(4)
        items = [*(group + 4 * random.choice(10, 6, replace=False)), *random.choice(40, 5, replace=False)]
        events = np.repeat(["buy", "view"], [6, 5])
        for when, place in enumerate(random.permutation(11)):
            event = events[place] if telling else events[random.integers(11)]
            rows.append(f"u{user},i{items[place]},{event},{100 * user + when}")
    path = write_platform(users=80, items=40, files={"shop-events.csv": "\n".join(rows)})
    events_key = 'path = "shop-events.csv"\nevents = { view = 0.1, buy = 1.0 }'
    path.write_text(path.read_text().replace('path = "shop-events.csv"', events_key))
    tables = read_tables(load(path))
    split = leave_one_out(tables, seed=0)
    own = fit_own(tables, split, seed=0)
    assert (own.model.preferences.emphasis > 0) == telling
    # The same rows with one weight for all.
    alike = replace(tables, interactions=replace(tables.interactions, weight=np.ones_like(tables.interactions.weight)))
    without = fit_own(alike, split, seed=0)
    assert without.model.preferences.emphasis == 0
    assert own.model.gain > without.model.gain if telling else own.model.gain == without.model.gain
