"""One run on one platform: the plan, the mechanism, the charges and the state that all of its answers are made with.

The order is always the same: check, charge, release, remember, answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.evaluation.held_out_ranking import held_out_ranks
from client.examples.vectors import widths_of
from client.model.item_bank import BankOfRounds
from client.model.prepared_platform import PreparedPlatform, Progress
from client.personalisation.personal_plan import reserved
from client.privacy.answer_stamp import AnswerStamp
from client.privacy.answer_timing import Pace
from client.privacy.failure_guard import Guard, raising
from client.privacy.generators import generator
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.limited_plan import mechanism_of, plan_within
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import NoiseSource
from client.run.adapter_partition import Part
from client.run.run_state import RunState, load_run_state, save_run_state
from client.training.losses import CLICK_BIAS
from client.training.trainer import Trainer, TrainingData
from shared.base.errors import OutOfOrder, PrivacyError
from shared.base.settings import CLIPS, Settings, settings_digest
from shared.privacy.releases import Release
from shared.protocol.messages import Arrays


class RunContext:
    """A run on one platform, as sessions, evaluations and personalising share it.

    Args:
        name: Of the run.
        budget: Epsilon that all runs together may spend.
        path: File of the state that must outlive the process.
        simulation: Whether exact metrics and seeded noise may be used.
        guard: What becomes of a computation on rows that fails.
        pace: When answers may leave.

    Raises:
        PrivacyError: the run began with other settings; the platform's terms or budget do not allow it; or the ledger knows the
            run, and its state is lost.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        platform: PreparedPlatform,
        budget: float,
        ledger: LedgerWriter,
        path: Path,
        simulation: bool,
        progress: Progress | None = None,
        guard: Guard = raising,
        pace: Pace | None = None,
    ) -> None:
        self.name, self.settings, self.platform, self.budget, self.ledger = name, settings, platform, budget, ledger
        self.simulation, self.progress, self.guard, self.pace = simulation, progress, guard, pace or Pace(step=0.0)
        self._path = path
        self.device = platform.towers.encoder.device
        self.part = Part.of(settings, platform.towers.encoder.backbone.shape, rank=platform.file.rank)
        self.initial_local = self._initial_local()
        terms, users = platform.file.federation, platform.file.users
        parameters = self.part.learning + self.staying
        self.plan = plan_within(
            platform.file,
            settings,
            budget=budget * reserved(settings),
            group_size=platform.friends.group_size,
            parameters=parameters,
            exact_metrics=self.exact,
            spent=[entry.release for entry in ledger.ledger.entries if entry.run != name] if math.isfinite(budget) else (),
        )
        if not simulation:
            terms.require_noise(self.plan.noise_multiplier)
        self.mechanism = mechanism_of(
            self.plan,
            settings.training,
            users=users,
            dimension=parameters,
            group_size=platform.friends.group_size,
            clips=CLIPS if simulation else (terms.minimum_clip, terms.maximum_clip),
        )
        self.state = self._begun(settings_digest(settings))
        self.bank = BankOfRounds(
            platform.bank,
            rounds=settings.training.bank_steps // settings.round_steps,
            device=self.device,
            remembered=self.state.bank,
        )

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
        """Whether metrics are exact, and no release: in a simulation."""
        return self.simulation and self.settings.simulation

    @property
    def staying(self) -> int:
        """Parameters that are trained here and never leave."""
        return sum(value.numel() for value in self.initial_local.values())

    @property
    def local(self) -> Mapping[str, Tensor]:
        """Those parameters as they are now."""
        return self.initial_local if self.state.prior is None else self.state.local

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

    def stamp(self, began: float) -> AnswerStamp:
        """The stamp of an answer that is ready now, to a question that came at `began`."""
        return AnswerStamp.now(self.ledger, self.pace, began=began)

    def released(self, round_: int, stamp: AnswerStamp) -> dict[str, Any]:
        """The fields of `shared.protocol.messages.Released`, which every answer made from rows has."""
        who = {"run": self.name, "platform": self.platform.name, "round": round_, "users": self.platform.file.users}
        return {**who, **asdict(stamp)}

    def require_training(self) -> None:
        """Check that the run's last word was not spoken: personalising is once, and its plan spends what the rounds have left.

        Raises:
            OutOfOrder: this platform was asked to personalise already.
        """
        last = self.settings.rounds + 1
        if any((entry.run, entry.round) == (self.name, last) for entry in self.ledger.ledger.entries):
            raise OutOfOrder("asked to train after personalising, which ends a run")

    def parameters(self, adapter: Arrays) -> dict[str, Tensor]:
        """The whole model: the adapter that was sent, with its fixed factors, and what stays here."""
        # Copied: the arrays belong to the message and are read-only.
        whole = self.part.completed(adapter, self.platform.towers.encoder.backbone)
        sent = {name: torch.tensor(value, device=self.device) for name, value in whole.items()}
        return {**sent, **self.there(self.local)}

    def there(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on the run's device."""
        return {name: value.to(self.device) for name, value in values.items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's moments of the round before, but for factors that the strategy has turned since."""
        turned = self.part.layout if self.part.scheme.restarts else {}
        return {key: value for key, value in self.state.moments.items() if key.partition(":")[2] not in turned}

    def trainer(self, prior: Tensor, mechanism: Mechanism) -> Trainer:
        """Trains with that mechanism, its clip where the rounds before have moved it to."""
        platform = self.platform
        data = TrainingData(
            examples=platform.examples, rows=platform.rows, by_user=platform.by_user, prior=prior, users=platform.tables.users
        )
        if mechanism.quantile is not None and self.state.clip is not None:
            mechanism = replace(mechanism, clip=self.state.clip)
        return Trainer(towers=platform.towers, data=data, settings=self.settings, mechanism=mechanism, guard=self.guard)

    def ranks(
        self, parameters: Mapping[str, Tensor], prior: Tensor, *, serving: bool, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `held_out_ranks`, on this platform."""
        bank = self.bank.now(parameters)
        return held_out_ranks(self.platform, self.settings, bank, parameters, prior, serving=serving, only=only)

    def random(self, purpose: str, round_: int) -> NoiseSource:
        """The generator of one release."""
        return generator(self.settings, self.platform.name, purpose, round_, simulation=self.simulation)

    def _initial_local(self) -> dict[str, Tensor]:
        settings, platform = self.settings, self.platform
        random = np.random.default_rng([settings.seed, *platform.name.encode()])
        local = platform.towers.fusion.initial(widths_of(platform.tables), platform.towers.encoder.hidden, random)
        local |= {CLICK_BIAS: torch.zeros(1)} if settings.training.objective == "click" else {}
        # Factors that stay here are local parameters like any other: remembered, and never sent.
        start = self.part.initial()
        return local | {name: torch.from_numpy(start[name]) for name in self.part.kept}
