"""One run on one platform: the plan, the charges and the state that all of its answers are made with.

The order is always the same: check, charge, release, remember, answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.model.prepared_platform import PlatformRows
from client.personalisation.personal_plan import reserved
from client.privacy.answer_stamp import AnswerStamp
from client.privacy.answer_timing import Pace
from client.privacy.bounded_sum import BoundedSum, nothing
from client.privacy.failure_guard import Guard, by_parts, raising
from client.privacy.generators import generator
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.limited_plan import plan_within
from client.privacy.noise_sources import NoiseSource
from client.privacy.release_plan import preference_plan
from client.privacy.run_share import share_of
from client.recommender.frozen_texts import frozen_item_vectors
from client.run.run_state import RunState, load_run_state, save_run_state
from shared.base.errors import PrivacyError
from shared.base.progress import Progress, counted
from shared.base.settings import Settings, settings_digest
from shared.preferences.taste_directions import item_directions
from shared.privacy.plan import Plan
from shared.privacy.releases import Release


class RunContext:
    """A run on one platform, as everything that it answers shares it; no model is needed.

    Args:
        name: Of the run.
        budget: Epsilon that all runs together may spend.
        path: File of the state that must outlive the process.
        simulation: Whether exact metrics and seeded noise may be used.
        guard: What becomes of a computation on rows that fails.
        pace: When answers may leave.
        cache: Folder of the trunk cache, for texts of items that a taste map reads.
        group_size: Examples that one user may touch.

    Raises:
        PrivacyError: the run began with other settings; the platform's terms or budget do not allow it; or the ledger knows the
            run, and its state is lost.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        platform: PlatformRows,
        budget: float,
        ledger: LedgerWriter,
        path: Path,
        cache: Path,
        simulation: bool,
        progress: Progress | None = None,
        guard: Guard = raising,
        pace: Pace | None = None,
        group_size: int = 1,
    ) -> None:
        self.name, self.settings, self.rows, self.budget, self.ledger = name, settings, platform, budget, ledger
        self.simulation, self.progress, self.guard, self.pace = simulation, progress, guard, pace or Pace(step=0.0)
        self._path, self._cache = path, cache
        # Nothing is noised where privacy is off, and nothing then counts.
        spent = [entry.release for entry in ledger.ledger.entries if entry.run != name] if math.isfinite(budget) else ()
        self.share = share_of(platform.file, settings, budget=budget, spent=spent, simulation=simulation)
        """What the whole run may spend; what comes after the rounds included."""
        self._public: dict[str, Any] = {
            "share": self.share.part(reserved(settings)),
            "simulation": simulation,
            "group_size": group_size,
            "parameters": self.parameters_trained,
            "items": platform.tables.items,
            "exact_metrics": self.exact,
            "spent": spent,
        }
        self.plan = plan_within(platform.file, settings, **self._public)
        self.state = self._begun(settings_digest(settings))

    @property
    def parameters_trained(self) -> int:
        """Most parameters that one step trains, those that stay on the platform included; 1 where nothing is trained."""
        return 1

    @property
    def rank(self) -> int:
        """LoRA rank that this platform trains; 0 where nothing is trained."""
        return 0

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """What a taste map sees of this platform's items, float64 (items, directions); of the public catalogue alone."""
        return item_directions(self.item_vectors(), self.settings.preferences.map)

    def item_vectors(self) -> NDArray[np.float32]:
        """Vectors of the items' texts by the frozen backbone."""
        advance = counted(self.progress, "reading the items' texts", self.rows.tables.items)
        return frozen_item_vectors(self.rows.file, self.rows.tables, self.settings.model, cache=self._cache, advance=advance)

    @cached_property
    def plan_alone(self) -> Plan:
        """The plan of a run in which no two platforms have items in common: what preferences do not take is training's."""
        if not self.plan.preference_noise or not self.settings.trains:
            return self.plan
        none = self.settings.preferences.model_copy(update={"items": 0})
        return plan_within(self.rows.file, self.settings.model_copy(update={"preferences": none}), **self._public)

    @property
    def prefers(self) -> bool:
        """Whether this platform's users count in sums of preferences."""
        return preference_plan(self.rows.file, self.settings) is not None

    def _begun(self, digest: str) -> RunState:
        known = load_run_state(self._path)
        if known is not None and known.settings != digest:
            raise PrivacyError(f"run {self.name} began with other settings", where=str(self._path), do="start a new run")
        if known is None and any(entry.run == self.name for entry in self.ledger.ledger.entries):
            raise PrivacyError(
                f"the ledger has charges of run {self.name}, and the run's state is gone: nobody knows what was answered",
                where=str(self._path),
                do="leave this run; a new one is open to this platform",
            )
        return known or RunState(settings=digest)

    @property
    def exact(self) -> bool:
        """Whether metrics are exact, and no release: in a simulation that decides nothing by them."""
        return self.simulation and self.settings.exact_metrics

    def keep(self, **changes: Any) -> None:
        """Change the state's fields, on disk first: what is not remembered is not answered.

        Raises:
            StorageError: it cannot be written; the state stays as it was.
        """
        state = replace(self.state, **changes)
        save_run_state(self._path, state)
        self.state = state

    def pay(self, release: Release, round_: int, question: str) -> None:
        """Charge a release, unless the ledger's last line is the charge of an attempt that never left this platform.

        An answer leaves only after it is remembered on disk, and what is remembered is answered again word for word. So
        a charge at the ledger's end for this very question, whose answer is not remembered, paid for an attempt that a crash cut
        off, whose noise nobody has seen; it pays for the next attempt. One release, one charge, whatever dies. A state that was
        lost altogether is no such case: then the run is over (`__init__`). So that it can be told, there is a state from before
        the first charge on.

        Args:
            question: Digest of the request that the release answers (`client/privacy/charged_question.py`).

        Raises:
            BudgetExceeded: the platform's budget does not carry it.
            PrivacyError: an answer to the last charge has left, and the state does not know it.
        """
        if not self._path.exists():
            save_run_state(self._path, self.state)
        last = self.ledger.ledger.entries[-1] if self.ledger.ledger.entries else None
        if last is None or (last.run, last.round, last.release, last.question) != (self.name, round_, release, question):
            self.ledger.charge(release, run=self.name, round=round_, question=question)
        elif self.ledger.left:
            raise PrivacyError(
                "an answer for the ledger's last charge has left, and the run's state does not know it: it is an older copy",
                where=str(self._path),
                do="leave this run; a new one is open to this platform",
            )

    def stamp(self, began: float, question: str = "") -> AnswerStamp:
        """The stamp of an answer that is ready now, to a question that came at `began`.

        Args:
            question: What its charge was paid under, if one was; empty where no row took part.
        """
        charge = self.ledger.charge_for(self.name, question) if question else ""
        return AnswerStamp.now(self.ledger, self.pace, began=began, charge=charge)

    def released(self, round_: int, stamp: AnswerStamp) -> dict[str, Any]:
        """The fields of `shared.protocol.messages.Released`, which every answer made from rows has."""
        who = {"run": self.name, "platform": self.rows.name, "round": round_, "users": self.rows.file.users}
        return {**who, **asdict(stamp)}

    def random(self, purpose: str, round_: int) -> NoiseSource:
        """The generator of one release."""
        return generator(self.settings, self.rows.name, purpose, round_, simulation=self.simulation)

    def sum_over_users(self, contributions: Callable[[NDArray[np.int64]], BoundedSum], *, items: int, what: str) -> BoundedSum:
        """A bounded sum over this platform's users, whatever fails on some of them.

        Args:
            contributions: Of some users, by number.
            items: Numbers of the vector.
            what: For the operator's log.
        """
        empty = partial(nothing, {"sum": (items,)}, bound=1.0)
        return by_parts(contributions, np.arange(self.rows.split.users), guard=self.guard, empty=empty, what=what)
