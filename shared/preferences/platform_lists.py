"""The item lists of all platforms of a run in one text, so that each can check which items others have, too.

    index    all hashes that any platform declares, ascending, 8 bytes each
    bits     per platform, in the order of the roster, a bit for each hash of the index: whether the platform declares it

A platform signs a digest of its own list (`shared.secagg.shared_catalogues.DeclaredCatalogue.keys`), which the roster holds. So a
coordinator can neither leave out of the lists what a platform declares, nor say of an item that others have it who do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.preferences.item_index import WIDTH, Hashes, list_digest, parse_items

MOST = 1 << 26
"""Bytes of all lists, at most; and platforms times items, so that reading them takes no more memory than they do."""


@dataclass(frozen=True, kw_only=True)
class PlatformLists:
    """Who declares what.

    Args:
        index: uint64 (hashes,), ascending.
        declared: bool (platforms, hashes), in the order of the roster.
    """

    index: Hashes = field(repr=False)
    declared: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(cls, lists: Sequence[Hashes]) -> PlatformLists:
        """Of the platforms' own lists, in the order of the roster."""
        index = np.unique(np.concatenate([np.zeros(0, np.uint64), *lists]))
        declared = np.stack([np.isin(index, own, assume_unique=True) for own in lists])
        return cls(index=np.asarray(index, np.uint64), declared=declared)

    @classmethod
    def read(cls, text: bytes, *, platforms: int) -> PlatformLists:
        """The lists in a message.

        Raises:
            ProtocolError: they are damaged, or too many.
        """
        if len(text) > MOST or len(text) < 4:
            raise ProtocolError(f"{len(text)} bytes of item lists")
        count = int.from_bytes(text[:4], "little")
        row, start = -(-count // 8), 4 + WIDTH * count
        if len(text) != start + platforms * row or platforms * count > MOST:
            raise ProtocolError(f"{len(text)} bytes of item lists of {count} items and {platforms} platforms")
        index = parse_items(text[4:start], most=MOST)
        bits = np.frombuffer(text, np.uint8, offset=start).reshape(platforms, row)
        return cls(index=index, declared=np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool))

    def text(self) -> bytes:
        """The bytes that `read` reads.

        Raises:
            ProtocolError: they are too many for a message.
        """
        bits = np.packbits(self.declared, axis=1, bitorder="little").tobytes()
        text = len(self.index).to_bytes(4, "little") + self.index.astype("<u8").tobytes() + bits
        if len(text) > MOST or self.declared.size > MOST:
            raise ProtocolError(f"{len(text)} bytes of item lists of {len(self.declared)} platforms; {MOST} are sent at most")
        return text

    def digest(self, platform: int) -> bytes:
        """What a platform signed if this is its list."""
        return list_digest(self.index[self.declared[platform]])

    def owners(self, items: Hashes) -> set[int]:
        """Platforms that declare any of these items, by number."""
        return set(np.flatnonzero(self.declared[:, np.isin(self.index, items)].any(1)).tolist())

    def shared(self, *, owners: int = 2) -> Hashes:
        """Items that so many platforms declare, ascending."""
        found: Hashes = self.index[self.declared.sum(0) >= owners]
        return found
