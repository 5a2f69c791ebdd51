"""The steps of personalising: plan, charge, train, remember, charge, compare, remember.

What is trained and what was decided are remembered apart: whatever dies between, no release is made, or paid for, twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from client.personalisation.comparison import gains, wins
from client.personalisation.personal_plan import PersonalPlan, plan_personal
from client.personalisation.residual import begun, flattened, without_forms
from client.privacy.bounded_sum import nothing
from client.privacy.charged_question import charged_question
from client.privacy.failure_guard import by_parts
from client.run.popularity_prior import prior_of
from client.run.run_state import PersonalChoice
from client.run.training_context import TrainingContext
from client.training.adam import Adam
from shared.base.errors import OutOfOrder
from shared.model.factor_schedule import personalises
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.messages import Personalise, Personalised
from shared.protocol.quality import METRICS, NDCG

_PURPOSE = "personal"


def answer_personalise(run: TrainingContext, request: Personalise) -> Personalised:
    """Train this platform's own residual adapter, and say whether it is kept; the same question gets the same answer.

    Raises:
        OutOfOrder: the run does not personalise, or is not at its end.
        ProtocolError: the adapter is not this run's.
    """
    run.part.require(request.adapter, where=f"the model of round {request.round}", whole=True)
    # With patience, any round may turn out to be the last one; whoever has personalised trains no more (`require_training`).
    ended = request.round == run.settings.rounds or (run.settings.patience and 0 < request.round < run.settings.rounds)
    if not ended or not personalises(run.settings.strategy):
        raise OutOfOrder(f"asked to personalise after round {request.round} of {run.settings.rounds}")
    if run.state.choice is None:
        began = time.monotonic()
        prior = prior_of(run)
        plan = _plan(run)
        own = plan is not None and _better(run, plan, request, prior)
        run.keep(choice=PersonalChoice(own=own, stamp=run.stamp(began, _question(request, ReleaseKind.EVALUATE))))
    assert run.state.choice is not None
    return Personalised(**run.released(request.round, run.state.choice.stamp), chosen=run.state.choice.own)


def _question(request: Personalise, kind: ReleaseKind) -> str:
    return charged_question(request, str(kind))


def _plan(run: TrainingContext) -> PersonalPlan | None:
    return plan_personal(
        run.settings,
        run.platform.file,
        run=run.name,
        share=run.share,
        # Where the clip adapted, it goes on from where the rounds left it.
        clip=run.settings.training.clip if run.state.clip is None else run.state.clip,
        group_size=run.platform.friends.group_size,
        parameters=sum(math.prod(shape) for shape in run.part.layout.values()),
        entries=run.ledger.ledger.entries,
    )


def _better(run: TrainingContext, plan: PersonalPlan, request: Personalise, prior: Tensor) -> bool:
    def pay(release: Release) -> None:
        run.pay(release, plan.round, _question(request, release.kind))

    shared = run.parameters(request.adapter)
    training, comparison = plan.releases
    if not run.state.personal:
        pay(training)
        trained = flattened(_trained(run, plan, shared, prior))
        run.keep(personal={name: value.detach().cpu() for name, value in trained.items()})
    pay(comparison)
    own = without_forms({**shared, **run.there(run.state.personal)})

    def ndcg(parameters: Mapping[str, Tensor], users: np.ndarray) -> np.ndarray:
        return METRICS[NDCG].per_user(*run.ranks(parameters, prior, serving=False, only=users))

    random = run.random("compare", plan.round)
    gained = by_parts(
        lambda users: gains(ndcg(shared, users), ndcg(own, users)),
        plan.comparison.sample(len(run.platform.held_out), random),
        guard=run.guard,
        empty=lambda: nothing({"sum": (1,)}, bound=1.0),
        what="the comparison of the platform's own model",
    )
    return wins(gained, plan.comparison, random)


def _trained(run: TrainingContext, plan: PersonalPlan, shared: Mapping[str, Tensor], prior: Tensor) -> dict[str, Tensor]:
    settings = run.settings.training
    parameters = begun(shared, run.part)
    optimizer, random = Adam(learning_rate=settings.learning_rate), run.random(_PURPOSE, plan.round)
    trainer, left = run.trainer(prior, plan.training), plan.steps
    while left:
        # The bank follows as often as it would in a round.
        bank = run.platform.bank(parameters)
        steps = min(left, settings.local_steps)
        parameters = trainer.run(parameters, list(run.part.layout), bank, optimizer, steps=steps, random=random)
        left -= steps
    return parameters
