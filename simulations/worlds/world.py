"""A world: a folder with one platform file per platform; a simulation is that folder run as virtual clients."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import InputError


@dataclass(frozen=True, kw_only=True)
class World:
    """The platform files of one folder.

    Args:
        folder: Where they lie; relative paths inside a platform file start here.
        platforms: One `*.toml` per platform, sorted by the platform's name.
    """

    folder: Path
    platforms: tuple[Path, ...]


def open_world(folder: Path) -> World:
    """Every platform file in `folder`, not in its subfolders; files that are not TOML are left alone.

    Only the `name` of each is read here; the client checks the rest when the platform starts.

    Returns:
        The folder, and the paths of its platform files, sorted by the platforms' names.

    Raises:
        InputError: the folder is missing, holds no platform file, a platform file is not TOML or
            has no name, or two of them have the same name.

    | given | result |
    |---|---|
    | no such folder, or one without a `.toml` | `InputError` |
    | other files, subfolders | left alone |
    | two platforms of one name | `InputError`, with both files |
    | a `.toml` that is none, or has no `name` | `InputError`, with the file |
    """
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise InputError(found, where=str(folder), do="name a folder that holds one platform file (*.toml) per platform")
    named: dict[str, Path] = {}
    for path in sorted(folder.glob("*.toml")):
        name = _name(path)
        if name in named:
            raise InputError(
                f"two platforms are named {name!r}: {named[name].name} and {path.name}",
                where=str(folder),
                do="give every platform its own `name`",
            )
        named[name] = path
    if not named:
        raise InputError("no platform file (*.toml)", where=str(folder), do="a world has one platform file per platform")
    return World(folder=folder, platforms=tuple(named[name] for name in sorted(named)))


def _name(path: Path) -> str:
    try:
        name = tomllib.loads(path.read_text(encoding="utf-8")).get("name")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not a TOML file: {error}", where=str(path), do="mend it, or move it out of the world") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), do="check that it is a readable file") from None
    if not isinstance(name, str) or not name:
        raise InputError(
            "no `name`: it is not a platform file",
            where=str(path),
            do='start it with name = "...", or move it out of the world',
        )
    return name
