"""Vectors of b-bit integers as bytes on the wire: no bit is sent that does not count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import ProtocolError

_LANE = 32


def packed_size(length: int, bits: int) -> int:
    """Bytes that `length` words of `bits` bits take.

    >>> packed_size(300_000, 18) / (2 * 300_000)  # against 16-bit numbers
    1.125
    """
    return -(-length * bits // 8)


def pack(values: NDArray[np.uint32], bits: int) -> bytes:
    """The low `bits` bits of each value, one after the other, lowest bit first.

    Args:
        values: uint32 (length,).
        bits: Between 1 and 32.

    >>> pack(np.array([1, 2, 3], np.uint32), 4).hex()
    '2103'
    """
    if not 1 <= bits <= _LANE:
        raise ValueError(f"{bits} bits")
    if bits == _LANE:
        return values.astype("<u4").tobytes()
    length = len(values)
    groups = -(-length // _LANE)
    # 32 values fill `bits` words exactly. One column per value of a group, so that all shifts are constant.
    lanes = np.zeros((groups, _LANE), np.uint32)
    lanes.reshape(-1)[:length] = values & np.uint32((1 << bits) - 1)
    lanes = np.ascontiguousarray(lanes.T)
    words = np.zeros((bits, groups), np.uint32)
    for at in range(_LANE):
        word, shift = divmod(at * bits, _LANE)
        words[word] |= lanes[at] << np.uint32(shift)
        if shift + bits > _LANE:
            words[word + 1] |= lanes[at] >> np.uint32(_LANE - shift)
    return np.ascontiguousarray(words.T).astype("<u4", copy=False).tobytes()[: packed_size(length, bits)]


def unpack(data: bytes, *, length: int, bits: int) -> NDArray[np.uint32]:
    """The inverse of `pack`: uint32 (length,).

    Raises:
        ProtocolError: there are more or fewer bytes than that, or a bit beyond the last value is set.
    """
    if not 1 <= bits <= _LANE:
        raise ValueError(f"{bits} bits")
    if len(data) != packed_size(length, bits):
        raise ProtocolError(f"{len(data)} bytes where {packed_size(length, bits)} hold {length} words of {bits} bits")
    if bits == _LANE:
        return np.frombuffer(data, "<u4").astype(np.uint32)
    spare = 8 * len(data) - length * bits
    if spare and data[-1] >> (8 - spare):
        raise ProtocolError("bits beyond the last word")
    groups = -(-length // _LANE)
    filled = np.zeros(groups * bits * 4, np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    words = np.ascontiguousarray(filled.view("<u4").astype(np.uint32, copy=False).reshape(groups, bits).T)
    lanes = np.empty((_LANE, groups), np.uint32)
    for at in range(_LANE):
        word, shift = divmod(at * bits, _LANE)
        lanes[at] = words[word] >> np.uint32(shift)
        if shift + bits > _LANE:
            lanes[at] |= words[word + 1] << np.uint32(_LANE - shift)
    lanes &= np.uint32((1 << bits) - 1)
    return np.ascontiguousarray(lanes.T).reshape(-1)[:length]
