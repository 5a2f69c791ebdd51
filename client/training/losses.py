"""What training minimises: one loss per row over the whole public item bank.

Scores are cosine / temperature + the platform's popularity prior. A row's loss depends on that row's user vector and
on public values alone, so a user's gradient is the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers.lora import Parameters

CLICK_BIAS = "click.bias"
"""Platform-local intercept of the click objective."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What rows should predict.

    Args:
        targets: int64 (n, k). Items to predict, -1 where a row has fewer than k.
        excluded: bool (n, items). Items that are no candidates for the row.
    """

    targets: Tensor
    excluded: Tensor

    @property
    def real(self) -> Tensor:
        """bool (n, k)."""
        return self.targets >= 0


Objective = Callable[[Tensor, Answers, Parameters], Tensor]
"""Scores (n, items), answers, local parameters -> loss (n,)."""


def softmax(scores: Tensor, answers: Answers, local: Parameters) -> Tensor:
    """Mean over a row's targets of -log softmax over the candidates, in nats."""
    log_share = F.log_softmax(scores.masked_fill(answers.excluded, -torch.inf), dim=-1)
    picked = log_share.gather(1, answers.targets.clamp(min=0))
    count = answers.real.sum(1).clamp(min=1)
    return -(torch.where(answers.real, picked, 0.0)).sum(1) / count


def click(scores: Tensor, answers: Answers, local: Parameters) -> Tensor:
    """Binary cross-entropy over all candidates, targets 1 and the rest 0, in nats per target.

    The whole bank takes part, so sigmoid(score + bias) is the calibrated probability that an item is among the next.
    """
    logits = scores + click_bias(local, scores.shape[0])
    count = answers.real.sum(1).clamp(min=1)
    every = F.softplus(logits).masked_fill(answers.excluded, 0.0).sum(1)
    picked = logits.gather(1, answers.targets.clamp(min=0))
    return (every - torch.where(answers.real, picked, 0.0).sum(1)) / count


def click_bias(local: Parameters, rows: int) -> Tensor:
    """The intercept as a column (rows, 1), from one shared (1,) or one copy per row (rows, 1)."""
    bias = local[CLICK_BIAS]
    if hasattr(bias, "rows"):  # a module in its place (`client/training/opacus_gradients.py`)
        column: Tensor = bias.rows(rows)
        return column
    return bias.expand(rows, 1) if bias.dim() == 1 else bias


def initial_bias(prior: Tensor, targets: int) -> dict[str, Tensor]:
    """The intercept under which the prior alone expects `targets` clicks over the bank."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(prior + middle).sum()) < targets else (low, middle)
    return {CLICK_BIAS: torch.tensor([low], dtype=torch.float32)}


OBJECTIVES: Mapping[str, Objective] = {"softmax": softmax, "click": click}
