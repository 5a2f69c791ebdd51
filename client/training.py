"""Private training on one platform: Poisson batches of users, clipped per-user gradients, noise, Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.evaluation import exclusion
from client.examples import Examples
from client.gradients import Losses, clipped_sum
from client.mechanism import Mechanism
from client.noise import NoiseSource
from client.objectives import OBJECTIVES, Answers
from client.towers import Rows, Towers
from shared.settings import Settings

MICRO_BATCH = 32
"""Rows of one backward pass, at most."""
ROW_STEP = 8
"""Rows are filled up to a multiple of it: a kernel is made once per shape, and Poisson batches have all sizes."""
LENGTH_STEP = 16
"""Sequences are padded to a multiple of it, for the same reason."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training step reads.

    Args:
        rows: Users' sequences, in the order of `examples`.
        by_user: User number -> its rows; a user without rows has no gradient.
        prior: float32 (items,). Noised log popularity.
        users: Exact number of users present; only the sampler sees it.
    """

    examples: Examples
    rows: Rows
    by_user: Mapping[int, NDArray[np.int64]]
    prior: Tensor
    users: int


class Trainer:
    """Runs private steps.

    Args:
        towers: The model.
        data: The platform's examples.
        settings: Objective, temperature, learning rate.
        mechanism: Sampler, clip and noise.
    """

    def __init__(
        self, *, towers: Towers, data: TrainingData, settings: Settings, mechanism: Mechanism, micro_batch: int = MICRO_BATCH
    ) -> None:
        self._towers, self._data, self._settings, self._mechanism = towers, data, settings, mechanism
        self._objective = OBJECTIVES[settings.training.objective]
        self._micro_batch = micro_batch

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
        for _ in range(steps):
            users = self._mechanism.sample(self._data.users, random)
            sums = self.gradient(current, trained, bank, self._rows_of(users, random))
            optimizer.step(current, self._mechanism.privatise(sums, random))
            if progress:
                progress()
        return current

    def gradient(
        self, parameters: Mapping[str, Tensor], trained: Sequence[str], bank: Tensor, rows: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """Sum of the clipped gradients of rows, one row per user, in micro-batches with the same result."""
        active = {name: parameters[name] for name in trained}
        fixed = {name: value for name, value in parameters.items() if name not in active}
        total: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in active.items()}
        # Sorted by length so that a micro-batch pads little; a sum does not know its order.
        rows = rows[np.argsort(self._data.rows.lengths[rows], kind="stable")]
        for begin in range(0, len(rows), self._micro_batch):
            part = rows[begin : begin + self._micro_batch]
            size = -(-len(part) // ROW_STEP) * ROW_STEP
            real = torch.arange(size) < len(part)
            # A short micro-batch is filled with repeats, which weigh exactly nothing.
            filled = np.resize(part, size)
            losses = self.losses(filled, bank, fixed)
            for name, value in clipped_sum(losses, active, real.to(bank.device), self._mechanism).items():
                total[name] += value
        return total

    def losses(self, rows: NDArray[np.int64], bank: Tensor, fixed: Mapping[str, Tensor]) -> Losses:
        """The loss of each of some rows as a function of the parameters that train."""
        device = self._towers.encoder.device
        hidden, mask, sources = self._data.rows.take(rows, device, multiple=LENGTH_STEP)
        answers = self._answers(rows, len(bank), device)

        def losses(copies: Mapping[str, Tensor]) -> Tensor:
            everything = {**fixed, **copies}
            vectors = self._towers.vectors(hidden, mask, sources, everything)
            scores = vectors @ bank.T / self._settings.model.temperature + self._data.prior
            return self._objective(scores, answers, everything)

        return losses

    def _answers(self, rows: NDArray[np.int64], items: int, device: torch.device) -> Answers:
        examples = self._data.examples
        targets = np.full((len(rows), self._settings.training.targets), -1, np.int64)
        for at, row in enumerate(rows):
            own = examples.targets[int(row)]
            targets[at, : len(own)] = own
        return Answers(
            targets=torch.from_numpy(targets).to(device), excluded=exclusion(examples.excluded, rows, items).to(device)
        )

    def _rows_of(self, users: NDArray[np.int64], random: NoiseSource) -> NDArray[np.int64]:
        """One row, by chance, of every sampled user."""
        there = [self._data.by_user[int(user)] for user in users if int(user) in self._data.by_user]
        picks = random.integers(len(there), 1 << 30)
        return np.fromiter((rows[pick % len(rows)] for rows, pick in zip(there, picks, strict=True)), np.int64, len(there))


class Adam:
    """Adam (Kingma & Ba 2015) on named tensors; its moments are post-processing of noised gradients.

    Args:
        moments: State of an earlier `moments()`, to go on where a round ended.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._rate, self._betas, self._eps = learning_rate, betas, eps
        self._state = {name: value.clone() for name, value in (moments or {}).items()}

    def step(self, parameters: dict[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Replace the parameters that have a gradient; the others stay."""
        b1, b2 = self._betas
        for name, gradient in gradients.items():
            # Each tensor counts its own steps: with alternating factors not every tensor moves in every round.
            steps = self._state.setdefault(f"steps:{name}", torch.zeros(1)).add_(1).item()
            first = self._moment(f"first:{name}", gradient).mul_(b1).add_(gradient, alpha=1 - b1)
            second = self._moment(f"second:{name}", gradient).mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            rate = self._rate / (1 - b1**steps)
            parameters[name] = parameters[name] - rate * first / ((second / (1 - b2**steps)).sqrt() + self._eps)

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's whole state, named."""
        return dict(self._state)

    def _moment(self, name: str, like: Tensor) -> Tensor:
        self._state[name] = self._state.get(name, torch.zeros_like(like)).to(like.device)
        return self._state[name]
