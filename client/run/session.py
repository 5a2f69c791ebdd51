"""One run on one platform: its plan, its popularity prior, its rounds, its evaluations.

The order is always the same: check, charge, release, remember, answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.evaluation.answered_evaluations import kept, recall, remember
from client.evaluation.held_out_ranking import held_out_ranks
from client.evaluation.private_metrics import metric_sums, noised_quality
from client.evaluation.ranking_metrics import per_user_metrics, quality
from client.examples.vectors import widths_of
from client.fusion.projector import LOCAL
from client.model.item_bank import BankOfRounds
from client.model.prepared_platform import PreparedPlatform, Progress
from client.personalisation.plan import reserved
from client.personalisation.residual import CHOSEN, Own, own_of, without_forms
from client.privacy.answer_timing import Pace
from client.privacy.bounded_sum import BoundedSum, nothing
from client.privacy.charged_question import charged_question
from client.privacy.failure_guard import Guard, by_parts, raising
from client.privacy.generators import generator
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import NoiseSource
from client.privacy.popularity_release import bounded_counts, count_mechanism, release_prior
from client.privacy.release_plan import WIDTH, metrics_mechanism
from client.privacy.run_plan import mechanism_of, plan_within
from client.run.adapter_partition import Part
from client.run.run_state import Memory, load_memory, save_memory
from client.training.adam import Adam
from client.training.gradient_check import check_gradients, made_up_examples
from client.training.losses import CLICK_BIAS, initial_bias
from client.training.trainer import Trainer, TrainingData
from shared.base.errors import OutOfOrder, PrivacyError
from shared.base.settings import CLIPS, Settings
from shared.model.factor_schedule import personalises
from shared.privacy.releases import Release
from shared.protocol.messages import (
    Arrays,
    Evaluate,
    Join,
    Joined,
    Label,
    Metrics,
    Personalise,
    Personalised,
    Train,
    Update,
)
from shared.secagg.shared_catalogues import POPULARITY

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class Session:
    """A run's state on one platform.

    Args:
        digest: Of the settings; a run cannot change them half-way.
        memory: File of the state that must outlive the process.
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
        run: str,
        settings: Settings,
        digest: str,
        platform: PreparedPlatform,
        budget: float,
        ledger: LedgerWriter,
        memory: Path,
        simulation: bool,
        progress: Progress | None = None,
        guard: Guard = raising,
        pace: Pace | None = None,
    ) -> None:
        self.run, self.settings = run, settings
        self._guard, self._pace = guard, pace or Pace(step=0.0)
        self._platform, self._ledger, self._path = platform, ledger, memory
        self._simulation, self._progress = simulation, progress
        self._device = platform.towers.encoder.device
        self._budget = budget
        self._part = Part.of(settings, platform.towers.encoder.backbone.shape, rank=platform.file.rank)
        self._local = self._initial_local()
        exact = simulation and settings.simulation
        self.plan = plan_within(
            platform.file,
            settings,
            budget=budget * reserved(settings),
            group_size=platform.friends.group_size,
            parameters=self._part.learning + self._staying,
            exact_metrics=exact,
            spent=[entry.release for entry in ledger.ledger.entries if entry.run != run] if math.isfinite(budget) else (),
        )
        if not simulation:
            platform.file.federation.require_noise(self.plan.noise_multiplier)
        self._mechanism = mechanism_of(
            self.plan,
            settings.training,
            users=platform.file.users,
            dimension=self._part.learning + self._staying,
            group_size=platform.friends.group_size,
            clips=CLIPS if simulation else (platform.file.federation.minimum_clip, platform.file.federation.maximum_clip),
        )
        known = load_memory(memory)
        if known is not None and known.settings != digest:
            raise PrivacyError(f"run {run} began with other settings", where=str(memory), do="start a new run")
        if known is None and any(entry.run == run for entry in ledger.ledger.entries):
            raise PrivacyError(
                f"the ledger has charges of run {run}, and the run's state is gone: nobody knows what was answered",
                where=str(memory),
                do="leave this run; a new one is open to this platform",
            )
        self._memory = known or Memory(settings=digest)
        self._bank = BankOfRounds(
            platform.bank,
            rounds=settings.training.bank_steps // settings.round_steps,
            device=self._device,
            remembered=self._memory.tensors.get("bank", {}),
        )

    def join(self) -> Joined:
        """Prove the gradients, release the prior once, and say what is planned."""
        self._selfcheck()
        self._begin()
        return Joined(
            run=self.run,
            platform=self._platform.name,
            users=self._platform.file.users,
            items=self._platform.tables.items,
            budget=self._budget if self._platform.file.federation.show_budget else self.plan.epsilon,
            delta=self.plan.delta,
            planned_epsilon=self.plan.epsilon,
            noise_multiplier=self.plan.noise_multiplier,
            signal_to_noise=self.plan.signal_to_noise,
            finished=self._memory.finished,
            rank=self._part.rank,
        )

    def _begin(self) -> None:
        """What is released before the first round."""
        self._prior()

    @property
    def _staying(self) -> int:
        """Parameters that are trained here and never leave."""
        return sum(value.numel() for value in self._local.values())

    def train(self, request: Train) -> Update:
        """One round of private steps from the global adapter; a repeated question gets the same answer."""
        self._part.require(request.adapter, where=f"request of round {request.round}")
        sent = self._part.sent(request.factors)
        if request.round == self._memory.finished and "change" in self._memory.tensors:
            return self._remembered()
        self._require_training()
        # A platform that missed rounds may go on with a later one, never with an earlier one.
        if not self._memory.finished < request.round <= self.settings.rounds:
            raise OutOfOrder(f"round {request.round} after round {self._memory.finished} of {self.settings.rounds}")
        began = time.monotonic()
        prior = self._prior()
        steps = self.settings.round_steps
        mechanism = replace(self._mechanism, dimension=sum(math.prod(shape) for shape in sent.values()) + self._staying)
        self._pay(mechanism.release(steps), request.round, charged_question(request, "training"))
        parameters = {**self._tensors(request.adapter), **self._local_values()}
        optimizer = Adam(learning_rate=self.settings.training.learning_rate, moments=self._moments())
        bank = self._bank.of_round(request.round, parameters)
        trainer = self._trainer(prior, mechanism)
        after = trainer.run(
            parameters,
            [*sent, *self._local],
            bank,
            optimizer,
            steps=steps,
            random=self._random("train", request.round),
            progress=self._step(request.round),
        )
        change = {name: (after[name] - parameters[name]).cpu() for name in sent}
        facts: dict[str, float | int | str] = {
            "epsilon": self._ledger.epsilon,
            "ledger": self._ledger.head,
            "seconds": self._pace.of(time.monotonic() - began),
        }
        local = {name: after[name] for name in self._local}
        self._remember(
            finished=request.round,
            facts=facts,
            change=change,
            local=local,
            moments=optimizer.moments(),
            clip=trainer.mechanism.clip,
        )
        return self._remembered()

    def _require_training(self) -> None:
        """Check that the run's last word was not spoken: personalising is once, and its plan spends what the rounds have left.

        Raises:
            OutOfOrder: this platform was asked to personalise already.
        """
        last = self.settings.rounds + 1
        if any((entry.run, entry.round) == (self.run, last) for entry in self._ledger.ledger.entries):
            raise OutOfOrder("asked to train after personalising, which ends a run")

    def evaluate(self, request: Evaluate) -> Metrics:
        """Ranking quality of the global adapter; exact in a simulation, else noised, charged and remembered."""
        self._part.require(request.adapter, where=f"evaluation after round {request.round}", whole=True)
        if request.label is Label.PERSONAL and not self._simulation:
            raise OutOfOrder("an evaluation of a model that stays on the platform, which is for simulations only")
        if not self._simulation and not self._platform.file.federation.metrics:
            raise PrivacyError("asked for metrics, which this platform's terms do not allow", where="[federation] metrics")
        began = time.monotonic()
        prior = self._prior()
        exact = self._simulation and self.settings.simulation
        if not exact:
            known = recall(
                self._memory.facts, request, self.settings, users=self._platform.file.users, platform=self._platform.name
            )
            if known is not None:
                return known
        parameters = {**self._tensors(request.adapter), **self._local_values()}
        if request.label is Label.PERSONAL and self._memory.facts.get(CHOSEN):
            parameters = without_forms({**parameters, **own_of(self._memory, like=parameters)})
        if exact:
            result = quality(*self.ranks(parameters, prior, serving=True))
        else:
            mechanism = metrics_mechanism(self.settings, group_size=self._platform.friends.group_size, private=self.plan.private)
            self._pay(mechanism.release(), request.round, charged_question(request, "metrics"))
            sums = by_parts(
                lambda rows: metric_sums(*self.ranks(parameters, prior, serving=False, only=rows)),
                np.arange(len(self._platform.held_out)),
                guard=self._guard,
                empty=lambda: nothing({"sum": (WIDTH,)}, bound=1.0),
                what="an evaluation",
            )
            random = self._random(f"evaluate-{request.label}", request.round)
            result = noised_quality(sums, mechanism, random, users=self._platform.file.users)
        metrics = Metrics(
            run=self.run,
            platform=self._platform.name,
            round=request.round,
            label=request.label,
            users=self._platform.file.users,
            ndcg=result.ndcg,
            hr=result.hr,
            auc=result.auc,
            exact=exact,
            epsilon=self._ledger.epsilon,
            ledger=self._ledger.head,
            seconds=self._pace.of(time.monotonic() - began),
        )
        if not exact:
            self._memory = replace(self._memory, facts=remember(self._memory.facts, request, metrics))
            save_memory(self._path, self._memory)
        return metrics

    def personalise(self, request: Personalise) -> Personalised:
        """Train a residual adapter of this platform's own, and keep it if a noised comparison says that it is better."""
        self._part.require(request.adapter, where=f"the model of round {request.round}", whole=True)
        if request.round != self.settings.rounds or not personalises(self.settings.strategy):
            raise OutOfOrder(f"asked to personalise after round {request.round} of {self.settings.rounds}")
        prior = self._prior()
        own = Own(
            run=self.run,
            platform=self._platform,
            part=self._part,
            budget=self._budget,
            ledger=self._ledger,
            trainer=lambda mechanism: self._trainer(prior, mechanism),
            gains=lambda parameters, users: per_user_metrics(*self.ranks(parameters, prior, serving=False, only=users))[0],
            random=self._random,
            guard=self._guard,
            pace=self._pace,
            pay=lambda release, round_: self._pay(release, round_, charged_question(request, str(release.kind))),
            recall=lambda: self._memory,
            keep=self._keep,
        )
        return own.answer(request, {**self._tensors(request.adapter), **self._local_values()})

    def _keep(self, facts: Mapping[str, float | int | str], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        known = self._memory
        self._memory = replace(known, facts={**known.facts, **facts}, tensors={**known.tensors, **tensors})
        save_memory(self._path, self._memory)

    def ranks(
        self, parameters: Mapping[str, Tensor], prior: Tensor, *, serving: bool, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `held_out_ranks`, on this platform."""
        bank = self._bank.now(parameters)
        return held_out_ranks(self._platform, self.settings, bank, parameters, prior, serving=serving, only=only)

    def _prior(self) -> Tensor:
        """The noised popularity prior: charged and released at the first need, remembered ever after."""
        if not self._knows_popularity:
            self._release_prior()
        return self._memory.tensors["prior"]["log"].to(self._device)

    @property
    def _knows_popularity(self) -> bool:
        return "prior" in self._memory.tensors

    def _release_prior(self) -> None:
        mechanism = count_mechanism(self.settings, items=self._platform.tables.items, private=self.plan.private)
        asked = Join(run=self.run, settings=self.settings)
        self._pay(mechanism.release(), POPULARITY, charged_question(asked, "popularity"))
        random = self._random("prior", POPULARITY)
        self._take_prior(torch.from_numpy(release_prior(self._counted_items(), mechanism, random)))
        # Nothing left, but what was drawn is in every answer from now on.
        self._ledger.leave()

    def _counted_items(self) -> BoundedSum:
        """How often each item was liked, every user's counts of norm at most 1."""
        tables, split = self._platform.tables, self._platform.split
        return by_parts(
            lambda users: bounded_counts(split, tables, seed=self.settings.seed, only=users),
            np.arange(split.users),
            guard=self._guard,
            empty=lambda: nothing({"sum": (tables.items,)}, bound=1.0),
            what="counting popularities",
        )

    def _take_prior(self, prior: Tensor) -> None:
        """Remember the prior; float32 (items,)."""
        self._local = self._initial_local() | (
            initial_bias(prior, self.settings.training.targets) if self.settings.training.objective == "click" else {}
        )
        self._memory = Memory(settings=self._memory.settings, tensors={"prior": {"log": prior}, "local": self._local})
        save_memory(self._path, self._memory)

    def _pay(self, release: Release, round_: int, question: str) -> None:
        """Charge a release, unless the ledger's last line is the charge of an attempt that never left this platform.

        An answer leaves only after it is remembered on disk, and what is remembered is answered again word for word. So
        a charge at the ledger's end for this very question, whose answer is not remembered, paid for an attempt that a crash cut
        off, whose noise nobody has seen; it pays for the next attempt. One release, one charge, whatever dies. A state that was
        lost altogether is no such case: then the run is over (`__init__`). So that it can be told, there is a state from before
        the first charge on.
        """
        if not self._path.exists():
            save_memory(self._path, self._memory)
        last = self._ledger.ledger.entries[-1] if self._ledger.ledger.entries else None
        if last is None or (last.run, last.round, last.release, last.question) != (self.run, round_, release, question):
            self._ledger.charge(release, run=self.run, round=round_, question=question)
        elif self._ledger.left:
            raise PrivacyError(
                "an answer for the ledger's last charge has left, and the run's state does not know it: it is an older copy",
                where=str(self._path),
                do="leave this run; a new one is open to this platform",
            )

    def _initial_local(self) -> dict[str, Tensor]:
        settings = self.settings
        random = np.random.default_rng([settings.seed, *self._platform.name.encode()])
        fusion = self._platform.towers.fusion
        local = fusion.initial(widths_of(self._platform.tables), self._platform.towers.encoder.hidden, random)
        local |= {CLICK_BIAS: torch.zeros(1)} if settings.training.objective == "click" else {}
        # Factors that stay here are local parameters like any other: remembered, and never sent.
        start = self._part.initial()
        return local | {name: torch.from_numpy(start[name]) for name in self._part.kept}

    def _local_values(self) -> dict[str, Tensor]:
        return self._there(self._memory.tensors.get("local", self._local))

    def _there(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._device) for name, value in values.items()}

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's moments of the round before, but for factors that the strategy has turned since."""
        moments = self._memory.tensors.get("moments", {})
        turned = self._part.layout if self._part.scheme.restarts else {}
        return {key: value for key, value in moments.items() if key.partition(":")[2] not in turned}

    def _selfcheck(self) -> None:
        """Hold the per-user gradients against plain autograd, on made-up users.

        No row enters: what the check finds, and so whether this platform joins, follows from the program, the settings and the
        public catalogue.
        """
        # Fresh values: the program is what is checked, and under remembered ones a model may be anything.
        parameters = {**self._tensors(self._part.initial()), **self._there(self._local)}
        platform = self._platform
        examples = made_up_examples(platform.tables.items, targets=self.settings.training.targets)
        rows = np.arange(len(examples))
        data = TrainingData(
            examples=examples,
            rows=platform.items,
            by_user={int(row): rows[row : row + 1] for row in rows},
            # Whatever the prior will be, a constant to the gradients.
            prior=torch.zeros(platform.tables.items, device=self._device),
            users=len(examples),
        )
        # Soft: at a low temperature a softmax is all or nothing, and its gradient little else than the rounding of the scores.
        soft = self.settings.model_copy(update={"model": self.settings.model.model_copy(update={"temperature": 1.0})})
        trainer = Trainer(towers=platform.towers, data=data, settings=soft, mechanism=self._mechanism)
        bank = self._bank.now(parameters)
        names = list(dict.fromkeys([*self._part.layout, *(name for name in self._local if not name.startswith(LOCAL))]))
        fixed = {name: value for name, value in parameters.items() if name not in names}
        check_gradients(
            trainer.losses(rows, bank, fixed),
            lambda at: trainer.losses(rows[at : at + 1], bank, fixed),
            parameters,
            names,
            users=len(rows),
            tolerance=_TOLERANCE[platform.towers.encoder.dtype],
        )

    def _trainer(self, prior: Tensor, mechanism: Mechanism) -> Trainer:
        platform = self._platform
        data = TrainingData(
            examples=platform.examples, rows=platform.rows, by_user=platform.by_user, prior=prior, users=platform.tables.users
        )
        if mechanism.quantile is not None and "clip" in self._memory.tensors:
            mechanism = replace(mechanism, clip=float(self._memory.tensors["clip"]["clip"]))
        return Trainer(towers=platform.towers, data=data, settings=self.settings, mechanism=mechanism, guard=self._guard)

    def _tensors(self, adapter: Arrays) -> dict[str, Tensor]:
        # Copied: the arrays belong to the message and are read-only.
        whole = self._part.completed(adapter, self._platform.towers.encoder.backbone)
        return {name: torch.tensor(value, device=self._device) for name, value in whole.items()}

    def _random(self, purpose: str, round_: int) -> NoiseSource:
        return generator(self.settings, self._platform.name, purpose, round_, simulation=self._simulation)

    def _remember(
        self,
        *,
        finished: int,
        facts: Mapping[str, float | int | str],
        change: Mapping[str, Tensor],
        local: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        clip: float,
    ) -> None:
        tensors = {
            "prior": self._memory.tensors["prior"],
            "local": local,
            "moments": moments,
            "change": change,
            "clip": {"clip": torch.tensor([clip], dtype=torch.float64)},
            "bank": self._bank.remembered,
        }
        facts = {**kept(self._memory.facts), **facts}
        self._memory = Memory(settings=self._memory.settings, finished=finished, facts=facts, tensors=tensors)
        save_memory(self._path, self._memory)

    def _remembered(self) -> Update:
        facts = self._memory.facts
        return Update(
            run=self.run,
            platform=self._platform.name,
            round=self._memory.finished,
            users=self._platform.file.users,
            epsilon=float(facts["epsilon"]),
            ledger=str(facts["ledger"]),
            seconds=float(facts["seconds"]),
            change={name: value.numpy() for name, value in self._memory.tensors["change"].items()},
        )

    def _step(self, round_: int):  # type: ignore[no-untyped-def]
        if self._progress is None:
            return None
        done = (round_ - 1) * self.settings.round_steps

        def step() -> None:
            nonlocal done
            done += 1
            assert self._progress is not None
            self._progress("training", done, self.settings.steps)

        return step
