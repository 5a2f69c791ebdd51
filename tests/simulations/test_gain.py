"""The gain benchmark: what runs and what does not run again, and that rows, gains, newcomers and baselines are what they say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.config.platform_file import load
from client.examples.split import Split, ragged
from client.model.prepared_platform import PlatformRows, read_rows
from client.recommender.evidence import Popular
from client.recommender.item_ridge import ItemRidge
from client.recommender.left_out import Validation
from client.recommender.model_comparison import RankedUsers
from client.recommender.own_model import exact_ranks, fit_own, training_histories
from shared.base.settings import Settings
from simulations.benchmarks import gain
from simulations.benchmarks.baselines import BASELINES, attribute_vectors, fit_baselines, validation_cut
from simulations.benchmarks.gain_report import (
    GainCell,
    baseline_table,
    gain_table,
    plot_gains,
    save_cell,
    summary_of,
    training_table,
)
from simulations.benchmarks.newcomers import newcomer_users, only_users

Write = Callable[..., Path]
GROUPS = ("news", "sport", "film", "music")
FACTS = {"platform", "dealt", "epsilon", "segment"}


@pytest.fixture
def world(write_platform: Write) -> Path:
    """Two platforms of one catalogue that are large enough to be dealt to two, and one that is not."""
    for at, (name, users) in enumerate((("north", 240), ("south", 120), ("west", 60))):
        path = write_platform(name, users=users, declared=users, items=24, seed=at)
    return path.parent


def measured(capsys: pytest.CaptureFixture[str], world: Path, out: Path, *words: str) -> tuple[dict[str, Any], str]:
    gain.main([str(world), "--out", str(out), "--seeds", "0", "--epsilon", "8", "--json", *words])
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def test_what_is_there_is_not_run_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = measured(capsys, world, tmp_path / "out", "--dealt", "1", "2", "--plot", str(tmp_path / "gains.png"))
    assert "west dealt to 2: fewer than 50 users each, left out" in said
    assert {(row["platform"], row["dealt"]) for row in found["rows"]} == {
        ("north", 1), ("south", 1), ("west", 1), ("north", 2), ("south", 2)
    }  # fmt: skip
    assert {row["model"] for row in found["rows"]} == {"own", "global", "fused"}
    assert {row["segment"] for row in found["rows"]} == {"all", "few-events", "rare-items"}
    for row in found["rows"]:
        assert set(row) == {*FACTS, "seed", "model", "ndcg@10", "hr@10", "users"}
        assert row["ndcg@10"] is None if not row["users"] else 0 <= row["ndcg@10"] <= row["hr@10"] <= 1
    for one in found["gains"]:
        assert set(one) == {*FACTS, "gain", "low", "high"}
        assert one["gain"] is None or one["low"] <= one["gain"] <= one["high"]
    users = {row["platform"]: row["users"] for row in found["rows"] if (row["dealt"], row["segment"]) == (2, "all")}
    assert users == {"north": 240, "south": 120}
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(gain, "run_cell", lambda *_: pytest.fail("a cell runs again"))
    assert measured(capsys, world, tmp_path / "out", "--dealt", "1", "2")[0] == found


def test_worlds_with_platforms_of_one_name_are_not_mixed(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gain.main([str(world), str(world), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "north, south, west" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_platform_has_its_own_model_alone(write_platform: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_platform("north", users=60, declared=60).parent
    found, _ = measured(capsys, world, tmp_path / "out", "--dealt", "1")
    assert {row["model"] for row in found["rows"]} == {"own", "fused"}
    assert all(one["gain"] in (0.0, None) for one in found["gains"])


def test_a_newcomer_is_measured_on_users_of_whom_nothing_is_known(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = measured(capsys, world, tmp_path / "out", "--dealt", "2", "--newcomers", "0", "20")
    assert "south dealt to 2: fewer than 50 users each beside a newcomer, which is left out" in said
    rows = {(row["segment"], row["model"]): row for row in found["rows"] if row["segment"].startswith("newcomer")}
    assert {row["platform"] for row in rows.values()} == {"north"}
    assert {key[1] for key in rows if key[0] == "newcomer-0"} == {"own", "global", "fused", "words", "popularity"}
    assert {key[1] for key in rows if key[0] == "newcomer-20"} == {"own", "global", "fused"}
    (users,) = {row["users"] for row in rows.values()}
    assert users >= 40
    assert rows["newcomer-0", "global"] == {**rows["newcomer-20", "global"], "segment": "newcomer-0"}
    assert rows["newcomer-0", "fused"] == {**rows["newcomer-0", "global"], "model": "fused"}
    # Catalogue order, which is chance here: 4.54 / 20 for some 20 candidates.
    assert 0.1 < rows["newcomer-0", "own"]["ndcg@10"] < 0.36
    assert {(one["segment"], one["platform"]) for one in found["gains"]} >= {("newcomer-0", "north"), ("newcomer-20", "north")}


def test_a_newcomers_users_are_in_no_part_of_the_federation(world: Path, tmp_path: Path) -> None:
    cell = GainCell(world=str(world), platform="north", dealt=2, epsilon=8.0, seed=0, newcomers=(20,))
    dealt = gain.DealtPlatforms(cell, tmp_path / "dealt")
    users = newcomer_users(dealt.whole, dealt=2, parts=dealt.parts, seed=0)
    federated = [name for part in dealt.platforms.values() for name in part.tables.user_ids]
    newcomers = [dealt.whole.tables.user_ids[user] for user in users]
    assert len(dealt.platforms) == 2 and len(newcomers) >= 70
    assert sorted([*federated, *newcomers]) == sorted(dealt.whole.tables.user_ids)


def test_what_training_adds_is_measured_beside_the_same_model_without_the_adapter(
    world: Path, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        f"model.backbone={tiny_bert}",
        "rounds=1",
        "training.local_steps=1",
        "training.views=1",
        "privacy.accept_noise=true",
    )
    words = [word for one in settings for word in ("--set", one)]
    found, _ = measured(capsys, world, tmp_path / "out", "--dealt", "1", "--strategy", "fedavg", *words)
    rows = {(row["platform"], row["segment"], row["model"]): row for row in found["rows"]}
    assert {model for _, _, model in rows} == {"own", "global", "fused", "untrained"}
    assert len(found["training"]) == len(found["gains"]) == 9
    # Nothing else was released, so without the adapter the fused model is the own one.
    assert all(rows[name, "all", "untrained"] == {**rows[name, "all", "own"], "model": "untrained"} for name in ("north", "west"))
    for one in found["training"]:
        own, fused = (rows[one["platform"], one["segment"], model]["ndcg@10"] for model in ("untrained", "fused"))
        assert one["gain"] is None or one["gain"] == pytest.approx(fused / own - 1)
    table = training_table(found)
    assert table is not None and table.row_count == 9
    # Preferences alone are a cell of their own in the same folder, and are not counted together with it.
    alone, _ = measured(capsys, world, tmp_path / "out", "--dealt", "1")
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
    assert {row["model"] for row in alone["rows"]} == {"own", "global", "fused"} and "training" not in alone


def read(world: Path, name: str = "north") -> PlatformRows:
    return read_rows(load(world / f"{name}.toml"), Settings(seed=0))


def test_only_some_users(write_platform: Write) -> None:
    ties = "user,friend\n" + "".join(f"u{user},u{(user + step) % 30}\n" for user in range(30) for step in (1, 5))
    extra = '[sources.friends]\nkind = "social"\npath = "ties.csv"\n'
    rows = read(write_platform("north", files={"ties.csv": ties}, extra=extra).parent)
    users = np.array([7, 3, 8, 21])
    tables, split = only_users(rows.tables, rows.split, users)
    assert tables.users == len(split.held) == 4 and tables.items == rows.tables.items
    for place, user in enumerate(users):
        whole, part = rows.tables.interactions, tables.interactions
        assert tables.user_ids[place] == rows.tables.user_ids[user]
        mine, there = (slice(*table.offsets[at : at + 2]) for table, at in ((part, place), (whole, user)))
        assert np.array_equal(part.item[mine], whole.item[there]) and np.array_equal(part.time[mine], whole.time[there])
        assert np.array_equal(split.train[place], rows.split.train[user]) and split.held[place] == rows.split.held[user]
    (friends,) = tables.ties.values()
    names = [
        [tables.user_ids[at] for at in friends.friend[friends.offsets[u] : friends.offsets[u + 1]] if at >= 0] for u in range(4)
    ]
    expected = [
        [name for step in (1, 5) if (name := f"u{(int(user[1:]) + step) % 30}") in tables.user_ids] for user in tables.user_ids
    ]
    assert [sorted(some) for some in names] == [sorted(some) for some in expected] and any(names)
    assert np.isfinite(fit_own(tables, split, seed=0).model.scores(np.arange(4))).all()


def test_baselines_stand_beside_the_own_model(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gain.main([str(world), "--out", str(tmp_path / "out"), "--seeds", "0", "--dealt", "2", "--epsilon", "--baselines", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in found["rows"]} == {"own", *BASELINES} and not found["gains"]
    assert {row["epsilon"] for row in found["rows"]} == {None}
    assert gain_table(found) is None and baseline_table(found) is not None


def grouped() -> Split:
    """Users who like items of one of four groups."""
    random, rows = np.random.default_rng(0), []
    for user in range(120):
        rows.append((random.permutation(8) * 4 + user % 4).astype(np.int32)[:6])
    return Split(
        train=ragged([row[:-1] for row in rows]),
        held=np.array([row[-1] for row in rows], np.int32),
        known=ragged([np.sort(row[:-1]) for row in rows]),
    )


def test_every_baseline_finds_what_is_liked_together(world: Path) -> None:
    rows, split = read(world), grouped()
    tables = rows.tables
    more = [f"title {item}" for item in range(32)]
    texts = {"items": [f"title {item}. category: {GROUPS[item % 4]}" for item in range(32)]}
    tables = type(tables)(
        platform="north",
        item_ids=more,
        item_titles=more,
        item_keys=[""] * 32,
        item_text=texts,
        user_ids=[str(user) for user in range(120)],
        interactions=tables.interactions,
    )
    words = attribute_vectors(tables)
    # "category" is everywhere and says nothing; the title is left out.
    assert (words.toarray() > 0).sum(1).tolist() == [1] * 32
    for name, model in fit_baselines(tables, split, seed=0).items():
        ranks, _ = exact_ranks(model, split)
        # Three items of a group are left for each user; by popularity, any of 27.
        assert (ranks.mean() > 8) if name == "popularity" else (ranks <= 3).mean() > 0.9, name


def test_a_validation_cut_does_not_look_at_what_is_held_out() -> None:
    split = grouped()
    cut = validation_cut(split, seed=0)
    for user in range(split.users):
        assert cut.held[user] == split.train[user][-1] and np.array_equal(cut.train[user], split.train[user][:-1])
        assert cut.held[user] not in cut.known[user] and split.held[user] not in cut.train[user]


def test_gains_of_active_items_are_those_of_all(world: Path) -> None:
    """What computes fast what `Validation.gains` says: items that nobody likes, and one more part of a score."""
    rows = read(world)
    histories = training_histories(rows.tables, rows.split)
    some = np.arange(24)[np.arange(24) % 3 > 0]
    liked = [items[np.isin(items, some)] for items in (histories.liked[user] for user in range(histories.users))]
    histories = type(histories)(liked=ragged(liked), items=24, ordered=True)
    validation = Validation(histories, rows.split.known, seed=0)
    model = ItemRidge(histories.rows(), ridge=3.0)
    assert np.array_equal(model.active, some) and len(validation) > 200
    scores = validation.scores(model, 4.0)
    expected = validation.gains(scores.copy())
    np.testing.assert_array_equal(validation.gains_by(model, 4.0), expected)
    adding = np.random.default_rng(0).random(scores.shape).astype(np.float32)
    more = validation.gains(scores + np.float32(0.3) * adding)
    validation.gains(scores)
    np.testing.assert_array_equal(validation.gains_with(scores, adding, np.float32(0.3)), more)
    assert Popular(histories).name == "popularity"


def cells(folder: Path) -> Path:
    """Of one platform, users for whom the fused model is half as good again."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for seed in range(2):
        own = random.random((80, 3)) / 2
        cell = GainCell(world="w", platform="a-platform-of-a-long-name", dealt=64, epsilon=0.5, seed=seed)
        segments = {"newcomer-200": np.ones(80, bool)}
        found = RankedUsers(
            users=np.arange(len(own)), ranks={}, quality={"own": own, "global": own / 2, "fused": 1.5 * own}, segments=segments
        )
        save_cell(folder / f"{cell.name}.npz", cell, {"part-1": found, "part-2": found})
    return folder


def test_gains_are_of_all_users_and_tables_fit_a_hundred_columns(tmp_path: Path) -> None:
    found = summary_of(cells(tmp_path / "cells"))
    (one,) = found["gains"]
    assert one["gain"] == pytest.approx(0.5) and one["low"] == pytest.approx(0.5) and one["high"] == pytest.approx(0.5)
    assert [row["users"] for row in found["rows"]] == [160] * 6
    rows = [{**row, "model": name, "epsilon": None} for row in found["rows"] for name in BASELINES if row["model"] == "own"]
    text = io.StringIO()
    console = Console(file=text, width=100)
    for table in (gain_table(found), baseline_table({"rows": [*found["rows"], *rows], "gains": []})):
        assert table is not None
        console.print(table)
    assert "+50.0%" in text.getvalue() and "segment" in text.getvalue() and "own / best" in text.getvalue()
    assert text.getvalue().count("a-platform") == 2
    assert "…" not in text.getvalue() and max(map(len, text.getvalue().splitlines())) <= 100
    plot_gains(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
