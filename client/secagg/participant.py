"""A platform's part in the secure sum, round by round, without a disk and without a network.

    Enrolled  --deal-->  Dealing  --open-->  Active  --mask, confirm, unmask, mask, ...

The first two phases are `client/secagg/enrolment.py`. Each phase is a frozen dataclass; a question gives the next phase and the
answer. Whoever calls writes the next phase to disk *before* the answer leaves, so that a platform that comes back after a
crash is where it was, and says again only what it said. What a phase never does, whatever it is asked, is what
`shared.secagg.security_argument` builds its argument on:

- it deals its secrets once in a run, to one roster, and takes part in one session;
- it masks one vector in a round;
- it signs, or answers for, one list of survivors in a round, and only one that names itself;
- it gives, of one platform in one round, a share of the seed or a share of the mask key, never both;
- it gives nothing before enough platforms have consented to its session, and never a share of the seed of one that did not.

Secrets of earlier rounds are forgotten when a later one is masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from shared.base.errors import OutOfOrder, ProtocolError
from shared.secagg.bit_packing import Packer
from shared.secagg.identity import Identity, digest_of, signed_by
from shared.secagg.masks import KEY, PART, MaskFrame, Masks, agree, derive
from shared.secagg.messages import Confirm, Confirmed, Mask, Masked, Signed, Unmask, Unmasked
from shared.secagg.roster import Advert, SumSession, SumTerms
from shared.secagg.shamir import WORDS

PAIR = 2 * KEY
"""Bytes of one round's secrets: the mask key, then the seed."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A round whose masks can be made: every key is derived, so nothing can fail for another platform's keys once it is paid for.

    Args:
        frame: The round, its vector's length and width, and the question.
        keys: Of every mask, and whether it is subtracted.
        anew: Whether items are encoded anew in this round, so that later ones may go on with their vectors.
    """

    frame: MaskFrame
    keys: tuple[tuple[bytes, bool], ...] = field(repr=False)
    anew: bool


@dataclass(frozen=True, kw_only=True)
class Active:
    """Takes part in rounds.

    Args:
        session: The one that this platform holds.
        number: Its own, on the roster.
        masks: Public mask keys of its partners, for all rounds.
        first: Round that `secrets` and `shares` begin with; those of earlier ones are gone.
        consented: Those whose consent to this session it has seen.
        round: Last round that it masked; 0 before the first.
        question: Digest of what was asked then.
        masked: The answer, in case it is asked for again.
        told: Digest of the popularity that this platform was told; empty before.
        since: Last round in which it encoded its items anew; 0 before.
        based: Digest of what was asked then.
        listed: Digest of the list of survivors that it signed or answered for in this round; empty before.
    """

    tag: ClassVar[int] = 42

    advert: Advert
    session: SumSession
    number: int
    masks: tuple[bytes, ...] = field(repr=False)
    first: int
    secrets: bytes = field(repr=False)
    shares: bytes = field(repr=False)
    consented: tuple[int, ...] = ()
    round: int = 0
    question: bytes = b""
    masked: Masked | None = field(default=None, repr=False)
    listed: bytes = b""
    told: bytes = b""
    since: int = 0
    based: bytes = b""

    @property
    def terms(self) -> SumTerms:
        """What this platform was told at the start."""
        return self.session.roster.terms

    def answered(self, request: Mask, question: bytes) -> Masked | None:
        """The answer that this question got already; None if the round is still to be masked.

        Args:
            question: Digest of all that the vector depends on and the coordinator chooses (`shared.protocol.question`).

        Raises:
            OutOfOrder: the round is over, was never planned, or was asked with another question.
            ProtocolError: it is another session.
        """
        if request.present != self.session.present:
            raise ProtocolError("another list of who is present than in the rounds before")
        if request.round == self.round:
            if self.masked is None or _asked(_frame(request, question)) != self.question:
                raise OutOfOrder(f"round {request.round} was masked for another question")
            return self.masked
        if not self.round < request.round <= self.session.roster.terms.rounds:
            raise OutOfOrder(f"round {request.round} after round {self.round} of {self.session.roster.terms.rounds}")
        return None

    def ready(self, request: Mask, question: bytes) -> Ready:
        """All that a round needs of the other platforms, before anything is charged or made for it.

        Args:
            question: As in `answered`.

        Raises:
            OutOfOrder: as `answered`; also if the round was masked already.
            ProtocolError: as `answered`; also if a key that the masks need cannot be derived.
        """
        if self.answered(request, question) is not None:
            raise OutOfOrder(f"round {request.round} was masked already")
        frame = _frame(request, question)
        keys = tuple(self._keys(frame, self.secrets[PAIR * (frame.round - self.first) :][:PAIR]))
        return Ready(frame=frame, keys=keys, anew=not request.before.since)

    def mask(self, ready: Ready, vector: NDArray[np.uint32], *, identity: Identity) -> tuple[Active, Masked]:
        """Hide the vector: x + PRG(seed) + sum over partners of +-PRG(their common key), modulo 2**bits.

        Args:
            ready: Of this very phase.
            vector: uint32 (length,); not changed.

        Raises:
            OutOfOrder: the round is over.
            ProtocolError: the vector has another length than was asked for.
        """
        frame = ready.frame
        if not self.round < frame.round:
            raise OutOfOrder(f"round {frame.round} after round {self.round}")
        if vector.shape != (frame.length,) or vector.dtype != np.uint32:
            raise ProtocolError(f"a vector of {vector.dtype} {vector.shape}, asked for {frame.length} words")
        skipped = frame.round - self.first
        masks, packer = Masks(ready.keys), Packer(frame.length, frame.bits)
        for start in range(0, frame.length, PART):
            part = vector[start : start + PART].copy()
            masks.add(part)
            packer.put(start, part)
        masked = Masked(consent=identity.sign(self.session.consent), words=packer.packed())
        later = replace(
            self,
            first=frame.round,
            secrets=self.secrets[PAIR * skipped :],
            shares=self._shares()[:, skipped:].tobytes(),
            round=frame.round,
            question=_asked(frame),
            masked=masked,
            listed=b"",
            since=frame.round if ready.anew else self.since,
            based=frame.question if ready.anew else self.based,
        )
        return later, masked

    def confirm(self, request: Confirm, *, identity: Identity) -> tuple[Active, Confirmed]:
        """Sign the list of survivors, once a round.

        Raises:
            OutOfOrder: it is not the round just masked, or another list was signed.
            ProtocolError: the list is too short, or does not name this platform.
        """
        digest = self._list(request.round, request.survivors)
        return replace(self, listed=digest), Confirmed(signature=identity.sign(digest))

    def unmask(self, request: Unmask) -> tuple[Active, Unmasked]:
        """The shares that belong to the list: of survivors' seeds, and of the mask keys of those that are gone.

        Raises:
            OutOfOrder, ProtocolError: as `confirm`; also if too few platforms, or not all survivors that this one holds shares
                of, consented to this session; or if somebody is missing and too few survivors signed this very list.
        """
        digest = self._list(request.round, request.survivors)
        votes = self.session.roster.quorum.votes
        holders = self.session.roster.holders(self.number)
        alive, present = set(request.survivors), set(self.session.present)
        consented = self._signers(request.consents, self.session.consent, present, known=set(self.consented))
        if len(consented) < votes or not alive & set(holders) <= consented:
            raise ProtocolError(f"{len(consented)} consents to this session; {votes} and those of all neighbours are needed")
        if alive != present:
            confirmed = self._signers(request.confirmations, digest, alive, known=set())
            if len(confirmed) < votes:
                raise ProtocolError(f"{len(confirmed)} survivors signed this list, {votes} are needed")
        shares = self._shares()
        given = [shares[at, 0, int(other in alive)] for at, other in enumerate(holders) if other in present]
        return replace(self, consented=tuple(sorted(consented)), listed=digest), Unmasked(shares=np.stack(given).tobytes())

    def _keys(self, frame: MaskFrame, pair: bytes) -> Iterator[tuple[bytes, bool]]:
        """The keys of a round's masks, and whether each is taken away: its own, and one with every partner."""
        salt = self.session.digest
        yield derive(pair[KEY:], salt=salt, info=frame.self(self.number)), False
        private = X25519PrivateKey.from_private_bytes(pair[:KEY])
        for other, masks in zip(self.session.partners(self.number), self.masks, strict=True):
            public = masks[KEY * (frame.round - 1) : KEY * frame.round]
            yield agree(private, public, salt=salt, info=frame.pair(self.number, other)), self.number > other

    def _list(self, round_: int, survivors: tuple[int, ...]) -> bytes:
        """The list's digest, if it is the one that this platform may sign or answer for."""
        if round_ != self.round or self.masked is None:
            raise OutOfOrder(f"the survivors of round {round_}, and this platform is in round {self.round}")
        digest = self.session.survivors(round_, survivors)
        if self.number not in survivors:
            raise ProtocolError("a list of survivors without the one that is asked")
        if self.listed not in (b"", digest):
            raise OutOfOrder(f"another list of survivors of round {round_} was signed")
        return digest

    def _signers(self, signed: tuple[Signed, ...], digest: bytes, among: set[int], *, known: set[int]) -> set[int]:
        """Those known to have signed the digest, and those whose valid signatures are here."""
        entries = self.session.roster.entries
        if len(signed) > len(entries):
            raise ProtocolError(f"{len(signed)} signatures of {len(entries)} platforms")
        found = set(known)
        for one in signed:
            new = one.number in among and one.number not in found
            if new and signed_by(entries[one.number].identity, one.signature, digest):
                found.add(one.number)
        return found

    def _shares(self) -> NDArray[np.uint32]:
        """(holders, rounds left, mask key or seed, words)."""
        rounds = self.session.roster.terms.rounds - self.first + 1
        return np.frombuffer(self.shares, "<u4").reshape(-1, rounds, 2, WORDS)


def _frame(request: Mask, question: bytes) -> MaskFrame:
    return MaskFrame(round=request.round, length=request.length, bits=request.bits, question=question)


def _asked(frame: MaskFrame) -> bytes:
    numbers = b"".join(value.to_bytes(4, "little") for value in (frame.round, frame.length, frame.bits))
    return digest_of("question", numbers, frame.question)
