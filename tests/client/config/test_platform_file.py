"""The platform file: what is accepted, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import copy
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.config.platform_file import UNDECLARED_CATALOGUE, PlatformFile, load
from shared.base.errors import FedfuseError, InputError, PrivacyError

VALID: dict[str, Any] = {
    "name": "shop",
    "users": 10,
    "privacy": {"epsilon": 8.0, "delta": 1e-4},
    "sources": {
        "log": {
            "kind": "interactions",
            "path": "log.csv",
            "columns": {"user": 1, "item": "sku"},
            "events": {"buy": 1, "view": 0.2},
        },
        "goods": {
            "kind": "items",
            "path": "goods.csv",
            "text": ["Publisher", 4],
            "flags": {"first": 6, "names": ["new", "used"]},
            "numbers": {"price": {"min": 0, "max": 500, "words": ["cheap", "fair", "dear"]}},
        },
        "people": {"kind": "profiles", "path": "p.csv", "values": {"gender": {"M": "man"}}, "columns": {"gender": 3}},
        "said": {"kind": "reviews", "path": ["a.csv", "b.csv"], "lookup": {"text": {"path": "w.csv", "key": "id", "value": 2}}},
        "friends": {"kind": "social", "url": "sqlite:///social.db", "table": "ties"},
        "graph": {"kind": "knowledge", "path": "kg.txt", "links": {"path": "l.txt", "columns": {"item": 1, "entity": 2}}},
        "images": {"kind": "vectors", "path": "v.npy", "ids": "v.txt", "columns": {"item": 1}, "bound": 2.0},
    },
}


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "platform.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def changed(*keys: str, to: Any) -> dict[str, Any]:
    values = copy.deepcopy(VALID)
    table = values
    for key in keys[:-1]:
        table = table[key]
    if to is None:
        del table[keys[-1]]
    else:
        table[keys[-1]] = to
    return values


def test_a_valid_file_says_what_it_said(tmp_path: Path) -> None:
    file = load(written(tmp_path, VALID))
    assert (file.name, file.users, file.privacy.epsilon, file.privacy.delta) == ("shop", 10, 8.0, 1e-4)
    assert file.path == tmp_path / "platform.toml"
    assert file.state == tmp_path / ".fedfuse" / "shop"
    assert list(file.sources) == list(VALID["sources"])
    assert [source.kind for source in file.sources.values()] == [source["kind"] for source in VALID["sources"].values()]
    assert file.sources["said"].path == (tmp_path / "a.csv", tmp_path / "b.csv")
    assert file.sources["friends"].url == f"sqlite:///{tmp_path}/social.db"
    assert file.sources["images"].ids == tmp_path / "v.txt"
    with pytest.raises(ValueError, match="frozen"):
        file.users = 11  # type: ignore[misc]


@pytest.mark.parametrize(
    ("catalogue", "declared"),
    [(None, False), ("from-interactions", False), ({"path": "items.csv", "column": "id"}, True)],
)
def test_a_catalogue_is_declared_or_warned_of(catalogue: Any, declared: bool, tmp_path: Path) -> None:
    values = changed("sources", "goods", to=None) | ({} if catalogue is None else {"catalogue": catalogue})
    file = load(written(tmp_path, values))
    assert file.catalogue_declared is declared
    assert (file.warnings == ()) is declared
    if declared:
        assert file.catalogue.path == (tmp_path / "items.csv",)  # type: ignore[union-attr]
    else:
        assert file.warnings == (UNDECLARED_CATALOGUE,)
        assert "[catalogue] path =" in file.warnings[0]


def test_items_are_a_catalogue_and_public_reviews_are_warned_of(tmp_path: Path) -> None:
    assert load(written(tmp_path, VALID)).catalogue_declared
    assert load(written(tmp_path, VALID)).warnings == ()
    (warning,) = load(written(tmp_path, changed("sources", "said", "public", to=True))).warnings
    assert "'said'" in warning and "does not cover" in warning


def test_defaults_and_infinite_epsilon(tmp_path: Path) -> None:
    file = load(written(tmp_path, changed("privacy", to={"epsilon": math.inf})))
    assert math.isinf(file.privacy.epsilon)
    assert file.privacy.delta == 1e-5
    assert file.sources["friends"].influence == 0  # type: ignore[union-attr]


def test_environment_variables_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path / "data"))
    values = changed("sources", "log", "path", to="${SHOP_DATA}/log.csv") | {"state": "kept/here"}
    file = load(written(tmp_path, values))
    assert file.sources["log"].path == (tmp_path / "data" / "log.csv",)
    assert file.state == tmp_path / "kept" / "here"


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    values = changed("sources", "friends", "url", to="postgresql://me:secret@host/db")
    assert "secret" not in repr(load(written(tmp_path, values)))


MISTAKES = {
    "no name": (changed("name", to=None), ["name", "required"]),
    "bad name": (changed("name", to="My Shop"), ["name", "My Shop", "lower-case letters"]),
    "users as text": (changed("users", to="10"), ["users", "integer", "'10'"]),
    "no users": (changed("users", to=0), ["users", "1"]),
    "users as truth": (changed("users", to=True), ["users", "True"]),
    "epsilon 0": (changed("privacy", "epsilon", to=0.0), ["privacy.epsilon", "greater than 0", "0.0"]),
    "epsilon nan": (changed("privacy", "epsilon", to=math.nan), ["privacy.epsilon"]),
    "delta 1": (changed("privacy", "delta", to=1.0), ["privacy.delta", "less than 1"]),
    "no budget": (changed("privacy", to=None), ["privacy", "required"]),
    "unknown key": (changed("sources", "log", "threshhold", to=3), ["sources.log", "'threshhold' (did you mean 'threshold'?)"]),
    "unknown top key": (changed("epsilon", to=8.0), ["the file: unknown key 'epsilon'", "expected one of", "privacy"]),
    "misspelt table": (changed("privcy", to={"epsilon": 8.0}), ["'privcy' (did you mean 'privacy'?)"]),
    "misspelt kind": (changed("sources", "log", "kind", to="interaction"), ["(did you mean 'interactions'?)"]),
    "path at the top": (changed("path", to="x"), ["'path'"]),
    "unknown kind": (changed("sources", "log", "kind", to="clicks"), ["sources.log", "'clicks'", "interactions"]),
    "no kind": (changed("sources", "log", "kind", to=None), ["sources.log", "kind", "expected one of"]),
    "no place": (changed("sources", "log", "path", to=None), ["sources.log", "'path' or 'url'"]),
    "two places": (changed("sources", "log", "url", to="sqlite:///x"), ["'path' or 'url'"]),
    "url alone": (changed("sources", "friends", "table", to=None), ["'table' or 'query'"]),
    "table without url": (changed("sources", "log", "table", to="t"), ["'url'"]),
    "unknown role": (changed("sources", "log", "columns", to={"usr": 1}), ["columns.usr", "did you mean 'user'"]),
    "position 0": (changed("sources", "log", "columns", to={"user": 0}), ["sources.log.columns.user", "from 1", "0"]),
    "list of columns": (changed("sources", "log", "columns", to={"user": [1, 2]}), ["columns.user", "one column"]),
    "lookup of no role": (changed("sources", "said", "lookup", to={"txt": {"path": "w", "key": 1, "value": 2}}), ["lookup.txt"]),
    "encoding": (changed("sources", "log", "encoding", to="utf-9"), ["encoding", "utf-9"]),
    "no text encoding": (changed("sources", "log", "encoding", to="hex"), ["encoding"]),
    "quote is separator": (changed("sources", "log", "separator", to='"'), ["'quote'"]),
    "long quote": (changed("sources", "log", "quote", to="''"), ["quote"]),
    "negative event": (changed("sources", "log", "events", to={"buy": -1}), ["events.buy", "-1"]),
    "bounds": (changed("sources", "goods", "numbers", to={"price": {"min": 2, "max": 2}}), ["numbers.price", "below"]),
    "infinite bounds": (changed("sources", "goods", "numbers", to={"price": {"min": 2, "max": math.inf}}), ["numbers.price.max"]),
    "words": (changed("sources", "goods", "numbers", "price", "buckets", to=2), ["2 buckets", "3"]),
    "empty profile": (changed("sources", "people", to={"kind": "profiles", "path": "p"}), ["sources.people", "'text'"]),
    "npy without ids": (changed("sources", "images", "ids", to=None), ["'ids'"]),
    "npy without owner": (changed("sources", "images", "columns", to=None), ["{ item = 1 }"]),
    "vectors of both": (changed("sources", "images", "columns", to={"item": 1, "user": 1}), ["exactly one"]),
    "npy of items": (changed("sources", "goods", "format", to="npy"), ["vectors"]),
    "knowledge link": (changed("sources", "graph", "links", to={"path": "l", "columns": {"itm": 1}}), ["links.columns.itm"]),
    "catalogue twice": (changed("catalogue", to={"path": "c.csv"}), ["catalogue", "'items'", "one of the two"]),
    "catalogue of nothing": (
        {**changed("sources", "goods", to=None), "catalogue": "items.csv"},
        ["catalogue", "from-interactions", "'column'"],
    ),
    "catalogue without a place": (
        {**changed("sources", "goods", to=None), "catalogue": {"column": "id"}},
        ["catalogue", "'path' or 'url'"],
    ),
    "fields of a file with a header": (changed("sources", "log", "fields", to=3), ["'fields'", "header = false"]),
    "width of a matrix": (changed("sources", "images", "width", to=3), ["'width'"]),
    "a far column": (changed("sources", "log", "columns", to={"user": 1 << 17}), ["columns.user", "65536"]),
    "no interactions": (changed("sources", to={"g": {"kind": "items", "path": "g"}}), ["at least one", "interactions"]),
    "variable": (changed("sources", "log", "path", to="${FEDFUSE_TEST_NOT_SET}/x"), ["sources.log.path", "FEDFUSE_TEST_NOT_SET"]),
    "sources as list": (changed("sources", to=[1]), ["sources"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_key_and_expectation(mistake: str, tmp_path: Path) -> None:
    values, words = MISTAKES[mistake]
    path = written(tmp_path, values)
    with pytest.raises(InputError) as caught:
        load(path)
    for word in [*words, str(path)]:
        assert word in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    values = changed("users", to=-1)
    values["privacy"]["delta"] = 2.0
    values["sources"]["log"]["weight"] = "cubic"
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, values))
    assert all(key in str(caught.value) for key in ("users", "privacy.delta", "sources.log.weight"))


def test_toml_mistakes_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "platform.toml"
    path.write_text('name = "shop"\nusers = = 3\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        load(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 20_000, b"users = " + b"9" * 5000, b"a\x00b = 1"])
def test_odd_bytes_are_an_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "platform.toml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, Path("a\0b")):
        with pytest.raises(InputError):
            load(path)


def test_a_file_saved_by_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "platform.toml"
    path.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(VALID).replace("\n", "\r\n").encode())
    assert load(path).name == "shop"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=5
)


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_gives_a_platform_or_a_fedfuse_error(data: st.DataObject, tmp_path: Path) -> None:
    values = copy.deepcopy(VALID)
    table: Any = values
    while True:
        key = data.draw(st.sampled_from(sorted(table)) | st.text(max_size=6))
        if isinstance(table.get(key), dict) and table[key] and data.draw(st.booleans()):
            table = table[key]
            continue
        table[key] = data.draw(VALUES)
        break
    try:
        path = written(tmp_path, values)
    except (TypeError, ValueError, UnicodeError):
        return  # TOML cannot say it
    with contextlib.suppress(FedfuseError):
        assert isinstance(load(path), PlatformFile)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_fedfuse_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "platform.toml"
    path.write_bytes(content)
    with pytest.raises(FedfuseError):
        load(path)


@pytest.mark.parametrize("name", ["movies", "music", "books"])
def test_the_real_platform_files_load_wherever_the_data_are(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDFUSE_DATA", str(tmp_path))
    path = Path(__file__).parents[3] / "simulations" / "worlds" / "movies-music-books" / f"{name}.toml"
    file = load(path)
    assert file.name == name == tomllib.loads(path.read_text(encoding="utf-8"))["name"]
    assert (file.privacy.epsilon, file.privacy.delta) == (8.0, 1e-4)


def test_a_delta_of_one_user_is_accepted_by_name_alone(tmp_path: Path) -> None:
    few = load(written(tmp_path, changed("privacy", "delta", to=0.1)))  # of 10 users
    with pytest.raises(PrivacyError, match="1/users"):
        few.require_delta()
    assert "accept_delta" in few.warnings[0]
    load(written(tmp_path, changed("privacy", to={"epsilon": 8.0, "delta": 0.1, "accept_delta": True}))).require_delta()
    off = load(written(tmp_path, changed("privacy", to={"epsilon": float("inf"), "delta": 0.1})))
    off.require_delta()
    assert off.privacy_warnings == ()
