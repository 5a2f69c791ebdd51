"""The rounds of a run under distributed noise: keys and shares once, then a masked sum in every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from flwr.app import Message

from server.monitoring.run_events import Kind
from server.run.attendance import Attendance
from server.run.dispatch import Dispatch
from server.run.exchange import Exchange
from server.run.preference_store import PreferenceStore
from server.run.run_record import RunRecord
from server.run.share_store import MailFolder
from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import ExitCode, FedfuseError, ProtocolError, StorageError
from shared.base.settings import Settings
from shared.model.adapter import most_trained
from shared.preferences.item_index import parse_items
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.sum_kind import SumKind
from shared.preferences.summed_preferences import PreferenceQuestion, PreferenceSum, combined_preferences
from shared.protocol.messages import Joined, Reason
from shared.secagg.codec import VERSION, decode, encode, version_of
from shared.secagg.noise_agreement import declared_by
from shared.secagg.shared_catalogues import POPULARITY, Popularity, places
from shared.secagg.sum_signal import require_signal
from strategies.base import AdapterStrategy, Member, NoUpdate, Receipt
from strategies.optimizers import Adapter
from strategies.secure_sum.encoded_items import Encoded
from strategies.secure_sum.flower_phases import Phases
from strategies.secure_sum.mutual_trust import UntrustedPlatform
from strategies.secure_sum.protocol import Abandoned, Enrolment, SumCoordinator
from strategies.secure_sum.summed_step import Candidates

FOLDER = "secure"
_FILE, _ENCODED = "session.bin", "encoded.bin"
_IN_A_ROW = 3
"""Rounds given up one after the other that end a run: each costs every platform its charge."""
_LOOK = 0.05
_PAUSES = (1.0, 30.0)
"""Seconds before a platform that failed and is there is asked once more: the first, and the longest after doubling."""
_FOR_GOOD = (Reason.BUDGET, Reason.SETTINGS, Reason.NOISE, Reason.ROUND, Reason.PEERS, Reason.VERSION, Reason.WARRANT)
"""Refusals that the same question would meet again."""


class OutOfPatience(Abandoned):
    """What a sum lacks did not come in time; asked again later, its platforms give the answers that they gave."""


class OpenRound(ProtocolError):
    """A round was given up for want of patience: the run ends before it, and asks for it again when it is resumed."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A session as the disk has it; all of it is public.

    Args:
        present: Who dealt shares; None while that is still going on.
        popularities: What round 0 summed, in the order of the agreed catalogues; None before.
        lists: The item lists of the platforms on the roster (`shared.preferences.platform_lists`); empty without preferences.
        left_out: Platforms that joined and are not on the roster, since they and others of it do not know each other.
    """

    tag: ClassVar[int] = 51

    closed: Enrolment.Closed
    present: tuple[int, ...] | None
    popularities: tuple[Popularity, ...] | None = None
    lists: bytes = b""
    left_out: tuple[UntrustedPlatform, ...] = ()


Part = TypeVar("Part", Saved, Encoded)
Found = TypeVar("Found")


class SecureRounds:
    """The secure sum of one run.

    Args:
        out: The run's folder.
        wait: Seconds to wait for enough platforms before a round.
        patience: Seconds in which a sum that is given up is asked for again when the platforms that it lacks are back.
        approved: Platform -> the identity that it was approved with, looked up when it is needed; None where nobody approves.
        wanted: Platforms that are waited for, if those that came do not all know each other; 0: none are.
        named: Whether an operator named the platforms, none of which is then left out in silence.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        run: str,
        out: Path,
        strategy: AdapterStrategy,
        attendance: Attendance,
        record: RunRecord,
        dispatch: Dispatch,
        wait: float,
        patience: float = 0.0,
        approved: Callable[[], Mapping[str, bytes]] | None = None,
        wanted: int = 0,
        named: bool = False,
    ) -> None:
        self._wanted, self._named = wanted, named
        self._settings, self._run, self._wait = settings, run, wait
        self._patience = patience
        self._refusing: set[str] = set()
        self._strategy, self._approved = strategy, approved
        self._attendance, self._record, self._dispatch = attendance, record, dispatch
        self._path, self._encoded = out / FOLDER / _FILE, out / FOLDER / _ENCODED
        self._mail = MailFolder(out / FOLDER)
        self._joined: dict[str, Joined] = {}
        self._told: set[str] = set()
        self._saved: Saved | None = None
        self._phases: Phases | None = None
        self._abandoned = 0

    def restore(self) -> None:
        """Take up this run's session on disk, if there is one.

        Raises:
            StorageError: it is damaged.
        """
        if self._path.exists() and (saved := _read(Saved, self._path)).closed.roster.terms.run == self._run:
            self._saved = saved
            for one in self._saved.left_out:
                self._record.leave_out(one)

    def enter(self, joined: Joined) -> str:
        """Take a platform's keys; why it cannot take part, or nothing if it can.

        After the roster is closed only a platform that is on it, with the keys that it has there, can.
        """
        try:
            self._candidates().check(joined)
        except ProtocolError as error:
            return f"its keys cannot be used: {error.found}"
        if self._saved is not None:
            known = {advert.keys.platform: advert for advert in self._saved.closed.adverts}
            if joined.platform in self._record.left_out:
                return str(self._record.left_out[joined.platform])
            if joined.platform not in known or encode(known[joined.platform]) != joined.keys:
                return "it came after the keys were dealt"
        self._joined[joined.platform] = joined
        return ""

    def _candidates(self) -> Candidates:
        return Candidates(self._settings, self._run, approved=None if self._approved is None else self._approved())

    def set_up(self, adapter: Adapter) -> None:
        """Close the roster and have shares dealt, unless that was done.

        Raises:
            NoisyPlan: the sums would be noise.
            FedfuseError: too few of the platforms know each other.
            InputError: the platforms are too few, or the plan is too large.
            Abandoned: fewer than the threshold dealt.
        """
        if self._saved is None:
            taken, left = self._acquainted()
            closed = self._candidates().close([self._joined[name] for name in taken], left_out=self._left_out)
            self._keep(Saved(closed=closed, present=None, lists=self._lists_of(closed), left_out=left))
            for one in left:
                self._attendance.dismiss(self._by_name()[one.platform].node)
                self._record.leave_out(one)
        members = self._by_name()
        assert self._saved is not None
        coordinator = SumCoordinator(self._saved.closed, mail=self._mail, present=self._saved.present)
        phases = self._phases = Phases(strategy=self._strategy, coordinator=coordinator, members=members)
        users = [member.users for member in members.values()]
        agreement = phases.agreement
        shared = len(self._declared.shared()) if self._saved.lists else 0
        parameters = most_trained(adapter, self._strategy.scheme.cycle)
        ratio = require_signal(self._settings, agreement, users=users, parameters=parameters, shared=shared)
        if self._saved.present is None:
            self._mail.empty()
            exchange = self._send(phases.deal())
            phases.dealt(self._dispatch.answers(exchange))
            self._note(exchange, 0)
            self._keep(replace(self._saved, present=coordinator.settle().present))
        session, quorum = coordinator.session, coordinator.roster.quorum
        noise = agreement.noise_multiplier or agreement.preference_noise or agreement.taste_noise
        self._record.say(
            Kind.SECURED,
            f"{len(session.present)} of {quorum.members} platforms dealt shares; sums are of {quorum.threshold} or more, "
            f"{quorum.honest} of them honest; noise multiplier {noise:.3g}, "
            f"signal to noise {ratio:.3g}",
        )
        if self._saved.popularities is None and phases.agreement.catalogues:
            self._count(phases)
        phases.known = self._saved.popularities or ()
        if self._encoded.exists():
            phases.encoded = _read(Encoded, self._encoded)
        self._tell(phases)

    def _acquainted(self) -> tuple[tuple[str, ...], tuple[UntrustedPlatform, ...]]:
        """The largest set of members that know each other, and the others; waits for the number of platforms that was asked for.

        Raises:
            FedfuseError: they are too few for a sum, or one that was named is not among them.
        """
        end, told = time.monotonic() + self._wait, False
        here: list[Joined] | None = None
        while True:
            members = self._by_name()
            before, here = here, [one for name, one in self._joined.items() if name in members]
            if here != before:
                taken, left = self._candidates().trusting(here)
            awaited = self._attendance.awaited
            if not left or len(taken) >= self._wanted or not awaited or time.monotonic() >= end:
                break
            if not told:
                text = f"{len(taken)} of {self._wanted} platforms know each other; {', '.join(sorted(awaited))} may still come"
                self._record.say(Kind.WAITING, text)
            told = True
            self._attendance.look()
            time.sleep(_LOOK)
        least = max(self._settings.server.minimum_platforms, 1 if self._approved is None else self._settings.secure.colluders + 2)
        if len(taken) < least or (left and self._named):
            which = f"{', '.join(taken)}" if taken else "nobody"
            error = FedfuseError(
                f"of {len(taken) + len(left)} platforms those in the secure sum would be: {which}; "
                + ("all that are named have to know each other" if self._named and left else f"{least} are needed"),
                where="; ".join(map(str, left))
                or f"secure.colluders = {self._settings.secure.colluders}, "
                f"server.minimum_platforms = {self._settings.server.minimum_platforms}",
                do="have them trust each other, then restart their workers" if left else "wait for more platforms",
            )
            error.exit_code = ExitCode.REFUSED
            raise error
        return taken, left

    @property
    def _declared(self) -> PlatformLists:
        """Who on the roster declares which items."""
        assert self._saved is not None
        return PlatformLists.read(self._saved.lists, platforms=len(self._saved.closed.roster.entries))

    def _lists_of(self, closed: Enrolment.Closed) -> bytes:
        if not self._settings.preferences.items:
            return b""
        return PlatformLists.of([parse_items(self._joined[one.platform].item_list) for one in closed.roster.entries]).text()

    def taste(self, store: PreferenceStore) -> PreferenceSum | None:
        """Which directions of texts all platforms' users like together; None where the sum is given up.

        Raises:
            NoUpdate: too few platforms are there; or the sum is given up, and it is all there is to the run.
        """
        asked = self._settings.preferences
        phases = self._there(0)
        try:
            return store.watched(partial(self._summed, phases))(PreferenceQuestion(directions=asked.map))
        except Abandoned as error:
            self._give_up("the taste map", error, alone=not self._settings.trains and not asked.items)
            return None

    def prefer(self, store: PreferenceStore) -> SharedPreferences | None:
        """What users like of the items that two platforms or more have; None where no two have any, or the sum is given up.

        Raises:
            NoUpdate: too few platforms are there; or the sum is given up, and it is all there is to the run.
        """
        shared = self._declared.shared()
        if not len(shared):
            return None
        phases = self._there(0)
        try:
            most = self._settings.preferences.items
            return combined_preferences(shared, most=most, ask=store.watched(partial(self._summed, phases)), store=store)
        except Abandoned as error:
            self._give_up("the sum of preferences", error, alone=not self._settings.trains)
            return None

    def _summed(self, phases: Phases, question: PreferenceQuestion) -> PreferenceSum:
        """One sum over the platforms; of texts everybody has some, of items those that declare any."""
        assert self._saved is not None
        items = question.of is not SumKind.TASTE
        receipts: list[Receipt] = []
        try:
            asking = phases.prefer(question, lists=self._saved.lists if items else b"")
            owners = self._declared.owners(question.items) if items else None
            return self._gather(phases, 0, asking, receipts, partial(phases.preferences, owners))
        finally:
            self._credit(receipts, counted=False)

    def _give_up(self, what: str, error: Abandoned, *, alone: bool) -> None:
        """Go on without a sum.

        Raises:
            NoUpdate: it is all there is to the run.
        """
        if alone:
            raise NoUpdate(
                f"{what} is given up: {error.found}",
                where=str(self._path.parent),
                do="see why platforms are missing, then resume the run",
            ) from None
        self._record.say(Kind.ABANDONED, f"{what} is given up: {error.found}; the run goes on without it")

    def _count(self, phases: Phases) -> None:
        """Round 0: the popularities of catalogues that several platforms have. Given up, the run goes on without."""
        assert self._saved is not None
        receipts: list[Receipt] = []
        catalogues = phases.agreement.catalogues
        try:
            found = self._gather(phases, POPULARITY, phases.count(), receipts, phases.popularities)
            text = f"{len(receipts)} platforms summed the popularity of {sum(one.items for one in catalogues)} items"
            self._record.say(Kind.SECURED, text, round_=POPULARITY)
        except Abandoned as error:
            found = (Popularity(counts=b"", noise=0.0),) * len(catalogues)
            text = f"popularities are given up: {error.found}; platforms with a shared catalogue train without them"
            self._record.say(Kind.ABANDONED, text, round_=POPULARITY)
        self._credit(receipts, counted=False)
        self._keep(replace(self._saved, popularities=found))

    def _tell(self, phases: Phases) -> None:
        """Send what round 0 summed to those whose catalogue it is and who have not said yet that they have it."""
        assert self._saved is not None
        if not self._saved.popularities:
            return
        by_digest = dict(zip(places(phases.agreement.catalogues), self._saved.popularities, strict=True))
        lines = {entry.platform: entry for entry in self._saved.closed.roster.entries}
        here = {name: declared_by(lines[name]).digest for name in self._by_name() if name in lines and name not in self._told}
        wanted = {name: by_digest[digest] for name, digest in here.items() if digest in by_digest}
        if wanted:
            exchange = self._send(phases.tell(wanted))
            self._told |= phases.told(self._dispatch.answers(exchange))
            self._note(exchange, POPULARITY)

    def round(self, server_round: int, adapter: Adapter) -> Adapter | None:
        """The next global adapter, or None where the round is lost: given up for good, since those that it lacks will not answer.

        Nothing of a lost round is revealed, and its charges remain.

        Raises:
            OpenRound: what the round lacks did not come within the patience.
            NoUpdate: too few platforms are there, or the third round in a row is lost.
        """
        phases = self._there(server_round)
        self._tell(phases)
        receipts: list[Receipt] = []
        try:
            asking = phases.mask(server_round, adapter)
            # Before it is asked: resumed in this round, the coordinator asks the same question.
            self._note_encoded(phases)
            moved = self._gather(phases, server_round, asking, receipts, phases.step)
        except Abandoned as error:
            self._credit(receipts, counted=False)
            self._abandoned += 1
            self._record.say(Kind.ABANDONED, f"round {server_round} is given up: {error.found}", round_=server_round)
            if isinstance(error, OutOfPatience):
                raise OpenRound(error.found) from None
            if self._abandoned >= _IN_A_ROW:
                raise _incomplete(
                    f"{self._abandoned} rounds in a row were given up, the last one because of {error.found}",
                    where=str(self._path.parent),
                    do="see why platforms are missing, then resume the run",
                ) from None
            return None
        self._abandoned = 0
        self._credit(receipts, counted=True)
        return moved

    def _gather(
        self,
        phases: Phases,
        server_round: int,
        asking: Iterator[Message],
        receipts: list[Receipt],
        finish: Callable[[], Found],
    ) -> Found:
        """One sum, and what `finish` makes of it; given up, it goes on where it was, once those that it lacks are back.

        Every platform is asked the same question again, and gives the answer that it gave: nothing is charged or revealed twice.

        Args:
            receipts: Gets those of the masked vectors as soon as they are in.

        Raises:
            Abandoned: too few platforms are left, and no more came within the patience.
        """
        end, pause = time.monotonic() + self._patience, _PAUSES[0]
        self._refusing.clear()
        while True:
            try:
                self._ask_phases(phases, server_round, asking, receipts)
                return finish()
            except Abandoned as error:
                self._await_missing(phases, server_round, error, end=end, pause=pause)
            asking, pause = phases.again(), min(2 * pause, _PAUSES[1])

    def _await_missing(self, phases: Phases, server_round: int, error: Abandoned, *, end: float, pause: float) -> None:
        """Wait until a platform that the sum lacks is there.

        Raises:
            Abandoned: none can come, or nobody is waited for.
            OutOfPatience: none came in time.
        """
        missing = phases.missing - self._refusing - self._attendance.gone
        left = end - time.monotonic()
        if not missing or not self._patience:
            raise error
        if left <= 0:
            raise OutOfPatience(error.found)
        text = f"{error.found}; {', '.join(sorted(missing))} will be asked again, for {left:.0f} s at most"
        self._record.say(Kind.WAITING, text, round_=server_round)
        time.sleep(min(pause, left))
        while True:
            self._attendance.look()
            members = self._by_name()
            if missing & set(members):
                break
            if time.monotonic() >= end:
                raise OutOfPatience(error.found)
            time.sleep(_LOOK)
        # Who is in the sum and has left meanwhile is still counted in it.
        phases.members = {**phases.members, **members}

    def _ask_phases(self, phases: Phases, server_round: int, asking: Iterator[Message], receipts: list[Receipt]) -> None:
        """All phases of one sum, or those of them that are still to do.

        Raises:
            Abandoned: too few platforms are left.
        """
        if not phases.closed:
            exchange = self._send(asking, training=True)
            phases.masked(self._dispatch.answers(exchange, told=server_round))
            receipts += phases.report.updates
            phases.report.updates = []
            self._note(exchange, server_round)
            try:
                phases.close()
            finally:
                self._note_encoded(phases)
        if not phases.work.whole:
            exchange = self._send(phases.confirm())
            phases.confirmed(self._dispatch.answers(exchange))
            self._note(exchange, server_round)
        exchange = self._send(phases.unmask())
        phases.unmasked(self._dispatch.answers(exchange))
        self._note(exchange, server_round)

    def _there(self, server_round: int) -> Phases:
        """The phases with the members of now, once they are enough for a round."""
        assert self._phases is not None
        session = self._phases.coordinator.session
        needed, names = session.roster.quorum.threshold, {session.roster.entries[number].platform for number in session.present}
        end = time.monotonic() + self._wait
        while True:
            self._attendance.look()
            members = self._by_name()
            here = names & set(members)
            if len(here) >= needed:
                self._phases.members = members
                return self._phases
            if time.monotonic() >= end:
                raise _incomplete(
                    f"round {server_round}: {len(here)} platforms of the secure sum are there, {needed} are needed",
                    where=", ".join(sorted(names - here)) + " are missing",
                    do="start them again, then resume the run; nothing was charged for this round",
                )
            time.sleep(_LOOK)

    def _by_name(self) -> dict[str, Member]:
        return {member.platform: member for member in self._attendance.members.values()}

    def _send(self, messages: Iterator[Message], *, training: bool = False) -> Exchange:
        assert self._phases is not None
        # As the round began: whoever left since is asked on, for its vector may be in the sum.
        names = {member.node: member.platform for member in self._phases.members.values()}
        return self._dispatch.send(messages, names=names, timeout=None if training else self._phases.quick)

    def _note(self, exchange: Exchange, server_round: int) -> None:
        assert self._phases is not None
        refusals = self._phases.report.refusals.values()
        self._refusing |= {refusal.platform for refusal in refusals if refusal.reason in _FOR_GOOD}
        self._dispatch.book(exchange, self._phases.report, server_round)

    def _credit(self, receipts: list[Receipt], *, counted: bool) -> None:
        for receipt in receipts:
            self._record.credit(receipt, counted=counted)

    def _left_out(self, platform: str, why: str) -> None:
        self._record.say(Kind.DROPPED, f"{platform} is not in the secure sum: {why}", platform=platform)

    def _note_encoded(self, phases: Phases) -> None:
        if phases.encoded is not None:
            write_checked(self._encoded, encode(phases.encoded))

    def _keep(self, saved: Saved) -> None:
        write_checked(self._path, encode(saved))
        self._saved = saved


def _incomplete(found: str, *, where: str, do: str) -> NoUpdate:
    error = NoUpdate(found, where=where, do=do)
    error.exit_code = ExitCode.INCOMPLETE
    return error


def _read(kind: type[Part], path: Path) -> Part:
    try:
        data = read_checked(path)
        if version_of(data) not in (None, VERSION):
            raise StorageError(f"it has format {version_of(data)}, and this program reads format {VERSION}")
        return decode(kind, data)
    except (OSError, ValueError, FedfuseError) as error:
        raise StorageError(
            f"the secure sum's session cannot be read: {error}",
            where=str(path),
            do="restore it from a copy, go on with the release that wrote it, or start the run anew",
        ) from None
