"""Own, global and fused: sums of parts, what each may depend on, and when which is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.config.platform_file import load
from client.examples.split import Split, nothing_held_out, ragged
from client.recommender.fused_model import fit_fused_model
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories
from client.recommender.own_model import fit_own, training_histories
from client.recommender.released_preferences import released_on
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.preferences.item_index import item_hashes
from shared.secagg.shared_catalogues import catalogue_digest
from tests.client.recommender.test_item_preferences import histories_of
from tests.support.released_preferences import release_of

Write = Callable[..., Path]


@pytest.fixture
def platform(write_platform: Write) -> tuple[Tables, Split]:
    tables = read_tables(load(write_platform(users=40)))
    return tables, nothing_held_out(tables, seed=0)


def hashes_of(tables: Tables) -> np.ndarray:
    return item_hashes(tables.item_keys, tables.item_ids, catalogue=catalogue_digest(tables.item_ids))


def alone(tables: Tables, split: Split, histories: Histories, **over: object) -> GlobalModel:
    shared = release_of(tables, split.train, **over)  # type: ignore[arg-type]
    return GlobalModel(histories, preferences=released_on(shared, hashes_of(tables)), text=None)


def one(items: list[int], count: int) -> Histories:
    return Histories(liked=ragged([np.asarray(items, np.int32)]), items=count, ordered=True)


def test_parts_sum_to_the_score(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    shared = release_of(tables, split.train)
    _, fused = fit_fused_model(
        tables, split, factors=shared.factors_on(hashes_of(tables)), popularity=shared.popularity_on(hashes_of(tables)),
        seed=0,
    )  # fmt: skip
    for model in (fused, alone(tables, split, training_histories(tables, split), items=np.arange(7))):
        for user in range(3):
            history = Histories(liked=ragged([split.train[user]]), items=tables.items, ordered=True)
            parts = model.parts(history, user=user)
            total = np.sum([part.scores for part in parts], axis=0)
            np.testing.assert_allclose(total, model.scores(np.array([user]))[0], atol=1e-5)
            for part in parts:
                assert part.by_item is None or part.by_item(np.arange(3)).shape == (len(split.train[user]), 3)
        parts = model.parts(one([2, 5], tables.items))
        np.testing.assert_allclose(
            np.sum([part.scores for part in parts], axis=0), model.scores_of(one([2, 5], tables.items))[0], atol=1e-5
        )


def test_the_item_that_adds_most_is_exact(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    model = fit_own(tables, split, seed=0).model
    for part in model.parts(one([4, 1, 7], tables.items)):
        if part.by_item is not None:
            np.testing.assert_allclose(part.by_item(np.arange(tables.items)).sum(0), part.scores, atol=1e-5)
            np.testing.assert_allclose(part.by_item(np.array([5, 2])).sum(0), part.scores[[5, 2]], atol=1e-5)


def test_the_order_of_users_and_of_items_changes_nothing(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    users = np.random.default_rng(0).permutation(tables.users)
    items = np.random.default_rng(1).permutation(tables.items)  # new place -> old item
    place = np.argsort(items).astype(np.int32)
    turned = Split(
        train=ragged([place[split.train[user]] for user in users]),
        held=split.held[users],
        known=ragged([place[split.known[user]] for user in users]),
    )
    other = replace(
        tables,
        item_ids=[tables.item_ids[item] for item in items],
        item_titles=[tables.item_titles[item] for item in items],
        item_keys=[tables.item_keys[item] for item in items],
        item_text={name: [texts[item] for item in items] for name, texts in tables.item_text.items()},
        user_ids=[tables.user_ids[user] for user in users],
    )
    found, moved = fit_own(tables, split, seed=0).model, fit_own(other, turned, seed=0).model
    every = np.arange(tables.users)
    np.testing.assert_allclose(moved.scores(every), found.scores(users)[:, items], atol=1e-5)
    shared = release_of(tables, split.train)  # its order is that of hashes
    before, after = (
        GlobalModel(
            training_histories(here, cut),
            preferences=released_on(
                shared, item_hashes(here.item_keys, here.item_ids, catalogue=catalogue_digest(tables.item_ids))
            ),
            text=None,
        )
        for here, cut in ((tables, split), (other, turned))
    )
    np.testing.assert_allclose(after.scores(every), before.scores(users)[:, items], atol=1e-5)


def test_the_global_model_reads_no_other_users_row(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    shared = release_of(tables, split.train, noise=0.1)
    others = ragged([split.train[0], *(np.arange(3, dtype=np.int32) for _ in range(tables.users - 1))])
    scores = [
        GlobalModel(
            Histories(liked=liked, items=tables.items, ordered=True),
            preferences=released_on(shared, hashes_of(tables)),
            text=None,
        ).scores(np.array([0]))
        for liked in (split.train, others, ragged([split.train[0]]))
    ]
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])


def test_what_is_not_released_comes_last_in_the_order_of_the_catalogue(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    model = alone(tables, split, training_histories(tables, split), items=np.array([3, 5, 6, 9]))
    for liked in ([], [3], [0, 1], [3, 5, 9]):
        scores = model.scores_of(one(liked, tables.items))[0]
        rest = np.setdiff1d(np.arange(tables.items), [3, 5, 6, 9])
        assert scores[rest].max() < scores[[3, 5, 6, 9]].min() and len(set(scores[rest])) == 1


def test_without_a_history_released_popularity_decides(platform: tuple[Tables, Split]) -> None:
    tables, split = platform
    popularity = release_of(tables, split.train).popularity_on(hashes_of(tables))
    scores = alone(tables, split, training_histories(tables, split)).scores_of(one([], tables.items))[0]
    assert np.array_equal(np.argsort(-scores, kind="stable"), np.argsort(-popularity, kind="stable"))


def test_a_release_that_does_not_help_is_not_used(write_platform: Write) -> None:
    tables = read_tables(load(write_platform(users=60, items=40)))
    liked = histories_of(tables.users).liked
    split = Split(train=liked, held=np.full(tables.users, -1, np.int32), known=liked)
    nonsense = 1e3 * np.random.default_rng(0).normal(size=(5, tables.items)).astype(np.float32)
    own, fused = fit_fused_model(tables, split, factors=nonsense, popularity=None, seed=0)
    assert fused is own and own.preferences.share == 0
    again = fit_own(tables, split, seed=0).model
    users = np.arange(tables.users)
    assert np.array_equal(again.scores(users), own.scores(users))


def test_the_fused_model_is_never_worse_on_what_it_is_chosen_by(write_platform: Write) -> None:
    tables = read_tables(load(write_platform(users=40)))
    everybody = nothing_held_out(tables, seed=0)
    few = np.arange(6)
    split = Split(
        train=ragged([everybody.train[user] for user in few]),
        held=everybody.held[few],
        known=ragged([everybody.known[user] for user in few]),
    )
    shared = release_of(tables, everybody.train)
    small = replace(tables, user_ids=list(tables.user_ids)[:6])
    own, fused = fit_fused_model(
        small, split, factors=shared.factors_on(hashes_of(tables)), popularity=shared.popularity_on(hashes_of(tables)),
        seed=0,
    )  # fmt: skip
    assert fused.gain >= own.gain
    assert (fused is own) == (fused.gain == own.gain)
