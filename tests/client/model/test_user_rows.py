"""Users' rows: read ahead or when their user is sampled, they are the same; what fails on one user leaves out that one alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.compute.feature_cache import TrunkCache
from client.config.platform_file import load
from client.examples.user_examples import Reader
from client.model.planned_reads import PlannedReads, planned_reads
from client.model.prepared_platform import PreparedPlatform, prepare
from client.model.user_rows import UserBatch
from client.privacy.failure_guard import Silent
from shared.base.settings import Settings

CPU = torch.device("cpu")
Make = Callable[..., Settings]
Write = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, write_platform: Write, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Prepares a platform, its views encoded ahead or not."""

    def make(name: str, *, ahead: bool, **over: Any) -> PreparedPlatform:
        monkeypatch.setattr(PlannedReads, "ahead", ahead)
        people = "user,town\n" + "".join(f"u{user},{'red' if user % 2 else 'green'} town\n" for user in range(30))
        extra = '[sources.people]\nkind = "profiles"\npath = "people.csv"\ntext = ["town"]\n'
        path = write_platform(extra=extra, files={"people.csv": people})
        return prepare(load(path), tiny_settings(), cache=tmp_path / name, **over)

    return make


def features(batch: UserBatch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, mask, _ = batch.rows.take(np.arange(len(batch)), CPU)
    return hidden, mask


def assert_same(one: UserBatch, other: UserBatch) -> None:
    for name in ("targets", "context", "excluded"):
        first, second = getattr(one.examples, name), getattr(other.examples, name)
        assert first.values.tolist() == second.values.tolist() and first.offsets.tolist() == second.offsets.tolist()
    assert one.examples.user.tolist() == other.examples.user.tolist()
    assert [ids.tolist() for ids in one.examples.sequences] == [ids.tolist() for ids in other.examples.sequences]
    assert all(torch.equal(a, b) for a, b in zip(features(one), features(other), strict=True))


def test_ahead_or_when_sampled_rows_are_the_same(made: Callable[..., Any]) -> None:
    ahead, late = made("ahead", ahead=True), made("late", ahead=False)
    rows = late.training.of(np.arange(late.tables.users))
    assert rows.shape[1] == 2 and rows.tolist() == ahead.training.of(np.arange(late.tables.users)).tolist()
    some = np.random.default_rng(0).permutation(rows.reshape(-1))[:17]
    for picked in (some, some[:1], np.concatenate([some, some[:3]]), some[:0]):
        assert_same(ahead.training.read(picked), late.training.read(picked))


def test_only_what_is_read_is_written_and_encoded(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = Reader.sequences

    def counting(self: Reader, users: Any, contexts: Any, *, serving: bool) -> Any:
        written.extend(users.tolist())
        return real(self, users, contexts, serving=serving)

    monkeypatch.setattr(Reader, "sequences", counting)
    platform = made("late", ahead=False)
    kept = len(platform.training._cache)
    assert not written and kept == platform.tables.items
    platform.training.read(platform.training.of(np.asarray([4, 9]))[:, 0])
    assert sorted(written) == [4, 9] and len(platform.training._cache) - kept in (1, 2)
    (batch,) = platform.held_out.read(np.asarray([3]), serving=True)
    assert len(batch) == 1 and written[2:] == [platform.held_out._views.users[3]]


def test_held_out_users_by_parts_are_those_read_at_once(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = made("one", ahead=False), made("other", ahead=False)
    everybody = np.arange(len(one.held_out))
    (whole,) = one.held_out.read(everybody, serving=True)
    monkeypatch.setattr("client.model.user_rows.EVALUATED", 0)
    monkeypatch.setattr("client.model.user_rows._AT_ONCE", 7)
    parts = list(other.held_out.read(everybody, serving=True))
    assert [len(part) for part in parts] == [7] * (len(everybody) // 7) + [len(everybody) % 7] * (len(everybody) % 7 > 0)
    for at, part in enumerate(parts):
        assert_same(part, whole.some(everybody[7 * at : 7 * at + 7]))


def test_what_cannot_be_read_ahead_is_read_when_it_is_sampled(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Reader.sequences

    def broken(self: Reader, users: Any, contexts: Any, *, serving: bool) -> Any:
        if 4 in users:
            raise ValueError("a row of user 4")
        return real(self, users, contexts, serving=serving)

    monkeypatch.setattr(Reader, "sequences", broken)
    guard = Silent()
    platform = made("broken", ahead=True, guard=guard)
    assert guard.failures == 1
    others = platform.training.of(np.asarray([3, 5])).reshape(-1)
    assert len(platform.training.read(others)) == 4
    with pytest.raises(ValueError, match="user 4"):
        platform.training.read(platform.training.of(np.asarray([4])).reshape(-1))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_full_disk_leaves_nobody_out(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    expected = made("good", ahead=True)
    rows = expected.training.of(np.arange(20)).reshape(-1)
    append, items = TrunkCache._append, expected.tables.items

    def full(self: TrunkCache, *given: Any) -> None:
        if len(self) >= items:
            raise OSError(28, "No space left on device")
        append(self, *given)

    monkeypatch.setattr(TrunkCache, "_append", full)
    guard = Silent()
    platform = made("full", ahead=ahead, guard=guard)
    assert guard.failures == int(ahead)
    assert_same(platform.training.read(rows), expected.training.read(rows))
    assert len(platform.training._cache) == items


class TestPlannedReads:
    def plan(self, users: int, **over: Any) -> PlannedReads:
        training = {"sample_rate": 0.08, **over.pop("training", {})}
        return planned_reads(Settings(training=training, **over), users=users, items=500, width=384)  # type: ignore[arg-type]

    def test_are_what_chance_reads(self) -> None:
        planned = self.plan(2000, training={"sequences": 2, "views": 5, "local_steps": 3}, rounds=4)
        random, read = np.random.default_rng(0), np.zeros((40, 2000 * 5), bool)
        for run in read.reshape(40, 2000, 5):
            for _ in range(12):
                users = np.flatnonzero(random.random(2000) < 0.08)
                first = random.integers(0, 5, len(users))
                run[users, first] = run[users, (first + 1) % 5] = True
        counts = read.sum(1)
        assert abs(counts.mean() - planned.read) < 5 * counts.std() / np.sqrt(40)

    def test_a_short_run_of_many_users_reads_few_and_keeps_no_more(self) -> None:
        small, large = self.plan(500), self.plan(1_000_000, training={"sample_rate": 0.001})
        assert small.ahead and not large.ahead
        assert large.read < 0.03 * large.views
        # Ten rounds of a thousand users a step: the bound does not grow with those who are not read.
        more = self.plan(2_000_000, training={"sample_rate": 0.0005})
        assert large.bytes_kept == pytest.approx(more.bytes_kept, rel=0.01) and more.bytes_kept < 6 << 30

    def test_more_than_the_disk_may_hold_is_not_read_ahead(self) -> None:
        long = self.plan(1_000_000, rounds=1000)
        assert long.read > 0.99 * long.views and not long.ahead and long.bytes_kept == 6 << 30

    def test_everything_is_read_by_whole_batches(self) -> None:
        assert self.plan(100, training={"sample_rate": 1.0, "sequences": 3}).read == 300
