"""The steps of personalising: plan, charge, train, remember, charge, compare, remember.

What is trained and what was decided are remembered apart: whatever dies between, no release is made, or paid for, twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.model.prepared_platform import PreparedPlatform
from client.personalisation.plan import PersonalPlan, begun, flattened, gains, plan_personal, wins
from client.privacy.answer_timing import Pace
from client.privacy.bounded_sum import nothing
from client.privacy.failure_guard import Guard, by_parts
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import NoiseSource
from client.run.adapter_partition import Part
from client.run.run_state import Memory
from client.training.adam import Adam
from client.training.trainer import Trainer
from shared.privacy.releases import Release
from shared.protocol.messages import Personalise, Personalised

CHOSEN = "chosen"
PERSONAL = "personal"


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a run's session lends to personalising.

    Args:
        budget: Epsilon of all runs together.
        trainer: Makes a trainer with that mechanism.
        gains: NDCG@10 under parameters of some held-out users, int64 (users,), by their place among them; float64 (users,).
        guard: What becomes of a comparison that fails on the rows.
        pace: When answers may leave.
        pay: Charges a release under a round, once.
        recall: What the run remembers.
        keep: Adds facts and a group of tensors to it, on disk.
    """

    run: str
    platform: PreparedPlatform
    part: Part
    budget: float
    ledger: LedgerWriter
    trainer: Callable[[Mechanism], Trainer]
    gains: Callable[[Mapping[str, Tensor], NDArray[np.int64]], NDArray[np.float64]]
    random: Callable[[str, int], NoiseSource]
    guard: Guard
    pace: Pace
    pay: Callable[[Release, int], None]
    recall: Callable[[], Memory]
    keep: Callable[[Mapping[str, float | int | str], Mapping[str, Mapping[str, Tensor]]], None]

    def answer(self, request: Personalise, shared: Mapping[str, Tensor]) -> Personalised:
        """Train this platform's own residual adapter, and say whether it is kept; the same question gets the same answer.

        Args:
            shared: The global adapter, completed, with this platform's own parameters.
        """
        if CHOSEN not in self.recall().facts:
            began = time.monotonic()
            plan = self._plan()
            chosen = plan is not None and self._better(plan, shared)
            facts: dict[str, float | int | str] = {
                CHOSEN: int(chosen),
                f"{CHOSEN} epsilon": self.ledger.epsilon,
                f"{CHOSEN} ledger": self.ledger.head,
                f"{CHOSEN} seconds": self.pace.of(time.monotonic() - began),
            }
            self.keep(facts, {})
        known = self.recall().facts
        return Personalised(
            run=self.run,
            platform=self.platform.name,
            round=request.round,
            users=self.platform.file.users,
            chosen=bool(known[CHOSEN]),
            epsilon=float(known[f"{CHOSEN} epsilon"]),
            ledger=str(known[f"{CHOSEN} ledger"]),
            seconds=float(known[f"{CHOSEN} seconds"]),
        )

    def _plan(self) -> PersonalPlan | None:
        settings, tensors = self.part.settings, self.recall().tensors
        return plan_personal(
            settings,
            self.platform.file,
            run=self.run,
            budget=self.budget,
            # Where the clip adapted, it goes on from where the rounds left it.
            clip=float(tensors["clip"]["clip"]) if "clip" in tensors else settings.training.clip,
            group_size=self.platform.friends.group_size,
            parameters=sum(math.prod(shape) for shape in self.part.layout.values()),
            entries=self.ledger.ledger.entries,
        )

    def _better(self, plan: PersonalPlan, shared: Mapping[str, Tensor]) -> bool:
        if PERSONAL not in self.recall().tensors:
            self.pay(plan.training.release(plan.steps), plan.round)
            trained = flattened(self._trained(plan, shared))
            self.keep({}, {PERSONAL: {name: value.detach().cpu() for name, value in trained.items()}})
        self.pay(plan.comparison.release(), plan.round)
        own = without_forms({**shared, **own_of(self.recall(), like=shared)})
        gained = by_parts(
            lambda users: gains(self.gains(shared, users), self.gains(own, users)),
            np.arange(len(self.platform.held_out)),
            guard=self.guard,
            empty=lambda: nothing({"sum": (1,)}, bound=1.0),
            what="the comparison of the platform's own model",
        )
        return wins(gained, plan.comparison, self.random("compare", plan.round))

    def _trained(self, plan: PersonalPlan, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        settings = self.part.settings.training
        parameters = begun(shared, self.part)
        optimizer, random = Adam(learning_rate=settings.learning_rate), self.random(PERSONAL, plan.round)
        trainer, left = self.trainer(plan.training), plan.steps
        while left:
            # The bank follows as often as it would in a round.
            bank = self.platform.bank(parameters)
            steps = min(left, settings.local_steps)
            parameters = trainer.run(parameters, list(self.part.layout), bank, optimizer, steps=steps, random=random)
            left -= steps
        return parameters


def own_of(memory: Memory, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The platform's own flattened adapter, on the device of `like`."""
    device = next(iter(like.values())).device
    return {name: value.to(device) for name, value in memory.tensors[PERSONAL].items()}


def without_forms(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters whose A and B are a whole flattened adapter: core and residual are in them already."""
    return {name: value for name, value in parameters.items() if not name.endswith((".lora_R", ".residual_A", ".residual_B"))}
