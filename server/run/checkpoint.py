"""The state of a run after a round, in one file: safetensors, with everything that is no tensor as JSON in its header.

One file, so that arrays and facts can never be of two rounds. A SuperLink that is killed loses its run, and Flower
resumes nothing; a new run opens the last checkpoint instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.monitoring.run_events import Tally
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, ProtocolError, StorageError
from shared.base.safetensors_checks import feed
from shared.base.settings import Settings, flatten
from shared.model.adapter import Layout
from shared.model.residual_factors import require_with_residual
from shared.protocol.messages import Joined, Label, Metrics, Reason
from shared.protocol.quality import Quality

FORMAT = 3
NAME = "checkpoint.safetensors"
_STATE = "state/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run as it was when `round` was over.

    Args:
        adapter: The global adapter with its residual, float32.
        tallies: Platform -> its part so far.
        lost: Rounds of which nothing is in the adapter.
        state: What the strategy needs beside the adapter (a server optimizer's moments), float64.
    """

    run: str
    round: int
    settings: Settings
    adapter: Mapping[str, NDArray[np.float32]] = field(repr=False)
    tallies: Mapping[str, Tally]
    lost: tuple[int, ...] = ()
    state: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Put the checkpoint in the run's folder, in place of the one before.

    Raises:
        StorageError: it cannot be written; the one before is still there.
    """
    facts = {
        "format": FORMAT,
        "run": checkpoint.run,
        "round": checkpoint.round,
        "lost": list(checkpoint.lost),
        "settings": flatten(checkpoint.settings),
        "tallies": {name: _tally_out(tally) for name, tally in checkpoint.tallies.items()},
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in checkpoint.adapter.items()}
    tensors |= {f"{_STATE}{name}": np.ascontiguousarray(array) for name, array in checkpoint.state.items()}
    facts["sha256"] = _digest(facts, tensors)
    write_whole(folder / NAME, save(tensors, metadata={"fedfuse": json.dumps(facts, sort_keys=True)}))


def run_of(folder: Path) -> str | None:
    """The name of the run whose checkpoint is in the folder, or None if there is none.

    Raises:
        StorageError: there is one, and it is damaged.
    """
    return None if not (folder / NAME).exists() else str(_read(folder / NAME)[0]["run"])


def load_checkpoint(folder: Path, *, run: str, settings: Settings, layout: Layout) -> Checkpoint:
    """The checkpoint in the run's folder, if it is of this very run.

    Raises:
        InputError: there is none, or it is of another run or of other settings.
        StorageError: it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        raise InputError("there is no checkpoint to resume from", where=str(path), do="start the run without resuming")
    facts, tensors = _read(path)
    if facts["run"] != run:
        raise InputError(
            f"the checkpoint is of run {facts['run']!r}, not {run!r}", where=str(path), do="name that run, or another folder"
        )
    now = json.loads(json.dumps(flatten(settings)))
    then = facts["settings"]
    changed = [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in sorted({*then, *now}) if then.get(key) != now.get(key)
    ]
    if changed:
        # Platforms planned their noise for the settings that they joined with.
        # Does a setting exist on one side alone, another version began the run.
        advice = "finish the run with the version that began it, or start a new run" if set(then) != set(now) else ""
        raise InputError(
            "\n".join(["the settings differ from the checkpoint's", *changed]),
            where=str(path),
            do=advice or "resume with the same settings",
        )
    adapter = {name: array for name, array in tensors.items() if not name.startswith(_STATE)}
    state = {name.removeprefix(_STATE): array for name, array in tensors.items() if name.startswith(_STATE)}
    try:
        require_with_residual(adapter, layout, where=str(path))
        tallies = {name: _tally_in(values) for name, values in facts["tallies"].items()}
        lost = tuple(int(one) for one in facts.get("lost", ()))
        return Checkpoint(
            run=run, round=int(facts["round"]), settings=settings, adapter=adapter, tallies=tallies, lost=lost, state=state
        )
    except (ProtocolError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["fedfuse"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, this version reads {FORMAT}")
        missing = {"run", "round", "settings", "tallies", "sha256"} - set(facts)
        if missing:
            raise KeyError(*sorted(missing))
        if facts.pop("sha256") != _digest(facts, tensors):
            raise ValueError("its checksum differs")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return facts, tensors


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of all that the file says."""
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    feed(sha, tensors)
    return sha.hexdigest()


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"the checkpoint cannot be read: {error}", where=str(path), do="restore it from a copy, or start the run anew elsewhere"
    )


def _tally_out(tally: Tally) -> dict[str, Any]:
    values = asdict(tally)
    for name in ("keys", "item_list", "trust"):
        values["joined"].pop(name)  # the rounds keep them themselves
    values["refusals"] = {str(round_): reason.value for round_, reason in tally.refusals.items()}
    values["figures"] = {str(round_): figure for round_, figure in tally.figures.items()}
    return values


def _metrics_in(values: dict[str, Any]) -> Metrics:
    return Metrics(**{**values, "label": Label(values["label"]), "quality": Quality(values["quality"]["means"])})


def _tally_in(values: dict[str, Any]) -> Tally:
    joined = Joined(**values["joined"])
    metrics: dict[str, Any] = {
        name: None if values.get(name) is None else _metrics_in(values[name]) for name in ("before", "federated", "personal")
    }
    refusals = {int(round_): Reason(word) for round_, word in values["refusals"].items()}
    figures = {int(round_): float(figure) for round_, figure in values["figures"].items()}
    plain = {key: values[key] for key in ("bytes_down", "bytes_up", "rounds", "epsilon", "ledger", "failures")}
    return replace(Tally(joined=joined), **plain, **metrics, refusals=refusals, figures=figures, chosen=values.get("chosen"))
