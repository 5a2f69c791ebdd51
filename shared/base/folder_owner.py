"""Whose a folder is: root must not write into one that belongs to the user of a service."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from shared.base.errors import InputError


def require_owner(folder: Path) -> None:
    """Return unless this is root and the folder, which is there, another user's: what root makes there that user cannot read.

    Raises:
        InputError: it is; the error says as whom the command is to be run.
    """
    try:
        owner = folder.stat().st_uid
    except OSError:
        return  # it is still to be made, or its first use will say what is wrong with it
    if os.geteuid() == 0 and owner != 0:
        who = _name(owner)
        raise InputError(
            f"this folder belongs to {who}, who could not read what root writes there",
            where=str(folder),
            do=f"run the same command as that user: sudo -u {who} ...",
        )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"'#{user}'"  # as sudo takes a number
