"""One round of the secure sum at the coordinator: one buffer that masked vectors are added to and masks are taken from."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.secagg.bit_packing import add_packed
from shared.secagg.identity import signed_by
from shared.secagg.masks import MaskFrame, add_masks, agree, derive
from shared.secagg.messages import Before, Confirm, Confirmed, Mask, Masked, Signed, Unmask, Unmasked
from shared.secagg.roster import commitment_to
from shared.secagg.shamir import WORDS, combine, valid, weights_at_zero
from strategies.secure_sum.protocol import SHARE, Abandoned, SumCoordinator


class Round:
    """One round: masked vectors, the list of survivors, shares, and the sum.

    Holds one vector, however many platforms there are; of each platform it holds one share per neighbour.

    Args:
        frame: With the digest of the one question that all platforms are asked: vectors that answer another spoil the sum.
        before: `Mask.before`.
    """

    def __init__(self, coordinator: SumCoordinator, frame: MaskFrame, *, before: Before = Before()) -> None:  # noqa: B008 - frozen
        self._coordinator, self._session, self.frame, self._before = coordinator, coordinator.session, frame, before
        self._total = np.zeros(frame.length, np.uint32)
        self._sum: NDArray[np.uint32] | None = None
        self._survivors: set[int] = set()
        self._confirmations: dict[int, bytes] = {}
        self._shares: dict[int, NDArray[np.uint32]] = {}
        self._valid: dict[int, NDArray[np.bool_]] = {}
        self._held: dict[int, dict[int, int]] = {}
        self._offset = 0

    @property
    def survivors(self) -> tuple[int, ...]:
        """Those whose vectors are in the sum, by number."""
        return tuple(sorted(self._survivors))

    @property
    def whole(self) -> bool:
        """Whether nobody is missing, so that no list need be confirmed."""
        return self.survivors == self._session.present

    @property
    def summed(self) -> bool:
        """Whether the sum is known."""
        return self._sum is not None

    @property
    def signed(self) -> frozenset[int]:
        """Survivors whose signature under the list is here."""
        return frozenset(self._confirmations)

    @property
    def shared(self) -> frozenset[int]:
        """Survivors whose shares are here."""
        return frozenset(self._shares)

    def mask_for(self, number: int) -> Mask:
        """What to ask a platform in the first phase."""
        frame = self.frame
        parcels = self._coordinator.mail.parcels(number)
        return Mask(
            round=frame.round,
            present=self._session.present,
            parcels=parcels,
            length=frame.length,
            bits=frame.bits,
            before=self._before,
        )

    def masked(self, number: int, answer: Masked) -> None:
        """Add a platform's masked vector; it is not kept.

        Raises:
            ProtocolError: it is of another size, the second of this platform, or without its consent. Nothing was added.
        """
        if number in self._survivors:
            raise ProtocolError("a second vector in one round")
        self._coordinator.consented(number, answer.consent)
        add_packed(self._total, answer.words, self.frame.bits)
        self._survivors.add(number)

    def close(self) -> None:
        """No more vectors.

        Raises:
            Abandoned: fewer than the threshold came.
        """
        needed = self._session.roster.quorum.threshold
        if len(self._survivors) < needed:
            silent = self._named(set(self._session.present) - self._survivors)
            raise Abandoned(f"{len(self._survivors)} masked vectors, {needed} are needed; none came from {silent}")

    def confirm(self) -> Confirm:
        """What to ask every survivor where somebody is missing."""
        return Confirm(round=self.frame.round, survivors=self.survivors)

    def confirmed(self, number: int, answer: Confirmed) -> None:
        """Take a survivor's signature under the list.

        Raises:
            ProtocolError: it is not one.
        """
        digest = self._session.survivors(self.frame.round, self.survivors)
        entry = self._session.roster.entries[number]
        if number not in self._survivors or not signed_by(entry.identity, answer.signature, digest):
            raise ProtocolError("no signature of a survivor under this list")
        self._confirmations[number] = answer.signature

    def unmask_for(self, number: int) -> Unmask:
        """What to ask a survivor in the last phase.

        Raises:
            Abandoned: too few survivors signed the list.
        """
        needed = self._session.roster.quorum.votes
        signed = tuple(Signed(number=number, signature=self._confirmations[number]) for number in sorted(self._confirmations))
        if not self.whole and len(signed) < needed:
            silent = self._named(self._survivors - set(self._confirmations))
            found = f"{len(signed)} signatures under the list of survivors, {needed} are needed"
            raise Abandoned(f"{found}; none came from {silent}")
        return Unmask(
            round=self.frame.round,
            survivors=self.survivors,
            consents=self._coordinator.consents_for(number, self.survivors),
            confirmations=() if self.whole else signed[:needed],
        )

    def unmasked(self, number: int, answer: Unmasked) -> None:
        """Keep a survivor's shares.

        Raises:
            ProtocolError: they are more or fewer than was asked for, or not from a survivor.
        """
        present = set(self._session.present)
        held = [other for other in self._session.roster.holders(number) if other in present]
        if number not in self._survivors or len(answer.shares) != SHARE * len(held):
            raise ProtocolError(f"{len(answer.shares)} bytes of shares, expected {SHARE * len(held)}")
        self._shares[number] = np.frombuffer(answer.shares, "<u4").astype(np.uint32).reshape(-1, WORDS)
        self._valid[number] = valid(self._shares[number])
        self._held[number] = {other: at for at, other in enumerate(held)}

    def sum(self) -> NDArray[np.uint32]:
        """The sum of the survivors' vectors modulo 2**bits, uint32 (length,).

        Raises:
            Abandoned: for some platform there are too few shares that fit.
        """
        if self._sum is None:
            secrets = self._recovered()
            # In place: the masked sum is of no use any more.
            add_masks(self._total, self._keys(secrets))
            self._total &= np.uint32((1 << self.frame.bits) - 1)
            self._sum = self._total
        return self._sum

    def _keys(self, secrets: dict[int, bytes]) -> Iterator[tuple[bytes, bool]]:
        """The keys of all masks in the sum, and whether each is to be taken away."""
        frame, session = self.frame, self._session
        for number in self.survivors:
            yield derive(secrets[number], salt=session.digest, info=frame.self(number)), True
        for gone in set(session.present) - self._survivors:
            key = X25519PrivateKey.from_private_bytes(secrets[gone])
            for other in session.partners(gone):
                if other in self._survivors:
                    public = self._coordinator.adverts[other].keys.mask(frame.round)
                    # The survivor added it if its number is the lower one.
                    yield agree(key, public, salt=session.digest, info=frame.pair(gone, other)), other < gone

    def _recovered(self) -> dict[int, bytes]:
        """Of every survivor the seed, of every platform that is gone the mask key; each held against what its owner signed."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in self._session.present:
            groups.setdefault(self._givers(number), []).append(number)
        found: dict[int, bytes] = {}
        for givers, numbers in groups.items():
            for number, secret in zip(numbers, self._combined(givers, numbers), strict=True):
                found[number] = secret if self._fits(number, secret) else self._searched(number)
        return found

    def _givers(self, number: int) -> tuple[int, ...]:
        """The first t' holders that gave a share of a platform's secret, as places among its holders (Shamir's points)."""
        places = self._places(number)
        needed = self._session.roster.quorum.shares
        if len(places) < needed:
            holders = self._session.roster.holders(number)
            silent = self._named(holder for at, holder in enumerate(holders) if at not in places)
            raise Abandoned(f"{len(places)} shares of a secret, {needed} are needed; none came from {silent}")
        return tuple(places[:needed])

    def _named(self, numbers: Iterable[int]) -> str:
        return ", ".join(sorted(self._session.roster.entries[number].platform for number in numbers)) or "nobody"

    def _places(self, number: int) -> list[int]:
        holders = self._session.roster.holders(number)
        given = ((at, holder) for at, holder in enumerate(holders) if holder in self._shares)
        return [at for at, holder in given if self._valid[holder][self._held[holder][number]]]

    def _combined(self, places: tuple[int, ...], numbers: list[int]) -> list[bytes]:
        shares = np.empty((len(places), len(numbers), WORDS), np.uint32)
        for column, number in enumerate(numbers):
            holders = self._session.roster.holders(number)
            for row, at in enumerate(places):
                shares[row, column] = self._shares[holders[at]][self._held[holders[at]][number]]
        return [row.tobytes() for row in combine(shares, weights_at_zero([at + 1 for at in places]))]

    def _fits(self, number: int, secret: bytes) -> bool:
        advert, round_ = self._coordinator.adverts[number], self.frame.round
        if number in self._survivors:
            made = commitment_to(secret, run=advert.keys.run, platform=advert.keys.platform, round_=round_)
            return hmac.compare_digest(made, advert.commitment(round_))
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        return hmac.compare_digest(public, advert.keys.mask(round_))

    def _searched(self, number: int) -> bytes:
        """The secret from other givers, where one of the first gave a wrong share: every run of t' in a circle is tried."""
        places = self._places(number)
        needed = self._session.roster.quorum.shares
        for step in range(len(places)):
            start = (self._offset + step) % len(places)
            some = tuple((places + places)[start : start + needed])
            (secret,) = self._combined(some, [number])
            if self._fits(number, secret):
                self._offset = start  # whoever lies about one secret lies about the next
                return secret
        raise Abandoned(f"the shares of {self._session.roster.entries[number].platform!r}'s secret do not fit together")
