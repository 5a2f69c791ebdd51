"""Writing the log of operators' actions: one line at a time, on disk before what it says is done.

A crash between the two leaves a line whose action was not done; the command is given again. The other order, something done
that no line says, cannot come about.
"""

from __future__ import annotations

import fcntl
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.operators.operator_log import (
    HEAD,
    KEY,
    LOG,
    MAX_ACTION,
    MAX_ACTIONS,
    MAX_DETAIL,
    MAX_DETAILS,
    MAY,
    Operator,
    OperatorAction,
    OperatorLog,
    head_note,
    noted_head,
    read_operator_log,
    why_not_added,
)
from server.operators.rights import ALL, Right, Verb, rights_in, rights_text
from shared.base.atomic_files import sync_folder, write_whole
from shared.base.errors import ExitCode, FedfuseError, InputError, StorageError
from shared.base.synced_append import append_synced
from shared.ledger.chained_line import GENESIS
from shared.ledger.format import now
from shared.protocol.messages import NAME

FIRST = "owner"
"""Name of the operator that is made with a coordinator's folder."""


class NotAllowed(FedfuseError):
    """Whoever acts is no operator, or has no right to do so."""

    exit_code = ExitCode.REFUSED


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half of a key, as the log has it (base64)."""
    return b64encode(key.public_key().public_bytes_raw()).decode("ascii")


def begin_log(folder: Path, key: Ed25519PrivateKey, *, federation: str, name: str = FIRST) -> OperatorLog:
    """Begin a coordinator's log: the owner of that key is the first operator, and may all.

    Raises:
        StorageError: it cannot be written.
        InputError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(folder):
        if (folder / LOG).exists() or (folder / HEAD).exists():
            raise InputError("a log of operators' actions is here already", where=str(folder), do="use that one")
        details = {KEY: public_text(key), MAY: rights_text(ALL)}
        line = OperatorAction(seq=0, time=now(), operator=name, verb=Verb.BEGIN, of=federation, details=details, previous=GENESIS)
        _write(folder, line, key, length=0)
        return read_operator_log(folder)


class ActingOperator:
    """An operator whose key is at hand.

    Args:
        folder: Of the log.
        where: What the key was read from, for a person.
        seen: Another place where the last action is noted, in a folder that need not be there.

    Raises:
        NotAllowed: the key is no operator's.
        StorageError: the log cannot be read, or was altered.
    """

    def __init__(self, folder: Path, key: Ed25519PrivateKey, *, where: str, seen: Path | None = None) -> None:
        self._folder, self._key, self._where, self._seen = folder, key, where, seen
        self.name = self._known(read_operator_log(folder)).name

    def require(self, right: Right) -> None:
        """Return only if this operator has that right now.

        Raises:
            NotAllowed: they have not.
            StorageError: as for the class.
        """
        self._require(read_operator_log(self._folder), right)

    def may(self, right: Right) -> bool:
        """Whether this operator has that right now; errors as for the class."""
        return right in self._known(read_operator_log(self._folder)).rights

    def record(self, verb: Verb, of: str, details: Mapping[str, str] | None = None) -> OperatorAction:
        """Write down what is about to be done, signed; it is on disk when this returns.

        Args:
            details: Texts are cut to `MAX_DETAIL`; empty ones are left out.

        Raises:
            NotAllowed: this operator has not, or no longer, the right.
            InputError: an operator cannot be added or removed so.
            StorageError: it cannot be written, or the log was altered. It must not be done then.
        """
        short = {name: text[:MAX_DETAIL] for name, text in (details or {}).items() if text}
        if not NAME.fullmatch(of) or len(short) > MAX_DETAILS:
            raise InputError(f"{of!r:.80} is no name", where=f"the log of {verb}", do="names are like 'spring-2'")
        with _alone(self._folder):
            log = read_operator_log(self._folder)
            self._require(log, verb.right)
            _require_possible(log, verb, of, short)
            if len(log.actions) >= MAX_ACTIONS:
                raise StorageError("the log is full", where=str(self._folder / LOG), do="make a new coordinator")
            line = OperatorAction(
                seq=len(log.actions), time=now(), operator=self.name, verb=verb, of=of, details=short, previous=log.head
            )
            written = _write(self._folder, line, self._key, length=log.length)
            if self._seen is not None:
                note_seen(self._seen, log, written)
            return written

    def _known(self, log: OperatorLog) -> Operator:
        who = log.holder(public_text(self._key))
        if who is None:
            gone = next((one for one in log.operators.values() if one.key == public_text(self._key)), None)
            raise NotAllowed(
                f"{gone.name} is no operator any more" if gone else "this key is no operator's",
                where=self._where,
                do="name your own key with --as FILE, or have an operator add it: fedfuse server operator add",
            )
        return who

    def _require(self, log: OperatorLog, right: Right) -> None:
        who = self._known(log)
        if right not in who.rights:
            others = sorted(one.name for one in log.operators.values() if right in one.rights and not one.removed)
            raise NotAllowed(
                f"{who.name} has no right to {right} (they have: {rights_text(who.rights)})",
                where=self._where,
                do=f"ask one who has: {', '.join(others) or 'nobody'}; or have it given: fedfuse server operator add {who.name}",
            )


def note_seen(path: Path, log: OperatorLog, last: OperatorAction) -> None:
    """Note an action that was added to a log, or is its last, where other notes of it are kept.

    Not where the note says more than the log: it is what shows that the log is an older copy.

    Raises:
        StorageError: it cannot be written, or is no note.
    """
    before = noted_head(path)
    if path.parent.is_dir() and (before is None or log.accounts_for(before)):
        write_whole(path, head_note(last), mode=0o600)


def _require_possible(log: OperatorLog, verb: Verb, of: str, details: Mapping[str, str]) -> None:
    """The reader's own rules about operators: what could not be read back is not written."""
    if verb is Verb.ADD_OPERATOR:
        made = Operator(name=of, key=details[KEY], rights=rights_in(details[MAY]), since="")
        refused = why_not_added(log.operators, made)
        if refused:
            do = "let everybody make a key of their own; to change one, remove the operator first"
            raise InputError(refused, where=of, do=do)
        after = {**log.operators, of: made}
    elif verb is Verb.REMOVE_OPERATOR:
        known = log.operators.get(of)
        if known is None or known.removed:
            names = ", ".join(sorted(one.name for one in log.operators.values() if not one.removed))
            raise InputError(f"{of} is no operator", where="the log", do=f"operators are: {names}")
        after = {name: one for name, one in log.operators.items() if name != of}
    else:
        return
    if not any(Right.OPERATORS in one.rights for one in after.values() if not one.removed):
        raise InputError("nobody would be left who may add operators", where=of, do="give another one that right first")


def _write(folder: Path, line: OperatorAction, key: Ed25519PrivateKey, *, length: int) -> OperatorAction:
    sealed, text = line.sealed(key)
    if len(text) > MAX_ACTION:
        raise InputError("the action's details are too long", where=str(folder / LOG), do="shorten them")
    try:
        descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, length)  # a line that a crash tore
            append_synced(descriptor, text, length=length)
        finally:
            os.close(descriptor)
        sync_folder(folder)
    except OSError as error:
        raise StorageError(
            f"the action could not be written down, and is not done ({error.strerror})",
            where=str(folder / LOG),
            do="free space or mend the permissions, and ask again",
        ) from None
    write_whole(folder / HEAD, head_note(sealed), mode=0o600)
    return sealed


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
