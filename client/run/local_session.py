"""A run under local noise on one platform: each round some private steps, and their noised change in clear."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from client.privacy.charged_question import charged_question
from client.run.joining import check_program
from client.run.popularity_prior import prior_of
from client.run.preference_session import LocalPreferences
from client.run.training_context import TrainingContext
from client.training.adam import Adam
from shared.base.errors import OutOfOrder
from shared.protocol.messages import Joined, Train, Update


class LocalSession(LocalPreferences):
    """The rounds of a run in which this platform adds all of the noise itself."""

    run: TrainingContext

    def __init__(self, run: TrainingContext) -> None:
        super().__init__(run)

    def join(self) -> Joined:
        """Prove the gradients, release the prior once, and say what is planned."""
        check_program(self.run)
        prior_of(self.run)
        return super().join()

    def train(self, request: Train) -> Update:
        """One round of private steps from the global adapter; a repeated question gets the same answer.

        Raises:
            OutOfOrder: it is of an earlier round than the last, or past the end.
            ProtocolError: the adapter or the factors are not this run's.
            BudgetExceeded: the budget does not carry the round.
        """
        run, settings = self.run, self.run.settings
        run.part.require(request.adapter, where=f"request of round {request.round}")
        sent = run.part.sent(request.factors)
        if request.round == run.state.finished and run.state.change:
            return self._update()
        run.require_training()
        # A platform that missed rounds may go on with a later one, never with an earlier one.
        if not run.state.finished < request.round <= settings.rounds:
            raise OutOfOrder(f"round {request.round} after round {run.state.finished} of {settings.rounds}")
        began = time.monotonic()
        prior = prior_of(run)
        local = list(run.initial_local)
        mechanism = replace(run.mechanism, dimension=run.part.size(request.factors) + run.staying)
        question = charged_question(request, "training")
        run.pay(mechanism.release(settings.round_steps), request.round, question)
        parameters = run.parameters(request.adapter)
        optimizer = Adam(learning_rate=settings.training.learning_rate, moments=run.moments())
        bank = run.bank.of_round(request.round, parameters)
        trainer = run.trainer(prior, mechanism)
        after = trainer.run(
            parameters,
            [*sent, *local],
            bank,
            optimizer,
            steps=settings.round_steps,
            random=run.random("train", request.round),
            progress=self._steps(request.round),
        )
        run.keep(
            finished=request.round,
            answered=run.stamp(began, question),
            clip=trainer.mechanism.clip,
            change={name: (after[name] - parameters[name]).cpu() for name in sent},
            local={name: after[name] for name in local},
            moments=optimizer.moments(),
            bank=run.bank.remembered,
            preferred={},
        )
        return self._update()

    def _update(self) -> Update:
        run, stamp = self.run, self.run.state.answered
        assert stamp is not None
        change = {name: value.numpy() for name, value in run.state.change.items()}
        return Update(**run.released(run.state.finished, stamp), change=change)

    def _steps(self, round_: int) -> Callable[[], None] | None:
        progress = self.run.progress
        if progress is None:
            return None
        settings = self.run.settings
        done = (round_ - 1) * settings.round_steps

        def step() -> None:
            nonlocal done
            done += 1
            progress("training", done, settings.steps)

        return step
