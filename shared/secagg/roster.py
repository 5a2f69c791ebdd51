"""Who takes part in a run, with which keys, and who is whose neighbour."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from shared.base.errors import InputError, ProtocolError
from shared.secagg.identity import DIGEST, PUBLIC, SIGNATURE, digest_of, signed_by
from shared.secagg.masks import KEY, small_order
from shared.secagg.quorum import MOST, Quorum, quorum_of

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MOST_ROUNDS = 1 << 14
MOST_SHARES = 1 << 20
"""Rounds times holders, at most: a platform keeps 72 bytes for each."""
_FACTS = 1 << 12
_DECLARED = 1 << 8


@dataclass(frozen=True, kw_only=True)
class SumTerms:
    """What all parties of a run agree on before anyone joins.

    Args:
        run: Name of the run.
        rounds: Rounds for which keys are made.
        threshold, colluders, least: See `quorum_of`.
        settings: SHA-256 of all other settings, so that every platform has the same ones.
    """

    run: str
    rounds: int
    threshold: float
    colluders: int
    least: int = 1
    settings: bytes = bytes(DIGEST)

    def __post_init__(self) -> None:
        _require(bool(NAME.fullmatch(self.run)), f"run {self.run[:99]!r} is not a name")
        _require(1 <= self.rounds <= MOST_ROUNDS, f"{self.rounds} rounds; at most {MOST_ROUNDS} have their keys in one run")
        _require(0 < self.threshold <= 1 and 0 <= self.colluders < MOST, "a threshold or a number of colluders out of range")
        _require(1 <= self.least <= MOST, f"{self.least} platforms at least")
        _require(len(self.settings) == DIGEST, "settings without a digest")

    def quorum(self, members: int) -> Quorum:
        """The numbers for so many platforms.

        Raises:
            InputError: rounds times neighbours are more than a platform should keep.
        """
        quorum = quorum_of(members, threshold=self.threshold, colluders=self.colluders, least=self.least)
        if self.rounds * (quorum.degree + 1) > MOST_SHARES:
            raise InputError(
                f"{self.rounds} rounds with {quorum.degree} neighbours are more than {MOST_SHARES} shares a platform",
                where="the secure sum",
                do=f"plan at most {MOST_SHARES // (quorum.degree + 1)} rounds in one run",
            )
        return quorum


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A platform's public keys for one run.

    Args:
        identity: Ed25519 key that signs; long-lived.
        sealing: X25519 key to which others seal shares.
        masks: X25519 keys of rounds 1, 2, ..., 32 bytes each.
        commitments: SHA-256 of the commitments to the seeds (`Advert.commitments`), for the coordinator alone.
        declared: What the platform declares of itself besides, signed with its keys; the caller's own text.

    Raises:
        ProtocolError: a field is of another size, or a key is of small order. So wherever keys arrive, at the coordinator or at
            a neighbour, the platform that made them is named before anything is charged for them.
    """

    tag: ClassVar[int] = 1

    run: str
    platform: str
    identity: bytes
    sealing: bytes
    masks: bytes = field(repr=False)
    commitments: bytes = field(repr=False)
    declared: bytes = b""

    def __post_init__(self) -> None:
        _require(bool(NAME.fullmatch(self.run) and NAME.fullmatch(self.platform)), "keys of no name")
        _require(len(self.identity) == PUBLIC and len(self.sealing) == KEY, "keys of another length")
        _require(0 < len(self.masks) <= KEY * MOST_ROUNDS and len(self.masks) % KEY == 0, "keys of no round")
        _require(len(self.commitments) == DIGEST, "commitments without a digest")
        _require(len(self.declared) <= _DECLARED, f"{len(self.declared)} bytes of declared facts")
        _require(not small_order(self.sealing), f"the sealing key of {self.platform!r} is of small order")
        for place in small_order(self.masks)[:1]:
            _require(False, f"the mask key of {self.platform!r} for round {place + 1} is of small order")

    @cached_property
    def digest(self) -> bytes:
        """Stands for the keys, whose they are and for which run."""
        name, run = self.platform.encode(), self.run.encode()
        return digest_of("keys", run, name, self.identity, self.sealing, self.masks, self.commitments)

    @cached_property
    def signed(self) -> bytes:
        """What the platform signs: its keys and what it declares."""
        return _signed(self.run, self.platform, self.digest, self.declared)

    @property
    def rounds(self) -> int:
        """Rounds that the keys are for."""
        return len(self.masks) // KEY

    def mask(self, round_: int) -> bytes:
        """Public mask key of a round, counted from 1."""
        return self.masks[KEY * (round_ - 1) : KEY * round_]


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A platform's signed keys, as it gives them to the coordinator.

    Args:
        commitments: `commitment_to` the self-mask seed of every round, 32 bytes each: a wrong share is noticed.
    """

    tag: ClassVar[int] = 2

    keys: Keys
    signature: bytes
    commitments: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require(len(self.commitments) == len(self.keys.masks), "commitments of other rounds than the keys")
        _require(hashlib.sha256(self.commitments).digest() == self.keys.commitments, "commitments that were not signed")
        _require(len(self.signature) == SIGNATURE, "a signature of another length")
        _require(signed_by(self.keys.identity, self.signature, self.keys.signed), f"{self.keys.platform}'s keys are not signed")

    def commitment(self, round_: int) -> bytes:
        """To the seed of a round, counted from 1."""
        return self.commitments[DIGEST * (round_ - 1) : DIGEST * round_]


def commitment_to(seed: bytes, *, run: str, platform: str, round_: int) -> bytes:
    """SHA-256 of a seed of 256 random bits: it binds to the seed and tells nothing of it."""
    return digest_of("seed", run.encode(), platform.encode(), struct.pack("<I", round_), seed)


@dataclass(frozen=True, kw_only=True)
class RosterEntry:
    """One line of the roster: enough to check who it is and what it declares, without its keys of all rounds.

    Args:
        keys: `Keys.digest`.
        declared: `Keys.declared`.
        signature: Of `signed`.
    """

    platform: str
    identity: bytes
    keys: bytes
    signature: bytes
    declared: bytes = b""

    @classmethod
    def of(cls, advert: Advert) -> RosterEntry:
        """The line of a platform with those keys."""
        keys = advert.keys
        return cls(
            platform=keys.platform,
            identity=keys.identity,
            keys=keys.digest,
            signature=advert.signature,
            declared=keys.declared,
        )

    def signed(self, run: str) -> bytes:
        """What the platform signed if the line is its own and of this run; `Keys.signed`."""
        return _signed(run, self.platform, self.keys, self.declared)

    def __post_init__(self) -> None:
        _require(bool(NAME.fullmatch(self.platform)), "a line of no name")
        _require(len(self.declared) <= _DECLARED, f"{len(self.declared)} bytes that {self.platform} declares")
        sizes = (len(self.identity), len(self.keys), len(self.signature))
        _require(sizes == (PUBLIC, DIGEST, SIGNATURE), f"{self.platform}'s line is damaged")


@dataclass(frozen=True, kw_only=True)
class Roster:
    """All platforms of a run, in the order of their names; a platform's *number* is its place here, from 0.

    Args:
        facts: What else they all must have received alike, once it is known who they are; the caller's own text.
    """

    tag: ClassVar[int] = 3

    terms: SumTerms
    entries: tuple[RosterEntry, ...] = field(repr=False)
    facts: bytes = b""

    def __post_init__(self) -> None:
        _require(len(self.facts) <= _FACTS, f"{len(self.facts)} bytes of facts")
        names = [entry.platform for entry in self.entries]
        _require(
            0 < len(names) <= MOST and names == sorted(set(names)), "a roster that is empty, out of order or names one twice"
        )
        _require(len({entry.identity for entry in self.entries}) == len(names), "two platforms with one identity key")
        _ = self.quorum

    @cached_property
    def quorum(self) -> Quorum:
        """The run's numbers."""
        return self.terms.quorum(len(self.entries))

    @cached_property
    def digest(self) -> bytes:
        """Stands for the terms and every platform with its keys: parties with different rosters share no key."""
        terms = self.terms
        numbers = struct.pack("<IIId", terms.rounds, terms.colluders, terms.least, terms.threshold)
        lines = (part for entry in self.entries for part in (entry.platform.encode(), entry.identity, entry.keys, entry.declared))
        return digest_of("roster", terms.run.encode(), numbers, terms.settings, self.facts, *lines)

    def number(self, platform: str) -> int:
        """A platform's number.

        Raises:
            ProtocolError: it is not on the roster.
        """
        try:
            return self._numbers[platform]
        except KeyError:
            raise ProtocolError(f"{platform!r} is not on the roster") from None

    def neighbours(self, number: int) -> tuple[int, ...]:
        """Whom a platform masks with and who holds its shares, itself left out; sorted."""
        return tuple(other for other in self.holders(number) if other != number)

    def holders(self, number: int) -> tuple[int, ...]:
        """Who holds shares of a platform's secrets, itself among them; sorted. The i-th of them has Shamir's point i, from 1."""
        return self._holders[number]

    @cached_property
    def _holders(self) -> tuple[tuple[int, ...], ...]:
        n, k = len(self.entries), self.quorum.degree
        if self.quorum.complete:
            return (tuple(range(n)),) * n
        # Depends on everybody's fresh keys, so that platforms that fail together are not neighbours by their names.
        drawn = [digest_of("ring", self.digest, entry.platform.encode()) for entry in self.entries]
        ring = sorted(range(n), key=drawn.__getitem__)
        around = {ring[at]: tuple(sorted(ring[(at + step) % n] for step in range(-(k // 2), k // 2 + 1))) for at in range(n)}
        return tuple(around[number] for number in range(n))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {entry.platform: number for number, entry in enumerate(self.entries)}


@dataclass(frozen=True, kw_only=True)
class SumSession:
    """A roster and those on it whose shares were dealt: the ones that can be masked with.

    Args:
        present: Their numbers, sorted.
    """

    roster: Roster = field(repr=False)
    present: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(is_list(self.present, range(len(self.roster.entries))), "a list that is out of order or names strangers")
        _require(
            len(self.present) >= self.roster.quorum.threshold,
            f"{len(self.present)} platforms, fewer than the threshold of {self.roster.quorum.threshold}",
        )

    @cached_property
    def digest(self) -> bytes:
        """Stands for the roster and who is present."""
        return digest_of("session", self.roster.digest, struct.pack(f"<{len(self.present)}I", *self.present))

    @cached_property
    def consent(self) -> bytes:
        """What a platform signs to say that this is its session: it signs one for a run."""
        return digest_of("consent", self.digest)

    def partners(self, number: int) -> tuple[int, ...]:
        """The neighbours that a platform masks with; sorted."""
        present = set(self.present)
        return tuple(other for other in self.roster.neighbours(number) if other in present)

    def survivors(self, round_: int, survivors: tuple[int, ...]) -> bytes:
        """What a platform signs to say that these are a round's survivors: it signs, or answers for, one list a round.

        Raises:
            ProtocolError: it is no list of at least the threshold of those present.
        """
        _require(is_list(survivors, self.present), "survivors that are out of order or were never there")
        _require(len(survivors) >= self.roster.quorum.threshold, f"{len(survivors)} survivors, fewer than the threshold")
        return digest_of("survivors", self.digest, struct.pack(f"<I{len(survivors)}I", round_, *survivors))


def is_list(numbers: tuple[int, ...], among: Collection[int]) -> bool:
    """Whether the numbers rise and are all among those."""
    return set(numbers) <= set(among) and all(a < b for a, b in pairwise(numbers))


def _signed(run: str, platform: str, keys: bytes, declared: bytes) -> bytes:
    return digest_of("entry", run.encode(), platform.encode(), keys, declared)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(otherwise)
