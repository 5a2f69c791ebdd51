"""The folder of a simulation: what the run is, written before anything is charged under its name, and how one is resumed."""

from __future__ import annotations

import secrets
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, StorageError, shell_word
from shared.base.settings import Settings, build, flatten

RECORD = "run.toml"
LEDGERS, STATE = "ledger", "state"
IDENTITY = "identity.key"
"""A platform's key in its folder of `STATE`; it signs its ledger."""
_LEAST_FREE = 1 << 26
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What `run.toml` says.

    Args:
        run: The run's name.
        world: Folder of its platform files.
        earlier: Folder of the run that it goes on from, if any.
    """

    run: str
    world: Path
    settings: Settings
    earlier: Path | None = None


def recorded_run(out: Path) -> RecordedRun:
    """The run in a folder.

    Raises:
        InputError: there is none, or its settings are of another version.
        StorageError: its record cannot be read.
    """
    path = out / RECORD
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no run to resume", where=str(path), do="name the folder of an interrupted run") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"the run's record cannot be read ({error})", where=str(path), do="start a new run") from None
    run, world, settings, earlier = (known.get(key) for key in ("run", "world", "settings", "from"))
    if not (isinstance(run, str) and isinstance(world, str) and isinstance(settings, dict)):
        raise StorageError("the run's record lacks its name, world or settings", where=str(path), do="start a new run")
    return RecordedRun(
        run=run,
        world=Path(world),
        settings=build(settings, where=str(path)),
        earlier=Path(earlier) if isinstance(earlier, str) else None,
    )


def require_same_run(known: RecordedRun, *, world: Path, settings: Settings, where: Path) -> None:
    """A run is resumed as it was planned: its noise was calibrated for that.

    Raises:
        InputError: something differs; each difference is named.
    """
    before, after = flatten(known.settings), flatten(settings)
    differs = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if world.resolve() != known.world.resolve():
        differs.insert(0, f"world: {known.world} -> {world}")
    if differs:
        raise InputError(
            f"the run began otherwise ({'; '.join(differs)})",
            where=str(where / RECORD),
            do=f"go on with it as it is: fedfuse simulate --resume {shell_word(where)}; or start a new run with another --out",
        )


def require_new_folder(out: Path, *, world: Path) -> None:
    """Check that a folder is free for a run.

    Raises:
        InputError: something else than the run's own world is in it.
    """
    # A generated world may lie in the folder already; anything else is somebody's run.
    if out.exists() and [path for path in out.iterdir() if path.resolve() != world.resolve()]:
        raise InputError(
            "the run folder is not empty",
            where=str(out),
            do=f"name a new folder with --out, or go on with it: fedfuse simulate --resume {shell_word(out)}",
        )


class RunFolder:
    """A new run's folder. One that is refused before anything was released leaves nothing behind.

    Args:
        out: New, empty, or with nothing in it but the world.
        earlier: Folder of a run that this one goes on from: platforms come with the ledgers and the identities that they have
            there, so that what they have spent counts.

    Raises:
        InputError: something else is in it, or the earlier run has no ledger.
        StorageError: it cannot be written, or the disk is nearly full.
    """

    def __init__(self, out: Path, *, world: Path, settings: Settings, earlier: Path | None = None) -> None:
        self._out, self._world = out, world.resolve()
        self._there = out.exists()
        require_new_folder(out, world=world)
        # Two runs may begin within one second, and by `earlier` within one ledger: a name that two had would join their charges.
        self.run = f"simulation-{int(time.time())}-{secrets.token_hex(4)}"
        # The name is written before anything is charged under it, so that a resumed run finds its own charges.
        record = {"run": self.run, "world": str(self._world), "settings": as_tables(settings)}
        if earlier is not None:
            record["from"] = str(earlier.resolve())
        write_whole(out / RECORD, tomli_w.dumps(record).encode())
        self._carried = 0
        if earlier is not None:
            try:
                self._carried = _carry(earlier, out)
            except BaseException:
                self.clear()
                raise
        free = shutil.disk_usage(out).free
        if free < _LEAST_FREE:
            self.clear()
            raise StorageError(
                f"{free >> 20} MiB are free", where=str(out), do="free some space, or name another folder with --out"
            )

    def clear(self) -> None:
        """Take away what the run has written, unless something was charged: then it can be resumed."""
        if sum(_charges(path) for path in (self._out / LEDGERS).glob("*.jsonl")) > self._carried:
            return
        for path in self._out.iterdir():
            if path.resolve() == self._world:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if not self._there and not any(self._out.iterdir()):
            self._out.rmdir()


def _carry(earlier: Path, out: Path) -> int:
    """Copy the platforms' ledgers and identities of a run; the lines after the headers."""
    ledgers = sorted((earlier / LEDGERS).glob("*.jsonl"))
    if not ledgers:
        raise InputError("no platform has a ledger there", where=str(earlier), do="name the folder of a simulation: --from RUN")
    for ledger in ledgers:
        write_whole(out / LEDGERS / ledger.name, ledger.read_bytes())
        key = earlier / STATE / ledger.stem / IDENTITY
        if key.exists():
            write_whole(out / STATE / ledger.stem / IDENTITY, key.read_bytes(), mode=0o600)
    return sum(_charges(out / LEDGERS / ledger.name) for ledger in ledgers)


def _charges(ledger: Path) -> int:
    """Lines after the header."""
    with ledger.open("rb") as lines:
        return max(0, sum(1 for _ in lines) - 1)


def as_tables(settings: Settings) -> dict[str, Any]:
    """Settings without nulls, which TOML lacks: a budget that is each platform's own is left out."""
    values = settings.model_dump(mode="python")
    values["privacy"] = {key: value for key, value in values["privacy"].items() if value is not None}
    return values
