"""Vectors of b-bit integers as bytes on the wire: no bit is sent that does not count.

The bits are cut into planes whose widths are the powers of two that b consists of, widest first: 18 bits are a plane of 16 and
one of 2, lowest bits first. A plane of w bits is ceil(length w / 8) bytes. So every plane is whole bytes, or a few
shifts away from them, and a vector is packed and unpacked at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.secagg.masks import PART

_WHOLE = {32: "<u4", 16: "<u2", 8: "<u1"}


def packed_size(length: int, bits: int) -> int:
    """Bytes that `length` words of `bits` bits take.

    >>> packed_size(300_000, 18) / (2 * 300_000)  # against 16-bit numbers
    1.125
    """
    return sum(-(-length * width // 8) for width, _ in _planes(bits))


class Packer:
    """Packs a vector part by part.

    Args:
        length: Words in all.
        bits: Between 1 and 32.
    """

    def __init__(self, length: int, bits: int) -> None:
        self._packed = np.empty(packed_size(length, bits), np.uint8)
        self._planes: list[tuple[int, int, NDArray[np.uint8]]] = []
        place = 0
        for width, shift in _planes(bits):
            size = -(-length * width // 8)
            self._planes.append((width, shift, self._packed[place : place + size]))
            place += size

    def put(self, start: int, part: NDArray[np.uint32]) -> None:
        """Take the low bits of the words from `start` on, a multiple of 8."""
        for width, shift, plane in self._planes:
            values = part >> np.uint32(shift) if shift else part
            at = start * width // 8
            if width in _WHOLE:
                plane[at : at + len(part) * width // 8].view(_WHOLE[width])[:] = values
            else:
                found = _squeezed(values.astype(np.uint8) & np.uint8((1 << width) - 1), width)
                plane[at : at + len(found)] = found

    def packed(self) -> memoryview:
        """All of it, not copied; every word must have been put, and none is after this."""
        return self._packed.data.toreadonly()


def pack_words(values: NDArray[np.uint32], bits: int) -> bytes:
    """The low `bits` bits of each value.

    Args:
        values: uint32 (length,).
        bits: Between 1 and 32.

    >>> pack_words(np.array([0x21, 0x43, 0x65], np.uint32), 4).hex()
    '3105'
    """
    packer = Packer(len(values), bits)
    for start in range(0, len(values), PART):
        packer.put(start, values[start : start + PART])
    return bytes(packer.packed())


def add_packed(total: NDArray[np.uint32], data: bytes | memoryview, bits: int) -> None:
    """Add packed words to `total` in place, modulo 2**32.

    Raises:
        ProtocolError: there are more or fewer bytes than its length takes, or a bit beyond the last word is set. Nothing
            was added.
    """
    length = len(total)
    if len(data) != packed_size(length, bits):
        raise ProtocolError(f"{len(data)} bytes where {packed_size(length, bits)} hold {length} words of {bits} bits")
    planes, place = [], 0
    for width, shift in _planes(bits):
        size = -(-length * width // 8)
        spare = 8 * size - length * width
        if spare and data[place + size - 1] >> (8 - spare):
            raise ProtocolError("bits beyond the last word")
        planes.append((width, shift, np.frombuffer(data, np.uint8, size, place)))
        place += size
    for start in range(0, length, PART):
        part = total[start : start + PART]
        for width, shift, plane in planes:
            some = plane[start * width // 8 : -(-(start + len(part)) * width // 8)]
            values = some.view(_WHOLE[width]) if width in _WHOLE else _spread(some, width)[: len(part)]
            wide = values.astype(np.uint32)
            if shift:
                wide <<= np.uint32(shift)
            part += wide


def unpack_words(data: bytes | memoryview, *, length: int, bits: int) -> NDArray[np.uint32]:
    """The inverse of `pack_words`: uint32 (length,).

    Raises:
        ProtocolError: as `add_packed`.
    """
    values = np.zeros(length, np.uint32)
    add_packed(values, data, bits)
    return values


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Width and lowest bit of every plane.

    >>> list(_planes(21))
    [(16, 0), (4, 16), (1, 20)]
    """
    if not 1 <= bits <= 32:
        raise ValueError(f"{bits} bits")
    shift = 0
    for width in (32, 16, 8, 4, 2, 1):
        if bits & width:
            yield width, shift
            shift += width


def _squeezed(values: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Bytes of which only the low `width` bits (1, 2 or 4) are set, as many to a byte as fit."""
    if width == 1:
        return np.packbits(values, bitorder="little")
    if len(values) % (8 // width):
        values = np.pad(values, (0, -len(values) % (8 // width)))
    # Neighbours, four or two, are one number; shifted over itself it has them side by side in its lowest byte.
    found: NDArray[np.uint32] | NDArray[np.uint16]
    if width == 2:
        fours: NDArray[np.uint32] = values.view("<u4")
        found = fours | fours >> np.uint32(6) | fours >> np.uint32(12) | fours >> np.uint32(18)
    else:
        twos: NDArray[np.uint16] = values.view("<u2")
        found = twos | twos >> np.uint16(4)
    return found.astype(np.uint8)


def _spread(values: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The inverse of `_squeezed`."""
    if width == 1:
        return np.unpackbits(values, bitorder="little")
    if width == 2:
        fours: NDArray[np.uint32] = values.astype("<u4")
        fours |= fours << np.uint32(6) | fours << np.uint32(12) | fours << np.uint32(18)
        return (fours & np.uint32(0x03030303)).view(np.uint8)
    twos: NDArray[np.uint16] = values.astype("<u2")
    twos |= twos << np.uint16(4)
    return (twos & np.uint16(0x0F0F)).view(np.uint8)
