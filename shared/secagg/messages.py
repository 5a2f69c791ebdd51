"""What is said in each phase. Platforms appear by their numbers on the roster; rounds count from 1.

    phase         the coordinator asks    a platform answers
    join          (Terms)                 Advert     its signed keys for all rounds
    deal          Deal                    Dealt      shares of all its secrets, sealed to its neighbours
    mask          Mask                    Masked     the round's masked vector, and its consent to the session
    confirm       Confirm                 Confirmed  its signature under the list of survivors; only if the list has gaps
    unmask        Unmask                  Unmasked   one share per neighbour: of the seed, or of the mask key

Join and deal happen once in a run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar

from shared.base.errors import ProtocolError
from shared.secagg.identity import DIGEST, SIGNATURE, digest_of
from shared.secagg.quorum import MOST
from shared.secagg.roster import Keys, Roster

MOST_WORDS = 1 << 28
"""Words of a vector, at most."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(otherwise)


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Who takes part, and the keys of the receiver's neighbours in the order of their numbers."""

    tag: ClassVar[int] = 10

    roster: Roster
    keys: tuple[Keys, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Sealed shares, one per neighbour in the order of their numbers."""

    tag: ClassVar[int] = 11

    sealed: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Shares sealed to the receiver, and by whom."""

    sender: int
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a round's vectors depend on from before the round; part of the question. A platform compares all of it with its own.

    Args:
        told: Digests of what platforms were told since they dealt (the popularities).
        since: The round whose items' vectors serve in this one, or 0 if they are encoded anew.
        based: Digest of what was asked in that round (`Frame.question`); empty if they are encoded anew.
    """

    told: tuple[bytes, ...] = ()
    since: int = 0
    based: bytes = b""

    def __post_init__(self) -> None:
        _require(len(self.told) <= MOST and all(len(one) == DIGEST for one in self.told), "digests of another number or length")
        _require(len(self.based) == (DIGEST if self.since else 0), f"{len(self.based)} bytes of what was asked before")

    @property
    def digest(self) -> bytes:
        """Stands for all of it."""
        return digest_of("before", struct.pack("<I", self.since), self.based, *self.told)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Send the round's vector under masks.

    Args:
        present: Who dealt shares; the same in every round of a run.
        parcels: The shares dealt to the receiver; only in its first round.
        length: Words of the vector.
        bits: Bits of a word: the sum is modulo 2**bits.
    """

    tag: ClassVar[int] = 12

    round: int
    present: tuple[int, ...]
    parcels: tuple[Parcel, ...] = field(repr=False)
    length: int
    bits: int
    before: Before = Before()

    def __post_init__(self) -> None:
        _require(1 <= self.bits <= 32, f"words of {self.bits} bits")
        _require(1 <= self.length <= MOST_WORDS, f"a vector of {self.length} words")
        _require(len(self.present) <= MOST, "more platforms than there may be")


@dataclass(frozen=True, kw_only=True)
class Masked:
    """The masked vector, packed, and the signature of `Session.consent`."""

    tag: ClassVar[int] = 13

    consent: bytes = field(repr=False)
    words: bytes | memoryview = field(repr=False)

    def __post_init__(self) -> None:
        _require(len(self.consent) == SIGNATURE, "a consent of another length")


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """Sign that these survived the round."""

    tag: ClassVar[int] = 14

    round: int
    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """The signature of `Session.survivors`."""

    tag: ClassVar[int] = 15

    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require(len(self.signature) == SIGNATURE, "a signature of another length")


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A platform's signature, and whose it is."""

    number: int
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require(len(self.signature) == SIGNATURE, "a signature of another length")


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """Give the shares that belong to this list of survivors.

    Args:
        consents: To the session: of all survivors whose shares the receiver holds, and of at least `votes` in all. Those
            that it has seen before count on.
        confirmations: Signatures of at least `votes` survivors under this list; none if all who are present survived.
    """

    tag: ClassVar[int] = 16

    round: int
    survivors: tuple[int, ...]
    consents: tuple[Signed, ...] = field(repr=False)
    confirmations: tuple[Signed, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Unmasked:
    """A share of 36 bytes for each present platform whose shares the sender holds, in the order of their numbers.

    It is of the seed of a survivor, or of the mask key of one that is gone, and never of both. 0xff is written where the
    sender was dealt none.
    """

    tag: ClassVar[int] = 17

    shares: bytes = field(repr=False)
