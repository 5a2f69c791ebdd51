"""Which items platforms have in common, by hashes of their public keys.

A platform declares the hashes of its whole public catalogue, sorted, so that the list says nothing of what its users met. An item
that has a declared key (an ISBN, say) is the same item wherever that key is declared. One without is the same item only on
platforms whose whole catalogues are equal, as two parts of one shop have them: "12" on a shop is not "12" on a news site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError

Hashes = NDArray[np.uint64]

WIDTH = 8
"""Bytes of a hash. A million items make two of them meet with probability 3e-8, and then two items count as one."""
MOST_DECLARED = 1 << 20
"""Items of one platform's list, at most."""


def item_hashes(keys: Sequence[str], ids: Sequence[str], *, catalogue: bytes) -> Hashes:
    """The hash of every item, uint64 (items,).

    Args:
        keys: Public key per item, with its kind ("isbn:9780306406157"); '' where none is declared.
        ids: Id per item.
        catalogue: Digest of the whole catalogue, `shared.secagg.shared_catalogues.catalogue_digest`.

    >>> a = item_hashes(["isbn:9780306406157", ""], ["1", "2"], catalogue=b"one")
    >>> b = item_hashes(["", "isbn:9780306406157"], ["2", "3"], catalogue=b"other")
    >>> bool(a[0] == b[1]), bool(a[1] == b[0])
    (True, False)
    """
    texts = (b"key\0" + key.encode() if key else b"id\0" + catalogue + id_.encode() for key, id_ in zip(keys, ids, strict=True))
    found = b"".join(hashlib.sha256(text).digest()[:WIDTH] for text in texts)
    return np.frombuffer(found, "<u8").astype(np.uint64)


def declared_items(hashes: Hashes) -> bytes:
    """A platform's list as it is declared: distinct hashes in ascending order, little-endian."""
    return np.unique(hashes).astype("<u8").tobytes()


def parse_items(declared: bytes, *, most: int = MOST_DECLARED) -> Hashes:
    """The hashes of a list, uint64, ascending.

    Raises:
        ProtocolError: it is too long, or not a list of distinct hashes in ascending order.
    """
    if len(declared) % WIDTH or len(declared) > WIDTH * most:
        raise ProtocolError(f"a list of items of {len(declared)} bytes, at most {most} items of {WIDTH} are read")
    found = np.frombuffer(declared, "<u8").astype(np.uint64)
    if (found[1:] <= found[:-1]).any():
        raise ProtocolError("a list of items that is out of order or names one twice")
    return found


def list_digest(items: Hashes) -> bytes:
    """What a platform signs for its list, 32 bytes."""
    return hashlib.sha256(b"fedfuse items\0" + items.astype("<u8").tobytes()).digest()


def places_of(hashes: Hashes, index: Hashes) -> NDArray[np.int64]:
    """Place of each hash in an ascending index, -1 where it is not in it; int64, the shape of `hashes`."""
    if not len(index):
        return np.full(hashes.shape, -1, np.int64)
    place = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
    return np.where(index[place] == hashes, place, -1).astype(np.int64)
