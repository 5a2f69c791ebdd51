"""Private training on one platform: Poisson batches of users, clipped per-user gradients, noise, the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.batching import filled, length_step, within_memory
from client.compute.device_transfer import sent
from client.evaluation.ranking_metrics import exclusion
from client.examples.user_examples import Examples
from client.model.towers import Towers
from client.model.user_rows import UserBatch, UserRows
from client.privacy.bounded_sum import BoundedSum, nothing
from client.privacy.failure_guard import Guard, by_parts, raising
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import NoiseSource
from client.training.adam import Adam
from client.training.losses import OBJECTIVES, Answers
from client.training.micro_batch import MicroBatch
from client.training.opacus_gradients import ENGINES
from client.training.per_user_gradients import Losses, by_sequence, clip_of
from shared.base.settings import Settings
from shared.layers.malloc_tuning import keep

log = logging.getLogger("fedfuse.training")
SEQUENCES_READ = 2048
"""Sequences of a step that are in memory at a time, with their features: some 100 MB."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training step reads.

    Args:
        rows: Of users; one without rows has no gradient.
        prior: float32 (items,). Noised log popularity.
        users: Exact number of users present; only the sampler sees it.
    """

    rows: UserRows
    prior: Tensor
    users: int


class Trainer:
    """Runs private steps.

    Args:
        towers: The model.
        data: The platform's examples.
        settings: Objective, temperature, learning rate.
        mechanism: Sampler, clip and noise of the first step; `mechanism` is that of the next one.
        micro_batch: Sequences of one backward pass; None: as the settings say. Halved where memory does not suffice.
        guard: What becomes of a step that fails on the rows.
    """

    def __init__(
        self,
        *,
        towers: Towers,
        data: TrainingData,
        settings: Settings,
        mechanism: Mechanism,
        micro_batch: int | None = None,
        guard: Guard = raising,
    ) -> None:
        self._towers, self._data, self._settings, self.mechanism = towers, data, settings, mechanism
        self._objective = OBJECTIVES[settings.training.objective]
        self._engine = ENGINES[settings.training.engine]
        encoder = towers.encoder
        self._clip = clip_of(compiled=encoder.compiled)
        asked = micro_batch or settings.training.micro_batch
        self._guard = guard
        expected = mechanism.users * mechanism.sample_rate
        self._micro_batch = MicroBatch(encoder.device.type, asked=asked, compiled=encoder.compiled, expected=expected)

    def run(
        self,
        parameters: Mapping[str, Tensor],
        trained: Sequence[str],
        bank: Tensor,
        optimizer: Adam,
        *,
        steps: int,
        random: NoiseSource,
        progress: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Parameters after so many private steps.

        Args:
            parameters: All of the model's parameters; untouched.
            trained: Names of those that train.
            bank: float32 (items, width). Item vectors under the round's global adapter; no gradient.
        """
        current = {name: value.detach().clone() for name, value in parameters.items()}
        if bank.device.type == "cpu":
            keep()
        for _ in range(steps):
            total = self.contribution(current, trained, bank, random)
            gradient, self.mechanism = self.mechanism.privatise(total, random)
            optimizer.step(current, {name: value.to(current[name].device) for name, value in gradient.items()})
            if progress:
                progress()
        return current

    def contribution(
        self, parameters: Mapping[str, Tensor], trained: Sequence[str], bank: Tensor, random: NoiseSource
    ) -> BoundedSum:
        """The bounded sum over one Poisson sample; of nobody where the rows make it fail."""
        return by_parts(
            lambda picked: self.gradient(parameters, trained, bank, picked),
            self.sample(random),
            guard=self._guard,
            empty=partial(self._nobody, {name: parameters[name] for name in trained}),
            what="a training step",
        )

    def sample(self, random: NoiseSource) -> NDArray[np.int64]:
        """A Poisson sample of users, by their rows: int64 (users that have rows, sequences a user), rows by chance."""
        return self.picked(self.mechanism.sample(self._data.users, random), random)

    def picked(self, users: NDArray[np.int64], random: NoiseSource) -> NDArray[np.int64]:
        """Rows by chance of users who were drawn, as `sample`."""
        there = self._data.rows.of(users)
        picks = random.integers(len(there), 1 << 30)
        # A user with fewer rows than asked for has some of them twice; the loss is a mean.
        chosen = (picks[:, None] + np.arange(self._settings.training.sequences)) % there.shape[1]
        return np.take_along_axis(there, chosen, axis=1)

    def gradient(
        self, parameters: Mapping[str, Tensor], trained: Sequence[str], bank: Tensor, picked: NDArray[np.int64]
    ) -> BoundedSum:
        """Sum of the clipped gradients of users, in micro-batches with the same result.

        Args:
            picked: int64 (users, sequences a user). Row numbers.
        """
        active = {name: parameters[name] for name in trained}
        fixed = {name: value for name, value in parameters.items() if name not in active}
        most = max(1, SEQUENCES_READ // picked.shape[1])
        parts = (
            self._read_and_summed(picked[begin : begin + most], active, fixed, bank) for begin in range(0, len(picked), most)
        )
        # Nobody may be in a sample.
        return reduce(BoundedSum.plus, parts) if len(picked) else self._nobody(active)

    def _read_and_summed(
        self, picked: NDArray[np.int64], active: Mapping[str, Tensor], fixed: Mapping[str, Tensor], bank: Tensor
    ) -> BoundedSum:
        """The same of users who are read at once; at least one."""
        batch = self._data.rows.read(picked.reshape(-1))
        rows, each = batch.rows, picked.shape[1]
        places = np.arange(picked.size).reshape(-1, each)
        total: BoundedSum | None = None
        # Sorted by length so that a micro-batch pads little; a sum does not know its order.
        waiting = places[np.argsort(rows.lengths[places].max(1, initial=0), kind="stable")]
        lengths = rows.padded(waiting, self._length_step).max(1, initial=0)
        while len(waiting):
            count, size = self._micro_batch.users(lengths, each)
            attempt = partial(self._part, batch, waiting[:count], size, active, fixed, bank)
            part = within_memory(attempt, last=self._micro_batch.sequences == 1)
            if part is None:
                self._micro_batch.halve()
                log.warning("out of memory: %d sequences at a time from now on", self._micro_batch.sequences)
                continue
            total = total.plus(part) if total else part
            waiting, lengths = waiting[count:], lengths[count:]
        assert total is not None
        return total

    def _nobody(self, active: Mapping[str, Tensor]) -> BoundedSum:
        return nothing({name: tuple(value.shape) for name, value in active.items()}, bound=self.mechanism.clip)

    def losses(self, batch: UserBatch, picked: NDArray[np.int64], bank: Tensor, fixed: Mapping[str, Tensor]) -> Losses:
        """The loss of each of some users as a function of the parameters that train.

        Args:
            picked: int64 (users,), or (users, sequences a user). Places in the batch.
        """
        device = self._towers.encoder.device
        rows = picked.reshape(-1)
        hidden, mask, sources = batch.rows.take(rows, device, multiple=self._length_step)
        answers = self._answers(batch.examples, rows, len(bank), device)

        def losses(copies: Mapping[str, Tensor]) -> Tensor:
            everything = {**fixed, **copies}
            vectors = self._towers.vectors(hidden, mask, sources, everything)
            scores = vectors @ bank.T / self._settings.model.temperature + self._data.prior
            return self._objective(scores, answers, everything)

        if rows.size == len(picked):
            return losses
        owner = torch.arange(len(picked), device=device).repeat_interleave(rows.size // len(picked))
        return by_sequence(losses, owner, len(picked))

    def _part(
        self,
        batch: UserBatch,
        picked: NDArray[np.int64],
        size: int,
        active: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        bank: Tensor,
    ) -> BoundedSum:
        real = torch.arange(size) < len(picked)
        # A short micro-batch is filled with repeats, which weigh exactly nothing.
        losses = self.losses(batch, filled(picked, size), bank, fixed)
        gradients = self._engine(losses, active, size)
        return self._clip(gradients, sent(real, bank.device), self.mechanism)

    @property
    def _length_step(self) -> int:
        return length_step(self._towers.encoder.device.type, compiled=self._towers.encoder.compiled)

    def _answers(self, examples: Examples, rows: NDArray[np.int64], items: int, device: torch.device) -> Answers:
        targets = np.full((len(rows), self._settings.training.targets), -1, np.int64)
        row, place, target = examples.targets.entries(rows)
        targets[row, place] = target
        return Answers(targets=sent(targets, device), excluded=exclusion(examples.excluded, rows, items, device))
