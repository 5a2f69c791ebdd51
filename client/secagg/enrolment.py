"""How a platform enters a secure sum: it makes its keys, signs them, and deals shares of its secrets. Once in a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from client.secagg.participant import PAIR, Active
from shared.base.errors import OutOfOrder, ProtocolError, UnknownPeer
from shared.secagg.identity import Identity, signed_by
from shared.secagg.masks import KEY
from shared.secagg.messages import Deal, Dealt, Mask
from shared.secagg.roster import Advert, Keys, Roster, SumSession, SumTerms, commitment_to
from shared.secagg.sealing import seal, unseal
from shared.secagg.shamir import NONE, WORDS, Entropy, split_secret, valid

Peers = Mapping[str, bytes]
"""Platform -> its Ed25519 public key, as this platform's operator knows it. The coordinator is not asked."""

_SHARES = 2 * 4 * WORDS
"""Bytes of one round's shares of one platform: of the mask key, then of the seed."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """Has made its keys for a run.

    Args:
        sealing: X25519 secret for sealed shares.
        secrets: For each round a mask key (X25519) and a self-mask seed, drawn apart: no round's secrets say anything of
            another's.
    """

    tag: ClassVar[int] = 40

    terms: SumTerms
    advert: Advert
    sealing: bytes = field(repr=False)
    secrets: bytes = field(repr=False)

    @classmethod
    def enrol(cls, terms: SumTerms, *, platform: str, identity: Identity, entropy: Entropy, declared: bytes = b"") -> Enrolled:
        """Draw the keys of all rounds and sign them.

        Args:
            declared: `Keys.declared`.
        """
        sealing, secrets = entropy(KEY), entropy(PAIR * terms.rounds)
        rounds = [secrets[start : start + PAIR] for start in range(0, len(secrets), PAIR)]
        commitments = b"".join(
            commitment_to(pair[KEY:], run=terms.run, platform=platform, round_=round_) for round_, pair in enumerate(rounds, 1)
        )
        keys = Keys(
            run=terms.run,
            platform=platform,
            identity=identity.public,
            sealing=_public(sealing),
            masks=b"".join(_public(pair[:KEY]) for pair in rounds),
            commitments=hashlib.sha256(commitments).digest(),
            declared=declared,
        )
        advert = Advert(keys=keys, signature=identity.sign(keys.signed), commitments=commitments)
        return cls(terms=terms, advert=advert, sealing=sealing, secrets=secrets)

    def deal(self, request: Deal, *, peers: Peers, entropy: Entropy) -> tuple[Dealing, Dealt]:
        """Share all secrets among the neighbours on the roster.

        Raises:
            ProtocolError: the roster has other terms, or does not have this platform as it is.
            UnknownPeer: it names a platform that this one does not know, or another identity of one that it knows.
        """
        roster = request.roster
        if roster.terms != self.terms:
            raise ProtocolError("a roster with other terms than this platform was told")
        self._require_known(roster, peers)
        own = roster.number(self.advert.keys.platform)
        neighbours = roster.neighbours(own)
        self._require_signed(roster, neighbours, request.keys)
        rounds = self.terms.rounds
        shares = split_secret(
            np.frombuffer(self.secrets, np.uint8).reshape(-1, KEY),
            threshold=roster.quorum.shares,
            holders=len(neighbours) + 1,
            entropy=entropy,
        ).astype("<u4")
        key = X25519PrivateKey.from_private_bytes(self.sealing)
        place = {holder: at for at, holder in enumerate(roster.holders(own))}
        sealed = tuple(
            seal(key, keys.sealing, shares[place[other]].tobytes(), roster=roster.digest, sender=own, receiver=other)
            for other, keys in zip(neighbours, request.keys, strict=True)
        )
        dealing = Dealing(
            enrolled=self,
            roster=roster,
            masks=tuple(keys.masks for keys in request.keys),
            sealing=tuple(keys.sealing for keys in request.keys),
            kept=shares[place[own]].tobytes(),
            dealt=Dealt(sealed=sealed),
        )
        assert len(dealing.kept) == _SHARES * rounds
        return dealing, dealing.dealt

    def _require_known(self, roster: Roster, peers: Peers) -> None:
        mine = self.advert.keys
        for entry in roster.entries:
            name = entry.platform
            known = mine.identity if name == mine.platform else peers.get(name)
            if known is None:
                raise UnknownPeer(
                    f"{name!r} is not among the platforms that this one knows",
                    where=f"run {self.terms.run}",
                    do=f"compare its fingerprint with its people, then: fedfuse client trust; or have {name!r} left out",
                )
            if known != entry.identity:
                raise UnknownPeer(
                    f"{name!r} has identity {entry.identity.hex()[:16]} on the roster, and this platform knows it by "
                    f"{known.hex()[:16]}",
                    where=f"run {self.terms.run}",
                    do=f"ask {name!r} for its identity; the coordinator can leave it out",
                )
            if not signed_by(known, entry.signature, entry.signed(self.terms.run)):
                raise ProtocolError(f"the keys that are said to be {name!r}'s are not signed by it for run {self.terms.run!r}")
            if name == mine.platform and (entry.keys, entry.declared) != (mine.digest, mine.declared):
                raise ProtocolError("this platform's own keys were replaced")

    def _require_signed(self, roster: Roster, neighbours: tuple[int, ...], keys: tuple[Keys, ...]) -> None:
        if len(keys) != len(neighbours):
            raise ProtocolError(f"keys of {len(keys)} neighbours, expected {len(neighbours)}")
        for number, theirs in zip(neighbours, keys, strict=True):
            entry = roster.entries[number]
            # The digest was signed, and holds run, name, every key and what is declared.
            if theirs.signed != entry.signed(self.terms.run) or theirs.platform != entry.platform:
                raise ProtocolError(f"keys that are not those {entry.platform!r} signed")
            if theirs.identity != entry.identity or theirs.rounds != self.terms.rounds:
                raise ProtocolError(f"{entry.platform!r} has keys for other rounds")


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """Has dealt its shares, and waits for those of the others.

    Args:
        masks, sealing: The neighbours' public keys.
        kept: The shares that it dealt to itself.
        dealt: The answer, in case it is asked for again.
        told: As `Active.told`.
    """

    tag: ClassVar[int] = 41

    enrolled: Enrolled
    roster: Roster
    masks: tuple[bytes, ...] = field(repr=False)
    sealing: tuple[bytes, ...] = field(repr=False)
    kept: bytes = field(repr=False)
    dealt: Dealt = field(repr=False)
    told: bytes = b""

    @property
    def advert(self) -> Advert:
        """The signed keys."""
        return self.enrolled.advert

    @property
    def terms(self) -> SumTerms:
        """What this platform was told at the start."""
        return self.enrolled.terms

    def deal(self, request: Deal) -> Dealt:
        """The same answer to the same question.

        Raises:
            OutOfOrder: it is another roster; a platform deals once.
        """
        if request.roster != self.roster:
            raise OutOfOrder("shares were dealt to another roster")
        return self.dealt

    def open(self, request: Mask) -> Active:
        """Take the shares that the others dealt, and hold this session from now on.

        Shares that are missing or cannot be opened count as never dealt. Their sender is masked with all the same: the
        coordinator, who may have lost them on purpose, must not choose whom this platform is masked with.

        Raises:
            ProtocolError: this platform is not among those present, or they are too few.
        """
        session = SumSession(roster=self.roster, present=request.present)
        own = self.roster.number(self.advert.keys.platform)
        if own not in session.present:
            raise ProtocolError("this platform dealt, and is not among those present")
        neighbours, holders = self.roster.neighbours(own), self.roster.holders(own)
        rounds = self.enrolled.terms.rounds
        shares = np.full((len(holders), rounds, 2, WORDS), NONE, "<u4")
        place = {holder: at for at, holder in enumerate(holders)}
        shares[place[own]] = np.frombuffer(self.kept, "<u4").reshape(rounds, 2, WORDS)
        theirs = dict(zip(neighbours, self.sealing, strict=True))
        key = X25519PrivateKey.from_private_bytes(self.enrolled.sealing)
        for parcel in request.parcels:
            if parcel.sender not in theirs:
                raise ProtocolError(f"shares from platform {parcel.sender}, no neighbour of this one")
            found = self._opened(parcel.sender, theirs[parcel.sender], parcel.sealed, key, own)
            if found is not None:
                shares[place[parcel.sender]] = found
        return Active(
            advert=self.advert,
            session=session,
            number=own,
            masks=tuple(masks for other, masks in zip(neighbours, self.masks, strict=True) if other in set(session.present)),
            first=1,
            secrets=self.enrolled.secrets,
            shares=shares.tobytes(),
            told=self.told,
        )

    def _opened(self, sender: int, public: bytes, sealed: bytes, key: X25519PrivateKey, own: int) -> NDArray[np.uint32] | None:
        try:
            text = unseal(key, public, sealed, roster=self.roster.digest, sender=sender, receiver=own)
        except ProtocolError:
            return None
        rounds = self.enrolled.terms.rounds
        if len(text) != _SHARES * rounds:
            return None
        found = np.frombuffer(text, "<u4").reshape(rounds, 2, WORDS)
        return found if valid(found).all() else None


def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
