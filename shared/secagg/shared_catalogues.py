"""Catalogues that several platforms have, and how popular their items are on all of these together.

The noise of a popularity release is as large on a small platform as on a large one, so where users are spread over many
platforms each alone learns little of what is popular. Platforms whose catalogues are the same sum their counts under the secure
sum, with the noise in it once: round 0 of a run with distributed noise. A catalogue is known by a hash of its item ids, which
are public, and each platform signs its own; `shared_catalogues` says how many platforms must have one for it to be summed. A
platform whose catalogue too few share keeps its counts to itself.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.secagg.identity import DIGEST, digest_of

BOUND = 20
"""Items that one user contributes to a popularity release at most, each 1 / sqrt(BOUND): an L2 norm of at most 1."""
POPULARITY = 0
"""The round in which popularities are summed, before any is trained."""
MOST_ITEMS = 1 << 24
"""Items of all catalogues whose popularities are summed, at most: 128 MiB of float64 on each platform."""

MOST_CATALOGUES = 64
MOST_USERS = (1 << 32) - 1
COUNT_NOISES = (1e-3, 1e6)
"""Least and greatest deviation of the noise in a popularity; or 0: exact."""
MOST_COUNT = 1e12
"""Size of a popularity, at most: all users of many platforms, and their noise."""


@dataclass(frozen=True, kw_only=True)
class DeclaredCatalogue:
    """A catalogue: of one platform, or of several of a run.

    Args:
        digest: `catalogue_digest` its item ids, 32 bytes.
        items: How many.
        users: Declared users of the largest of these platforms.
        item_list: Digest of a platform's own item list (`shared.preferences.item_index.list_digest`); empty without one.

    Raises:
        ProtocolError: a field is out of range.
    """

    tag: ClassVar[int] = 63

    digest: bytes
    items: int
    users: int
    item_list: bytes = b""

    def __post_init__(self) -> None:
        if (
            len(self.digest) != DIGEST
            or len(self.item_list) not in (0, DIGEST)
            or not 1 <= self.items <= MOST_ITEMS
            or not 1 <= self.users <= MOST_USERS
        ):
            raise ProtocolError(
                f"a catalogue of {self.items} items and {self.users} users under {len(self.digest)} bytes of hash"
            )


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """The noised counts of one catalogue, summed over its platforms.

    Args:
        counts: float32, little-endian, in the order of the sorted item ids; empty where the round was given up.
        noise: Standard deviation of the noise in each.
    """

    tag: ClassVar[int] = 61

    counts: bytes = field(repr=False)
    noise: float

    def __post_init__(self) -> None:
        # Written so that what is no number is refused as well.
        if not (self.noise == 0 or COUNT_NOISES[0] <= self.noise <= COUNT_NOISES[1]):
            raise ProtocolError(f"popularities with noise of {self.noise:g}")
        if not (np.abs(self.values) <= MOST_COUNT).all():
            raise ProtocolError(f"popularities that are no numbers up to {MOST_COUNT:g}")

    @property
    def digest(self) -> bytes:
        """Stands for what a platform was told; later rounds are asked with it."""
        return digest_of("popularity", self.counts, struct.pack("<d", self.noise))

    @property
    def values(self) -> NDArray[np.float32]:
        """The counts."""
        if len(self.counts) % 4:
            raise ProtocolError(f"{len(self.counts)} bytes of popularities")
        return np.frombuffer(self.counts, "<f4")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A platform has the popularity of its catalogue."""

    tag: ClassVar[int] = 62


def catalogue_digest(item_ids: Iterable[str]) -> bytes:
    """SHA-256 of a catalogue's item ids, whatever their order.

    >>> catalogue_digest(["b", "a"]) == catalogue_digest(["a", "b"]) != catalogue_digest(["ab"])
    True
    """
    sha = hashlib.sha256(b"fedfuse catalogue")
    for item in sorted(item_ids):
        raw = item.encode()
        sha.update(len(raw).to_bytes(4, "little") + raw)
    return sha.digest()


def order_of(item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Item numbers in the order in which a pooled vector has them: by id."""
    return np.array(sorted(range(len(item_ids)), key=item_ids.__getitem__), np.int64)


def shared_catalogues(catalogues: Iterable[DeclaredCatalogue], *, colluders: int) -> tuple[DeclaredCatalogue, ...]:
    """Those that colluders + 2 platforms or more have, each once, by digest: at least two of the platforms are honest.

    The coordinator and every platform compute this from the same signed lines of the roster, so a coordinator cannot list a
    catalogue that only one honest platform has, and whose sum would be that platform's popularity.

    Args:
        catalogues: One of each platform, with its own declared users.
        colluders: Most platforms that may collude with the coordinator.

    Returns:
        At most `MOST_CATALOGUES`, of at most `MOST_ITEMS` items together: one that would exceed either is left out.
    """
    found: dict[tuple[bytes, int], list[int]] = {}
    for one in catalogues:
        found.setdefault((one.digest, one.items), []).append(one.users)
    chosen: list[DeclaredCatalogue] = []
    total = 0
    for (digest, items), users in sorted(found.items()):
        # Two sizes under one hash: one of them is a lie, and a place in the summed vector is found by the hash alone.
        alone = not chosen or chosen[-1].digest != digest
        fits = total + items <= MOST_ITEMS and len(chosen) < MOST_CATALOGUES
        if len(users) >= colluders + 2 and alone and fits:
            chosen.append(DeclaredCatalogue(digest=digest, items=items, users=max(users)))
            total += items
    return tuple(chosen)


def places(catalogues: Sequence[DeclaredCatalogue]) -> dict[bytes, slice]:
    """The place of each catalogue in the pooled vector."""
    ends = np.cumsum([one.items for one in catalogues]).tolist()
    return {one.digest: slice(end - one.items, end) for one, end in zip(catalogues, ends, strict=True)}
