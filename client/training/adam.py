"""Adam on named tensors, with a state that can be put away between rounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
        names, values = list(gradients), list(gradients.values())
        if not names:
            return
        first = [self._moment(f"first:{name}", gradient) for name, gradient in gradients.items()]
        second = [self._moment(f"second:{name}", gradient) for name, gradient in gradients.items()]
        # All tensors in one call of each kind: on a GPU every call has a price.
        torch._foreach_lerp_(first, values, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, values, values, 1 - b2)
        # Each tensor counts its own steps: with alternating factors not every tensor moves in every round.
        counts = [int(self._state.setdefault(f"steps:{name}", torch.zeros(1)).add_(1).item()) for name in names]
        size = torch._foreach_sqrt(torch._foreach_div(second, [1 - b2**count for count in counts]))
        torch._foreach_add_(size, self._eps)
        change = torch._foreach_div(torch._foreach_mul(first, [self._rate / (1 - b1**count) for count in counts]), size)
        for name, moved in zip(names, torch._foreach_sub([parameters[name] for name in names], change), strict=True):
            parameters[name] = moved

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's whole state, named."""
        return dict(self._state)

    def _moment(self, name: str, like: Tensor) -> Tensor:
        self._state[name] = self._state.get(name, torch.zeros_like(like)).to(like.device)
        return self._state[name]
