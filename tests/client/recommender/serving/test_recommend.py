"""Recommendations and evaluation as people ask for them: whom, by what, why, and what is said where there is little."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from client.config.platform_file import PlatformFile, load
from client.examples.split import nothing_held_out
from client.recommender.lists.explanation import NOTHING
from client.recommender.lists.recommended import ListRules, Recommendation
from client.recommender.own_evaluation import MOST_USERS, evaluate_platform
from client.recommender.serving.recommend import recommend_items
from client.recommender.text_model import TextModel, no_adapter
from client.sources.platform_tables import read_tables
from shared.base.errors import ExitCode, InputError, StorageError
from shared.base.settings import Settings
from shared.model.adapter import layout_of
from shared.model.backbone import shape_of
from shared.model.peft_export import export, load_published
from shared.preferences.shared_preferences import FILE, load_preferences
from shared.registry.manifest import MANIFEST, describe
from shared.registry.signing import Untrusted, load_signer, make_key_pair
from tests.shared.registry.test_pulled_folder import ORIGIN
from tests.support.released_preferences import release_of, write_release

Write = Callable[..., Path]
RULES = ("top", "diversity", "caps", "filters", "seen")


@pytest.fixture
def path(write_platform: Write) -> Path:
    return write_platform(users=40)


@pytest.fixture
def file(path: Path) -> PlatformFile:
    return load(path)


@pytest.fixture
def model(file: PlatformFile, tmp_path: Path) -> Path:
    """A release of other platforms' users with the same catalogue."""
    tables = read_tables(file)
    return write_release(tmp_path / "model", release_of(tables, nothing_held_out(tables, seed=0).train, items=np.arange(9)))


@pytest.fixture
def ask(file: PlatformFile, tmp_path: Path) -> Callable[..., tuple[list[Recommendation], list[str]]]:
    def asked(**over: Any) -> tuple[list[Recommendation], list[str]]:
        said: list[str] = []
        values: dict[str, Any] = {"file": file, "cache": tmp_path / "cache", **over}
        values["rules"] = ListRules(**{"top": 5, **{name: values.pop(name) for name in RULES if name in values}})
        return recommend_items(values.pop("file"), say=said.append, **values), said

    return asked


Ask = Callable[..., tuple[list[Recommendation], list[str]]]


def adapter(folder: Path, settings: Settings) -> Path:
    random = np.random.default_rng(3)
    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    folder.mkdir(exist_ok=True)
    export({name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.items()}, settings, folder)
    return folder


@pytest.mark.parametrize("private", [False, True])
def test_parts_sum_to_the_score_and_say_why(ask: Ask, model: Path, file: PlatformFile, private: bool) -> None:
    items, _ = ask(user="u3", model=model, released_alone=private)
    tables = read_tables(file)
    had = {tables.item_ids[item] for item in nothing_held_out(tables, seed=0).known[list(tables.user_ids).index("u3")]}
    assert len(items) == 5 and not had & {item.item for item in items}
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
    for item in items:
        assert item.score == pytest.approx(sum(item.parts.values()), abs=1e-6)
        assert item.because
    titles = {title for item, title in zip(tables.item_ids, tables.item_titles, strict=True) if item in had}
    assert any(title in item.because for item in items for title in titles)


def test_two_items_are_enough_and_of_one_the_cause_is_said(write_platform: Write, ask: Ask) -> None:
    events = "user,item\n" + "".join(f"u{user},i{user % 2}\n" for user in range(9))
    path = write_platform(users=40, files={"shop-events.csv": events})
    path.write_text(path.read_text().partition("[sources.items]")[0])
    found, _ = ask(file=load(path), user="u0")
    assert [item.item for item in found] == ["i1"]
    (path.parent / "shop-events.csv").write_bytes(b"user,item\r\n1,a\r2,b\r3,c\r\n4,d\r\n")
    with pytest.raises(InputError, match="the catalogue has 1 item") as error:
        ask(file=load(path), user="1")
    assert "carriage_returns = true" in error.value.do


def test_the_own_model_alone(ask: Ask) -> None:
    items, said = ask(user="u3")
    assert len(items) == 5 and not said


def test_somebody_unknown_gets_what_is_popular(ask: Ask, file: PlatformFile) -> None:
    items, said = ask(user="ghost")
    tables = read_tables(file)
    counts = np.bincount(nothing_held_out(tables, seed=0).train.values, minlength=tables.items)
    shown = [counts[list(tables.item_ids).index(item.item)] for item in items]
    assert shown == sorted(counts.tolist(), reverse=True)[:5]
    assert {item.because for item in items} == {"it is popular here"}
    assert len(said) == 1 and "ghost" in said[0]


def test_likes_by_id_and_by_key(ask: Ask, write_platform: Write, tmp_path: Path) -> None:
    rows = "".join(f"i{number},item {number},{9780306406157 if number == 2 else ''}\n" for number in range(12))
    keyed = write_platform("keyed", files={"keyed-books.csv": f"item,title,isbn\n{rows}"})
    text = keyed.read_text().replace(
        'path = "keyed-items.csv"', 'path = "keyed-books.csv"\nkeys = "isbn"\ncolumns = { key = "isbn" }'
    )
    keyed.write_text(text)
    by_id, _ = ask(file=load(keyed), like=["i2", "i3", "i2"])
    assert by_id == ask(file=load(keyed), like=["isbn:9780306406157", "i3"])[0]
    assert not {"i2", "i3"} & {item.item for item in by_id}
    with pytest.raises(InputError, match="nosuch"):
        ask(like=["nosuch"])


def test_what_is_asked_must_be_clear(ask: Ask, tmp_path: Path) -> None:
    for wrong in ({}, {"user": "u1", "like": ["i1"]}, {"user": "u1", "top": 0}, {"user": "u1", "released_alone": True}):
        with pytest.raises(InputError):
            ask(**wrong)
    with pytest.raises(InputError, match="no folder"):
        ask(user="u1", model=tmp_path / "nowhere")
    with pytest.raises(InputError, match="no model"):
        ask(user="u1", model=tmp_path)


def test_released_parts_alone_ignore_other_users(ask: Ask, model: Path, write_platform: Write) -> None:
    before, _ = ask(user="u0", model=model, released_alone=True)
    events = Path(load(write_platform(users=40)).sources["events"].path[0])  # type: ignore[union-attr, index]
    lines = events.read_text().splitlines()
    kept = [line for line in lines if line.startswith(("user,", "u0,"))]
    others = [f"v{number},i{number % 4},{1_600_000_000 + number}" for number in range(30)]
    events.write_text("\n".join([*kept, *others]) + "\n")
    assert ask(user="u0", model=model, released_alone=True)[0] == before
    assert ask(user="u0", model=model)[0] != before


def test_a_platform_without_any_interaction(ask: Ask, model: Path, write_platform: Write) -> None:
    empty = load(write_platform(files={"shop-events.csv": "user,item,time\n"}))
    items, said = ask(file=empty, like=["i1"], model=model)
    assert len(items) == 5 and any("no liked item" in line for line in said)
    assert ask(file=empty, user="u1", model=model)[0][0].because == "it is popular on the platforms together"
    with pytest.raises(InputError, match="positive"):
        ask(file=empty, user="u1")


def test_a_model_without_any_shared_item(ask: Ask, model: Path, write_platform: Write, tiny_settings: Any) -> None:
    other = load(write_platform("other", items=13))
    with pytest.raises(InputError, match="none of this platform's items"):
        ask(file=other, user="u1", model=model)
    items, said = ask(file=other, user="u1", model=adapter(model, tiny_settings()))
    assert len(items) == 5 and any("only what reads texts" in line for line in said)


@pytest.mark.parametrize("private", [False, True])
def test_an_adapter_alone(ask: Ask, tiny_settings: Any, tmp_path: Path, private: bool) -> None:
    folder = adapter(tmp_path / "adapter", tiny_settings())
    items, _ = ask(user="u3", model=folder, released_alone=private)
    assert len(items) == 5 and items == ask(user="u3", model=folder, released_alone=private)[0]
    assert not private or all(set(item.parts) == {"text"} for item in items)
    assert len(ask(like=["i2"], model=folder, released_alone=True)[0]) == 5
    nobody, _ = ask(user="ghost", model=folder, released_alone=True)
    assert [item.item for item in nobody] == ["i0", "i1", "i2", "i3", "i4"] and nobody[0].because == NOTHING


def test_items_outside_the_release_are_ordered_by_text(ask: Ask, model: Path, tiny_settings: Any) -> None:
    before, _ = ask(like=["i2"], model=model, released_alone=True, top=12)
    after, _ = ask(like=["i2"], model=adapter(model, tiny_settings()), released_alone=True, top=12)
    assert [item.item for item in after[:8]] == [item.item for item in before[:8]]
    assert {item.item for item in after[8:]} == {"i9", "i10", "i11"}
    assert len({item.score for item in after[8:]}) == 3 and len({item.score for item in before[8:]}) == 1


def test_a_profile_answers_where_there_is_no_history(write_platform: Write, ask: Ask, tiny_settings: Any, tmp_path: Path) -> None:
    profiles = "user,about\nnew,likes jazz\n"
    extra = '[sources.people]\nkind = "profiles"\npath = "people.csv"\ntext = ["about"]\n'
    path = write_platform("radio", files={"people.csv": profiles}, extra=extra)
    text = path.read_text().replace('path = "radio-events.csv"', 'path = "radio-events.csv"\nthreshold = 1.0')
    path.write_text(text)
    events = path.parent / "radio-events.csv"
    rows = [line + ("," + "value" if not place else ",2") for place, line in enumerate(events.read_text().splitlines())]
    events.write_text("\n".join([*rows, "new,i1,1700000000,0"]) + "\n")
    items, said = ask(file=load(path), user="new", model=adapter(tmp_path / "adapter", tiny_settings()))
    assert any("profile" in line for line in said)
    assert all("text" in item.parts for item in items) and "i1" not in {item.item for item in items}


@pytest.mark.parametrize("given", ["nothing", "preferences", "both"])
def test_evaluation(file: PlatformFile, model: Path, given: str, tiny_settings: Any, tmp_path: Path) -> None:
    told: list[str] = []
    folder = None if given == "nothing" else adapter(model, tiny_settings()) if given == "both" else model
    found = evaluate_platform(file, model=folder, seed=0, cache=tmp_path / "cache", tell=told.append)
    values = json.loads(json.dumps(found.as_dict()))
    assert set(values["segments"]) == {"all", "few-events", "rare-items"} and len(told) >= 2
    models = set(values["segments"]["all"]) - {"users", "fused_minus_own"}
    assert models == ({"own"} if given == "nothing" else {"own", "global", "fused"})
    assert (values["segments"]["all"]["fused_minus_own"] is None) == (given == "nothing")
    assert values["recommended_by"] in models


def test_a_model_of_none_of_the_items_is_left_out_of_an_evaluation(file: PlatformFile, model: Path, tmp_path: Path) -> None:
    preferences = load_preferences(model / FILE)
    write_release(tmp_path / "foreign", replace(preferences, items=preferences.items + np.uint64(1)))
    said: list[str] = []
    found = evaluate_platform(file, model=tmp_path / "foreign", seed=0, cache=tmp_path / "cache", say=said.append)
    assert set(found.settings) == {"own"} and set(found.ranked.ranks) == {"own"} and "own model is shown alone" in said[-1]


class TestCommands:
    def call(self, *words: Any) -> Any:
        import fedfuse

        return CliRunner().invoke(fedfuse.app, [str(word) for word in words])

    def test_recommend(self, path: Path, model: Path) -> None:
        found = self.call("recommend", "--platform", path, "--model", model, "--user", "u3", "--top", 3, "--json")
        assert found.exit_code == 0 and "fitting" in found.stderr, found.output
        items = json.loads(found.stdout)
        assert len(items) == 3 and {"because", "parts", "score", "item"} <= set(items[0])
        shown = self.call("recommend", "--platform", path, "--like", "i1", "--like", "i2")
        assert shown.exit_code == 0 and "because" in shown.stdout
        ghost = self.call("recommend", "--platform", path, "--user", "ghost", "--json")
        assert ghost.exit_code == 0 and "ghost" in ghost.stderr and json.loads(ghost.stdout)

    def test_evaluate(self, path: Path, model: Path) -> None:
        found = self.call("evaluate", path, "--model", model, "--json")
        assert found.exit_code == 0, found.output
        values = json.loads(found.stdout)
        assert values["exact"] and values["private"] and values["segments"]["all"]["users"] > 0
        everybody = values["held_out_users"]
        assert everybody == values["segments"]["all"]["users"] > 3
        some = json.loads(self.call("evaluate", path, "--users", 3, "--json").stdout)
        assert (some["held_out_users"], some["segments"]["all"]["users"]) == (everybody, 3)
        assert f"Of {everybody} users with a held-out item, 3 drawn" in self.call("evaluate", path, "--users", 3).stdout
        shown = self.call("evaluate", path)
        assert shown.exit_code == 0 and "drawn at random" not in shown.stdout
        assert "should not leave" in " ".join(shown.stdout.split()) and "fitting" in shown.stderr

    def test_the_command_ranks_as_many_users_as_the_function(self) -> None:
        from client.cli.local import evaluate_command

        assert inspect.signature(evaluate_command).parameters["users"].default == MOST_USERS

    def test_a_model_that_was_changed_after_the_pull_is_refused(self, path: Path, model: Path, tmp_path: Path) -> None:
        """Also where an earlier call kept what it had fitted with the whole model."""
        make_key_pair(tmp_path / "coordinator.key", tmp_path / "coordinator.pub")
        make_key_pair(tmp_path / "stranger.key", tmp_path / "stranger.pub")
        (model / MANIFEST).write_bytes(describe(model, ORIGIN).signed(load_signer(tmp_path / "coordinator.key")).content)
        one = ("recommend", "--platform", path, "--user", "u3", "--model", model)
        everybody = ("recommend", "--platform", path, "--all", "--out", tmp_path / "all.csv", "--model", model)
        commands = [one, (*one, "--private"), everybody, ("evaluate", path, "--model", model)]
        trusted, others = ("--trust", tmp_path / "coordinator.pub"), ("--trust", tmp_path / "stranger.pub")
        for words in commands:
            for trust in ((), trusted):
                found = self.call(*words, *trust)
                assert found.exit_code == 0 and MANIFEST not in found.stderr, found.output
            assert isinstance(self.call(*words, *others).exception, Untrusted)
        data = (model / FILE).read_bytes()
        (model / FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        for words in commands:
            for trust in ((), trusted):
                found = self.call(*words, *trust)
                assert isinstance(found.exception, StorageError), (words, found.output)
                assert FILE in str(found.exception) and found.exception.exit_code == ExitCode.STORAGE
        assert isinstance(self.call("recommend", "--platform", path, "--user", "u3", *trusted).exception, InputError)

    def test_errors_have_their_codes(self, path: Path, tmp_path: Path) -> None:
        for words in (("evaluate", path, "--model", tmp_path), ("recommend", "--platform", path)):
            found = self.call(*words)
            assert isinstance(found.exception, InputError)


def test_everything_holds_nothing_out(file: PlatformFile) -> None:
    tables = read_tables(file)
    split = nothing_held_out(tables, seed=0)
    assert (split.held == -1).all() and len(split.train.values) == tables.interactions.positive.sum()


def test_texts_are_encoded_only_where_that_is_asked_for(ask: Ask, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    def no_encoder(*args: Any, **more: Any) -> Any:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr("client.recommender.text_model.load_backbone", no_encoder)
    assert ask(user="u3", model=model)[0]
    with pytest.raises(AssertionError, match="encoder"):
        ask(user="u3", model=model, texts=True)


def test_an_untrained_adapter_is_the_frozen_encoder(file: PlatformFile, tiny_settings: Any, tmp_path: Path) -> None:
    settings, tables = tiny_settings(), read_tables(file)
    frozen, trained = (
        TextModel(file, published, tables=tables, cache=tmp_path / "cache", where="here")
        for published in (no_adapter(settings.model), load_published(adapter(tmp_path / "adapter", settings)))
    )
    assert not np.allclose(trained.items, frozen.items, atol=1e-3)
    np.testing.assert_allclose(trained.untrained().items, frozen.items, atol=1e-6)
