"""What a platform says when it joins a run, after it has proved its gradients on made-up users."""

from __future__ import annotations

import numpy as np
import torch

from client.fusion.projector import LOCAL
from client.model.prepared_platform import PlatformRows
from client.model.user_rows import KnownRows, UserBatch
from client.privacy.release_plan import preference_plan
from client.run.run_context import RunContext
from client.run.training_context import TrainingContext
from client.training.gradient_check import check_gradients, made_up_examples
from client.training.trainer import Trainer, TrainingData
from shared.base.settings import Settings
from shared.protocol.messages import Joined

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def joined(run: RunContext) -> Joined:
    """What is planned; every field is declared public, or follows from what is."""
    platform, plan = run.rows, run.plan
    if run.settings.preferences.map and run.prefers:
        run.directions  # noqa: B018 - the slow part of a taste map, before anybody waits for the sum
    return Joined(
        run=run.name,
        platform=platform.name,
        users=platform.file.users,
        items=platform.tables.items,
        budget=run.budget if platform.file.federation.show_budget else plan.epsilon,
        delta=plan.delta,
        planned_epsilon=plan.epsilon,
        noise_multiplier=plan.noise_multiplier,
        signal_to_noise=plan.signal_to_noise,
        finished=run.state.finished,
        rank=run.rank,
        item_list=declared_list(run.rows, run.settings),
        preference_noise=plan.preference_noise,
        taste_noise=plan.taste_noise,
    )


def declared_list(rows: PlatformRows, settings: Settings) -> bytes:
    """The list of items by which platforms find out what they have in common; empty where this one shares no preferences."""
    plan = preference_plan(rows.file, settings)
    return rows.item_list if plan is not None and plan.items else b""


def check_program(run: TrainingContext) -> None:
    """Hold the per-user gradients against plain autograd, on made-up users.

    No row enters: what the check finds, and so whether this platform joins, follows from the program, the settings and the
    public catalogue.

    Raises:
        PrivacyError: they differ.
    """
    platform, settings = run.platform, run.settings
    # Fresh values: the program is what is checked, and under remembered ones a model may be anything.
    parameters = {**run.parameters(run.part.initial()), **run.there(run.initial_local)}
    examples = made_up_examples(platform.tables.items, targets=settings.training.targets)
    rows = np.arange(len(examples))
    batch = UserBatch(examples=examples, rows=platform.items.some(rows))
    data = TrainingData(
        rows=KnownRows(batch, rows[:, None]),
        # Whatever the prior will be, a constant to the gradients.
        prior=torch.zeros(platform.tables.items, device=run.device),
        users=len(examples),
    )
    # Soft: at a low temperature a softmax is all or nothing, and its gradient little else than the rounding of the scores.
    soft = settings.model_copy(update={"model": settings.model.model_copy(update={"temperature": 1.0})})
    trainer = Trainer(towers=platform.towers, data=data, settings=soft, mechanism=run.mechanism_under(run.plan))
    bank = run.bank.now(parameters)
    local = [name for name in run.initial_local if not name.startswith(LOCAL)]
    names = list(dict.fromkeys([*run.part.layout, *local]))
    fixed = {name: value for name, value in parameters.items() if name not in names}
    check_gradients(
        trainer.losses(batch, rows, bank, fixed),
        lambda at: trainer.losses(batch, rows[at : at + 1], bank, fixed),
        parameters,
        names,
        users=len(rows),
        tolerance=_TOLERANCE[platform.towers.encoder.dtype],
    )
