"""The operator who gives a command: by the key that is named, or by the one that was made with the coordinator's folder."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder
from server.operators.log_writer import ActingOperator, NotAllowed, begin_log
from server.operators.operator_log import HEAD, LOG, OperatorLog, read_operator_log
from server.operators.restored_state import seen_note
from server.operators.rights import Right, Verb
from shared.base.errors import InputError, StorageError
from shared.base.folder_owner import require_owner
from shared.protocol.invitation import fingerprint_of
from shared.protocol.keys import load_ed25519, make_ed25519, parse_ed25519

STDIN = Path("-")
_LARGEST = 1 << 14


def acting_operator(coordinator: CoordinatorFolder, key: Path | None, right: Right) -> ActingOperator:
    """Who gives this command, if they have that right.

    Args:
        key: File of their private key; '-': what standard input was redirected from; None: the first operator's, which is in
            the coordinator's folder unless they took it away.

    Raises:
        NotAllowed: it is no operator's key, or their operator has not that right.
        InputError: it is no key; or this is root, and the folder another user's.
        StorageError: it cannot be read, others can read it, or the log was altered.
    """
    require_owner(coordinator.folder)
    _adopt(coordinator)
    if key is None and not coordinator.operator_key.exists():
        raise NotAllowed(
            "nobody says who acts: the first operator's key is not in the folder",
            where=str(coordinator.operator_key),
            do="name your own key: --as FILE, or FEDFUSE_OPERATOR",
        )
    path = key or coordinator.operator_key
    secret = _from_stdin() if path == STDIN else load_ed25519(path)
    found = ActingOperator(coordinator.operators, secret, where=str(path), seen=seen_note(coordinator))
    found.require(right)
    return found


def log_of(coordinator: CoordinatorFolder) -> OperatorLog:
    """The log of a coordinator's operators, verified; one that an earlier version made has a log from here on.

    Raises:
        StorageError: it cannot be read, or was altered.
    """
    _adopt(coordinator)
    return read_operator_log(coordinator.operators)


def _adopt(coordinator: CoordinatorFolder) -> None:
    """Give a coordinator that an earlier version made its first operator and its log."""
    folder = coordinator.operators
    if (folder / LOG).exists() or (folder / HEAD).exists() or coordinator.operator_key.exists():
        return
    key = make_ed25519(coordinator.operator_key)
    begin_log(folder, key, federation=coordinator.file.name)
    owner = ActingOperator(folder, key, where=str(coordinator.operator_key))
    for one in Platforms(coordinator.platforms).approved():
        owner.record(Verb.ADOPT, one.name, {"fingerprint": fingerprint_of(one.identity), "node": one.fingerprint})


def _from_stdin() -> Ed25519PrivateKey:
    """The key in the file that standard input comes from: a shell can open what the coordinator's user cannot."""
    try:
        handle = sys.stdin.fileno()
        mode = os.fstat(handle).st_mode
    except (OSError, ValueError):
        raise InputError("there is no standard input", where="--as -", do="redirect it from your key: --as - < KEY") from None
    if not stat.S_ISREG(mode):
        raise InputError("standard input is no file", where="--as -", do="redirect it from your key: --as - < KEY")
    if mode & 0o077:
        raise StorageError("others may read this private key", where="--as -", do="chmod 600, and make a new one")
    return parse_ed25519(os.read(handle, _LARGEST), where="--as -")
