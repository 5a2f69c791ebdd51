"""`docs/platform-file.md` and `docs/settings.md`, from the types' own descriptions: `make docs`."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from client.config.id_rules import IdRules
from client.config.missing_values import USUAL_MISSING
from client.config.participation_policy import ParticipationPolicy
from client.config.platform_file import Budget, PlatformFile
from client.config.source_schema import KINDS, ROLE_WORDS, CatalogueFile, Flags, NumberRange, Source
from client.config.table_location import Linked, Lookup, Reading
from shared.base.allowed_values import allowed_words
from shared.base.settings import Settings

EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "PlatformFile": {
        "name": '"shop"',
        "users": "5000",
        "rank": "8",
        "privacy": "{ epsilon = 8.0, delta = 1e-5 }",
        "federation": "{ minimum_participants = 3 }",
        "ids": "{ whole_numbers = false }",
        "catalogue": '{ path = "items.csv", column = "sku" }',
        "sources": '{ orders = { kind = "interactions", path = "orders.csv" } }',
        "state": '"worker"',
    },
    "Budget": {"epsilon": "8.0", "delta": "1e-6", "accept_delta": "true"},
    "IdRules": {name: "true" if name == "folded" else "false" for name in IdRules.model_fields},
    "ParticipationPolicy": {
        "coordinator": '"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOSH2EFOgYWiSztPnJBMG4EcLZTWzIOfCCywx2bxgYhI"',
        "minimum_noise_multiplier": "0.5",
        "maximum_epsilon_per_run": "2.0",
        "maximum_sample_rate": "0.1",
        "minimum_clip": "0.1",
        "maximum_clip": "10.0",
        "preferences": "false",
        "metrics": "false",
        "maximum_evaluations": "5",
        "minimum_participants": "3",
        "maximum_rounds": "100",
        "strategies": '["preferences", "secure-sum"]',
        "noise": '["distributed"]',
        "backbones": '["minilm"]',
        "show_budget": "false",
        "colluders": "2",
        "minimum_threshold": "0.7",
        "answer_step": "5.0",
        "identities": '{ news = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }',
        "peers": '"peers.toml"',
    },
    "Reading": {
        "path": '["exports/2024.csv.gz", "exports/2025-*.csv"]',
        "url": '"postgresql+psycopg://reader:${PASSWORD}@host/shop"',
        "table": '"crm.orders"',
        "query": '"SELECT buyer, sku FROM orders"',
        "format": '"jsonl"',
        "separator": '";"',
        "encoding": '"cp1252"',
        "header": "false",
        "quote": '"\'"',
        "escape": '"\\\\"',
        "comment": '"#"',
        "ragged": "true",
        "fields": "4",
        "decimal": '","',
        "missing": '["", "-", "unknown"]',
        "carriage_returns": "true",
        "line_breaks": "true",
    },
    "Source": {
        "kind": '"interactions"',
        "columns": '{ user = "customer", item = "sku" }',
        "lookup": '{ item = { path = "codes.csv", key = "code", value = "name" } }',
        "tokens": "24",
    },
    "InteractionsSource": {
        "events": "{ view = 0.2, buy = 1.0, hide = 0.0 }",
        "threshold": "4.0",
        "time_format": '"%d/%m/%Y %H:%M"',
        "weight": '"log"',
        "explode": "true",
    },
    "_Described": {"text": '["brand", "colour"]', "numbers": "{ age = { min = 0, max = 100, buckets = 4 } }"},
    "ItemsSource": {"keys": '"isbn"', "flags": '{ first = 6, names = ["action", "comedy"] }'},
    "ProfilesSource": {"values": '{ gender = { F = "woman", M = "man" } }'},
    "ReviewsSource": {"public": "true", "time_format": '"unix-ms"'},
    "SocialSource": {"influence": "2", "friends": "5", "explode": "true"},
    "KnowledgeSource": {
        "links": '{ path = "links.csv", columns = { item = "sku", entity = "id" } }',
        "names": '{ path = "names.tsv" }',
        "neighbours": "6",
        "entities": '"wikidata"',
        "same": '{ path = "same.csv" }',
        "publish": "true",
        "elsewhere": '["films.facts.jsonl"]',
    },
    "VectorsSource": {"ids": '"images.txt"', "bound": "2.0", "width": "128"},
    "CatalogueFile": {"column": '"sku"'},
    "NumberRange": {"min": "0", "max": "100", "buckets": "4", "words": '["young", "in mid-life", "old"]'},
    "Flags": {"first": "6", "names": '["action", "comedy"]'},
    "Lookup": {"key": '"code"', "value": '"name"'},
    "Linked": {"columns": '{ item = "sku", entity = "id" }'},
}
"""Class -> key -> what a platform file may say, as TOML."""


def descriptions(model: type) -> dict[str, str]:
    """Key -> what its class's docstring says of it."""
    found: dict[str, str] = {}
    _, _, listed = inspect.cleandoc(model.__doc__ or "").partition("Args:\n")
    for entry in re.split(r"\n(?= {4}\S)", "\n" + listed.split("\n\n")[0]):
        names, colon, text = entry.strip().partition(":")
        if colon:
            found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def own_keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that a class adds to those of the classes it is made of."""
    before = {name for base in model.__mro__[1:] if issubclass(base, BaseModel) for name in base.model_fields}
    return {name: field for name, field in model.model_fields.items() if name not in before and not field.exclude}


def platform_file_reference() -> str:
    """The text of `docs/platform-file.md`."""
    parts = [
        "# The platform file",
        "Every key that `platform.toml` may have, with its default and an example. This page is made of the descriptions in "
        "the code (`make docs`) and a test holds it equal to them. `fedfuse init client` drafts "
        "a first file from the columns of your tables, and `fedfuse check` shows what is read with it. Of the file only what is "
        "declared leaves the platform: name, users, rank, budget and delta; of the public catalogue its size and hashes.",
        _section("The file", PlatformFile),
        _section("`[privacy]`", Budget),
        _section("`[ids]`", IdRules),
        _section("`[federation]`", ParticipationPolicy),
        "## `[sources.NAME]`",
        "A source is a table: files, or a query of a database. Its `kind` says what the rows are; `columns` says which column "
        "has which role. Only columns that a key names, or that are called as a role, are read. When an export changes: "
        "[operating](operating.md#new-rows-and-an-export-that-changes); what leaves: "
        "[field by field](guarantees.md#what-leaves-field-by-field).",
        _section("Where a table is, and how it is read", Reading, level=3),
        f"By default `missing` is: {', '.join(f'`{one}`' for one in USUAL_MISSING)}.",
        _section("What every source has", Source, level=3),
        *(_kind(name, model) for name, model in KINDS.items()),
        "## Tables within a source",
        *(
            _section(title, model, level=3)
            for title, model in (
                ("Bounds of a number (`numbers`)", NumberRange),
                ("Categories as columns (`flags`)", Flags),
                ("Words for codes (`lookup`)", Lookup),
                ("Second tables of a graph (`links`, `names`)", Linked),
                ("The catalogue (`[catalogue]`)", CatalogueFile),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def settings_reference() -> str:
    """The text of `docs/settings.md`."""
    parts = [
        "# Settings of a run",
        "Every setting, with its default and the command line that sets it; in a TOML file (`--config`) the part before the "
        "point is a table. They are the coordinator's, or a simulation's, and every platform gets them; `fedfuse settings` "
        "prints the same list. These are the defaults of each setting by itself: without `--strategy` and `--rounds`, `fedfuse "
        "simulate` and `fedfuse run` share preferences alone, in no round. This page is made of the descriptions in the code "
        "(`make docs`) and a test holds it equal to them.",
    ]
    sections = {"": Settings, **{name: field.annotation for name, field in Settings.model_fields.items() if _is_model(field)}}
    for prefix, model in sections.items():
        assert isinstance(model, type) and issubclass(model, BaseModel)
        keys = {f"{prefix}.{name}" if prefix else name: field for name, field in model.model_fields.items()}
        rows = [_setting(key, field) for key, field in keys.items() if not _is_model(field)]
        text = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
        head = "| setting | is | default | for | example |\n| --- | --- | --- | --- | --- |"
        parts += [f"## {f'`{prefix}`' if prefix else 'The run'}", " ".join(text.split()), "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


def _setting(key: str, field: FieldInfo) -> str:
    text = _cell(field.description or "")
    return f"| `{key}` | {_cell(allowed_words(field))} | {_default(field)} | {text} | `--set {key}={_word(field.default)}` |"


def _kind(name: str, model: type[Source]) -> str:
    roles = "\n".join(f"| `{role}` | {ROLE_WORDS[role]} |" for role in model.roles)
    also = [base for base in model.__mro__ if base is not model and base.__name__ == "_Described"]
    keys = {**{key: field for base in also for key, field in own_keys(base).items()}, **own_keys(model)}
    text = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
    table = _table(keys, [*also, model]) if keys else ""
    return f'### kind = "{name}"\n\n{text}\n\n| role | what its column holds |\n| --- | --- |\n{roles}\n\n{table}'.rstrip()


def _section(title: str, model: type[BaseModel], *, level: int = 2) -> str:
    text = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
    return f"{'#' * level} {title}\n\n{text}\n\n{_table(own_keys(model), [model])}"


def _table(keys: Mapping[str, FieldInfo], models: Iterable[type[BaseModel]]) -> str:
    known = {name: text for model in models for name, text in descriptions(model).items()}
    shown = {name: one for model in models for name, one in EXAMPLES.get(model.__name__, {}).items()}
    rows = [
        f"| `{name}` | {_cell(allowed_words(field))} | {_default(field)} | {_cell(known[name])} | `{name} = {shown[name]}` |"
        for name, field in keys.items()
        if name in known
    ]
    return "\n".join(["| key | is | default | what it says | example |", "| --- | --- | --- | --- | --- |", *rows])


def _is_model(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required() and field.annotation is Path:
        return "-"  # the loader gives it
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ({}, ()):
        return "-"
    if value == USUAL_MISSING:
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def _word(value: Any) -> str:
    if value is None:
        return "8.0"
    if isinstance(value, float):
        return "inf" if math.isinf(value) else f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
