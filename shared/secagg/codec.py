"""Frozen dataclasses as bytes and back: bounded, versioned, and never more than it says.

A message is `FS`, the version, the class's tag, and its fields in order: int as 4 bytes, float as 8, bool as 1, str and
bytes with their length, tuples with their count, dataclasses inside in place, `X | None` with a truth value before it.
Bytes that may be very many are declared `bytes | memoryview`, and are not copied out of the message. Counts are held
against the bytes that are there before anything is made, so a short message cannot ask for much memory. Whatever else is wrong,
the class itself says where it is made (`__post_init__`).
"""

from __future__ import annotations

import struct
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints

from shared.base.errors import FedfuseError, ProtocolError

VERSION = 5
"""5: platforms state whom they trust, and a session says who is left out. 4: a taste map is summed before preferences.
3: preferences are summed before training. 2: masks are bound to the whole question, and platforms sign what they declare."""
LARGEST = 1 << 30
"""Bytes of the largest message."""
MOST_ITEMS = 1 << 16
"""Items of a tuple: all of them go by platform, and each becomes an object many times its bytes."""
_HEAD = b"FS" + bytes([VERSION])


Blob = bytes | memoryview


class Tagged(Protocol):
    """A frozen dataclass with a tag of its own, 1 ... 255."""

    tag: ClassVar[int]


Message = TypeVar("Message", bound=Tagged)


def encode(message: Tagged) -> bytes:
    """The message as bytes."""
    parts = [_HEAD, bytes([message.tag])]
    _put(parts, type(message), message)
    return b"".join(parts)


def decode(kind: type[Message], data: bytes) -> Message:
    """The message of that kind in `data`.

    Raises:
        ProtocolError: it is not one, of this version, whole, and nothing after it.
    """
    if len(data) > LARGEST:
        raise ProtocolError(f"a message of {len(data)} bytes")
    if data[:3] != _HEAD or data[3:4] != bytes([kind.tag]):
        raise ProtocolError(f"not a {kind.__name__} of version {VERSION}")
    reader = _Reader(data)
    message = reader.take(kind)
    if reader.at != len(data):
        raise ProtocolError(f"{kind.__name__}: {len(data) - reader.at} bytes too many")
    assert isinstance(message, kind)
    return message


def version_of(data: bytes) -> int | None:
    """The version in which bytes were encoded, or None if they are no message of any."""
    return data[2] if len(data) > 3 and data[:2] == _HEAD[:2] else None


@cache
def _layout(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((part.name, hints[part.name]) for part in fields(kind))


def _put(parts: list[bytes], kind: Any, value: Any) -> None:
    if kind is int:
        parts.append(struct.pack("<I", value))
    elif kind is bool:
        parts.append(struct.pack("<?", value))
    elif kind is float:
        parts.append(struct.pack("<d", value))
    elif kind is str or kind is bytes:
        raw = value.encode() if kind is str else value
        parts += (struct.pack("<I", len(raw)), raw)
    elif kind == Blob:
        parts += (struct.pack("<I", len(value)), value)
    elif isinstance(kind, UnionType):
        _put(parts, bool, value is not None)
        if value is not None:
            _put(parts, get_args(kind)[0], value)
    elif get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        parts.append(struct.pack("<I", len(value)))
        for item in value:
            _put(parts, inner, item)
    else:
        assert isinstance(kind, type) and is_dataclass(kind)
        for name, inner in _layout(kind):
            _put(parts, inner, getattr(value, name))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = len(_HEAD) + 1

    def take(self, kind: Any) -> Any:
        if kind is int:
            return struct.unpack("<I", self._bytes(4))[0]
        if kind is bool:
            raw = self._bytes(1)
            if raw not in (b"\0", b"\1"):
                raise ProtocolError("a truth value that is neither")
            return raw == b"\1"
        if kind is float:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind is bytes:
            return self._bytes(self.take(int))
        if kind is str:
            try:
                return bytes(self._bytes(self.take(int))).decode()
            except UnicodeDecodeError:
                raise ProtocolError("text that is not UTF-8") from None
        if kind == Blob:
            return memoryview(self._bytes(self.take(int), copy=False))
        if isinstance(kind, UnionType):
            return self.take(get_args(kind)[0]) if self.take(bool) else None
        if get_origin(kind) is tuple:
            inner, count = get_args(kind)[0], self.take(int)
            if count > min(len(self._data) - self.at, MOST_ITEMS):  # an item takes a byte at least
                raise ProtocolError(f"{count} items in {len(self._data) - self.at} bytes")
            return tuple(self.take(inner) for _ in range(count))
        values = {name: self.take(inner) for name, inner in _layout(kind)}
        try:
            return kind(**values)
        except FedfuseError as error:
            raise ProtocolError(f"{kind.__name__}: {error.found}") from None

    def _bytes(self, count: int, *, copy: bool = True) -> bytes | memoryview:
        end = self.at + count
        if end > len(self._data):
            raise ProtocolError(f"the message ends {end - len(self._data)} bytes early")
        part = self._data[self.at : end] if copy else memoryview(self._data)[self.at : end]
        self.at = end
        return part
