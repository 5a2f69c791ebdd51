"""The worker: holds a platform's rows, model and ledger, and answers a fixed set of typed requests.

Every answer passes the one outgoing check. Charges are written before the mechanism that they pay for runs, and what a
run needs between two messages is on disk, so that a message may be answered by a new process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from client.config.participation_policy import Unwarranted
from client.config.platform_file import PlatformFile, load
from client.model.prepared_platform import PlatformRows, PreparedPlatform, preparation_key, prepare, read_rows
from client.privacy.answer_timing import Pace
from client.privacy.egress_check import checked
from client.privacy.failure_guard import Guard, Silent, raising
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.receipt_file import LedgerWentBack, ReceiptFile
from client.run.adapter_partition import Part
from client.run.evaluating import answer_evaluation
from client.run.joining import declared_list
from client.run.local_session import LocalSession
from client.run.personalising import answer_personalise
from client.run.preference_session import LocalPreferences, SecurePreferences
from client.run.quoting import answer_quote
from client.run.run_context import RunContext
from client.run.secure_session import SecureSession
from client.run.training_context import TrainingContext
from client.secagg.enrolment import Peers
from client.secagg.persistent_participant import PersistentParticipant, Register, identity_of, known_peers
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import (
    BudgetExceeded,
    FedfuseError,
    InputError,
    NoisyPlan,
    OutOfOrder,
    PrivacyError,
    ProtocolError,
    StorageError,
    UnknownPeer,
)
from shared.base.logs import about, tell
from shared.base.progress import Progress
from shared.base.settings import Settings
from shared.ledger.format import Entry
from shared.ledger.reading import read_ledger
from shared.ledger.release_digest import is_release, release_digest
from shared.model.backbone import shape_of
from shared.preferences.item_index import list_digest, parse_items
from shared.protocol.messages import (
    Answer,
    Count,
    Evaluate,
    Join,
    Personalise,
    Phase,
    Prefer,
    Quote,
    Reason,
    Refusal,
    Released,
    Request,
    Secure,
    Sum,
    Train,
)
from shared.secagg.codec import encode
from shared.secagg.shared_catalogues import DeclaredCatalogue
from shared.secagg.trust_statement import TrustStatement

log = logging.getLogger("fedfuse.worker")
Session = LocalPreferences | SecurePreferences
"""Local and secure sessions that train are of these, too."""
Left = TypeVar("Left", bound=Released)
Observer = Callable[[Request, Answer, float], None]
"""Told a request, its answer, and the seconds between them."""


class Worker:
    """One platform's resident process.

    Args:
        file: The platform file.
        state: Folder for caches and run states; 0700.
        ledger: The platform's ledger file.
        simulation: Whether exact metrics and seeded noise are allowed here, whatever the coordinator says.
        prepared: A platform that is ready already, to be shared by several workers of one simulation.
        progress: Told what is being done; stays on the platform.
        observer: Told of every answer before it leaves, and how many seconds it took; stays on the platform.
        resident: Whether this process alone answers for the platform, and so holds its ledger all the time. Flower's Ray
            simulation lets any of its processes answer; there the ledger is let go and read anew at every request.
    """

    def __init__(
        self,
        file: PlatformFile,
        *,
        state: Path,
        ledger: Path,
        simulation: bool = False,
        prepared: PlatformRows | None = None,
        device: torch.device | None = None,
        progress: Progress | None = None,
        observer: Observer | None = None,
        resident: bool = True,
    ) -> None:
        self._file, self._state, self._ledger, self._simulation = file, state, ledger, simulation
        self._device, self._progress, self._resident, self._observer = device, progress, resident, observer
        self._platform = prepared
        self._tables: Tables | None = None
        self._guard: Guard = raising if simulation else Silent()
        self._receipts = ReceiptFile(state, platform=file.name, coordinator=file.federation.key)
        self._pace = Pace(step=0.0 if simulation else file.federation.answer_step)
        self._fingerprint: str | None = None
        self._opening = False
        self._session: Session | None = None
        self._writer: LedgerWriter | None = None
        self.failure: Exception | None = None
        """What the last refusal was about, for the platform's own operator; never sent."""

    @property
    def name(self) -> str:
        """The platform's public name."""
        return self._file.name

    def handle(self, request: Request, warrant: str = "", receipt: str = "") -> Answer:
        """Answer one request; whatever goes wrong inside becomes one word of a closed list outside.

        Args:
            warrant: The coordinator's leave for this run; needed where the platform file pins the coordinator.
            receipt: Its receipt of the answer before, in this run or an earlier one: to be kept, and held against the ledger.
        """
        began, self._opening = time.monotonic(), False
        with about(run=request.run, round=getattr(request, "round", 0), platform=self.name):
            answer = self._handled(request, warrant, receipt)
            if self._opening or not (isinstance(request, Secure) and request.phase in _WITHOUT_ROWS):
                self._pace.wait(began)
            seconds = time.monotonic() - began
            if not isinstance(answer, Refusal):
                tell(log, "answered", "answered '%s' in %.1f s", request.kind, seconds)
            if self._observer is not None:
                self._observer(request, answer, seconds)
            if self._writer is not None:
                self._receipts.keep(receipt, self._writer)
            return answer

    def _handled(self, request: Request, warrant: str, receipt: str) -> Answer:
        self.failure = None
        try:
            self._require_leave(request, warrant)
            self._require_whole(receipt)
            answer = self._answer(request)
            settings, part = request.settings, None
            if settings.trains:
                part = Part.of(settings, shape_of(settings.model.backbone), rank=self._file.rank)
            layout: Mapping[str, tuple[int, ...]] = {}
            if part is not None and isinstance(request, Train | Sum):
                layout = part.sent(request.factors)
            if isinstance(request, Count) and isinstance(self._session, SecureSession):
                layout = {"popularity": (self._session.counted, 1)}
            elif isinstance(request, Prefer):
                layout = {request.of.value: (request.size,)}
            out = checked(
                answer,
                platform=self._file,
                layout=layout,
                rank=0 if part is None else part.rank,
                items=self._platform.tables.items if self._platform else 0,
                simulation=self._simulation,
                pace=self._pace,
                catalogue=self._platform.catalogue_digest.hex() if self._platform else "",
                item_list=self._platform.item_list if self._platform else b"",
                peers={} if self._simulation else known_peers(self._file.federation.identities),
            )
            return self._recorded(out) if isinstance(out, Released) else out
        except Exception as error:
            self.failure = error
            reason = _reason(error)
            log.log(
                logging.INFO if isinstance(error, FedfuseError) else logging.ERROR,
                "refused (%s): %s",
                reason,
                error,
                exc_info=reason is Reason.FAILED,
                extra={"event": "refused"},
            )
            if isinstance(error, StorageError):
                # After a failed write only a ledger that is opened anew, and so read, may go on.
                self.close()
            return Refusal(run=request.run, platform=self.name, round=getattr(request, "round", 0), reason=reason)
        finally:
            if not self._resident:
                self.close()

    def _recorded(self, out: Left) -> Left:
        """The answer with the hash of the ledger's line that names it; on disk before this returns."""
        if self._writer is None:
            return out
        if not is_release(out):
            return self._stamped(out, self._writer, self._writer.head)
        head = self._writer.record_release(release_digest(out), charge=out.ledger, run=out.run, round=out.round)
        return self._stamped(out, self._writer, head)

    @staticmethod
    def _stamped(out: Left, writer: LedgerWriter, head: str) -> Left:
        return replace(out, ledger=head, signature=writer.sign(head))

    def hold(self) -> None:
        """Take the ledger and read the sources now, before anybody asks.

        No second worker of this platform can take the ledger afterwards. And what may be wrong with the rows is said here, to the
        platform's own operator: once there is a coordinator to hear it, a refusal would be an answer about them.

        Raises:
            StorageError: another process has the ledger.
            PrivacyError: it was altered, is of another platform, budget or delta, or is an older copy.
            InputError: the sources cannot be used.
        """
        if self._writer is None:
            self._writer = self._opened(self._file.privacy.epsilon)
        self._receipts.require_last(self._writer)
        self._read()

    def _opened(self, budget: float) -> LedgerWriter:
        return LedgerWriter.open(
            self._ledger,
            platform=self.name,
            budget=budget,
            delta=self._file.privacy.delta,
            identity=identity_of(self._state, make=self._simulation),
        )

    def _read(self) -> Tables:
        if self._tables is None:
            self._file.require_catalogue()
            self._file.require_delta()
            for warning in self._file.privacy_warnings:
                log.warning("%s", warning)
            self._tables = read_tables(self._file, lenient=True)
            self._warn(self._tables)
        return self._tables

    @staticmethod
    def _warn(tables: Tables) -> None:
        """Tell the operator, and nobody else, what would be an error before joining: it may be so for want of one user's rows."""
        if not tables.interactions.positive.any():
            log.warning("no user has a positive interaction: this platform contributes nothing but noise")
        for report in tables.reports:
            if not report.kept:
                log.warning("source '%s' says nothing: %d rows were read and none is kept", report.source, report.read)

    def close(self) -> None:
        """Let go of the ledger."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._session = None

    def _answer(self, request: Request) -> Answer:
        if isinstance(request, Quote):
            return self._quoted(request)
        session = self._open(request)
        if isinstance(request, Join):
            return session.join()
        if isinstance(request, Prefer):
            return session.prefer(request)
        if isinstance(request, Secure) and isinstance(session, SecurePreferences):
            return session.secure(request)
        run = session.run
        if isinstance(run, TrainingContext):
            if isinstance(request, Evaluate):
                return answer_evaluation(run, request)
            if isinstance(request, Personalise):
                return answer_personalise(run, request)
        if isinstance(session, SecureSession):
            if isinstance(request, Sum):
                return session.sum(request)
            if isinstance(request, Count):
                return session.count(request)
        if isinstance(session, LocalSession) and isinstance(request, Train):
            return session.train(request)
        settings = request.settings
        raise ProtocolError(
            f"run {request.run} has {settings.privacy.noise} noise and strategy {settings.strategy}, "
            f"and was asked to {request.kind}"
        )

    def _require_leave(self, request: Request, warrant: str) -> None:
        """Only what this platform's own file allows, whoever asks. A simulation has no coordinator to distrust."""
        if not self._simulation:
            terms = self._file.federation
            terms.require_warrant(warrant, run=request.run, settings=request.settings, now=time.time())
            terms.require_settings(request.settings, users=self._file.users)

    def _require_whole(self, receipt: str) -> None:
        """Nothing is answered with a ledger that lacks what this platform has signed."""
        if receipt and not self._simulation:
            if self._writer is None:
                self._writer = self._opened(self._file.privacy.epsilon)
            self._receipts.require_whole(receipt, self._writer)

    def _quoted(self, request: Quote) -> Answer:
        """What a run would cost; no session is opened, and no file is written."""
        self._require_no_simulation(request.settings)
        trust = b""
        if request.settings.distributed and not self._simulation:
            peers, identity = known_peers(self._file.federation.identities), identity_of(self._state, make=False)
            trust = encode(TrustStatement.of(peers, run=request.run, platform=self.name, identity=identity))
        entries: Sequence[Entry] = ()
        if self._writer is not None:
            entries = self._writer.ledger.entries
        elif self._ledger.exists():
            entries = read_ledger(self._ledger).entries
        return answer_quote(
            self._file,
            request,
            self._read() if not self._simulation else read_tables(self._file),
            budget=self._budget(request.settings),
            spent=[entry.release for entry in entries if entry.run != request.run],
            simulation=self._simulation,
            trust=trust,
        )

    def _require_no_simulation(self, settings: Settings) -> None:
        if settings.simulation and not self._simulation:
            raise PrivacyError(
                "the coordinator asks for a simulation", where=self.name, do="a deployed platform sends no exact metrics"
            )

    def _budget(self, settings: Settings) -> float:
        """Epsilon of all runs together; in a simulation the run may name it."""
        asked = settings.privacy.epsilon
        return asked if self._simulation and asked is not None else self._file.privacy.epsilon

    def _open(self, request: Request) -> Session:
        settings = request.settings
        self._require_no_simulation(settings)
        session = self._session
        if session is not None and session.run.name == request.run and session.run.settings == settings:
            return session
        budget = self._budget(settings)
        self._require_joined(request)
        self._opening = True
        platform = self._prepared(settings)
        if self._writer is None:
            self._writer = self._opened(budget)
        facts: dict[str, Any] = {
            "name": request.run,
            "settings": settings,
            "budget": budget,
            "ledger": self._writer,
            "path": self._state / "runs" / f"{request.run}.safetensors",
            "cache": self._state / "trunk",
            "simulation": self._simulation,
            "progress": self._progress,
            "guard": self._guard,
            "pace": self._pace,
        }
        if isinstance(platform, PreparedPlatform):
            training = TrainingContext(platform=platform, **facts)
            self._session = (
                SecureSession(training, self._participant(request.run, settings))
                if settings.distributed
                else LocalSession(training)
            )
        else:
            run = RunContext(platform=platform, **facts)
            self._session = (
                SecurePreferences(run, self._participant(request.run, settings))
                if settings.distributed
                else LocalPreferences(run)
            )
        return self._session

    def _require_joined(self, request: Request) -> None:
        """Reading and encoding users' rows is for runs that were joined: whoever asks otherwise is refused before any of it."""
        runs = self._state / "runs"
        begun = any((runs / f"{request.run}{suffix}").exists() for suffix in (".safetensors", ".secure"))
        if not self._simulation and not isinstance(request, Join) and not begun:
            raise OutOfOrder(f"asked for a {request.kind} in a run that was not joined")

    def _participant(self, run: str, settings: Settings) -> PersistentParticipant:
        identity = identity_of(self._state, make=self._simulation)
        peers: Callable[[], Peers] = partial(known_peers, self._file.federation.identities)
        if self._simulation:
            # Beside the platforms' folders, under a name that no platform can have.
            register = Register(self._state.parent / ".identities")
            register.add(self.name, identity)
            peers = register.peers
        path = self._state / "runs" / f"{run}.secure"
        assert self._platform is not None and self._writer is not None
        rows = self._platform
        declared = DeclaredCatalogue(
            digest=rows.catalogue_digest,
            items=rows.tables.items,
            users=max(1, self._file.users),
            item_list=list_digest(parse_items(declared_list(rows, settings))) if settings.preferences.items else b"",
        )
        # Looked up before the session can charge or remember anything of the run.
        known = path.with_suffix(".safetensors").exists() or any(entry.run == run for entry in self._writer.ledger.entries)
        return PersistentParticipant(
            run=run,
            settings=settings,
            platform=self.name,
            path=path,
            identity=identity,
            peers=peers,
            declared=declared,
            known=known,
            simulation=self._simulation,
        )

    def _prepared(self, settings: Settings) -> PlatformRows:
        wanted = preparation_key(settings)
        if self._platform is None or self._fingerprint not in (None, wanted):
            if not settings.trains:
                tables = None if self._simulation else self._read()
                self._platform, self._fingerprint = read_rows(self._file, settings, tables=tables), wanted
                return self._platform
            cache = self._state / "trunk"
            self._platform = prepare(
                self._file,
                settings,
                cache=cache,
                tables=None if self._simulation else self._read(),
                guard=self._guard,
                device=self._device,
                progress=self._progress,
            )
        self._fingerprint = wanted
        return self._platform


_WITHOUT_ROWS = frozenset({Phase.CONFIRM, Phase.UNMASK, Phase.POPULARITY})
"""Phases that read no row unless they are the first to come to a new process, and so leave when they are there. Dealing reads
rows where no other platform has this one's catalogue: it counts its popularities."""

# The most special kind first.
_REASONS: dict[type[Exception], Reason] = {
    BudgetExceeded: Reason.BUDGET,
    NoisyPlan: Reason.NOISE,
    LedgerWentBack: Reason.LEDGER,
    PrivacyError: Reason.SETTINGS,
    OutOfOrder: Reason.ROUND,
    Unwarranted: Reason.WARRANT,
    UnknownPeer: Reason.PEERS,
    ProtocolError: Reason.MESSAGE,
    InputError: Reason.SOURCES,
}


def open_partition(*, world: str, index: int, state: str) -> Worker:
    """The worker of the index-th platform file of a world folder, for Flower's own simulation.

    Args:
        state: Folder that holds every platform's state, caches and ledger.

    Raises:
        InputError: the world has no such platform.
    """
    files = sorted((load(path) for path in sorted(Path(world).glob("*.toml"))), key=lambda file: file.name)
    if not 0 <= index < len(files):
        raise InputError(
            f"the world has {len(files)} platforms, none of number {index}", where=world, do="start as many nodes as platforms"
        )
    file = files[index]
    root = Path(state)
    return Worker(
        file, state=root / "state" / file.name, ledger=root / "ledger" / f"{file.name}.jsonl", simulation=True, resident=False
    )


def _reason(error: Exception) -> Reason:
    if isinstance(error, BudgetExceeded):
        return Reason.BUDGET
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    return Reason.FAILED
