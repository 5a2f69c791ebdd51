"""Messages as Flower carries them: scalars in a ConfigRecord, what is large in arrays of bytes; nothing is ever pickled.

What comes from the other side is checked field by field, by name and type, before a message is made of it; the message then
checks its values itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import save

from shared.base.errors import ProtocolError
from shared.base.safetensors_checks import parse_tensors
from shared.base.settings import Settings, flatten, unflatten
from shared.preferences.sum_kind import SumKind
from shared.protocol.messages import ANSWERS, PROTOCOL, REQUESTS, Answer, Factors, Label, Phase, Reason, Request, require
from shared.protocol.quality import Quality

_RECORD, _BYTES, _RECEIPT = "fedfuse", "bytes", "receipt"
_WORDS: dict[str, type[StrEnum]] = {"Label": Label, "Reason": Reason, "Factors": Factors, "Phase": Phase, "SumKind": SumKind}


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
        elif isinstance(value, Quality):
            header[part.name] = json.dumps(value.means)
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


def with_receipt(record: RecordDict, text: str) -> RecordDict:
    """The same request with the receipt of the platform's last answer (`shared/ledger/receipts.py`) beside it."""
    beside = RecordDict(dict(record.items()))
    beside[_RECEIPT] = ConfigRecord({"text": text})
    return beside


def receipt_in(record: RecordDict) -> str:
    """The receipt beside a request, as it came; empty where there is none."""
    found = record.get(_RECEIPT)
    text = found.get("text") if isinstance(found, ConfigRecord) else ""
    return text if isinstance(text, str) else ""


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


def record_bytes(record: RecordDict) -> int:
    """Bytes that a record's arrays and scalars take on the wire, before Flower's own framing."""
    size = 0
    for part in record.values():
        if isinstance(part, ArrayRecord):
            size += sum(len(array.data) for array in part.values())
        elif isinstance(part, ConfigRecord):
            size += sum(len(name) + len(str(value)) for name, value in part.items())
    return size


def _from_record(record: RecordDict, kinds: dict[str, type[Any]]) -> Any:
    header = record.get(_RECORD)
    require(isinstance(header, ConfigRecord), f"no '{_RECORD}' record in the message")
    assert isinstance(header, ConfigRecord)
    version = header.get("protocol")
    require(version == PROTOCOL, f"protocol version {version!r}, this side speaks {PROTOCOL}")
    message = kinds.get(str(header.get("kind")))
    require(message is not None, f"unknown message kind {header.get('kind')!r}")
    assert message is not None
    wanted = {part.name: part.type for part in fields(message)}
    found = (set(header.keys()) | set(record.keys())) - {"protocol", "kind", _RECORD, _RECEIPT}
    require(found == set(wanted), f"{message.kind}: fields differ by {sorted(found ^ set(wanted))}")
    values: dict[str, Any] = {}
    for name, kind in wanted.items():
        raw = record[name] if name in record else header[name]
        values[name] = _decode(message.kind, name, str(kind), raw)
    return message(**values)


def _decode(kind: str, name: str, wanted: str, raw: Any) -> Any:
    try:
        if wanted in ("Arrays", "bytes"):
            require(isinstance(raw, ArrayRecord) and list(raw.keys()) == [_BYTES], f"{kind}.{name} is not bytes")
            # Flower decodes an Array with numpy.load(allow_pickle=False).
            data = raw[_BYTES].numpy()
            require(data.dtype == np.uint8 and data.ndim == 1, f"{kind}.{name} is not bytes")
            whole = data.tobytes()
            return whole if wanted == "bytes" else parse_tensors(whole, where=f"{kind}.{name}")
        if wanted == "Settings":
            values = json.loads(raw)
            require(isinstance(values, dict), f"{kind}.{name} is not a table")
            return unflatten(values, where="settings of the request")
        if wanted == "Quality":
            values = json.loads(raw)
            require(isinstance(values, dict), f"{kind}.{name} is not a table")
            return Quality(values)
        if wanted in _WORDS:
            return _WORDS[wanted](raw)
        expected = {"int": int, "float": (int, float), "bool": bool, "str": str}[wanted]
        require(isinstance(raw, expected) and (wanted == "bool") == isinstance(raw, bool), f"{kind}.{name} is not {wanted}")  # type: ignore[arg-type]
        return float(raw) if wanted == "float" else raw
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever another party's bytes provoke is one protocol error
        raise ProtocolError(f"{kind}.{name} cannot be read ({type(error).__name__})") from None
