"""The coordinator's part in the secure sum, phase by phase, without a network.

    Enrolment  --close-->  Coordinator  --settle-->  Round, Round, ...

It relays keys and sealed shares, adds masked vectors as they come into one buffer, and takes the masks off the sum
(`strategies/secure_sum/masked_sum.py`). It is trusted with nothing but the work: whatever it says that is not so, the platforms
notice or the sum stays hidden (`shared.secagg.security_argument`). What it checks here, it checks so that one faulty platform
does not spoil the round for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from shared.base.errors import ProtocolError
from shared.secagg.identity import signed_by
from shared.secagg.messages import Deal, Dealt, Parcel, Signed
from shared.secagg.roster import Advert, Roster, RosterEntry, SumSession, SumTerms
from shared.secagg.sealing import OVERHEAD
from shared.secagg.shamir import WORDS

SHARE = 4 * WORDS
"""Bytes of a share."""


class Abandoned(ProtocolError):
    """Too few platforms are left in a round. Nothing of it is revealed, and what it cost stays charged."""


class Mail(Protocol):
    """Keeps sealed shares until their receivers ask for work."""

    def put(self, parcel: Parcel, *, receiver: int) -> None:
        """Keep one."""

    def parcels(self, receiver: int) -> tuple[Parcel, ...]:
        """All that are kept for a platform."""

    def discard(self, receiver: int) -> None:
        """Drop them: they have arrived."""


class Pigeonholes:
    """Mail in memory."""

    def __init__(self) -> None:
        self._kept: dict[int, list[Parcel]] = {}

    def put(self, parcel: Parcel, *, receiver: int) -> None:
        """Keep one."""
        self._kept.setdefault(receiver, []).append(parcel)

    def parcels(self, receiver: int) -> tuple[Parcel, ...]:
        """All that are kept for a platform."""
        return tuple(self._kept.get(receiver, ()))

    def discard(self, receiver: int) -> None:
        """Drop them."""
        self._kept.pop(receiver, None)


class Enrolment:
    """Collects signed keys until the roster is closed.

    Args:
        approved: Platform -> the Ed25519 identity that it was approved with; None where nobody approves.
    """

    def __init__(self, terms: SumTerms, *, approved: Mapping[str, bytes] | None = None) -> None:
        self._terms, self._approved = terms, approved
        self._adverts: dict[str, Advert] = {}
        self._owners: dict[bytes, str] = {}

    @property
    def entries(self) -> tuple[RosterEntry, ...]:
        """The lines of those whose keys are there, in the roster's order."""
        return tuple(RosterEntry.of(self._adverts[name]) for name in sorted(self._adverts))

    def add(self, advert: Advert, *, platform: str) -> None:
        """Take a platform's keys, of which none is of small order (`Keys`).

        What is let in here and refused by other platforms would cost all of them the run.

        Raises:
            ProtocolError: they are of another platform, run or number of rounds, those of a platform that has others, or signed
                by an identity that it was not approved with, or that another platform has.
        """
        keys = advert.keys
        if (keys.run, keys.platform, keys.rounds) != (self._terms.run, platform, self._terms.rounds):
            raise ProtocolError(f"keys of {keys.platform!r} for run {keys.run!r} and {keys.rounds} rounds")
        if self._approved is not None and self._approved.get(platform) != keys.identity:
            known = self._approved.get(platform, b"").hex()[:16] or "none"
            raise ProtocolError(f"keys of identity {keys.identity.hex()[:16]}, and {platform!r} was approved with {known}")
        if self._owners.setdefault(keys.identity, platform) != platform:
            raise ProtocolError(f"{platform!r} signs with the identity of {self._owners[keys.identity]!r}")
        if self._adverts.setdefault(platform, advert) != advert:
            raise ProtocolError(f"{platform!r} has two sets of keys")

    def close(self, facts: bytes = b"") -> Enrolment.Closed:
        """The roster of those whose keys are there, with their keys.

        Args:
            facts: `Roster.facts`.

        Raises:
            InputError: they are fewer than the terms allow, or too many for so many rounds.
        """
        adverts = tuple(self._adverts[name] for name in sorted(self._adverts))
        return Enrolment.Closed(roster=Roster(terms=self._terms, entries=self.entries, facts=facts), adverts=adverts)

    @dataclass(frozen=True, kw_only=True)
    class Closed:
        """A roster and its platforms' keys: public, all of it."""

        tag: ClassVar[int] = 50

        roster: Roster
        adverts: tuple[Advert, ...] = field(repr=False)


class SumCoordinator:
    """Sets a session up and holds its rounds.

    Args:
        closed: The roster and the keys.
        mail: Where sealed shares wait.
        present: Who dealt, if that was settled before (a coordinator that comes back).
        consents: The consents that were seen before.
    """

    def __init__(
        self,
        closed: Enrolment.Closed,
        *,
        mail: Mail | None = None,
        present: tuple[int, ...] | None = None,
        consents: Iterable[Signed] = (),
    ) -> None:
        self.roster, self.adverts = closed.roster, closed.adverts
        self.mail: Mail = Pigeonholes() if mail is None else mail
        self._dealt: set[int] = set()
        self._session = None if present is None else SumSession(roster=self.roster, present=present)
        self._consents = {one.number: one.signature for one in consents}

    @property
    def session(self) -> SumSession:
        """The session; only once it is settled."""
        if self._session is None:
            raise ProtocolError("the session is not settled yet")
        return self._session

    @property
    def consents(self) -> tuple[Signed, ...]:
        """Those seen so far, by number."""
        return tuple(Signed(number=number, signature=self._consents[number]) for number in sorted(self._consents))

    def consents_for(self, number: int, survivors: tuple[int, ...]) -> tuple[Signed, ...]:
        """Consents that a platform needs before it gives shares: its neighbours', and enough of the others'."""
        near = set(self.roster.holders(number))
        ordered = sorted(survivors, key=lambda other: (other not in near, other))
        wanted = max(self.roster.quorum.votes, len(near & set(survivors)))
        return tuple(Signed(number=other, signature=self._consents[other]) for other in ordered[:wanted])

    def deal_for(self, number: int) -> Deal:
        """What to ask a platform in the dealing phase."""
        keys = tuple(self.adverts[other].keys for other in self.roster.neighbours(number))
        return Deal(roster=self.roster, keys=keys)

    def dealt(self, number: int, answer: Dealt) -> None:
        """Put a platform's sealed shares into its neighbours' mail.

        Raises:
            ProtocolError: they are more or fewer, or of another size, than was asked for; the platform is not present.
        """
        neighbours = self.roster.neighbours(number)
        size = 2 * SHARE * self.roster.terms.rounds + OVERHEAD
        if len(answer.sealed) != len(neighbours) or any(len(sealed) != size for sealed in answer.sealed):
            raise ProtocolError(f"shares of another number or size than {len(neighbours)} times {size} bytes")
        if number in self._dealt or self._session is not None:
            raise ProtocolError("shares were dealt already")
        for other, sealed in zip(neighbours, answer.sealed, strict=True):
            self.mail.put(Parcel(sender=number, sealed=sealed), receiver=other)
        self._dealt.add(number)

    def settle(self) -> SumSession:
        """Close the dealing phase: whoever dealt is present.

        Raises:
            Abandoned: they are fewer than the threshold.
        """
        quorum = self.roster.quorum
        if len(self._dealt) < quorum.threshold:
            raise Abandoned(f"{len(self._dealt)} of {quorum.members} platforms dealt shares, {quorum.threshold} are needed")
        self._session = SumSession(roster=self.roster, present=tuple(sorted(self._dealt)))
        return self._session

    def consented(self, number: int, signature: bytes) -> None:
        """Note a platform's consent to the session, and that its shares have arrived.

        Raises:
            ProtocolError: the platform is not present, or this is not its signature: it may hold another session.
        """
        if number not in self.session.present:
            raise ProtocolError(f"platform {number} is not present in this session")
        if self._consents.get(number) != signature:
            if not signed_by(self.roster.entries[number].identity, signature, self.session.consent):
                raise ProtocolError("a consent that the platform did not sign, or to another session")
            self._consents[number] = signature
        self.mail.discard(number)
