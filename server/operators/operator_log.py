"""The log of operators' actions: a text file of chained lines (`shared/ledger/chained_line.py`), each signed by who acted.

Line 0 begins it: it names the first operator and their key, and that key signs it. Every later line is signed by the key that its
operator has at that moment, as the lines before it say, and is valid only if that operator then held the right that it takes. So
reading the log from its beginning says who may do what now, and nobody can write a line of somebody else.

A cut end breaks no chain. So the last line's number and hash are in a file beside it (`HEAD`), the list of platforms is held
against the log, and whoever wrote a head down elsewhere can ask for it (`fedfuse log --head`).
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.operators.rights import ALL, Right, Verb, rights_in
from shared.base.errors import InputError, StorageError
from shared.ledger.chained_line import GENESIS, AlteredLine, UnreadableLine, canonical_json, open_line, seal_values
from shared.ledger.field_checks import moment
from shared.protocol.invitation import fingerprint_of
from shared.protocol.messages import NAME
from shared.secagg.identity import PUBLIC, digest_of, signed_by

LOG, HEAD = "log.jsonl", "head.json"
MAX_ACTION, MAX_ACTIONS = 4096, 1_000_000
MAX_DETAIL, MAX_DETAILS = 500, 16
KEY, MAY = "key", "may"
"""Details of a line that makes an operator."""

_HASH = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
_DETAIL = re.compile(r"[a-z_]{1,32}")


class AlteredLog(StorageError):
    """The log was altered or cut, or somebody acted who must not."""


@dataclass(frozen=True, kw_only=True)
class OperatorAction:
    """A line of the log.

    Args:
        seq: 0, 1, 2...
        time: UTC, ISO 8601, whole seconds; informative, clocks may step back.
        operator: Who acted.
        of: What was acted on: a platform, a run, an operator; of line 0 the federation.
        details: Short texts by name: a fingerprint, settings that were asked for.
        previous: Hash of the line before.
        signature: By the operator's key, base64.
        hash: SHA-256 of the line's canonical JSON without `hash`, hex.
    """

    seq: int
    time: str
    operator: str
    verb: Verb
    of: str
    details: Mapping[str, str]
    previous: str
    signature: str = ""
    hash: str = ""

    def sealed(self, key: Ed25519PrivateKey) -> tuple[OperatorAction, bytes]:
        """The same, signed, and the bytes to write."""
        body = self._values()
        digest = digest_of("operator action", canonical_json(body))
        signed = replace(self, signature=b64encode(key.sign(digest)).decode("ascii"))
        hashed, line = seal_values({**body, "signature": signed.signature})
        return replace(signed, hash=hashed), line

    def to_json(self) -> dict[str, Any]:
        """For machines, as the log has it."""
        return {**self._values(), "signature": self.signature, "hash": self.hash}

    def _values(self) -> dict[str, Any]:
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("hash", "signature")}
        return {**values, "verb": str(self.verb), "details": dict(self.details)}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Somebody who may act.

    Args:
        key: Ed25519 public key, base64.
        since: When they were added, or their rights changed.
    """

    name: str
    key: str
    rights: frozenset[Right]
    since: str
    removed: str = ""

    @property
    def fingerprint(self) -> str:
        """What two people compare of the key."""
        return fingerprint_of(self.key)


@dataclass(frozen=True, kw_only=True)
class NotedHead:
    """Which action was the last of a log, as a note elsewhere says.

    Args:
        time: Of that action; '' in a note that an earlier version wrote.
    """

    seq: int
    hash: str
    time: str

    def text(self) -> bytes:
        """The note."""
        return (json.dumps({"seq": self.seq, "hash": self.hash, "time": self.time}) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class LoggedPlatform:
    """The log's last word on a SuperNode's key.

    Args:
        name: Of its platform.
        action: That said so.
    """

    name: str
    approved: bool
    action: OperatorAction


@dataclass(frozen=True, kw_only=True)
class OperatorLog:
    """A verified log.

    Args:
        operators: By name; those who were removed, too.
        length: Bytes of it.
    """

    actions: tuple[OperatorAction, ...]
    operators: Mapping[str, Operator] = field(repr=False)
    length: int

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self.actions[-1].hash

    def holder(self, key: str) -> Operator | None:
        """The operator with that key (base64) who may act."""
        return next((one for one in self.operators.values() if one.key == key and not one.removed), None)

    def holds(self, head: str) -> bool:
        """Whether a line has that hash."""
        return any(line.hash == head for line in self.actions)

    def follows(self, head: NotedHead) -> bool:
        """Whether that action is here."""
        return 0 <= head.seq < len(self.actions) and self.actions[head.seq].hash == head.hash

    def accounts_for(self, head: NotedHead) -> bool:
        """Whether that action is here, or an operator has said since that it is lost."""
        return self.follows(head) or any(line.verb is Verb.RESTORED and line.time >= head.time for line in self.actions)

    def platforms(self) -> dict[str, LoggedPlatform]:
        """SuperNode key's fingerprint -> what the log says last of it."""
        found: dict[str, LoggedPlatform] = {}
        for line in self.actions:
            if line.verb in (Verb.APPROVE, Verb.ADOPT, Verb.REVOKE):
                node, approved = line.details.get("node", ""), line.verb is not Verb.REVOKE
                found[node] = LoggedPlatform(name=line.of, approved=approved, action=line)
                if approved and "replaced" in line.details:
                    found[line.details["replaced"]] = LoggedPlatform(name=line.of, approved=False, action=line)
        return found


def read_operator_log(folder: Path) -> OperatorLog:
    """The log in that folder, verified whole.

    Raises:
        StorageError: it cannot be read.
        AlteredLog: the chain, a signature or a right does not hold, or its end is cut off.
    """
    path = folder / LOG
    try:
        with path.open("rb") as file:
            log = _whole(file, where=str(path))
        head = noted_head(folder / HEAD)
    except FileNotFoundError:
        raise AlteredLog("the log of operators' actions is gone", where=str(path), do=_RESTORE) from None
    except OSError as error:
        raise StorageError(f"the log cannot be read ({error.strerror})", where=str(path), do="check path and rights") from None
    if head is not None and not log.follows(head):
        raise AlteredLog(
            f"the log ends with action {log.actions[-1].seq}, and action {head.seq} ({head.hash[:12]}...) was written",
            where=str(path),
            do=_RESTORE,
        )
    return log


def head_note(action: OperatorAction) -> bytes:
    """What `HEAD`, or another note of it, says when that line is the last one."""
    return NotedHead(seq=action.seq, hash=action.hash, time=action.time).text()


_RESTORE = "restore the folder from a backup, and ask every operator what they did since"


def noted_head(path: Path) -> NotedHead | None:
    """What a `head_note` in a file says; None where there is no note.

    Raises:
        AlteredLog: it is no such note.
        StorageError: it cannot be read.
    """
    try:
        return parse_head(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=str(path), do="check path and rights") from None


def parse_head(text: bytes, *, where: str) -> NotedHead:
    """What a `head_note` says.

    Raises:
        AlteredLog: it is no such note.
    """
    try:
        values = json.loads(text)
        return NotedHead(seq=int(values["seq"]), hash=str(values["hash"]), time=str(values.get("time", "")))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AlteredLog("does not say which action was the last", where=where, do=_RESTORE) from None


def _whole(file: IO[bytes], *, where: str) -> OperatorLog:
    replay = _Replay(where)
    for text in _lines(file, where):
        replay.take(text)
    if not replay.actions:
        raise AlteredLog("the log is empty", where=where, do=_RESTORE)
    return OperatorLog(actions=tuple(replay.actions), operators=dict(replay.operators), length=replay.length)


def _lines(file: IO[bytes], where: str) -> Iterator[bytes]:
    for number in range(MAX_ACTIONS + 1):
        text = file.readline(MAX_ACTION + 1)
        if not text:
            return
        if number == MAX_ACTIONS or (len(text) > MAX_ACTION and not text.endswith(b"\n")):
            raise AlteredLog("is too long", where=f"{where}, line {number + 1}", do=_RESTORE)
        if not text.endswith(b"\n"):
            return  # a crash tore it: it was never acted upon, and the next action is written over it
        yield text[:-1]


class _Replay:
    """What the lines so far say."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.actions: list[OperatorAction] = []
        self.operators: dict[str, Operator] = {}
        self.length = 0

    def take(self, text: bytes) -> None:
        place = f"{self._where}, line {len(self.actions) + 1}"
        try:
            values, body = open_line(text)
            action = _action(values, place)
        except (UnreadableLine, AlteredLine, InputError, StorageError) as error:
            found = error.found if isinstance(error, InputError | StorageError) else str(error)
            raise AlteredLog(f"this is no line of an operators' log: {found}", where=place, do=_RESTORE) from None
        before = self.actions[-1].hash if self.actions else GENESIS
        if action.seq != len(self.actions) or action.previous != before:
            self._refuse("the chain is broken: this line does not follow the one before it", place)
        who = self._actor(action, place)
        raw = b64decode(who.key)
        if len(raw) != PUBLIC or not signed_by(raw, b64decode(action.signature), digest_of("operator action", body)):
            self._refuse(f"the line is not signed by {action.operator}", place)
        if action.verb.right not in who.rights:
            self._refuse(f"{action.operator} had no right to {action.verb.right}", place)
        self._apply(action, place)
        self.actions.append(action)
        self.length += len(text) + 1

    def _actor(self, action: OperatorAction, place: str) -> Operator:
        if not self.actions:
            if action.verb is not Verb.BEGIN:
                self._refuse("the first line begins no log: its beginning was cut off", place)
            return Operator(name=action.operator, key=_key(action, place), rights=ALL, since=action.time)
        if action.verb is Verb.BEGIN:
            self._refuse("the log begins a second time", place)
        who = self.operators.get(action.operator)
        if who is None or who.removed:
            self._refuse(f"{action.operator} was no operator then", place)
        return who

    def _apply(self, action: OperatorAction, place: str) -> None:
        if action.verb is Verb.BEGIN:
            self.operators[action.operator] = Operator(
                name=action.operator, key=_key(action, place), rights=ALL, since=action.time
            )
        elif action.verb is Verb.ADD_OPERATOR:
            try:
                rights = rights_in(action.details.get(MAY, ""))
            except InputError as error:
                self._refuse(error.found, place)
            made = Operator(name=action.of, key=_key(action, place), rights=rights, since=action.time)
            refused = why_not_added(self.operators, made)
            if refused:
                self._refuse(refused, place)
            self.operators[action.of] = made
        elif action.verb is Verb.REMOVE_OPERATOR:
            known = self.operators.get(action.of)
            if known is None or known.removed:
                self._refuse(f"{action.of} was no operator then", place)
            self.operators[action.of] = replace(known, removed=action.time)
        if not any(Right.OPERATORS in one.rights for one in self.operators.values() if not one.removed):
            self._refuse("nobody is left who may add operators", place)

    def _refuse(self, found: str, place: str) -> NoReturn:
        raise AlteredLog(found, where=place, do=_RESTORE)


def why_not_added(operators: Mapping[str, Operator], made: Operator) -> str:
    """Why an operator cannot be added, or have these rights from now on; '' if they can."""
    holder = next((one for one in operators.values() if one.key == made.key and not one.removed), None)
    if holder is not None and holder.name != made.name:
        return f"this key belongs to {holder.name}"
    same = operators.get(made.name)
    if same is not None and not same.removed and same.key != made.key:
        return f"{made.name} is an operator with another key"
    return ""


def _action(values: dict[str, Any], where: str) -> OperatorAction:
    names = {part.name for part in fields(OperatorAction)}
    if set(values) != names:
        raise InputError(f"fields differ by {sorted(set(values) ^ names)!r:.200}")
    details = values["details"]
    if not isinstance(details, dict) or len(details) > MAX_DETAILS:
        raise InputError("details are no table")
    for name, text in details.items():
        if not _DETAIL.fullmatch(name) or not isinstance(text, str) or len(text) > MAX_DETAIL:
            raise InputError(f"detail {name!r:.40} is none")
    patterns = {"operator": NAME, "of": NAME, "previous": _HASH, "signature": _SIGNATURE, "hash": _HASH}
    for name, pattern in patterns.items():
        if not isinstance(values[name], str) or not pattern.fullmatch(values[name]):
            raise InputError(f"{name} is {values[name]!r:.100}")
    if isinstance(values["seq"], bool) or not isinstance(values["seq"], int):
        raise InputError(f"seq is {values['seq']!r:.40}")
    if values["verb"] not in list(Verb):
        raise InputError(f"{values['verb']!r:.40} is unknown to this version: update it")
    moment(values, "time", where)
    return OperatorAction(**{**values, "verb": Verb(values["verb"])})


def _key(action: OperatorAction, where: str) -> str:
    key = action.details.get(KEY, "")
    if not _KEY.fullmatch(key):
        raise AlteredLog(f"the key of an operator is {key!r:.60}", where=where, do=_RESTORE)
    return key
