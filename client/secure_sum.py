"""A platform's part in the secure sum, on its own disk: what `client/participant.py` says is written before it is said."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import urandom
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.enrolment import Dealing, Enrolled, Peers
from client.participant import Active
from shared.agreement import Agreement, number_of, terms_of
from shared.catalogues import Catalogue
from shared.durable import read_checked, write_checked, write_whole
from shared.errors import InputError, OutOfOrder, PrivacyError, ProtocolError, StorageError
from shared.fixed_point import FixedPoint
from shared.keys import load_ed25519, make_ed25519
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.identity import PUBLIC, Identity
from shared.secagg.roster import NAME, Roster
from shared.settings import Settings

State = Enrolled | Dealing | Active
_KINDS: Mapping[int, type[State]] = {kind.tag: kind for kind in (Enrolled, Dealing, Active)}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question for a masked vector.

    Args:
        known: The answer that it got already; None if it is to be made.
        question: Digest of all that the vector depends on.
    """

    request: secagg.Mask
    active: Active
    question: bytes
    known: bytes | None


class SecureSum:
    """One run's secure sum on one platform.

    Args:
        path: File of the state; 0600, since it holds the keys of the rounds to come.
        identity: The platform's signing key.
        peers: The other platforms' identity keys, as this platform's operator knows them; asked for when a roster comes.
    """

    def __init__(
        self, *, run: str, settings: Settings, platform: str, path: Path, identity: Identity, peers: Callable[[], Peers]
    ) -> None:
        self._platform, self._path, self._identity, self._peers = platform, path, identity, peers
        self._settings = settings
        self.terms = terms_of(settings, run)
        self._known: State | None = None

    def advert(self) -> bytes:
        """The platform's signed keys for all rounds; made once, and the same ever after."""
        state = self._state
        if state is None:
            state = Enrolled.enrol(self.terms, platform=self._platform, identity=self._identity, entropy=urandom)
            self._keep(state)
        return encode(state.advert)

    def deal(self, body: bytes, *, need: float, batch: float, dimensions: Mapping[str, int]) -> bytes:
        """Shares of all secrets for the platforms on the roster.

        Args:
            need: Noise multiplier that this platform's budget needs.
            batch: Users in this platform's batch, expected.
            dimensions: Parameters that rounds train, by a name for the message.

        Raises:
            PrivacyError: what was agreed is less noise than this platform needs.
            ProtocolError: the roster is not as it should be.
            OutOfOrder: shares were dealt to another roster.
        """
        request = decode(secagg.Deal, body)
        agreement = self._agreed(request.roster)
        if not agreement.noise_multiplier >= need:
            raise PrivacyError(
                f"the agreed noise multiplier {agreement.noise_multiplier:.6g} is below the {need:.6g} that this platform needs",
                where=f"run {self.terms.run}",
                do="the coordinator takes the largest that any platform needs; do not take part under one that does not",
            )
        if not agreement.batch >= batch:
            raise ProtocolError(f"batches of {agreement.batch:g} users were agreed on, and this platform's has {batch:g}")
        for name, dimension in dimensions.items():
            try:
                self._point(request.roster, dimension)
            except InputError as error:
                raise ProtocolError(f"factors {name!r}: {error.found}") from None
        if agreement.catalogues:
            try:
                agreement.popularity_point(quorum=request.roster.quorum, settings=self._settings)
            except InputError as error:
                raise ProtocolError(f"popularities: {error.found}") from None
        state = self._require(Enrolled, Dealing)
        if isinstance(state, Dealing):
            return encode(state.deal(request))
        assert isinstance(state, Enrolled)
        dealing, answer = state.deal(request, peers=self._peers(), entropy=urandom)
        self._keep(dealing)
        return encode(answer)

    def asked(self, body: bytes, *, round_: int, question: bytes) -> Asked:
        """Look at a question for a masked vector, before anything is charged or made for it.

        Raises:
            OutOfOrder, ProtocolError: as `Active.answered` and `Dealing.open`.
        """
        request = decode(secagg.Mask, body)
        if request.round != number_of(round_):
            raise ProtocolError(f"masks number {request.round} for round {round_}")
        state = self._require(Dealing, Active)
        active = state.open(request) if isinstance(state, Dealing) else state
        assert isinstance(active, Active)
        known = active.answered(request, question)
        return Asked(request=request, active=active, question=question, known=None if known is None else encode(known))

    def point(self, asked: Asked, *, dimension: int) -> FixedPoint:
        """The round's fixed point.

        Raises:
            ProtocolError: the question is for another length or width.
        """
        return self._fitting(asked, self._point(asked.active.session.roster, dimension))

    def popularity_point(self, asked: Asked) -> FixedPoint:
        """The fixed point of round 0.

        Raises:
            ProtocolError: no catalogue is shared, or the question is for another length or width.
        """
        roster = asked.active.session.roster
        agreement = self._agreed(roster)
        if not agreement.catalogues:
            raise ProtocolError("asked for popularities, and no two platforms have one catalogue")
        return self._fitting(asked, agreement.popularity_point(quorum=roster.quorum, settings=self._settings))

    @property
    def catalogues(self) -> tuple[Catalogue, ...]:
        """Those whose popularities are summed, as the roster has it.

        Raises:
            OutOfOrder: this platform has not dealt.
        """
        state = self._require(Dealing, Active)
        assert isinstance(state, Dealing | Active)
        return self._agreed(state.roster if isinstance(state, Dealing) else state.session.roster).catalogues

    @staticmethod
    def _fitting(asked: Asked, point: FixedPoint) -> FixedPoint:
        dimension = point.dimension
        if (asked.request.length, asked.request.bits) != (dimension, point.bits):
            raise ProtocolError(
                f"asked for {asked.request.length} words of {asked.request.bits} bits, the round has {dimension} of {point.bits}"
            )
        return point

    def mask(self, asked: Asked, words: NDArray[np.uint32]) -> bytes:
        """The masked vector. After this the round has its one answer, whatever dies."""
        state, answer = asked.active.mask(asked.request, words, question=asked.question, identity=self._identity)
        self._keep(state)
        return encode(answer)

    def confirm(self, body: bytes) -> bytes:
        """A signature under the round's list of survivors."""
        state, answer = self._active.confirm(decode(secagg.Confirm, body), identity=self._identity)
        self._keep(state)
        return encode(answer)

    def unmask(self, body: bytes) -> bytes:
        """Shares for the round's list of survivors."""
        state, answer = self._active.unmask(decode(secagg.Unmask, body))
        self._keep(state)
        return encode(answer)

    @property
    def _active(self) -> Active:
        state = self._require(Active)
        assert isinstance(state, Active)
        return state

    def _require(self, *kinds: type[State]) -> State:
        state = self._state
        if not isinstance(state, kinds):
            raise OutOfOrder(f"this platform is {type(state).__name__.lower()} in run {self.terms.run}")
        return state

    def _agreed(self, roster: Roster) -> Agreement:
        return decode(Agreement, roster.facts)

    def _point(self, roster: Roster, dimension: int) -> FixedPoint:
        return self._agreed(roster).point(dimension=dimension, quorum=roster.quorum, clip=self._settings.training.clip)

    @property
    def _state(self) -> State | None:
        if self._known is None and self._path.exists():
            known = self._read()
            if known.terms != self.terms:
                raise PrivacyError(
                    f"run {self.terms.run} began with other settings", where=str(self._path), do="start a run of another name"
                )
            self._known = known
        return self._known

    def _keep(self, state: State) -> None:
        write_checked(self._path, encode(state), mode=0o600)
        # Only what is on disk may be acted on.
        self._known = state

    def _read(self) -> State:
        try:
            data = read_checked(self._path)
            return decode(_KINDS[data[3]], data)
        except (OSError, LookupError, ValueError, ProtocolError) as error:
            raise StorageError(
                f"the platform's part in the secure sum is damaged ({error})",
                where=str(self._path),
                do="leave this run: a platform that forgot what it said must not go on; the others do",
            ) from None


def identity_of(state: Path, *, make: bool) -> Identity:
    """The platform's identity key in its state folder.

    Args:
        make: Whether a missing one is made, as in a simulation.

    Raises:
        InputError: there is none, or it is none.
        StorageError: others can read it.
    """
    path = state / "identity.key"
    if not path.exists():
        if not make:
            raise InputError(
                "this platform has no identity for the secure sum", where=str(path), do="make one with `fedfuse init client`"
            )
        make_ed25519(path)
    return Identity(load_ed25519(path).private_bytes_raw())


def known_peers(identities: Mapping[str, str]) -> Peers:
    """The peers that a platform file names (`[federation.identities]`)."""
    return {name: base64.b64decode(text) for name, text in identities.items()}


class Register:
    """A simulation's list of identities: a folder that all its platforms share, in place of what operators tell each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, platform: str, identity: Identity) -> None:
        """Enter a platform."""
        write_whole(self._folder / platform, identity.public)

    def peers(self) -> Peers:
        """All that were entered."""
        found = {path.name: path.read_bytes() for path in self._folder.iterdir() if NAME.fullmatch(path.name)}
        return {name: public for name, public in found.items() if len(public) == PUBLIC}
