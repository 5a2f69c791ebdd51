"""A run under distributed noise on one platform: each round one sum of clipped gradients, with a share of the noise, masked.

What of a step stays here (projectors, a B that never leaves) is noised here, in full, with standard deviation z norm / s
(`FixedPoint.noise`). Then the part that leaves and the part that stays are together one release of the mechanism that is
accounted. Say a user's gradient has the parts v1 and v2, |v1|^2 + |v2|^2 <= C^2. He moves the integers by at most the root of
f(|v1|) steps, f(x) = s^2 x^2 + d/4 + l (s x + sqrt(d)/2) and norm^2 = f(C), and what stays by |v2|. In units of their noises
the moves are, squared and added, (f(|v1|) + s^2 |v2|^2) / (z norm)^2 <= f(C) / (z norm)^2 = 1 / z^2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.adam import Adam
from client.budget import popularity_release, round_release
from client.integer_noise import noise_share
from client.noise import NoiseSource
from client.outgoing import coarse
from client.popularity import bounded_counts, log_popularity
from client.secure_sum import SecureSum
from client.session import Session
from client.training import Trainer
from shared.catalogues import POPULARITY, Popularity, Taken, order_of, places
from shared.errors import OutOfOrder, ProtocolError
from shared.fixed_point import SLACK, FixedPoint
from shared.messages import Count, Joined, Phase, Secure, Secured, Sum, Summed, Train, Update
from shared.secagg.codec import decode, encode

_FLOAT = 2.0**-24
"""Unit roundoff of float32."""


class SummingSession(Session):
    """A session whose updates only the secure sum sees.

    Args:
        secure: The platform's part in it.
    """

    def __init__(self, *, secure: SecureSum, **session: Any) -> None:
        super().__init__(**session)
        self._secure = secure

    def join(self) -> Joined:
        """As `Session.join`, with the keys of all rounds; the prior waits until it is known whose catalogue is the same."""
        return replace(super().join(), keys=self._secure.advert(), catalogue=self._platform.catalogue_digest.hex())

    def _begin(self) -> None:
        pass

    def _prior(self) -> Tensor:
        if not self._knows_popularity:
            raise OutOfOrder("the popularity of this platform's items was neither released nor sent")
        return super()._prior()

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
        self._bank.require(asked.since, request.round)
        prior = self._prior()
        group = self._platform.friends.group_size
        self._pay(round_release(self.plan, point, settings=self.settings, group_size=group), request.round)
        parameters = {**self._tensors(request.adapter), **self._local_values()}
        bank = self._bank.since(asked.since, request.round, parameters)
        random = self._random("train", request.round)
        trainer = self._trainer(prior)
        sums = gradient_sums(trainer, parameters, [*sent, *self._local], bank, trainer.sample(random))
        vector = np.concatenate([sums[name].numpy().reshape(-1) for name in sent])
        words = point.wrap(point.encode(vector, random) + noise_share(point, random))
        local, moments = self._stepped({name: sums[name] for name in self._local}, parameters, point, random)
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
        tables = self._platform.tables
        vector = np.zeros(point.dimension)
        if place is not None:
            counts = bounded_counts(self._platform.split, tables, seed=self.settings.seed)
            vector[place] = counts[order_of(tables.item_ids)]
            self._pay(popularity_release(point), POPULARITY)
        # Who has none of these catalogues adds its share of the noise, and no row.
        random = self._random("prior", POPULARITY)
        words = point.wrap(point.encode(vector, random) + noise_share(point, random))
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
                need=self.plan.noise_multiplier,
                batch=self._mechanism.expected_batch,
                dimensions={
                    factors.value: sum(math.prod(shape) for shape in self._part.sent(factors).values())
                    for factors in self._part.scheme.cycle
                },
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
        self, sums: Mapping[str, Tensor], parameters: Mapping[str, Tensor], point: FixedPoint, random: NoiseSource
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What stays here, one noised step on, and the optimizer's moments."""
        optimizer = Adam(learning_rate=self.settings.training.learning_rate, moments=self._moments())
        values = {name: parameters[name].clone() for name in sums}
        gradients: dict[str, Tensor] = {}
        for name, total in sums.items():
            noised = total + point.noise * random.normal(tuple(total.shape)).cpu().double()
            # To float32 first: not every device has float64.
            gradients[name] = (noised / self._mechanism.expected_batch).float().to(self._device)
        optimizer.step(values, gradients)
        return values, optimizer.moments()

    def _summed(self, round_: int, body: bytes, began: float) -> Summed:
        return Summed(
            run=self.run,
            platform=self._platform.name,
            round=round_,
            users=self._platform.file.users,
            epsilon=self._ledger.epsilon,
            ledger=self._ledger.head,
            seconds=coarse(time.monotonic() - began),
            body=body,
        )


def gradient_sums(
    trainer: Trainer, parameters: Mapping[str, Tensor], names: list[str], bank: Tensor, picked: NDArray[np.int64]
) -> dict[str, Tensor]:
    """The sum of users' clipped gradients, name -> float64 on the processor.

    `Trainer.gradient` sums in float32, and a float32 sum of m vectors of norm C is off by up to m^2 2^-24 C. So n users are
    summed m at a time and the parts in float64: off by up to n m 2^-24 C, which `FixedPoint` accounts for up to SLACK/4 C.
    """
    total = {name: torch.zeros(parameters[name].shape, dtype=torch.float64) for name in names}
    at_once = max(1, int(SLACK / 4 / _FLOAT / max(1, len(picked))))
    for start in range(0, len(picked), at_once):
        part = trainer.gradient(parameters, names, bank, picked[start : start + at_once])
        for name in names:
            total[name] += part.sums[name].cpu().double()
    return total
