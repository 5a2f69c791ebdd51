"""What was fitted is kept: the next answer is the same, without reading a source; and it is forgotten when anything changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import PlatformFile, load
from client.examples.split import nothing_held_out
from client.recommender import evidence, item_ridge, platform_model
from client.recommender.evidence import Evidence
from client.recommender.lists.recommended import ListRules
from client.recommender.serving import fitted_platform, kept_model, recommend_all
from client.recommender.serving.fitted_platform import FittedPlatform, ModelInputs
from client.recommender.serving.kept_model import TextColumn, keep_fitted, state_digest
from client.recommender.serving.recommend import recommend_items
from client.recommender.serving.recommend_all import recommend_everybody
from client.sources import platform_tables
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError
from tests.support.released_preferences import release_of, write_release

Write = Callable[..., Path]
FRIENDS = '[sources.friends]\nkind = "social"\npath = "friends.csv"\n'


@pytest.fixture
def file(write_platform: Write) -> PlatformFile:
    ties = "user,friend\n" + "".join(f"u{number},u{(number + 1) % 40}\n" for number in range(40))
    return load(write_platform(users=40, files={"friends.csv": ties}, extra=FRIENDS))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*args: Any, **more: Any) -> Any:
            raise AssertionError("the sources were read")

        monkeypatch.setattr(platform_tables, "read_tables", refuse)

    return forbid


def asked(file: PlatformFile, tmp_path: Path, **over: Any) -> list[Any]:
    return recommend_items(file, cache=tmp_path / "state" / "trunk", **{"user": "u3", "rules": ListRules(top=4), **over})


@pytest.mark.parametrize("form", ["formed", "by rows", "rare items"])
def test_the_second_answer_is_the_first_and_reads_no_source(
    file: PlatformFile, tmp_path: Path, unread: Callable[[], None], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form != "formed":
        monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0 if form == "by rows" else 8)
        monkeypatch.setattr(item_ridge, "MOST_ROWS", 10**6 if form == "by rows" else 10)
        monkeypatch.setattr(evidence, "MANY_ITEMS", 2)
        monkeypatch.setattr(evidence, "ALIKE", 3)
    first = [asked(file, tmp_path, user=user) for user in ("u3", "u17", "ghost")]
    liked = asked(file, tmp_path, user=None, like=["i1", "i2"])
    unread()
    assert [asked(file, tmp_path, user=user) for user in ("u3", "u17", "ghost")] == first
    assert asked(file, tmp_path, user=None, like=["i1", "i2"]) == liked


def test_weights_of_events_are_kept_too(write_platform: Write, tmp_path: Path, unread: Callable[[], None]) -> None:
    """What was bought is of one group, what was viewed of any: so weights count."""
    random = np.random.default_rng(3)
    rows = ["user,item,event,time"]
    for user in range(60):
        for when in range(9):
            item = (user % 3 + 3 * random.integers(8)) if when % 2 == 0 else random.integers(24)
            rows.append(f"u{user},i{item},{'view' if when % 2 else 'buy'},{100 * user + when}")
    path = write_platform(users=60, items=24, files={"shop-events.csv": "\n".join(rows)})
    events = "events = { view = 0.05, buy = 1.0 }"
    path.write_text(path.read_text().replace('path = "shop-events.csv"', f'path = "shop-events.csv"\n{events}'))
    file = load(path)
    first = asked(file, tmp_path)
    everybody = tmp_path / "first.csv"
    recommend_everybody(file, out=everybody, cache=tmp_path / "state" / "trunk", top=4)
    (kept,) = (tmp_path / "state").glob("recommender-*")
    assert b'\\"emphasis\\": 0.0' not in kept.read_bytes()
    unread()
    assert asked(file, tmp_path) == first
    mine = [line.split(",")[2] for line in everybody.read_text().splitlines() if line.startswith("u3,")]
    assert mine == [item.item for item in first]


def test_with_a_model_too(file: PlatformFile, tmp_path: Path, unread: Callable[[], None]) -> None:
    tables = read_tables(file)
    model = write_release(tmp_path / "model", release_of(tables, nothing_held_out(tables, seed=0).train, items=np.arange(9)))
    first = asked(file, tmp_path, model=model)
    alone = asked(file, tmp_path, model=model, released_alone=True)
    unread()
    assert asked(file, tmp_path, model=model) == first
    with pytest.raises(AssertionError):
        asked(file, tmp_path, model=model, released_alone=True)
    assert alone


def test_the_own_model_that_is_fitted_on_the_way_to_the_fused_one_is_kept(
    file: PlatformFile, tmp_path: Path, unread: Callable[[], None]
) -> None:
    tables = read_tables(file)
    model = write_release(tmp_path / "model", release_of(tables, nothing_held_out(tables, seed=0).train, items=np.arange(8)))
    inputs = ModelInputs(model=model, cache=tmp_path / "state" / "trunk")
    FittedPlatform(file, inputs).model_for(0, liked=1)
    fitted = FittedPlatform(file, ModelInputs(cache=tmp_path / "elsewhere" / "trunk")).fitted
    unread()
    kept = FittedPlatform(file, inputs.of_own_model).fitted
    assert kept.weights == fitted.weights
    assert np.array_equal(kept.scores(np.arange(4)), fitted.scores(np.arange(4)))


def test_nobody_else_can_read_it(file: PlatformFile, tmp_path: Path) -> None:
    asked(file, tmp_path)
    (found,) = (tmp_path / "state").glob("recommender-*")
    assert stat.S_IMODE(found.stat().st_mode) == 0o600


@pytest.mark.parametrize("changed", ["events", "items", "platform file", "version", "damaged", "cut short"])
def test_it_is_forgotten_when_anything_changed(
    file: PlatformFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    asked(file, tmp_path)
    (path,) = (tmp_path / "state").glob("recommender-*")
    before = path.stat().st_ino
    if changed in file.sources:
        source = Path(file.sources[changed].path[0])  # type: ignore[index]
        source.write_text(source.read_text() + ("u3,i1,1800000000\n" if changed == "events" else "i99,new\n"))
    elif changed == "platform file":
        file.path.write_text(file.path.read_text() + "\n# another word\n")
    elif changed == "version":
        monkeypatch.setattr(kept_model, "VERSION", "0.0.0")
    else:
        data = path.read_bytes()
        path.write_bytes(b"\xff" * 8 + data[8:] if changed == "damaged" else data[: len(data) // 2])
    assert asked(file, tmp_path)
    assert path.stat().st_ino != before


def test_a_source_of_the_same_size_that_was_put_in_its_place_is_seen(file: PlatformFile, tmp_path: Path) -> None:
    events = Path(file.sources["events"].path[0])  # type: ignore[index]
    before, times = state_digest(file, {}), events.stat()
    other = events.with_name("other")
    other.write_bytes(events.read_bytes())
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(events)
    assert before is not None and state_digest(file, {}) != before


def test_other_options_are_kept_beside_each_other(file: PlatformFile) -> None:
    assert state_digest(file, {"texts": True}) != state_digest(file, {"texts": False})


def test_a_database_is_read_each_time(write_platform: Write, tmp_path: Path) -> None:
    path = write_platform(users=40)
    text = path.read_text().replace('path = "shop-items.csv"', 'url = "sqlite:///items.db"\ntable = "items"')
    path.write_text(text)
    assert state_digest(load(path), {}) is None


def test_what_cannot_be_kept_is_answered_all_the_same(file: PlatformFile, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    said: list[str] = []
    assert asked(file, tmp_path, say=said.append) and any("could not be kept" in line for line in said)


def test_evidence_of_an_unknown_kind_is_refused_and_nothing_is_written(file: PlatformFile, tmp_path: Path) -> None:
    """It would be read back as evidence of another kind."""

    class Unrelated(Evidence):
        name = "unrelated"

    fitted, path = FittedPlatform(file, ModelInputs(cache=tmp_path / "trunk")), tmp_path / "kept"
    with pytest.raises(TypeError, match="Unrelated"):
        keep_fitted(path, fitted.shelf, replace(fitted.fitted, evidence=[(1.0, Unrelated())]), "digest")
    assert not path.exists()


def test_texts_are_what_they_were() -> None:
    texts = ["", "a", "\u00fc\u20ac", "\ud800", "z"]
    column = TextColumn.of(texts)
    assert list(column) == texts and column[1:3] == texts[1:3] and len(column) == 5
    with pytest.raises(IndexError):
        column[5]


class TestEverybody:
    def everybody(self, file: PlatformFile, tmp_path: Path, name: str, **over: Any) -> pl.DataFrame:
        out = tmp_path / name
        count = recommend_everybody(file, out=out, cache=tmp_path / "state" / "trunk", **{"top": 4, **over})
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        found = pl.read_csv(out) if name.endswith("csv") else pl.read_parquet(out)
        assert found["user"].n_unique() == count == 40
        return found

    @pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
    def test_each_user_gets_what_they_would_get_alone(
        self, file: PlatformFile, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recommend_all, "_USERS_PER_PART", 7)
        monkeypatch.setattr(recommend_all, "_USERS_AT_ONCE", 3)
        found = self.everybody(file, tmp_path, name)
        assert [path.name for path in tmp_path.iterdir() if name in path.name] == [name]
        for user in ("u0", "u3", "u39"):
            alone = asked(file, tmp_path, user=user)
            rows = found.filter(pl.col("user") == user)  # in the order of the list, as a reader of CSV takes them
            assert rows["rank"].to_list() == list(range(1, len(alone) + 1))
            assert rows["item"].to_list() == [item.item for item in alone]
            np.testing.assert_allclose(rows["score"], [item.score for item in alone], atol=2e-6)
            likely = [item.probability for item in alone]
            assert all(chance is not None and 0 < chance < 1 for chance in likely)
            np.testing.assert_allclose(rows["probability"], likely, rtol=1e-3)

    def test_a_model_without_probabilities_leaves_them_out(
        self, file: PlatformFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform_model, "fit_calibration", lambda *args, **more: None)
        found = self.everybody(file, tmp_path, "all.parquet")
        assert found["probability"].null_count() == len(found) and found["score"].null_count() == 0

    def test_it_goes_on_where_it_was_interrupted(
        self, file: PlatformFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recommend_all, "_USERS_PER_PART", 10)
        expected = self.everybody(file, tmp_path, "whole.parquet")
        ranked: list[int] = []
        best = recommend_all.best_items

        def interrupted(model: Any, shelf: Any, users: Any, *, top: int) -> Any:
            if users[0] >= 20 and len(ranked) < 3:
                ranked.append(-1)
                raise KeyboardInterrupt
            ranked.append(int(users[0]))
            return best(model, shelf, users, top=top)

        monkeypatch.setattr(recommend_all, "best_items", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.everybody(file, tmp_path, "parts.parquet")
        assert not (tmp_path / "parts.parquet").exists()
        assert self.everybody(file, tmp_path, "parts.parquet").equals(expected)
        assert ranked == [0, 10, -1, 20, 30]

    def test_parts_of_other_rows_are_not_taken(self, file: PlatformFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recommend_all.shutil, "rmtree", lambda *args, **more: None)
        before = self.everybody(file, tmp_path, "all.parquet")
        events = Path(file.sources["events"].path[0])  # type: ignore[index]
        met = before.filter(pl.col("user") == "u3")["item"][0]
        events.write_text(events.read_text() + f"u3,{met},1800000000\n")
        assert met not in self.everybody(file, tmp_path, "all.parquet").filter(pl.col("user") == "u3")["item"]

    def test_the_command(self, file: PlatformFile, tmp_path: Path) -> None:
        def call(*words: str) -> Any:
            return CliRunner().invoke(fedfuse.app, ["recommend", "--platform", str(file.path), *words])

        out = tmp_path / "all.csv"
        assert call("--all", "--out", str(out)).exit_code == 0 and out.read_text().startswith(
            "user,rank,item,score,probability\n"
        )
        for wrong in (["--all"], ["--out", str(out)], ["--all", "--out", str(out), "--user", "u1"], ["--all", "--out", "x.txt"]):
            assert isinstance(call(*wrong).exception, InputError)


def test_another_entry_of_an_item_that_was_met_is_recommended_to_nobody(write_platform: Write, tmp_path: Path) -> None:
    rows = "".join(f"i{number},item {number},{9780306406157 if number in (2, 5) else ''}\n" for number in range(12))
    path = write_platform("keyed", users=40, files={"keyed-books.csv": f"item,title,isbn\n{rows}"})
    items = 'path = "keyed-books.csv"\nkeys = "isbn"\ncolumns = { key = "isbn" }'
    path.write_text(path.read_text().replace('path = "keyed-items.csv"', items))
    file = load(path)
    shelf = FittedPlatform(file, ModelInputs(cache=tmp_path / "trunk")).shelf
    assert shelf.twins[2].tolist() == [5] and shelf.twins[5].tolist() == [2] and not len(shelf.twins[3])
    out = tmp_path / "all.parquet"
    recommend_everybody(file, out=out, cache=tmp_path / "trunk", top=12)
    found = pl.read_parquet(out)
    for user in range(shelf.users):
        met = set(shelf.known[user].tolist())
        got = set(found.filter(pl.col("user") == shelf.user_ids[user])["item"])
        assert not got & {f"i{item}" for item in met} and (not met & {2, 5} or not got & {"i2", "i5"})
    assert fitted_platform.SEED == 0
