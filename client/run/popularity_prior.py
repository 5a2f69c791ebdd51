"""The popularity prior of a run on one platform: released once, with noise, and remembered ever after."""

from __future__ import annotations

import torch
from torch import Tensor

from client.privacy.bounded_sum import BoundedSum
from client.privacy.charged_question import charged_question
from client.privacy.popularity_release import bounded_counts, count_mechanism, release_prior
from client.run.training_context import TrainingContext
from client.training.losses import initial_bias
from shared.base.errors import OutOfOrder
from shared.ledger.release_digest import content_digest
from shared.protocol.messages import Join
from shared.secagg.shared_catalogues import POPULARITY


def prior_of(run: TrainingContext) -> Tensor:
    """Log popularity, float32 (items,), on the run's device. Under local noise it is charged and released at the first need.

    Raises:
        OutOfOrder: under the secure sum it was neither released nor sent yet.
    """
    if run.state.prior is None:
        if run.settings.distributed:
            raise OutOfOrder("the popularity of this platform's items was neither released nor sent")
        release_popularity(run)
    assert run.state.prior is not None
    return run.state.prior.to(run.device)


def release_popularity(run: TrainingContext) -> None:
    """Charge, release and remember the popularity of this platform's items, with all of the noise its own."""
    mechanism = count_mechanism(run.settings, items=run.platform.tables.items, private=run.plan.private)
    question = charged_question(Join(run=run.name, settings=run.settings), "popularity")
    run.pay(mechanism.release(), POPULARITY, question)
    random = run.random("prior", POPULARITY)
    prior = release_prior(counted_items(run), mechanism, random)
    take_prior(run, torch.from_numpy(prior))
    # Nothing left, but what was drawn is in every answer from now on.
    run.ledger.record_release(
        content_digest("prior", run.name, POPULARITY, prior.astype("<f4").tobytes()),
        charge=run.ledger.charge_for(run.name, question),
        run=run.name,
        round=POPULARITY,
    )


def counted_items(run: TrainingContext) -> BoundedSum:
    """How often each item was liked, (items,), every user's counts of norm at most 1."""
    tables, split = run.platform.tables, run.platform.split
    return run.sum_over_users(
        lambda users: bounded_counts(split, tables, seed=run.settings.seed, only=users),
        items=tables.items,
        what="counting popularities",
    )


def take_prior(run: TrainingContext, prior: Tensor) -> None:
    """Begin with this log popularity; float32 (items,)."""
    click = run.settings.training.objective == "click"
    bias = initial_bias(prior, run.settings.training.targets) if click else {}
    run.keep(prior=prior, local={**run.initial_local, **bias})
