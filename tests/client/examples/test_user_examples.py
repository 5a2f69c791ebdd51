"""What a user's example may show, and whose rows it depends on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.examples.friends import Friends
from client.examples.split import Split, leave_one_out, ragged
from client.examples.user_examples import Examples
from client.model.prepared_platform import read_platform
from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import SeededNoise
from client.privacy.popularity_release import BOUND, bounded_counts, log_popularity, release_prior
from client.sources.tables import Interactions, Tables, Ties
from shared.base.settings import Settings
from shared.privacy.releases import ReleaseKind

Write = Callable[..., Path]
Make = Callable[..., Settings]


def tables_of(
    histories: dict[str, list[tuple[int, bool]]], items: int = 10, *, times: bool = True, ties: Ties | None = None
) -> Tables:
    rows = [row for history in histories.values() for row in history]
    offsets = np.cumsum([0, *(len(history) for history in histories.values())]).astype(np.int64)
    return Tables(
        platform="p",
        item_ids=[f"i{item}" for item in range(items)],
        item_titles=[f"i{item}" for item in range(items)],
        item_keys=[f"i{item}" for item in range(items)],
        item_text={},
        user_ids=list(histories),
        interactions=Interactions(
            offsets=offsets,
            item=np.array([item for item, _ in rows], np.int32),
            weight=np.ones(len(rows), np.float32),
            positive=np.array([liked for _, liked in rows], np.bool_),
            time=np.arange(len(rows), dtype=np.int64) if times else None,
        ),
        ties={"friends": ties} if ties else {},
    )


histories = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8, unique_by=lambda row: row[0]),
    min_size=2,
    max_size=6,
)


class TestSplit:
    def test_the_last_liked_is_held_out(self) -> None:
        split = leave_one_out(tables_of({"u": [(3, True), (1, False), (4, True), (2, False)]}), seed=0)
        assert split.held.tolist() == [4]
        assert split.train[0].tolist() == [3]
        assert split.known[0].tolist() == [1, 2, 3]

    def test_one_liked_item_trains_and_is_not_evaluated(self) -> None:
        split = leave_one_out(tables_of({"u": [(3, True), (1, False)], "v": [(2, False)]}), seed=0)
        assert split.held.tolist() == [-1, -1]
        assert split.train[0].tolist() == [3]
        assert split.train[1].tolist() == []

    def test_without_times_the_seed_chooses(self) -> None:
        tables = tables_of({f"u{n}": [(item, True) for item in range(8)] for n in range(40)}, times=False)
        first, again, other = (leave_one_out(tables, seed=seed) for seed in (1, 1, 2))
        assert (first.held == again.held).all()
        assert (first.held != other.held).any()
        assert len(set(first.held.tolist())) > 3

    @given(histories, st.booleans())
    @settings(deadline=None)
    def test_is_each_users_own(self, rows: dict[str, list[tuple[int, bool]]], times: bool) -> None:
        whole, gone = tables_of(rows, times=times), next(iter(rows))
        rest = tables_of({user: history for user, history in rows.items() if user != gone}, times=times)
        a, b = leave_one_out(whole, seed=3), leave_one_out(rest, seed=3)
        counts = {}
        for name, tables, split in (("a", whole, a), ("b", rest, b)):
            for number, user in enumerate(tables.user_ids):
                counts[name, user] = (int(split.held[number]), split.train[number].tolist(), split.known[number].tolist())
        assert all(counts["a", user] == counts["b", user] for user in rest.user_ids)


class TestPopularity:
    @given(st.lists(st.lists(st.integers(0, 59), max_size=70), min_size=1, max_size=4))
    @settings(deadline=None)
    def test_one_user_moves_the_counts_by_at_most_one(self, likes: list[list[int]]) -> None:
        rows = {f"u{n}": [(item, True) for item in dict.fromkeys(items)] or [(0, False)] for n, items in enumerate(likes)}
        tables = tables_of(rows, items=60)
        split = Split(
            train=ragged([np.array(items, np.int32) for items in likes]), held=np.full(len(likes), -1, np.int32), known=ragged([])
        )
        with_all = bounded_counts(split, tables, seed=0).vector()
        for gone in range(len(likes)):
            left = [n for n in range(len(likes)) if n != gone]
            fewer = tables_of({f"u{n}": rows[f"u{n}"] for n in left}, items=60) if left else None
            counts = np.zeros(60)
            if fewer is not None:
                kept = Split(
                    train=ragged([np.array(likes[n], np.int32) for n in left]),
                    held=np.full(len(left), -1, np.int32),
                    known=ragged([]),
                )
                counts = bounded_counts(kept, fewer, seed=0).vector()
            assert np.linalg.norm(with_all - counts) <= 1 + 1e-9

    def test_the_bound_is_reached(self) -> None:
        tables = tables_of({"u": [(item, True) for item in range(50)]}, items=50)
        split = Split(train=ragged([np.arange(50, dtype=np.int32)]), held=np.full(1, -1, np.int32), known=ragged([]))
        counts = bounded_counts(split, tables, seed=0).vector()
        assert np.count_nonzero(counts) == BOUND
        assert np.linalg.norm(counts) == pytest.approx(1.0)

    def test_the_prior_is_noised_and_a_log_share(self) -> None:
        counts = BoundedSum(parts={"sum": torch.linspace(0, 300, 400, dtype=torch.float64)}, bound=1.0)
        priors = [
            release_prior(counts, CountMechanism(kind=ReleaseKind.POPULARITY, noise_multiplier=z, dimension=400), SeededNoise(1))
            for z in (0.0, 3.0)
        ]
        for prior in priors:
            assert np.exp(prior.astype(np.float64)).sum() == pytest.approx(1.0, rel=1e-4)
        assert not np.allclose(*priors)
        assert np.corrcoef(*priors)[0, 1] > 0.9

    @given(st.integers(1, 50), st.floats(0.1, 20.0), st.integers(0, 99))
    @settings(deadline=None, max_examples=30)
    def test_what_is_inferred_is_a_log_share_in_the_order_of_the_noised_counts(self, items: int, noise: float, seed: int) -> None:
        noised = np.random.default_rng(seed).normal(size=items) * noise * 3
        prior = log_popularity(noised, noise)
        assert np.isfinite(prior).all() and np.exp(prior.astype(np.float64)).sum() == pytest.approx(1.0, rel=1e-4)
        assert (np.diff(prior[np.argsort(noised)]) >= -1e-5).all()

    @pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
    def test_what_is_inferred_is_nearer_the_truth_than_the_noised_counts(self, noise: float) -> None:
        counts = 2000 / np.arange(1, 3001) / np.sqrt(BOUND)  # Zipf's law
        noised = counts + np.random.default_rng(5).normal(size=counts.size) * noise
        truth = log_popularity(counts, 0.0)
        # At face value, as far as a logarithm has one.
        floored = np.log(np.maximum(noised, noise) / np.maximum(noised, noise).sum())
        share = np.exp(truth.astype(np.float64))

        def divergence(prior: np.ndarray) -> float:
            return float((share * (truth - prior)).sum())

        assert divergence(log_popularity(noised, noise)) < 0.9 * divergence(floored)

    def test_with_hardly_any_noise_the_counts_are_believed(self) -> None:
        counts = np.linspace(1, 300, 50)
        assert np.abs(log_popularity(counts, 1e-3) - log_popularity(counts, 0.0)).max() < 0.1


class TestExamples:
    def examples(self, path: Path, settings_: Settings) -> tuple[Tables, Split, Examples, Examples, object]:
        from client.examples.user_examples import HeldOutViews, TrainingViews

        tables, split, _, _, reader, texts = read_platform(load(path), settings_)
        views, held_out = TrainingViews(tables, split, reader, settings_.training, seed=0), HeldOutViews(split, reader)
        training = views.read(views.of(np.arange(split.users)).reshape(-1))
        return tables, split, training, held_out.read(np.arange(len(held_out))), texts

    def test_the_answer_is_never_in_the_question(self, write_platform: Write, tiny_settings: Make) -> None:
        # Every title is one word of its own, so a title in a text is an item in a text.
        titles = "\n".join(["item,title", *(f"i{item},{chr(97 + item) * 3}" for item in range(12))])
        notes = "\n".join(
            [
                "user,item,text",
                *(f"u{user},i{item},{chr(97 + item)}{chr(97 + item)}note" for user in range(30) for item in range(12)),
            ]
        )
        path = write_platform(extra='[sources.notes]\nkind = "reviews"\npath = "notes.csv"\n', files={"notes.csv": notes + "\n"})
        (path.parent / "shop-items.csv").write_text(titles + "\n")
        _, split, training, held_out, texts = self.examples(path, tiny_settings(model={"user_tokens": 60}))
        assert len(training) == 2 * sum(len(split.train[user]) > 0 for user in range(split.users))
        for examples in (training, held_out):
            for row in range(len(examples)):
                text = texts.words(examples.sequences[row])  # type: ignore[attr-defined]
                shown = {int(item) for item in examples.context[row]}
                targets = {int(item) for item in examples.targets[row]}
                user = int(examples.user[row])
                assert targets and not targets & shown
                assert int(split.held[user]) not in shown
                for item in range(12):
                    letter = chr(97 + item)
                    if item not in shown:
                        assert letter * 3 not in text and f"{letter}{letter}note" not in text
                assert set(examples.excluded[row].tolist()) == set(split.known[user].tolist()) - targets

    def test_views_differ_and_the_last_is_the_longest(self, write_platform: Write, tiny_settings: Make) -> None:
        _, split, training, _, _ = self.examples(write_platform(), tiny_settings(training={"views": 4}))
        for user in range(split.users):
            rows = np.flatnonzero(training.user == user)
            lengths = [len(training.context[int(row)]) for row in rows]
            assert lengths[-1] == len(split.train[user]) - 1 == max(lengths)


def graph(edges: list[tuple[int, int]], people: int) -> Ties:
    """Ties with the names in a fixed order of the pair, as the reader gives them."""
    named = [
        sorted({b for a, b in edges if a == user and b != user}, key=lambda b, u=user: hash((u, b, 77))) for user in range(people)
    ]
    return Ties(
        offsets=np.cumsum([0, *map(len, named)]).astype(np.int64),
        friend=np.array([b for names in named for b in names], np.int32),
        influence=2,
        friends=2,
    )


def without(ties: Ties, gone: int, influence: int) -> Ties:
    """The same people after one has left: their rows are gone, and their name keeps its place in the lists of others."""
    lists = [ties.friend[ties.offsets[user] : ties.offsets[user + 1]] for user in range(len(ties.offsets) - 1)]
    kept = [np.where(names == gone, -1, names) if user != gone else names[:0] for user, names in enumerate(lists)]
    return Ties(
        offsets=np.cumsum([0, *map(len, kept)]).astype(np.int64),
        friend=np.concatenate(kept).astype(np.int32),
        influence=influence,
        friends=ties.friends,
    )


def changed_by_removal(ties: Ties, people: int, influence: int) -> tuple[int, int]:
    """Greatest number of others' examples that one person's removal changes, and the group size that is claimed."""
    histories_ = {f"u{n}": [(n % 10, True), ((n + 3) % 10, True), ((n + 5) % 10, True)] for n in range(people)}
    ties = Ties(offsets=ties.offsets, friend=ties.friend, influence=influence, friends=ties.friends)
    tables = tables_of(histories_, ties=ties)
    split = leave_one_out(tables, seed=0)
    friends = Friends(tables, split)
    worst = 0
    for gone in range(people):
        # Numbers stay, so that texts compare: the person without rows has no history and speaks nowhere.
        rest = tables_of(histories_, ties=without(ties, gone, influence))
        after = Friends(rest, split)
        others = [user for user in range(people) if user != gone]
        worst = max(worst, sum(friends.speakers(user) != after.speakers(user) for user in others))
    return worst, friends.group_size


def test_a_source_takes_the_tokens_that_its_platform_gives_it(write_platform: Write, tiny_settings: Make) -> None:
    people = "\n".join(["user,town", *(f"u{user},{' '.join(['red'] * 9)}" for user in range(30))])
    said = "\n".join(["user,item,text", *(f"u0,i{item},{' '.join(['space'] * 9)}" for item in range(12))])
    found = {}
    for tokens in (6, 9):
        path = write_platform(
            f"shop{tokens}",
            extra=f'[sources.people]\nkind = "profiles"\npath = "people.csv"\ntext = ["town"]\ntokens = {tokens}\n'
            f'[sources.said]\nkind = "reviews"\npath = "said.csv"\npublic = true\ntokens = {tokens}\n',
            files={"people.csv": people + "\n", "said.csv": said + "\n"},
        )
        settings_ = tiny_settings(model={"user_tokens": 40, "item_tokens": 20})
        _, split, catalogue, _, reader, texts = read_platform(load(path), settings_)
        user = texts.words(reader.sequence(3, split.train[3][::-1], serving=True))
        item = texts.words(catalogue.sequences[3])
        # The longest run, as a title may hold the word too.
        found[tokens] = tuple(
            max(map(len, re.findall(f"(?:{word} ?)+", text))) for word, text in (("red ", user), ("space ", item + " "))
        )
    assert found[9] == (found[6][0] + 3 * len("red "), found[6][1] + 3 * len("space "))


class TestFriends:
    @given(
        st.integers(3, 9).flatmap(
            lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
        )
    )
    @settings(deadline=None, max_examples=150)
    def test_a_person_touches_no_more_examples_than_the_group_size_says(self, drawn: tuple[int, list[tuple[int, int]]]) -> None:
        people, edges = drawn
        worst, group = changed_by_removal(graph(edges, people), people, 2)
        assert group == 1 + 2 + 2
        assert worst <= group - 1

    def test_the_check_notices_unbounded_influence(self) -> None:
        # Everybody names person 0: without the bound, their removal changes everybody's example.
        star = graph([(user, 0) for user in range(1, 9)], 9)
        assert changed_by_removal(star, 9, 2)[0] <= 4
        assert changed_by_removal(star, 9, 100)[0] == 8

    def test_no_influence_means_no_friend_in_training(self) -> None:
        ties = graph([(0, 1), (1, 0), (2, 1)], 3)
        quiet = Ties(offsets=ties.offsets, friend=ties.friend, influence=0, friends=2)
        tables = tables_of({f"u{n}": [(n, True), (n + 3, True), (9, True)] for n in range(3)}, ties=quiet)
        friends = Friends(tables, leave_one_out(tables, seed=0))
        assert friends.group_size == 1
        assert all(not len(friends.shown(user, serving=False)) for user in range(3))
        assert friends.shown(0, serving=True).tolist() == [4, 1]  # the friend's own training items, never the held-out one
