"""Engines: how the gradient of each user is made.

`batched` is ours (`client/training/per_user_gradients.py`). `opacus` runs Opacus' GradSampleModule over the same towers: each
trained factor is a linear module with its hooks. It is slower and serves as the reference, and its modules as the way for a
fusion of one's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from client.training.per_user_gradients import Losses, user_gradients

Engine = Callable[[Losses, Mapping[str, Tensor], int], dict[str, Tensor]]
"""Losses, the parameters that train, number of users -> gradient of each user, name -> float32 (users, *shape)."""


def opacus_per_user(losses: Losses, parameters: Mapping[str, Tensor], users: int) -> dict[str, Tensor]:
    """`user_gradients` by Opacus' hooks on linear modules (Yousefpour et al. 2021).

    Args:
        parameters: Matrices (k, d), and vectors (k,) that are added to every row as they are.
    """
    from opacus import GradSampleModule

    names = {name: f"factor_{place}" for place, name in enumerate(parameters)}
    modules = nn.ModuleDict({names[name]: _Factor(value) for name, value in parameters.items()})
    with warnings.catch_warnings():
        # Opacus warns of hooks on modules whose input needs no gradient; they are called all the same.
        warnings.simplefilter("ignore")
        hooked: Any = GradSampleModule(modules, batch_first=True, loss_reduction="sum")
        try:
            inside = cast(nn.ModuleDict, hooked._module)
            torch.autograd.backward(losses({name: cast(Any, inside[key]) for name, key in names.items()}).sum())
            gradients = {name: _sample(cast(_Factor, inside[key]), users) for name, key in names.items()}
        finally:
            hooked.remove_hooks()
    return gradients


class _Factor(nn.Module):
    """One trained tensor as a module: `lora.apply` calls it in place of a matrix product."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        rows, columns = value.shape if value.dim() == 2 else (len(value), 1)
        self.shape = value.shape
        self.linear = nn.Linear(columns, rows, bias=False, device=value.device)
        with torch.no_grad():
            self.linear.weight.copy_(value.reshape(rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x.to(self.linear.weight.dtype))).to(x.dtype)

    def rows(self, count: int) -> Tensor:
        """A vector as a (count, k) tensor whose every row is it."""
        return cast(Tensor, self(torch.ones(count, 1, device=self.linear.weight.device)))


def _sample(factor: _Factor, users: int) -> Tensor:
    found = getattr(factor.linear.weight, "grad_sample", None)
    if found is None:  # the loss does not reach this tensor
        return torch.zeros(users, *factor.shape, device=factor.linear.weight.device)
    return cast(Tensor, found).detach().float().reshape(users, *factor.shape)


ENGINES: Mapping[str, Engine] = {"batched": user_gradients, "opacus": opacus_per_user}
