"""A run under distributed noise on one platform: each round one sum of clipped gradients, with a share of the noise, masked.

What of a step stays here (projectors, a B that never leaves) is part of the same integer vector, on a finer grid, and noised
here, in full (`Integers.local`). So the part that leaves and the part that stays are together one release of the mechanism that
is accounted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.privacy.bounded_sum import BoundedSum
from client.privacy.charged_question import charged_question
from client.privacy.mechanism import noised_local, noised_steps
from client.privacy.noise_sources import NoiseSource
from client.privacy.popularity_release import log_popularity
from client.privacy.release_plan import popularity_release, round_release
from client.run.session import Session
from client.secagg.persistent_participant import PersistentParticipant
from client.training.adam import Adam
from shared.base.errors import OutOfOrder, ProtocolError
from shared.protocol.messages import Count, Joined, Phase, Secure, Secured, Sum, Summed, Train, Update
from shared.secagg.codec import decode, encode
from shared.secagg.fixed_point import FixedPoint, stretch
from shared.secagg.shared_catalogues import POPULARITY, Popularity, Taken, order_of, places


class SummingSession(Session):
    """A session whose updates only the secure sum sees.

    Args:
        secure: The platform's part in it.
    """

    def __init__(self, *, secure: PersistentParticipant, **session: Any) -> None:
        super().__init__(**session)
        self._secure = secure

    def join(self) -> Joined:
        """As `Session.join`, with the keys of all rounds; the prior waits until it is known whose catalogue is the same."""
        return replace(
            super().join(),
            noise_multiplier=self._need,
            keys=self._secure.advert(),
            catalogue=self._platform.catalogue_digest.hex(),
        )

    def _begin(self) -> None:
        pass

    def _prior(self) -> Tensor:
        if not self._knows_popularity:
            raise OutOfOrder("the popularity of this platform's items was neither released nor sent")
        return super()._prior()

    @property
    def _dimensions(self) -> dict[str, int]:
        """Parameters that rounds train and send, by the factors that they train."""
        return {
            factors.value: sum(math.prod(shape) for shape in self._part.sent(factors).values())
            for factors in self._part.scheme.cycle
        }

    @property
    def _need(self) -> float:
        """The noise multiplier that the sums must have so that this platform's whole vector has the plan's."""
        return self.plan.noise_multiplier * max(stretch(size, self._staying) for size in self._dimensions.values())

    def train(self, request: Train) -> Update:
        """Not in this run: its plan pays for sums alone."""
        raise ProtocolError(f"run {self.run} shares its noise under the secure sum, and was asked for an update in clear")

    def sum(self, request: Sum) -> Summed:
        """One round's masked sum; a repeated question gets the same answer."""
        began = time.monotonic()
        self._part.require(request.adapter, where=f"request of round {request.round}")
        sent = self._part.sent(request.factors)
        asked = self._secure.asked(request, finished=self._memory.finished)
        if asked.known is not None:
            return self._summed(request.round, asked.known, began)
        point = self._secure.point(asked, dimension=sum(math.prod(shape) for shape in sent.values()))
        self._require_training()
        self._bank.require(asked.since, request.round)
        prior = self._prior()
        release = round_release(
            self.plan,
            point,
            settings=self.settings,
            group_size=self._platform.friends.group_size,
            local=self._staying,
        )
        self._pay(release, request.round, charged_question(request, "sum"))
        parameters = {**self._tensors(request.adapter), **self._local_values()}
        bank = self._bank.since(asked.since, request.round, parameters)
        random = self._random("train", request.round)
        trainer = self._trainer(prior, self._mechanism)
        sums = trainer.contribution(parameters, [*sent, *self._local], bank, random)
        words = point.wrap(noised_steps(sums.vector(sent), point, random))
        local, moments = self._stepped(sums, parameters, point, random)
        # The round's one answer is on disk before anything else of it is; a crash in between loses a local step, no charge.
        body = self._secure.mask(asked, words)
        answer = self._summed(request.round, body, began)
        facts: dict[str, float | int | str] = {"epsilon": answer.epsilon, "ledger": answer.ledger, "seconds": answer.seconds}
        self._remember(
            finished=request.round, facts=facts, change={}, local=local, moments=moments, clip=self.settings.training.clip
        )
        if self._progress is not None:
            self._progress("training", request.round, self.settings.rounds)
        return answer

    def count(self, request: Count) -> Summed:
        """The masked counts of this platform's items, at their places in the vector of all shared catalogues; as `sum`."""
        began = time.monotonic()
        place = places(self._secure.catalogues).get(self._platform.catalogue_digest)
        over = place is not None and self._knows_popularity
        asked = self._secure.asked(request, finished=POPULARITY if over else POPULARITY - 1)
        if asked.known is not None:
            return self._summed(POPULARITY, asked.known, began)
        point = self._secure.popularity_point(asked)
        if self.plan.private and point.noise_multiplier != self.settings.privacy.prior_noise_multiplier:
            raise ProtocolError(f"popularities with a noise multiplier of {point.noise_multiplier:g}")
        vector = np.zeros(point.dimension)
        if place is not None:
            self._pay(popularity_release(point), POPULARITY, charged_question(request, "popularity"))
            vector[place] = self._counted_items().vector()[order_of(self._platform.tables.item_ids)]
        # Who has none of these catalogues adds its share of the noise, and no row.
        random = self._random("prior", POPULARITY)
        words = point.wrap(noised_steps(vector, point, random))
        return self._summed(POPULARITY, self._secure.mask(asked, words), began)

    @property
    def counted(self) -> int:
        """Coordinates of round 0."""
        return sum(one.items for one in self._secure.catalogues)

    def _take(self, popularity: Popularity) -> None:
        """Go on with what round 0 summed. What is remembered stays: a repeated message changes nothing."""
        tables = self._platform.tables
        if self._knows_popularity:
            return
        if self._platform.catalogue_digest not in places(self._secure.catalogues):
            raise ProtocolError("the popularity of a catalogue that is not this platform's")
        if popularity.counts and len(popularity.values) != tables.items:
            raise ProtocolError(f"popularities of {len(popularity.values)} items, this platform has {tables.items}")
        self._secure.take(popularity)
        prior = np.full(tables.items, -math.log(tables.items), np.float32)
        if popularity.counts:
            prior[order_of(tables.item_ids)] = log_popularity(popularity.values.astype(np.float64), popularity.noise)
        self._take_prior(torch.from_numpy(prior))

    def secure(self, request: Secure) -> Secured:
        """A phase that reads no row."""
        if request.phase is Phase.DEAL:
            body = self._secure.deal(
                request.body,
                need=self._need,
                batch=self._mechanism.expected_batch,
                dimensions=self._dimensions,
            )
            if not self._knows_popularity and self._platform.catalogue_digest not in places(self._secure.catalogues):
                self._release_prior()
        elif request.phase is Phase.CONFIRM:
            body = self._secure.confirm(request.body)
        elif request.phase is Phase.UNMASK:
            body = self._secure.unmask(request.body)
        else:
            self._take(decode(Popularity, request.body))
            body = encode(Taken())
        return Secured(run=self.run, platform=self._platform.name, round=request.round, phase=request.phase, body=body)

    def _stepped(
        self, sums: BoundedSum, parameters: Mapping[str, Tensor], point: FixedPoint, random: NoiseSource
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What stays here, one noised step on, and the optimizer's moments."""
        optimizer = Adam(learning_rate=self.settings.training.learning_rate, moments=self._moments())
        values = {name: parameters[name].clone() for name in self._local}
        if not values:
            return values, optimizer.moments()
        noised = noised_local(sums.vector(self._local), point, random) / self._mechanism.expected_batch
        whole = torch.from_numpy(noised.astype(np.float32))
        parts = torch.split(whole, [value.numel() for value in values.values()])
        optimizer.step(
            values,
            {name: part.view(value.shape).to(self._device) for (name, value), part in zip(values.items(), parts, strict=True)},
        )
        return values, optimizer.moments()

    def _summed(self, round_: int, body: bytes, began: float) -> Summed:
        return Summed(
            run=self.run,
            platform=self._platform.name,
            round=round_,
            users=self._platform.file.users,
            epsilon=self._ledger.epsilon,
            ledger=self._ledger.head,
            seconds=self._pace.of(time.monotonic() - began),
            body=body,
        )
