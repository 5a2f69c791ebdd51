"""Every metric of a platform's models, by segment; with a plot, and one row a user."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from client.config.platform_file import load
from client.evaluation.click_metrics import ReliabilityBin
from client.evaluation.list_metrics import LIST_METRICS, item_facts
from client.evaluation.reliability_plot import plot_reliability, require_plots
from client.evaluation.score_calibration import Calibration
from client.examples.split import Split, leave_one_out, ragged
from client.recommender.own_evaluation import OwnEvaluation, evaluate_platform
from client.recommender.own_model import exact_ranks
from client.recommender.quality.model_quality import judge_model, quality_report
from client.recommender.quality.per_user_table import write_per_user
from client.recommender.quality.user_segments import MISSING, declared_segments, usual_segments
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError

Write = Callable[..., Path]


@dataclass(frozen=True)
class Scored:
    values: np.ndarray

    def scores(self, users: np.ndarray) -> np.ndarray:
        return self.values[users].astype(np.float32)


def some_split(users: int = 50, items: int = 12, seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    rows = [np.sort(random.permutation(items)[: random.integers(0, 5)]).astype(np.int32) for _ in range(users)]
    held = np.array([random.choice(np.setdiff1d(np.arange(items), row)) for row in rows], np.int32)
    held[::7] = -1
    return Split(train=ragged(rows), held=held, known=ragged(rows))


def test_ranks_are_those_of_the_comparison_and_lists_hold_nothing_that_was_met() -> None:
    split = some_split()
    scores = np.random.default_rng(1).normal(size=(50, 12)).round(1)
    scores[3, 4] = np.nan
    found = judge_model(Scored(scores), split, longest=5, calibration=None, seed=0)
    rank, candidates = exact_ranks(Scored(scores), split)
    np.testing.assert_array_equal(found.lists.rank, rank)
    np.testing.assert_array_equal(found.candidates, candidates)
    for row, user in zip(found.lists.items, np.flatnonzero(split.held >= 0), strict=True):
        shown = row[row >= 0]
        assert not set(shown.tolist()) & set(split.known[user].tolist())
        values = np.nan_to_num(scores[user][shown], nan=-np.inf)
        assert (np.diff(values) <= 0).all()


def test_segments_part_the_users() -> None:
    split = some_split(users=200)
    masks = usual_segments(split, items=12)
    by_item = [masks[name] for name in ("rare-items", "other-items", "popular-items")]
    np.testing.assert_array_equal(np.sum(by_item, axis=0), 1)
    events = np.sum([masks[name] for name in ("few-events", "some-events", "many-events")], axis=0)
    np.testing.assert_array_equal(events, split.train.lengths()[split.held >= 0] > 0)
    likes = np.bincount(split.train.values, minlength=12)[split.held[split.held >= 0]]
    assert likes[masks["popular-items"]].min() >= likes[masks["other-items"]].max(initial=0)


def test_means_of_segments_and_models_without_probabilities() -> None:
    split = some_split()
    model = Scored(np.random.default_rng(1).normal(size=(50, 12)))
    calibration = Calibration(method="platt", slope=1.0, intercept=-2.0, threshold=0.2)
    judged = {
        "own": judge_model(model, split, longest=5, calibration=calibration, seed=0),
        "global": judge_model(model, split, longest=5, calibration=None, seed=0),
    }
    masks = {**usual_segments(split, items=12), "nobody": np.zeros(len(judged["own"].candidates), np.bool_)}
    facts = item_facts(np.ones(12, np.int64), scipy.sparse.eye(12), users=50)
    found = quality_report(judged, masks, facts, lengths=(2, 5), seed=0)
    assert found.segments["nobody"] == {} and found.users["nobody"] == 0
    for k in (2, 5):
        for name, metric in LIST_METRICS.items():
            if metric.per_user is None:
                continue
            values = metric.per_user(judged["own"].lists, facts, k)[masks["few-events"]]
            estimate = found.segments["few-events"]["own"].lists[k][name]
            assert estimate.value == pytest.approx(np.nanmean(values))
            assert estimate.low <= estimate.value <= estimate.high
            assert found.segments["few-events"]["global"].lists[k][name] == estimate
    assert found.segments["all"]["own"].clicks["recall"].value > 0
    assert found.segments["all"]["global"].clicks == {}
    assert set(found.as_dict()["calibration"]) == {"own"}


PROFILES = '[sources.people]\nkind = "profiles"\npath = "people.csv"\ncolumns = { user = "who" }\ntext = ["region"]\n'


def with_profiles(write_platform: Write) -> Path:
    people = "who,region\n" + "".join(f"u{user},{'north' if user % 3 else 'south'}\n" for user in range(25))
    return write_platform(extra=PROFILES, files={"people.csv": people})


def test_declared_columns_are_segments(write_platform: Write) -> None:
    file = load(with_profiles(write_platform))
    tables = read_tables(file)
    split = leave_one_out(tables, seed=0)
    found = declared_segments(file, tables, split, ["people.region", "items.title"])
    ids = [tables.user_ids[user] for user in np.flatnonzero(split.held >= 0)]
    south = [int(name[1:]) < 25 and int(name[1:]) % 3 == 0 for name in ids]
    np.testing.assert_array_equal(found["people.region=south"], south)
    np.testing.assert_array_equal(found[f"people.region={MISSING}"], [int(name[1:]) >= 25 for name in ids])
    assert np.sum([mask for name, mask in found.items() if name.startswith("items.title")]) == len(ids)
    for wrong in ("people", "events.item", "nobody.region"):
        with pytest.raises(InputError, match="no column of a source"):
            declared_segments(file, tables, split, [wrong])
    with pytest.raises(InputError, match="does not exist"):
        declared_segments(file, tables, split, ["people.shoes"])


def evaluated(path: Path, tmp_path: Path) -> OwnEvaluation:
    return evaluate_platform(load(path), model=None, seed=0, cache=tmp_path / "cache", lengths=(3, 10), by=["people.region"])


def test_a_platform_is_evaluated_in_full(write_platform: Write, tmp_path: Path) -> None:
    found = evaluated(with_profiles(write_platform), tmp_path)
    shown = found.as_dict()
    everybody = shown["quality"]["segments"]["all"]
    assert everybody["users"] == shown["segments"]["all"]["users"] == len(found.user_ids)
    assert everybody["models"]["own"]["at"]["10"]["ndcg"]["value"] == shown["segments"]["all"]["own"]["ndcg@10"]
    assert 0 < everybody["models"]["own"]["click"]["log_loss"]["value"] < 1
    assert "people.region=north" in shown["quality"]["segments"]
    path = tmp_path / "users.parquet"
    write_per_user(path, found.ranked, users=found.user_ids, held=found.held)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    table = pl.read_parquet(path)
    assert table["own ndcg@10"].mean() == pytest.approx(shown["segments"]["all"]["own"]["ndcg@10"], abs=1e-6)
    assert table["user"].to_list() == list(found.user_ids)


@pytest.mark.parametrize("lengths", [(), (10,)])
def test_of_many_users_some_are_ranked_by_the_same_models(
    write_platform: Write, tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    path = with_profiles(write_platform)

    def asked(most: int) -> OwnEvaluation:
        by = ["people.region"] if lengths else ()
        file, cache = load(path), tmp_path / "cache"
        return evaluate_platform(file, model=None, seed=0, cache=cache, lengths=lengths, by=by, most_users=most)

    every, some = asked(0), asked(10)
    users = every.held_out_users
    assert users == some.held_out_users == len(every.user_ids) > 10 == len(some.user_ids)
    assert some.settings == every.settings
    place = [list(every.user_ids).index(user) for user in some.user_ids]
    assert [every.held[at] for at in place] == list(some.held)
    assert some.ranked.ranks["own"].tolist() == every.ranked.ranks["own"][place].tolist()
    for segment, mask in every.ranked.segments.items():
        assert some.ranked.segments[segment].tolist() == mask[place].tolist()
    shown = some.as_dict()
    assert (shown["held_out_users"], shown["segments"]["all"]["users"]) == (users, 10)
    assert some.lines[0] == f"Of {users} users with a held-out item, 10 drawn at random were ranked."
    assert not any("drawn at random" in line for line in every.lines)
    assert some.quality is None or some.quality.users["all"] == 10


@pytest.mark.parametrize(("name", "magic"), [("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")])
def test_a_plot_is_drawn(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    bins = [ReliabilityBin(pairs=30, predicted=p, observed=p / 2, low=p / 4, high=p) for p in (0.01, 0.1, 0.4)]
    bins.append(ReliabilityBin(pairs=5, predicted=0.9, observed=0.0, low=0.0, high=0.4))
    path = tmp_path / name
    plot_reliability(path, {"own": bins, "fused": bins[1:], "nothing": []}, title="shop")
    drawn = path.read_bytes()
    assert drawn.startswith(magic) and stat.S_IMODE(path.stat().st_mode) == 0o600
    plot_reliability(path, {"own": bins, "fused": bins[1:], "nothing": []}, title="shop")
    assert path.read_bytes() == drawn
    with pytest.raises(InputError, match="ends in"):
        require_plots(tmp_path / "plot.pdf")
