"""The start-up check: per-user gradients of one small batch against plain autograd, one user at a time.

DP-LoRA has been silently wrong after library upgrades (opacus#820, opacus#841), so every run proves its own gradients
before the first charge, and that every trainable tensor gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from client.gradients import Losses, per_user
from shared.errors import PrivacyError
from shared.plain import plainly


def check_gradients(
    batch: Losses,
    alone: Callable[[int], Losses],
    parameters: Mapping[str, Tensor],
    trained: Sequence[str],
    *,
    users: int,
    tolerance: float,
) -> None:
    """Compare the batched per-user gradients with each user's own.

    Args:
        batch: Losses of the whole batch.
        alone: User's place in the batch -> losses of a batch of that one user.
        parameters: Current values; B is zero at the start and would hide A's gradient, so both are stirred here.
        tolerance: Greatest relative difference, by the dtype of the model.

    Raises:
        PrivacyError: a gradient differs, or a trainable tensor gets none.
    """
    random = torch.Generator().manual_seed(0)
    stirred = {
        name: (parameters[name] + 0.02 * torch.randn(parameters[name].shape, generator=random).to(parameters[name].device))
        for name in trained
    }
    together = per_user(batch, stirred, users)
    for user in range(users):
        single = {name: value.clone().requires_grad_() for name, value in stirred.items()}
        with plainly():
            lone = alone(user)({name: value.unsqueeze(0) for name, value in single.items()}).sum()
            expected = torch.autograd.grad(lone, list(single.values()), materialize_grads=True)
        norm = torch.stack([part.float().square().sum() for part in expected]).sum().sqrt()
        gap = (
            torch.stack([(together[name][user] - part).square().sum() for name, part in zip(single, expected, strict=True)])
            .sum()
            .sqrt()
        )
        if not gap <= tolerance * norm + 1e-9:
            raise PrivacyError(
                f"the per-user gradient of the start-up check differs by {float(gap / norm):.2%} from plain autograd",
                do="the installed torch computes something else than it should; no training without exact gradients",
            )
    silent = [name for name in trained if not together[name].abs().sum() > 0]
    if silent:
        raise PrivacyError(
            f"{len(silent)} trainable tensors get no gradient, first {silent[0]}",
            do="this is a fault of the program: please report it",
        )
