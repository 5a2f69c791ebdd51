"""A platform's part in the secure sum, on its own disk: what `client/secagg/participant.py` says is written before it is said."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import urandom
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.secagg.enrolment import Dealing, Enrolled, Peers
from client.secagg.participant import Active, Ready
from client.secagg.participant_state import State, read_participant, write_state
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, OutOfOrder, PrivacyError, ProtocolError
from shared.base.settings import Settings
from shared.preferences.item_index import Hashes, places_of
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.sum_kind import SumKind
from shared.protocol.keys import load_ed25519, make_ed25519
from shared.protocol.messages import Count, Prefer, Sum
from shared.protocol.question import question_of, sum_number
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.fixed_point import FixedPoint
from shared.secagg.identity import PUBLIC, Identity
from shared.secagg.noise_agreement import COUNTS, Agreement, declared_by, require_owners, terms_of
from shared.secagg.roster import NAME, Roster
from shared.secagg.shared_catalogues import POPULARITY, DeclaredCatalogue, Popularity
from shared.secagg.trust_statement import TrustStatement


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question for a masked vector.

    Args:
        known: The answer that it got already; None if it is to be made.
        ready: The keys of its masks; None if it is known.
        since: Round of the run whose items' vectors serve in this one.
    """

    request: secagg.Mask
    active: Active
    known: bytes | None
    ready: Ready | None
    since: int


class PersistentParticipant:
    """One run's secure sum on one platform.

    Args:
        path: File of the state; 0600, since it holds the keys of the rounds to come.
        identity: The platform's signing key.
        peers: The other platforms' identity keys, as this platform's operator knows them; asked for when a roster comes.
        declared: The platform's public catalogue and its declared users; signed with its keys.
        known: Whether this platform's ledger or its memory knew the run before this process came to it.
        simulation: Whether sums of however few platforms are answered: there is no coordinator to distrust.
    """

    def __init__(
        self,
        *,
        run: str,
        settings: Settings,
        platform: str,
        path: Path,
        identity: Identity,
        peers: Callable[[], Peers],
        declared: DeclaredCatalogue,
        known: bool,
        simulation: bool = False,
    ) -> None:
        self._platform, self._path, self._identity, self._peers = platform, path, identity, peers
        self._simulation = simulation
        self._settings, self._declared, self._begun = settings, declared, known
        self.terms = terms_of(settings, run)
        self._known: State | None = None

    def advert(self) -> bytes:
        """The platform's signed keys for all rounds; made once, and the same ever after.

        Raises:
            PrivacyError: they were made and are lost. With new ones a round that was answered and charged could be asked again,
                and the second answer would be a second release for one charge.
        """
        state = self._state
        if state is None:
            if self._begun:
                raise PrivacyError(
                    f"run {self.terms.run} was begun here, and this platform's part in its secure sum is not there",
                    where=str(self._path),
                    do="leave this run: a platform that forgot what it said must not go on; the others do. Other runs are open",
                )
            state = Enrolled.enrol(
                self.terms,
                platform=self._platform,
                identity=self._identity,
                entropy=urandom,
                declared=encode(self._declared),
            )
            self._keep(state)
        return encode(state.advert)

    def trust(self) -> bytes:
        """Whom this platform trusts to be whom, signed: for a coordinator that would ask those alone who know each other."""
        peers = self._peers()
        return encode(TrustStatement.of(peers, run=self.terms.run, platform=self._platform, identity=self._identity))

    def deal(
        self, body: bytes, *, need: float, preference_need: float, taste_need: float, batch: float, dimensions: Mapping[str, int]
    ) -> bytes:
        """Shares of all secrets for the platforms on the roster.

        Args:
            need: Noise multiplier that this platform's budget needs.
            preference_need, taste_need: The same of the sum of preferences and of that behind the taste map.
            batch: Users in this platform's batch, expected.
            dimensions: Parameters that rounds train, by a name for the message.

        Raises:
            PrivacyError: what was agreed is less noise than this platform needs, or the sum is of too few platforms.
            ProtocolError: the roster is not as it should be, or agrees on catalogues that too few of its platforms signed.
            UnknownPeer: a platform of the roster is not known here.
            OutOfOrder: shares were dealt to another roster.
        """
        request = decode(secagg.Deal, body)
        self._require_company(request.roster)
        agreement = self._agreed(request.roster)
        for agreed, least, what in (
            (agreement.noise_multiplier, need, "noise multiplier"),
            (agreement.preference_noise, preference_need, "noise multiplier of preferences"),
            (agreement.taste_noise, taste_need, "noise multiplier of the taste map"),
        ):
            if not agreed >= least:
                raise PrivacyError(
                    f"the agreed {what} {agreed:.6g} is below the {least:.6g} that this platform needs",
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
        # Before anything of the size that the agreement names: its catalogues are those that platforms signed.
        agreement.require_signed(request.roster, self._settings)
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

    def asked(self, request: Sum | Count | Prefer, *, finished: int) -> Asked:
        """Look at a question for a masked vector, before anything is charged or made for it.

        Everything that can fail for the question's sake, or for another platform's keys, fails here.

        Args:
            finished: Last round that this platform's memory says it answered; -1 before this sum of round 0.

        Raises:
            OutOfOrder: as `Active.answered`; also if the round is finished and its answer is not in this state.
            ProtocolError: as `Active.answered` and `Dealing.open`; also if the question is of another round, or platforms were
                told another popularity than this one.
        """
        mask, round_ = decode(secagg.Mask, request.body), request.round if isinstance(request, Sum) else POPULARITY
        if mask.round != sum_number(request):
            raise ProtocolError(f"masks number {mask.round} for round {round_}")
        state = self._require(Dealing, Active)
        active = state.open(mask) if isinstance(state, Dealing) else state
        assert isinstance(active, Active)
        self._require_told(active, mask.before.told, round_)
        since = self._require_since(active, mask, round_)
        question = question_of(request, before=mask.before)
        known = active.answered(mask, question)
        if known is not None:
            return Asked(request=mask, active=active, known=encode(known), ready=None, since=since)
        if round_ <= finished:
            raise OutOfOrder(
                f"round {round_} was answered, and the answer is not there",
                where=str(self._path),
                do="leave this run: an older copy of this file was put back; the platform would answer twice for one charge",
            )
        return Asked(request=mask, active=active, known=None, ready=active.ready(mask, question), since=since)

    def _require_since(self, active: Active, mask: secagg.Mask, round_: int) -> int:
        """Check that this platform's items were encoded for the question that all others' were; gives the round of the run."""
        before, most = mask.before, self._settings.training.bank_steps
        if not before.since:
            return round_
        if not 0 < mask.round - before.since < most:
            raise ProtocolError(f"round {round_} with items' vectors of {mask.round - before.since} rounds ago, below {most}")
        if (active.since, active.based) != (before.since, before.based):
            raise OutOfOrder(f"round {round_} goes on with items' vectors that this platform does not have")
        return round_ - (mask.round - before.since)

    def _require_told(self, active: Active, told: tuple[bytes, ...], round_: int) -> None:
        """Check that all platforms of this one's catalogue were told the popularity that it was told."""
        catalogues = self._agreed(active.session.roster).catalogues
        if len(told) != (0 if round_ == POPULARITY else len(catalogues)):
            raise ProtocolError(f"round {round_} is asked with {len(told)} popularities, {len(catalogues)} were agreed on")
        for catalogue, digest in zip(catalogues, told, strict=False):
            if catalogue.digest == self._declared.digest and digest != active.told:
                if not active.told:
                    raise OutOfOrder("the popularity of this platform's items was neither released nor sent")
                raise ProtocolError("other platforms were told another popularity of this platform's catalogue")

    def _require_company(self, roster: Roster) -> None:
        """Check that beside this platform and the colluders somebody else is in the sum.

        The coordinator chooses whom it puts on a roster, and may say that others do not know this platform: what is left must not
        be this platform among those who side with it.

        Raises:
            PrivacyError: nobody else is.
        """
        colluders, found = self.terms.colluders, len(roster.entries)
        least = colluders + 2
        if not self._simulation and found < least:
            raise PrivacyError(
                f"a secure sum of {found} platforms; with secure.colluders = {colluders} one of {least} hides this platform",
                where=f"run {self.terms.run}",
                do="take part with more platforms, or agree on fewer secure.colluders",
            )

    def take(self, popularity: Popularity) -> None:
        """Remember the one popularity that this platform was sent, and refuse another.

        Raises:
            OutOfOrder: it was told another, or has not dealt.
        """
        state = self._require(Dealing, Active)
        assert isinstance(state, Dealing | Active)
        if state.told not in (b"", popularity.digest):
            raise OutOfOrder(f"run {self.terms.run} has told this platform another popularity")
        if not state.told:
            self._keep(replace(state, told=popularity.digest))

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

    def preference_point(self, asked: Asked, *, dimension: int, of: SumKind) -> FixedPoint:
        """The fixed point of a sum of what users like.

        Raises:
            ProtocolError: the question is for another length or width, or cannot be answered at this length.
        """
        roster = asked.active.session.roster
        try:
            point = self._agreed(roster).preference_point(dimension=dimension, of=of, roster=roster)
        except InputError as error:
            raise ProtocolError(f"preferences: {error.found}") from None
        return self._fitting(asked, point)

    def require_shared(self, asked: Asked, items: Hashes, lists: bytes) -> None:
        """Check that every item is on this platform's list and another's, or on two others'.

        Raises:
            ProtocolError: one is not, or the lists are not those that the platforms of the roster signed.
        """
        entries = asked.active.session.roster.entries
        found = PlatformLists.read(lists, platforms=len(entries))
        for number, entry in enumerate(entries):
            if found.digest(number) != declared_by(entry).item_list:
                raise ProtocolError(f"an item list that is not the one {entry.platform!r} signed")
        if (places_of(items, found.shared()) < 0).any():
            raise ProtocolError("asked for preferences of an item that only one platform has")

    @property
    def catalogues(self) -> tuple[DeclaredCatalogue, ...]:
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
        assert asked.ready is not None
        state, answer = asked.active.mask(asked.ready, words, identity=self._identity)
        self._keep(state)
        return encode(answer)

    def confirm(self, body: bytes) -> bytes:
        """A signature under the round's list of survivors."""
        request = decode(secagg.Confirm, body)
        self._require_owners(request)
        state, answer = self._active.confirm(request, identity=self._identity)
        self._keep(state)
        return encode(answer)

    def unmask(self, body: bytes) -> bytes:
        """Shares for the round's list of survivors."""
        request = decode(secagg.Unmask, body)
        self._require_owners(request)
        state, answer = self._active.unmask(request)
        self._keep(state)
        return encode(answer)

    def _require_owners(self, request: secagg.Confirm | secagg.Unmask) -> None:
        """No platform's popularity is alone in the sum over these survivors."""
        session = self._active.session
        if request.round == COUNTS:
            session.survivors(request.round, request.survivors)
            require_owners(session.roster, self._agreed(session.roster).catalogues, request.survivors)

    @property
    def _active(self) -> Active:
        state = self._require(Active)
        assert isinstance(state, Active)
        return state

    def _require(self, *kinds: type[State]) -> State:
        state = self._state
        if not isinstance(state, kinds):
            now = "not in" if state is None else f"{type(state).__name__.lower()} in"
            raise OutOfOrder(f"this platform is {now} run {self.terms.run}")
        return state

    def _agreed(self, roster: Roster) -> Agreement:
        return decode(Agreement, roster.facts)

    def _point(self, roster: Roster, dimension: int) -> FixedPoint:
        return self._agreed(roster).point(dimension=dimension, quorum=roster.quorum, clip=self._settings.training.clip)

    @property
    def _state(self) -> State | None:
        if self._known is None and self._path.exists():
            known = read_participant(self._path)
            for differs, what in (
                (known.terms != self.terms, "settings"),
                (known.advert.keys.declared != encode(self._declared), "declared users or another catalogue"),
            ):
                if differs:
                    raise PrivacyError(
                        f"run {self.terms.run} began with other {what}", where=str(self._path), do="start a run of another name"
                    )
            self._known = known
        return self._known

    def _keep(self, state: State) -> None:
        write_state(self._path, state)
        # Only what is on disk may be acted on.
        self._known = state


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
