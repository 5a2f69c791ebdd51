"""A platform of one log of events, and at most one other source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.tables import SourceReport, Tables


def read(folder: Path, text: str, other: dict[str, Any] | None = None, **source: Any) -> Tables:
    """Its tables.

    Args:
        text: Of the log, as CSV.
        other: The source beside it.
        source: What the log's source declares besides its kind and path.
    """
    (folder / "log.csv").write_text(text, encoding="utf-8")
    sources = {"log": {"kind": "interactions", "path": "log.csv", **source}, **({"other": other} if other else {})}
    values = {"name": "p", "users": 99, "privacy": {"epsilon": 1.0}, "sources": sources}
    (folder / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return read_tables(load(folder / "p.toml"))


def report(tables: Tables, source: str = "log") -> SourceReport:
    """What reading one of the sources found."""
    return next(one for one in tables.reports if one.source == source)
