"""Ranks of a platform's held-out items among its whole catalogue."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.compute.batching import filled, fixed_shapes, stepped
from client.evaluation.ranking_metrics import ROWS_AT_ONCE, ranks_by_parts
from client.model.prepared_platform import PreparedPlatform
from client.model.user_rows import UserBatch
from shared.base.settings import Settings


def held_out_ranks(
    platform: PreparedPlatform,
    settings: Settings,
    bank: Tensor,
    parameters: Mapping[str, Tensor],
    prior: Tensor,
    *,
    serving: bool,
    only: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rank of every held-out item, and the number of candidates, each (users evaluated,).

    Args:
        bank: float32 (items, width). Item vectors under the parameters.
        prior: float32 (items,). Log popularity.
        serving: Whether users are read as the recommender reads them, which stays on the platform; else as training does, which
            bounds every friend's influence (with `influence = 0`: to none), as what is released must.
        only: int64 (users evaluated,). Which of the held-out examples; by default all.
    """
    wanted = np.arange(len(platform.held_out)) if only is None else only
    found, among = [np.zeros(0)], [np.zeros(0, np.int64)]
    for batch in platform.held_out.read(wanted, serving=serving):
        rank, candidates = _ranks(batch, platform.towers.encode(batch.rows, parameters, apart=True), settings, bank, prior)
        found.append(rank)
        among.append(candidates)
    return np.concatenate(found), np.concatenate(among)


def _ranks(
    batch: UserBatch, users: Tensor, settings: Settings, bank: Tensor, prior: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    every = np.arange(len(batch))

    def scores(part: slice) -> Tensor:
        wanted = every[part]
        size = ROWS_AT_ONCE if fixed_shapes(users.device.type) else stepped(len(wanted))
        return (users[filled(wanted, size)] @ bank.T)[: len(wanted)] / settings.model.temperature + prior

    return ranks_by_parts(
        scores,
        batch.examples.targets.values,
        batch.examples.excluded,
        every,
        len(bank),
    )
