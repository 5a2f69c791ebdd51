"""A run under distributed noise on one platform: each round one sum of clipped gradients, with a share of the noise, masked.

What of a step stays here (projectors, a B that never leaves) is part of the same integer vector, on a finer grid, and noised
here, in full (`Integers.local`). So the part that leaves and the part that stays are together one release of the mechanism that
is accounted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from client.privacy.answer_stamp import AnswerStamp
from client.privacy.bounded_sum import BoundedSum
from client.privacy.charged_question import charged_question
from client.privacy.mechanism import noised_local, noised_steps
from client.privacy.noise_sources import NoiseSource
from client.privacy.popularity_release import log_popularity
from client.privacy.release_plan import popularity_release, round_release
from client.run.joining import check_program
from client.run.popularity_prior import counted_items, prior_of, release_popularity, take_prior
from client.run.preference_session import SecurePreferences
from client.run.training_context import TrainingContext
from client.secagg.persistent_participant import PersistentParticipant
from client.training.adam import Adam
from shared.base.errors import ProtocolError
from shared.protocol.messages import Count, Joined, Phase, Secure, Secured, Sum, Summed
from shared.secagg.codec import decode, encode
from shared.secagg.fixed_point import FixedPoint, stretch
from shared.secagg.shared_catalogues import POPULARITY, Popularity, Taken, order_of, places


class SecureSession(SecurePreferences):
    """The rounds of a run whose updates only the secure sum sees.

    Args:
        participant: The platform's part in it.
    """

    run: TrainingContext

    def __init__(self, run: TrainingContext, participant: PersistentParticipant) -> None:
        super().__init__(run, participant)

    def join(self) -> Joined:
        """Prove the gradients, and say what is planned and the keys of all rounds.

        The prior waits until it is known whose catalogue is the same.
        """
        check_program(self.run)
        return super().join()

    @property
    def _dimensions(self) -> dict[str, int]:
        """Parameters that rounds train and send, by the factors that they train."""
        part = self.run.part
        return {factors.value: part.size(factors) for factors in part.scheme.cycle}

    @property
    def _need(self) -> float:
        """The noise multiplier that the sums must have so that this platform's whole vector has the plan's."""
        return self.run.plan.noise_multiplier * max(stretch(size, self.run.staying) for size in self._dimensions.values())

    def sum(self, request: Sum) -> Summed:
        """One round's masked sum; a repeated question gets the same answer."""
        run, began = self.run, time.monotonic()
        run.part.require(request.adapter, where=f"request of round {request.round}")
        sent = run.part.sent(request.factors)
        asked = self._participant.asked(request, finished=run.state.finished)
        question = charged_question(request, "sum")
        if asked.known is not None:
            return self._summed(request.round, asked.known, run.stamp(began, question))
        point = self._participant.point(asked, dimension=run.part.size(request.factors))
        run.require_training()
        run.bank.require(asked.since, request.round)
        prior = prior_of(run)
        release = round_release(
            run.plan,
            point,
            settings=run.settings,
            users=run.platform.file.users,
            group_size=run.platform.friends.group_size,
            local=run.staying,
        )
        run.pay(release, request.round, question)
        parameters = run.parameters(request.adapter)
        bank = run.bank.since(asked.since, request.round, parameters)
        random = run.random("train", request.round)
        trainer = run.trainer(prior, run.mechanism_under(run.plan))
        sums = trainer.contribution(parameters, [*sent, *run.initial_local], bank, random)
        words = point.wrap(noised_steps(sums.vector(sent), point, random))
        local, moments = self._stepped(sums, parameters, point, random)
        # The round's one answer is on disk before anything else of it is; a crash in between loses a local step, no charge.
        body = self._participant.mask(asked, words)
        stamp = run.stamp(began, question)
        run.keep(
            finished=request.round,
            answered=stamp,
            local=local,
            moments=moments,
            bank=run.bank.remembered,
        )
        if run.progress is not None:
            run.progress("training", request.round, run.settings.rounds)
        return self._summed(request.round, body, stamp)

    def count(self, request: Count) -> Summed:
        """The masked counts of this platform's items, at their places in the vector of all shared catalogues; as `sum`."""
        run, began = self.run, time.monotonic()
        place = places(self._participant.catalogues).get(run.platform.catalogue_digest)
        over = place is not None and run.state.prior is not None
        asked = self._participant.asked(request, finished=POPULARITY if over else POPULARITY - 1)
        question = charged_question(request, "popularity")
        if asked.known is not None:
            return self._summed(POPULARITY, asked.known, run.stamp(began, question))
        point = self._participant.popularity_point(asked)
        if run.plan.private and point.noise_multiplier != run.settings.privacy.prior_noise_multiplier:
            raise ProtocolError(f"popularities with a noise multiplier of {point.noise_multiplier:g}")
        vector = np.zeros(point.dimension)
        if place is not None:
            run.pay(popularity_release(point), POPULARITY, question)
            vector[place] = counted_items(run).vector()[order_of(run.platform.tables.item_ids)]
        # Who has none of these catalogues adds its share of the noise, and no row.
        words = point.wrap(noised_steps(vector, point, run.random("prior", POPULARITY)))
        return self._summed(POPULARITY, self._participant.mask(asked, words), run.stamp(began, question))

    @property
    def counted(self) -> int:
        """Coordinates of round 0."""
        return sum(one.items for one in self._participant.catalogues)

    def secure(self, request: Secure) -> Secured:
        """A phase that reads no row."""
        run = self.run
        if request.phase is Phase.POPULARITY:
            self._take(decode(Popularity, request.body))
            body = encode(Taken())
            return Secured(run=run.name, platform=run.platform.name, round=request.round, phase=request.phase, body=body)
        answer = super().secure(request)
        alone = run.platform.catalogue_digest not in places(self._participant.catalogues)
        if request.phase is Phase.DEAL and run.state.prior is None and alone:
            release_popularity(run)
        return answer

    def _take(self, popularity: Popularity) -> None:
        """Go on with what round 0 summed. What is remembered stays: a repeated message changes nothing."""
        run, tables = self.run, self.run.platform.tables
        if run.state.prior is not None:
            return
        if run.platform.catalogue_digest not in places(self._participant.catalogues):
            raise ProtocolError("the popularity of a catalogue that is not this platform's")
        if popularity.counts and len(popularity.values) != tables.items:
            raise ProtocolError(f"popularities of {len(popularity.values)} items, this platform has {tables.items}")
        self._participant.take(popularity)
        prior = np.full(tables.items, -math.log(tables.items), np.float32)
        if popularity.counts:
            prior[order_of(tables.item_ids)] = log_popularity(popularity.values.astype(np.float64), popularity.noise)
        take_prior(run, torch.from_numpy(prior))

    def _stepped(
        self, sums: BoundedSum, parameters: Mapping[str, Tensor], point: FixedPoint, random: NoiseSource
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What stays here, one noised step on, and the optimizer's moments."""
        run = self.run
        optimizer = Adam(learning_rate=run.settings.training.learning_rate, moments=run.moments())
        values = {name: parameters[name].clone() for name in run.initial_local}
        if not values:
            return values, optimizer.moments()
        noised = noised_local(sums.vector(values), point, random) / run.mechanism_under(run.plan).expected_batch
        parts = torch.split(torch.from_numpy(noised.astype(np.float32)), [value.numel() for value in values.values()])
        steps = {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}
        optimizer.step(values, run.there(steps))
        return values, optimizer.moments()

    def _summed(self, round_: int, body: bytes, stamp: AnswerStamp) -> Summed:
        return Summed(**self.run.released(round_, stamp), body=body)
