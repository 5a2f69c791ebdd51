"""The pages of keys and settings: every key is described, and every example is one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from client.config import reference
from client.config.id_rules import IdRules
from client.config.participation_policy import ParticipationPolicy
from client.config.platform_file import Budget, PlatformFile
from client.config.source_schema import KINDS, ROLE_WORDS, CatalogueFile, Flags, NumberRange, Source
from client.config.table_location import Linked, Lookup, Reading
from shared.base.setting_overrides import settings_of
from shared.base.settings import described

MODELS: list[type[BaseModel]] = [
    *(PlatformFile, Budget, IdRules, ParticipationPolicy, Reading, Source, CatalogueFile, NumberRange, Flags, Lookup, Linked),
    *dict.fromkeys(base for kind in KINDS.values() for base in kind.__mro__ if base.__name__ == "_Described"),
    *KINDS.values(),
]
BASES: dict[str, dict[str, Any]] = {
    "PlatformFile": {
        "name": "p",
        "users": 9,
        "privacy": {"epsilon": 1.0},
        "sources": {"log": {"kind": "interactions", "path": "a.csv"}},
        "state": "s",
        "path": Path("p.toml"),
    },
    "Budget": {"epsilon": 1.0},
    "IdRules": {},
    "ParticipationPolicy": {},
    "NumberRange": {"min": -1, "max": 200},
    "Flags": {"first": 1, "names": ["a"]},
    "Lookup": {"path": "a.csv", "key": "a", "value": "b"},
}
WITH: dict[str, dict[str, Any]] = {
    "url": {"path": None, "table": "orders"},
    "table": {"path": None, "url": "sqlite:///a.db"},
    "query": {"path": None, "url": "sqlite:///a.db"},
    "fields": {"header": False},
    "links": {},
    "ids": {"path": "a.npy", "columns": {"item": 1}},
    "words": {"buckets": 3},
}
"""What else an example needs."""


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described_and_its_example_is_one(model: type[BaseModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "secret")
    keys = set(reference.own_keys(model)) - ({"kind"} if model in KINDS.values() else set())
    assert keys <= set(reference.descriptions(model)), "in the docstring's Args"
    assert keys == set(reference.EXAMPLES.get(model.__name__, {}))
    checked = model
    base = dict(BASES.get(model.__name__, {"path": "a.csv"}))
    if issubclass(model, Source):
        kind = next(name for name, one in KINDS.items() if issubclass(one, model))
        checked = KINDS[kind]
        base |= {"kind": kind, **({"text": ["a"]} if kind == "profiles" else {})}
    for key, example in reference.EXAMPLES.get(model.__name__, {}).items():
        needed = WITH.get(key, {}) if model is not PlatformFile else {}
        values = {**base, **needed, **tomllib.loads(f"{key} = {example}")}
        values = {name: value for name, value in values.items() if value is not None}
        found = checked.model_validate(values, context={"folder": Path()})
        assert getattr(found, key) != checked.model_fields[key].default or key in ("backbones", "line_breaks")


def test_every_role_is_described() -> None:
    assert {role for kind in KINDS.values() for role in kind.roles} == set(ROLE_WORDS)


def test_every_setting_is_described_and_its_example_is_one() -> None:
    assert all(described().values())
    for line in reference.settings_reference().splitlines():
        if "`--set " in line:
            assignment = line.split("`--set ")[1].split("`")[0]
            settings_of(None, ["strategy=fedavg", assignment])
