"""How a platform answers an evaluation: exactly in a simulation, else noised, charged and remembered."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.evaluation.answered_evaluations import Evaluated, answered_before, evaluated_model, evaluation_key
from client.evaluation.private_metrics import metric_sums, noised_quality
from client.personalisation.residual import without_forms
from client.privacy.answer_stamp import AnswerStamp
from client.privacy.bounded_sum import nothing
from client.privacy.charged_question import charged_question
from client.privacy.failure_guard import by_parts
from client.privacy.release_plan import metrics_mechanism
from client.run.popularity_prior import prior_of
from client.run.training_context import TrainingContext
from shared.base.errors import OutOfOrder, PrivacyError
from shared.privacy.plan import evaluation_rate
from shared.protocol.messages import Evaluate, Label, Metrics
from shared.protocol.quality import WIDTH, Quality, mean_quality


def answer_evaluation(run: TrainingContext, request: Evaluate) -> Metrics:
    """Ranking quality of the adapter that was sent.

    Raises:
        OutOfOrder: the plan did not pay for this question.
        PrivacyError: the platform's terms do not allow metrics, or its budget does not carry them.
        ProtocolError: the adapter is not this run's.
    """
    run.part.require(request.adapter, where=f"evaluation after round {request.round}", whole=True)
    if request.label is Label.PERSONAL and not run.simulation:
        raise OutOfOrder("an evaluation of a model that stays on the platform, which is for simulations only")
    if not run.simulation and not run.platform.file.federation.metrics:
        raise PrivacyError("asked for metrics, which this platform's terms do not allow", where="[federation] metrics")
    began = time.monotonic()
    prior = prior_of(run)
    if run.exact or request.label is Label.PERSONAL:
        found = mean_quality(*run.ranks(_parameters(run, request), prior, serving=True, only=_same_users(run)))
        return _metrics(run, request, found, run.stamp(began), exact=True)
    known = answered_before(run.state.evaluations, request, run.settings)
    if known is None:
        noised = _noised(run, request, prior)
        known = Evaluated(model=evaluated_model(request), quality=noised, stamp=run.stamp(began, _question(request)))
        run.keep(evaluations={**run.state.evaluations, evaluation_key(request): known})
    return _metrics(run, request, known.quality, known.stamp, exact=False)


def _parameters(run: TrainingContext, request: Evaluate) -> dict[str, Tensor]:
    parameters = run.parameters(request.adapter)
    if request.label is Label.PERSONAL and run.state.choice is not None and run.state.choice.own:
        return without_forms({**parameters, **run.there(run.state.personal)})
    return parameters


def _same_users(run: TrainingContext) -> NDArray[np.int64] | None:
    """The held-out users whom a simulation's exact evaluations read, the same in all of them; None for everybody."""
    rate = evaluation_rate(run.platform.file.users)
    if rate == 1:
        return None
    random = np.random.default_rng([run.settings.seed, *b"evaluated", 0, *run.platform.name.encode()])
    return np.flatnonzero(random.random(len(run.platform.held_out)) < rate)


def _noised(run: TrainingContext, request: Evaluate, prior: Tensor) -> Quality:
    platform, random = run.platform, run.random(f"evaluate-{request.label}", request.round)
    mechanism = metrics_mechanism(
        run.settings, users=platform.file.users, group_size=platform.friends.group_size, private=run.plan.private
    )
    run.pay(mechanism.release(), request.round, _question(request))
    parameters = _parameters(run, request)
    sums = by_parts(
        lambda users: metric_sums(*run.ranks(parameters, prior, serving=False, only=users)),
        mechanism.sample(len(platform.held_out), random),
        guard=run.guard,
        empty=lambda: nothing({"sum": (WIDTH,)}, bound=1.0),
        what="an evaluation",
    )
    return noised_quality(sums, mechanism, random)


def _question(request: Evaluate) -> str:
    return charged_question(request, "metrics")


def _metrics(run: TrainingContext, request: Evaluate, quality: Quality, stamp: AnswerStamp, *, exact: bool) -> Metrics:
    return Metrics(**run.released(request.round, stamp), label=request.label, quality=quality, exact=exact)
