"""The start-up check: per-user gradients of one small made-up batch against plain autograd, one user at a time.

DP-LoRA has been silently wrong after library upgrades (opacus#820, opacus#841), so every run proves its own gradients
before the first charge, and that every trainable tensor gets one. It runs on the public catalogue: were it on users' rows, its
outcome would be an answer about them that no noise covers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from client.examples.split import ragged
from client.examples.user_examples import Examples
from client.training.per_user_gradients import Losses, user_gradients
from shared.base.errors import PrivacyError
from shared.layers.reference_path import plainly

_MADE_UP = 3


def made_up_examples(items: int, *, targets: int) -> Examples:
    """Users who read as one item each and want the next ones: the catalogue's first items, as many as there are up to three.

    Args:
        items: Of the catalogue, at least 2.
        targets: Items to predict, at most.
    """
    rows = np.arange(min(_MADE_UP, items))
    wanted = [((row + 1 + np.arange(min(targets, items - 1))) % items).astype(np.int32) for row in rows]
    empty = ragged([np.zeros(0, np.int32) for _ in rows])
    return Examples(user=rows, sequences=[], targets=ragged(wanted), context=empty, excluded=empty)


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
        parameters: Values to check at; B is zero at the start and would hide A's gradient, so both are stirred here.
        tolerance: Greatest difference over the greatest gradient of these users, by the dtype of the model. One user's own may be
            next to nothing, and all of it rounding.

    Raises:
        PrivacyError: a gradient differs, or a trainable tensor gets none.
    """
    random = torch.Generator().manual_seed(0)
    stirred = {
        name: (parameters[name] + 0.02 * torch.randn(parameters[name].shape, generator=random).to(parameters[name].device))
        for name in trained
    }
    together = user_gradients(batch, stirred, users)
    expected = [_plain(alone(user), stirred) for user in range(users)]
    greatest = max((_norm(each) for each in expected), default=torch.zeros(()))
    for user, each in enumerate(expected):
        gap = _norm({name: together[name][user] - part for name, part in each.items()})
        if not gap <= tolerance * greatest + 1e-9:
            raise PrivacyError(
                f"the per-user gradient of the start-up check differs by {float(gap / greatest):.2%} from plain autograd",
                do="the installed torch computes something else than it should; no training without exact gradients",
            )
    silent = [name for name in trained if not together[name].abs().sum() > 0]
    if silent:
        raise PrivacyError(
            f"{len(silent)} trainable tensors get no gradient, first {silent[0]}",
            do="this is a fault of the program: please report it",
        )


def _plain(losses: Losses, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One user's gradient by autograd alone, which shares no derivative with what is checked."""
    single = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    with plainly():
        loss = losses({name: value.unsqueeze(0) for name, value in single.items()}).sum()
        found = torch.autograd.grad(loss, list(single.values()), materialize_grads=True)
    return dict(zip(single, found, strict=True))


def _norm(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part.float().square().sum() for part in gradient.values()]).sum().sqrt()
