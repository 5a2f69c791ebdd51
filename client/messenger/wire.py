"""Frames between the messenger and the worker: fixed layout, one version byte, JSON and safetensors, never a pickle.

A frame is a head of 20 bytes (`FEDFUSE`, the version of this layout, lengths of header and body, big-endian), a header
(a JSON object) and a body (safetensors, or nothing). Messages travel generically, as the records that `shared.protocol.messages`
makes of them: scalars in the header, arrays in the body. So a new kind of message needs nothing here.

One connection is one question: hello, welcome (or turned away), request, answer.

Both ends treat the other as hostile. Nothing is read beyond the limits that the reader names, and a body's own table of
contents is bounded before safetensors parses it, so that memory stays within a small multiple of what was sent.
"""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import save

from shared.base.errors import InputError, ProtocolError
from shared.base.safetensors_checks import parse_tensors

WIRE = 1
"""Version of the layout. The head and the hello keep it for ever, so that two versions can tell each other so."""
MAX_HEADER = 1 << 20
"""Bytes of a header; settings take about 3 KB, a roster of a thousand platforms with its keys stays below."""
MAX_BODY = 1 << 28
"""Bytes of a body unless the reader says otherwise: 64 million float32 parameters."""
MAX_ARRAYS = 1 << 14

_HEAD = struct.Struct(">7sBIQ")
_MAGIC = b"FEDFUSE"
_SHORT = 256
"""Bytes of a scalar that stay in the header; longer ones go into the body, which may be large."""


class Hangup(ProtocolError):
    """The other side closed the connection, or was too slow."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one side says.

    Args:
        header: A JSON object; `type` says what kind of frame it is.
        body: Safetensors, or empty.
    """

    header: Mapping[str, Any]
    body: bytes | bytearray = field(default=b"", repr=False)

    @property
    def type(self) -> str:
        """What kind of frame it is; '' where it does not say."""
        kind = self.header.get("type")
        return kind if isinstance(kind, str) else ""


def send(connection: socket.socket, frame: Frame, *, seconds: float | None = None) -> None:
    """Write a frame.

    Args:
        seconds: How long the other side may take to read a part of it; None: as long as it takes.

    Raises:
        Hangup: the other side does not take it.
    """
    header = json.dumps(dict(frame.header), separators=(",", ":")).encode()
    try:
        connection.settimeout(seconds)
        connection.sendall(_HEAD.pack(_MAGIC, WIRE, len(header), len(frame.body)) + header)
        if frame.body:
            connection.sendall(frame.body)
    except OSError as error:
        raise Hangup(f"the other side does not listen ({error.strerror or 'too slow'})") from None


def receive(connection: socket.socket, *, header: int = MAX_HEADER, body: int = MAX_BODY, seconds: float | None = None) -> Frame:
    """Read a frame.

    Args:
        header, body: The most bytes that are accepted of each; a frame that announces more is not read.
        seconds: The whole frame must be there by then; None: as long as it takes.

    Raises:
        Hangup: the connection ended, or the time was over.
        ProtocolError: what came is no frame, or one that is larger than allowed.
    """
    end = None if seconds is None else time.monotonic() + seconds
    magic, version, header_size, body_size = _HEAD.unpack(_exactly(connection, _HEAD.size, end))
    if magic != _MAGIC:
        raise ProtocolError("what came is no frame of this protocol")
    if version != WIRE:
        raise ProtocolError(f"a frame of layout {version}, this side knows {WIRE}", do="install the same version on both sides")
    if header_size > header or body_size > body:
        raise ProtocolError(f"a frame of {header_size} + {body_size} bytes, at most {header} + {body} are accepted")
    try:
        fields = json.loads(bytes(_exactly(connection, header_size, end)).decode("utf-8"))
    except (ValueError, RecursionError):
        raise ProtocolError("a frame whose header is no JSON") from None
    if not isinstance(fields, dict):
        raise ProtocolError("a frame whose header is no JSON object")
    return Frame(header=fields, body=_exactly(connection, body_size, end))


def pack_record(kind: str, record: RecordDict) -> Frame:
    """A message's record as a frame of that type."""
    scalars: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    tables: list[str] = []
    for name, value in record.items():
        if isinstance(value, ConfigRecord):
            scalars[name] = {key: _plain(part, arrays) for key, part in value.items()}
        elif isinstance(value, ArrayRecord):
            tables.append(name)
            for key, array in value.items():
                arrays[f"{name}/{key}"] = np.ascontiguousarray(array.numpy())
        else:
            raise ProtocolError(f"a {type(value).__name__} cannot be carried")
    return Frame(header={"type": kind, "scalars": scalars, "arrays": tables}, body=save(arrays) if arrays else b"")


def unpack_record(frame: Frame) -> RecordDict:
    """The record in a frame, for `shared.protocol.messages` to judge.

    Raises:
        ProtocolError: the frame holds no record.
    """
    try:
        arrays = _arrays(frame.body)
        tables: dict[str, dict[str, Array]] = {str(name): {} for name in frame.header["arrays"]}
        blobs: dict[str, np.ndarray] = {}
        for key, value in arrays.items():
            table, slash, name = key.partition("/")
            if not slash:
                blobs[key] = value  # bytes that a scalar speaks of
                continue
            if table not in tables:
                raise ProtocolError(f"an array {key[:60]!r} that belongs to no record")
            tables[table][name] = Array(value)
        record = RecordDict()
        for name, values in frame.header["scalars"].items():
            record[str(name)] = ConfigRecord({str(key): _rich(value, blobs) for key, value in values.items()})
        if blobs:
            raise ProtocolError("bytes that belong to no scalar")
        for name, table_of in tables.items():
            if name in record:
                raise ProtocolError(f"two records of one name {name[:60]!r}")
            record[name] = ArrayRecord(table_of)
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever another party's bytes provoke is one protocol error
        raise ProtocolError(f"a frame that holds no record ({type(error).__name__})") from None
    return record


def _arrays(body: bytes | bytearray) -> dict[str, np.ndarray]:
    if not body:
        return {}
    try:
        arrays = parse_tensors(bytes(body), where="a frame's body")
    except InputError as error:
        raise ProtocolError(f"a body that {error.found}") from None
    if len(arrays) > MAX_ARRAYS:
        raise ProtocolError(f"{len(arrays)} arrays, at most {MAX_ARRAYS} are accepted")
    return arrays


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A scalar, or a list of them, as JSON has it; what is not finite is marked, and long bytes go among the arrays."""
    if isinstance(value, list):
        return [_plain(part, arrays) for part in value]
    if isinstance(value, bytes):
        if len(value) <= _SHORT:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        key = str(len(arrays))
        arrays[key] = np.frombuffer(value, np.uint8)
        return {"blob": key}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _rich(value: Any, blobs: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_rich(part, blobs) for part in value]
    if isinstance(value, dict):
        ((mark, text),) = value.items()
        if mark == "bytes":
            return base64.b64decode(text, validate=True)
        return blobs.pop(text).astype(np.uint8, casting="no").tobytes() if mark == "blob" else {"float": float}[mark](text)
    return value


def _exactly(connection: socket.socket, size: int, end: float | None) -> bytearray:
    """Exactly `size` bytes."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        try:
            connection.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
            got = connection.recv_into(view[at:])
        except OSError as error:
            raise Hangup(f"nothing more came ({error.strerror or 'too slow'})") from None
        if got == 0:
            raise Hangup("the other side closed the connection")
        at += got
    return data
