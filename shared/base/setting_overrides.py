"""Settings as a person gives them: a TOML file, and `key=value` words that win over it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from shared.base.errors import InputError
from shared.base.settings import PREFERENCES, Settings, build


def settings_of(config: Path | None, assignments: list[str]) -> Settings:
    """Settings from a file and from words.

    Args:
        config: TOML; of a `run.toml` its table [settings].
        assignments: `key=value`, the value as JSON or as plain text.

    Raises:
        InputError: the file cannot be read, or a key or a value is wrong.
    """
    return build(with_strategy(values_of(config, assignments)), where=str(config) if config else "the options")


def with_strategy(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the strategy of who names none: preferences, which take seconds and no GPU; with rounds, training.

    >>> with_strategy({})
    {'strategy': 'preferences'}
    >>> with_strategy({"rounds": 20}), with_strategy({"strategy": "ffa"})
    ({'rounds': 20}, {'strategy': 'ffa'})
    """
    return values if {"strategy", "rounds"} & set(values) else {**values, "strategy": PREFERENCES}


def values_of(config: Path | None, assignments: list[str]) -> dict[str, Any]:
    """The same, before they are checked."""
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"the settings cannot be read ({error})", where=str(config), do="give a TOML file") from None
        values = values.get("settings", values)
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not key=value", where="--set", do="write --set training.clip=0.5")
        *tables, leaf = key.strip().split(".")
        place = values
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise InputError(f"{key!r} is no setting", where="--set", do="write --set training.clip=0.5")
        place[leaf] = _value(raw.strip())
    return values


def _value(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw
