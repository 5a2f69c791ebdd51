"""`fedfuse deploy files`: the service files that this installation brings, written into a folder of the operator's.

The files lie beside this module, so a wheel has them. A unit of systemd names the program by its path; what is written names the
one that is installed here.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.base.atomic_files import write_whole
from shared.base.errors import InputError

PROGRAM = "/opt/fedfuse/bin/fedfuse"
"""The path that the units name as they are shipped."""
_SOURCE = Path(__file__).parent


class ServiceKind(StrEnum):
    """A folder of files, each for one way to run Fedfuse."""

    SYSTEMD = "systemd"
    COMPOSE = "compose"
    IMAGE = "image"
    HELM = "helm"
    GRAFANA = "grafana"


@dataclass(frozen=True, kw_only=True)
class WrittenFiles:
    """What was done.

    Args:
        written: Paths that are new.
        same: Paths that were there already, with the same content.
    """

    written: tuple[Path, ...]
    same: tuple[Path, ...]


def installed_program() -> Path | None:
    """The `fedfuse` command of this installation, or of the path; None where there is neither."""
    beside = Path(sysconfig.get_path("scripts")) / "fedfuse"
    if beside.is_file():
        return beside
    found = shutil.which("fedfuse")
    return Path(found).absolute() if found else None


def service_files(kinds: tuple[ServiceKind, ...] = tuple(ServiceKind), *, program: str = PROGRAM) -> Mapping[Path, str]:
    """Relative path -> text of every file.

    Args:
        program: Absolute path of the `fedfuse` command, for systemd.

    Raises:
        InputError: the path is not absolute, or systemd would read it as several words.
    """
    if not program.startswith("/") or any(character.isspace() or character in "%$\"'\\;" for character in program):
        raise InputError(f"{program!r} cannot stand in a unit", where="--program", do="name an absolute path without spaces")
    return {path.relative_to(_SOURCE): _named(path, program) for kind in kinds for path in _files(_SOURCE / kind)}


def write_service_files(
    folder: Path, kinds: tuple[ServiceKind, ...] = tuple(ServiceKind), *, program: str = PROGRAM
) -> WrittenFiles:
    """Write them below `folder`. A file of the operator's is never written over.

    Raises:
        InputError: files with another content are there; nothing was written.
    """
    wanted = {folder / path: text for path, text in service_files(kinds, program=program).items()}
    there = {path for path in wanted if path.exists()}
    same = {path for path in there if path.is_file() and path.read_bytes() == wanted[path].encode()}
    if there != same:
        other = ", ".join(str(path.relative_to(folder)) for path in sorted(there - same))
        raise InputError(
            f"files with another content are there: {other}",
            where=str(folder),
            do="name a new folder, and compare the two: diff -r",
        )
    fresh = sorted(set(wanted) - same)
    for path in fresh:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, wanted[path].encode())
    return WrittenFiles(written=tuple(fresh), same=tuple(sorted(same)))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _named(path: Path, program: str) -> str:
    text = path.read_text(encoding="utf-8")
    return text.replace(PROGRAM, program) if path.suffix == ".service" else text
