"""What a path is: a simulation's folder, a platform's, a coordinator's run, or a ledger; and the files beside it, bounded.

A file that is damaged is a gap in the report, in words, and never an end of it; only ledgers and evidence decide the verdict.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from server.monitoring.journal import EVENTS, STATE, read_events
from server.registry.publication import MODEL
from server.registry.run_facts import FACTS, Facts, facts_in
from server.report.report_model import SubjectKind, bounded_text
from shared.base.errors import FedfuseError, InputError
from shared.base.regular_files import open_regular
from shared.ledger.evidence import MAX_METRICS
from shared.ledger.receipts import RECEIPTS

METRICS = "metrics.json"
RECORD = "run.toml"
ATTACK = "attack.json"
"""What `fedfuse audit attack --out` leaves in the run's folder."""
MAX_FILE = MAX_METRICS
MOST_EVENTS = 200_000

Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class ReportSubject:
    """What a report is of.

    Args:
        place: The folder or file.
        name: Of it, for a person.
    """

    kind: SubjectKind
    place: Path
    name: str

    @property
    def has_ledgers(self) -> bool:
        """Whether ledgers are in it."""
        return self.kind is not SubjectKind.COORDINATOR


def open_subject(place: Path) -> ReportSubject:
    """What that path is.

    Raises:
        InputError: it is nothing that a report can be of.
    """
    try:
        kind = _kind(place)
        name = bounded_text(place.resolve().name, most=100) or "a run"
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(place), do="check the path and its rights") from None
    return ReportSubject(kind=kind, place=place, name=name)


def _kind(place: Path) -> SubjectKind:
    if place.is_file():
        return SubjectKind.LEDGERS
    inside = place / "ledger", place / "worker" / "ledger"
    if any(next(folder.glob("*.jsonl"), None) for folder in inside):
        own = (place / "identity.key").exists() or (place / "worker").is_dir()
        return SubjectKind.PLATFORM if own else SubjectKind.SIMULATION
    if any((place / name).exists() for name in (STATE, EVENTS, RECEIPTS, f"{MODEL}/{FACTS}")):
        return SubjectKind.COORDINATOR
    if (place / "server.toml").exists():
        raise InputError(
            "is a coordinator's folder with its runs", where=str(place), do=f"name one of its runs: {place / 'runs'}/NAME"
        )
    raise InputError(
        "no run and no ledger found" if place.exists() else "there is no such file or folder",
        where=str(place),
        do="name a run's folder, a platform's folder, or a ledger",
    )


@dataclass(frozen=True, kw_only=True)
class SubjectFiles:
    """What lies beside the ledgers, as far as it could be read.

    Args:
        metrics: A simulation's figures.
        facts: Of the published model.
        settings: Dotted keys -> values; empty where they are not here.
        run: The run's name; empty where it is not known.
        state: A deployed run's journal.
        events: Its events, the first `MOST_EVENTS`.
        attack: Result of `fedfuse audit attack`.
        gaps: What could not be read, in words.
    """

    metrics: dict[str, Any]
    facts: Facts | None
    settings: dict[str, bool | int | float | str]
    run: str
    state: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    attack: dict[str, Any]
    gaps: tuple[str, ...]


def read_subject(subject: ReportSubject, *, attack: Path | None = None) -> SubjectFiles:
    """The files beside the ledgers.

    Args:
        attack: A result of `fedfuse audit attack --json`, where it lies elsewhere.
    """
    place, gaps = subject.place, list[str]()
    folder = place if place.is_dir() else place.parent
    own = subject.kind is not SubjectKind.LEDGERS  # beside a single file lies nothing that is known to be its own
    metrics = _taken(folder / METRICS, _json, gaps) if own else None
    record = _taken(folder / RECORD, _toml, gaps) if own else None
    state = _taken(folder / STATE, _json, gaps) if own else None
    facts = _taken(folder / MODEL / FACTS, facts_in, gaps) if own else None
    found = _taken(attack or folder / ATTACK, _json, gaps) if own or attack is not None else None
    settings: dict[str, Any] = _flat((record or {}).get("settings", {}))
    if not settings and facts is not None:
        settings = dict(facts.settings)
    run = (record or {}).get("run") or (state or {}).get("run") or (facts.run if facts is not None else "")
    return SubjectFiles(
        metrics=metrics or {},
        facts=facts,
        settings=settings,
        run=bounded_text(run, most=63),
        state=state or {},
        events=_events(folder) if own else (),
        attack=found or {},
        gaps=tuple(gaps),
    )


def _taken(path: Path, read: Callable[[bytes, str], Content], gaps: list[str]) -> Content | None:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            gaps.append(f"{path.name} is larger than {MAX_FILE >> 20} MiB and was not read")
            return None
        return read(data, path.name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        gaps.append(f"{path.name} cannot be read ({type(error).__name__})")
    except FedfuseError as error:
        gaps.append(bounded_text(f"{path.name} cannot be used: {error.found}"))
    return None


def _json(data: bytes, name: str) -> dict[str, Any]:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise InputError(f"it holds no table, but {type(values).__name__}", where=name)
    return values


def _toml(data: bytes, name: str) -> dict[str, Any]:
    return tomllib.loads(data.decode("utf-8"))


def _flat(settings: Any) -> dict[str, Any]:
    """Dotted keys of a table of tables; what is not a scalar is left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items() if isinstance(settings, dict) else ():
        for inner, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(leaf, bool | int | float | str):
                flat[f"{key}.{inner}" if inner else str(key)] = leaf
    return flat


def _events(folder: Path) -> tuple[dict[str, Any], ...]:
    found = []
    try:
        for _, event in read_events(folder):
            if isinstance(event, dict):
                found.append(event)
            if len(found) >= MOST_EVENTS:
                break
    except OSError:
        return tuple(found)
    return tuple(found)
