"""The requests a coordinator may send to a platform, and the answers it may get.

Each message is a small frozen dataclass that checks itself where it is made. A message travels
as *parts*: a header of scalars and named float32 arrays. `to_record` / `from_record` put the
parts into Flower's `RecordDict`; nothing is ever pickled. Neither torch nor any source is
imported here, so the messenger process starts quickly.

What an answer may hold is the list in DESIGN ("What leaves a platform") and nothing else: text
in an answer is a declared public name, a hash, or a word from a closed list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import save

from shared.errors import ProtocolError
from shared.settings import Settings, flatten, unflatten
from shared.tensors import parse_tensors

Arrays = Mapping[str, NDArray[np.float32]]
"""A flattened adapter: parameter name -> float32 array. The format is `shared/adapter.py`'s."""

PROTOCOL = 1
"""Version of the message format; two sides must have the same."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
HASH = re.compile(r"[0-9a-f]{64}|")
MAX_PARAMETERS = 1 << 28
MAX_BYTES = 1 << 28
_RECORD, _BYTES = "fedfuse", "bytes"


class Reason(StrEnum):
    """Why a platform did not do what it was asked: a closed list, so that no data can hide in it."""

    BUDGET = "budget"  # the release would exceed the platform's privacy budget
    SETTINGS = "settings"  # the platform does not accept these settings
    NOISE = "noise"  # the planned update would be noise
    ROUND = "round"  # this round was answered already, or comes out of order
    SOURCES = "sources"  # the platform's sources cannot be read
    MESSAGE = "message"  # the request was malformed
    VERSION = "version"  # the platform's installed version speaks another protocol; its own log says which it needs
    WARRANT = "warrant"  # the request has no leave from the coordinator that this platform trusts
    FAILED = "failed"  # anything else; the platform's own log says what


class Label(StrEnum):
    """Which model an evaluation speaks of."""

    BEFORE = "before"
    FEDERATED = "federated"
    PERSONAL = "personal"  # whatever the platform uses after personalising; in a simulation only


class Phase(StrEnum):
    """What a platform is asked in the secure sum beside the masked vectors; see `shared/secagg/messages.py`."""

    DEAL = "deal"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    POPULARITY = "popularity"  # here is what round 0 summed; `shared/catalogues.py`


class Factors(StrEnum):
    """Which factors of the adapter a round trains and sends; the others stay as the coordinator sent them."""

    BOTH = "ab"
    A = "a"
    B = "b"
    R = "r"  # the matrix between fixed factors


@dataclass(frozen=True, kw_only=True)
class _Message:
    kind: ClassVar[str]
    run: str

    def __post_init__(self) -> None:
        _require(bool(NAME.fullmatch(self.run)), f"{self.kind}: run {self.run!r} is not a name")
        for part in fields(self):
            _check(self.kind, part.name, getattr(self, part.name))


@dataclass(frozen=True, kw_only=True)
class Join(_Message):
    """Prepare for a run: read the sources, make the plan, check the gradients."""

    kind: ClassVar[str] = "join"
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Train(_Message):
    """Train from the global `adapter` and answer with an `Update`."""

    kind: ClassVar[str] = "train"
    settings: Settings
    round: int
    factors: Factors
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Message):
    """Score the global `adapter` on the platform's held-out interactions."""

    kind: ClassVar[str] = "evaluate"
    settings: Settings
    round: int
    label: Label
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Personalise(_Message):
    """Train a residual adapter of the platform's own on the `adapter` of the last round, and keep it if it is better."""

    kind: ClassVar[str] = "personalise"
    settings: Settings
    round: int
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Sum(_Message):
    """Take one gradient step's sum from the global `adapter`, and answer with it, noised and masked, as `Summed`.

    Args:
        body: `shared.secagg.messages.Mask`.
    """

    kind: ClassVar[str] = "sum"
    settings: Settings
    round: int
    factors: Factors
    adapter: Arrays = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Count(_Message):
    """Count how often each item was liked, and answer with it, noised and masked, as `Summed` of round 0.

    Args:
        body: `shared.secagg.messages.Mask`.
    """

    kind: ClassVar[str] = "count"
    settings: Settings
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Secure(_Message):
    """A phase of the secure sum that reads no row.

    Args:
        round: 0 for what happens once in a run.
        body: `Deal`, `Confirm` or `Unmask` of `shared.secagg.messages`, or `Popularity` of `shared.catalogues`.
    """

    kind: ClassVar[str] = "secure"
    settings: Settings
    round: int
    phase: Phase
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Joined(_Message):
    """The platform is ready. Every field is declared public, or follows from what is.

    Args:
        users: Declared number of users (never the counted one).
        items: Size of the public catalogue.
        budget, delta: What the platform may spend, in epsilon, at that delta.
        planned_epsilon: What the whole plan will have spent.
        signal_to_noise: Bound on the run's update norm over its noise norm (dimensionless).
        finished: Last round that this platform has answered in this run; 0 if none.
        rank: LoRA rank that it trains, where ranks may differ; 0: the run's.
        keys: Its public keys for the secure sum (`shared.secagg.roster.Advert`); empty without one.
        catalogue: Hash of its public item ids (`shared.catalogues.digest_of`), in hex; empty without a secure sum.
    """

    kind: ClassVar[str] = "joined"
    platform: str
    users: int
    items: int
    budget: float
    delta: float
    planned_epsilon: float
    noise_multiplier: float
    signal_to_noise: float
    finished: int = 0
    rank: int = 0
    keys: bytes = field(default=b"", repr=False)
    catalogue: str = ""


@dataclass(frozen=True, kw_only=True)
class Released(_Message):
    """What every answer says that was made from rows, and charged where it is private.

    Args:
        users: Declared number of users.
        epsilon: What the platform has spent by now.
        ledger: SHA-256 of the ledger's last line; empty without a charge.
        seconds: What it took, in tenths.
    """

    platform: str
    round: int
    users: int
    epsilon: float
    ledger: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Update(Released):
    """The platform's noised change of the adapter in one round (platform minus global)."""

    kind: ClassVar[str] = "update"
    change: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Summed(Released):
    """The platform's sum of clipped gradients (in round 0, its counts) with its share of the noise, under masks.

    Args:
        body: `shared.secagg.messages.Masked`.
    """

    kind: ClassVar[str] = "summed"
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Secured(_Message):
    """The answer to `Secure`.

    Args:
        body: `Dealt`, `Confirmed` or `Unmasked` of `shared.secagg.messages`, or `Taken` of `shared.catalogues`.
    """

    kind: ClassVar[str] = "secured"
    platform: str
    round: int
    phase: Phase
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Metrics(Released):
    """Ranking quality on held-out interactions; exact only in a simulation, else noised and charged."""

    kind: ClassVar[str] = "metrics"
    label: Label
    ndcg: float
    hr: float
    auc: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Personalised(Released):
    """The platform has personalised the model, or has kept the global one.

    Args:
        chosen: Whether it uses its own now; the outcome of a noised, charged comparison, or False without one.
    """

    kind: ClassVar[str] = "personalised"
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Refusal(_Message):
    """The platform did not do it, and why, in one word of a closed list."""

    kind: ClassVar[str] = "refusal"
    platform: str
    round: int
    reason: Reason


_WORDS: dict[str, type[StrEnum]] = {"Label": Label, "Reason": Reason, "Factors": Factors, "Phase": Phase}
Request = Join | Train | Evaluate | Personalise | Sum | Count | Secure
Answer = Joined | Update | Metrics | Personalised | Summed | Secured | Refusal
REQUESTS: dict[str, type[Any]] = {m.kind: m for m in (Join, Train, Evaluate, Personalise, Sum, Count, Secure)}
ANSWERS: dict[str, type[Any]] = {m.kind: m for m in (Joined, Update, Metrics, Personalised, Summed, Secured, Refusal)}


def to_record(message: Request | Answer) -> RecordDict:
    """The message as Flower carries it: one ConfigRecord of scalars, and an array for each field that is large.

    Tensors travel together, as safetensors: Flower asks for every array by itself, twice on its way and at some 8 ms each.
    """
    header: dict[str, Any] = {"protocol": PROTOCOL, "kind": message.kind}
    record = RecordDict()
    for part in fields(message):
        value = getattr(message, part.name)
        if isinstance(value, Settings):
            header[part.name] = json.dumps(flatten(value), sort_keys=True)
        elif isinstance(value, Mapping):
            record[part.name] = record_of_bytes(save({name: np.ascontiguousarray(array) for name, array in value.items()}))
        elif isinstance(value, bytes):
            record[part.name] = record_of_bytes(value)
        else:
            header[part.name] = str(value) if isinstance(value, StrEnum) else value
    record[_RECORD] = ConfigRecord(header)
    return record


def record_of_bytes(value: bytes) -> ArrayRecord:
    """Bytes as Flower carries large ones: in an array, which it cuts into pieces."""
    return ArrayRecord({_BYTES: Array(np.frombuffer(value, np.uint8))})


def request_from(record: RecordDict) -> Request:
    """The request in a received record.

    Raises:
        ProtocolError: it is not a well-formed request of this protocol version.
    """
    request: Request = _from_record(record, REQUESTS)
    return request


def answer_from(record: RecordDict) -> Answer:
    """The answer in a received record.

    Raises:
        ProtocolError: it is not a well-formed answer of this protocol version.
    """
    answer: Answer = _from_record(record, ANSWERS)
    return answer


def bytes_of(message: Request | Answer) -> int:
    """Bytes that the message's arrays and header take on the wire, before Flower's own framing."""
    size = 0
    for part in fields(message):
        value = getattr(message, part.name)
        if isinstance(value, Mapping):
            size += sum(len(name) + array.nbytes for name, array in value.items())
        elif isinstance(value, bytes):
            size += len(value)
        elif isinstance(value, Settings):
            size += len(json.dumps(flatten(value)))
        else:
            size += len(part.name) + len(str(value))
    return size


def _from_record(record: RecordDict, kinds: dict[str, type[Any]]) -> Any:
    header = record.get(_RECORD)
    _require(isinstance(header, ConfigRecord), f"no '{_RECORD}' record in the message")
    assert isinstance(header, ConfigRecord)
    version = header.get("protocol")
    _require(version == PROTOCOL, f"protocol version {version!r}, this side speaks {PROTOCOL}")
    message = kinds.get(str(header.get("kind")))
    _require(message is not None, f"unknown message kind {header.get('kind')!r}")
    assert message is not None
    wanted = {part.name: part.type for part in fields(message)}
    found = (set(header.keys()) | set(record.keys())) - {"protocol", "kind", _RECORD}
    _require(found == set(wanted), f"{message.kind}: fields differ by {sorted(found ^ set(wanted))}")
    values: dict[str, Any] = {}
    for name, kind in wanted.items():
        raw = record[name] if name in record else header[name]
        values[name] = _decode(message.kind, name, str(kind), raw)
    return message(**values)


def _decode(kind: str, name: str, wanted: str, raw: Any) -> Any:
    try:
        if wanted in ("Arrays", "bytes"):
            _require(isinstance(raw, ArrayRecord) and list(raw.keys()) == [_BYTES], f"{kind}.{name} is not bytes")
            # Flower decodes an Array with numpy.load(allow_pickle=False).
            data = raw[_BYTES].numpy()
            _require(data.dtype == np.uint8 and data.ndim == 1, f"{kind}.{name} is not bytes")
            whole = data.tobytes()
            return whole if wanted == "bytes" else parse_tensors(whole, where=f"{kind}.{name}")
        if wanted == "Settings":
            values = json.loads(raw)
            _require(isinstance(values, dict), f"{kind}.{name} is not a table")
            return unflatten(values, where="settings of the request")
        if wanted in _WORDS:
            return _WORDS[wanted](raw)
        expected = {"int": int, "float": (int, float), "bool": bool, "str": str}[wanted]
        _require(isinstance(raw, expected) and (wanted == "bool") == isinstance(raw, bool), f"{kind}.{name} is not {wanted}")  # type: ignore[arg-type]
        return float(raw) if wanted == "float" else raw
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever another party's bytes provoke is one protocol error
        raise ProtocolError(f"{kind}.{name} cannot be read ({type(error).__name__})") from None


def _check(kind: str, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        total = 0
        for key, array in value.items():
            _require(isinstance(array, np.ndarray) and array.dtype == np.float32, f"{kind}.{name}[{key!r}] is not float32")
            total += array.size
        _require(0 < total <= MAX_PARAMETERS, f"{kind}.{name} holds {total} parameters")
    elif isinstance(value, bytes):
        _require(len(value) <= MAX_BYTES, f"{kind}.{name} holds {len(value)} bytes")
    elif name == "platform":
        _require(bool(NAME.fullmatch(value)), f"{kind}.platform {value!r} is not a name")
    elif name in ("ledger", "catalogue"):
        _require(bool(HASH.fullmatch(value)), f"{kind}.{name} is not a SHA-256")
    elif name in ("round", "users", "items", "finished", "rank"):
        _require(0 <= value < 1 << 53, f"{kind}.{name} {value} is out of range")
    elif isinstance(value, float):
        # Privacy turned off is said as an infinite epsilon; nothing else may be infinite.
        _require(
            value >= 0 and (math.isfinite(value) or name in ("epsilon", "budget", "planned_epsilon", "signal_to_noise")),
            f"{kind}.{name} {value} is out of range",
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(otherwise)


__all__ = [
    "ANSWERS",
    "REQUESTS",
    "Answer",
    "Arrays",
    "Count",
    "Evaluate",
    "Factors",
    "Join",
    "Joined",
    "Label",
    "Metrics",
    "Personalise",
    "Personalised",
    "Phase",
    "Reason",
    "Refusal",
    "Released",
    "Request",
    "Secure",
    "Secured",
    "Sum",
    "Summed",
    "Train",
    "Update",
    "answer_from",
    "bytes_of",
    "record_of_bytes",
    "request_from",
    "to_record",
]
