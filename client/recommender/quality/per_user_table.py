"""One row for each held-out user: what every model makes of them. It holds users' ids, so it stays on the platform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from client.recommender.model_comparison import COMPARED, RankedUsers
from shared.base.atomic_files import whole_file

_MODE = 0o600


def write_per_user(path: Path, ranked: RankedUsers, *, users: Sequence[str], held: Sequence[str]) -> None:
    """Write columns user, held_out, the segments (true or false), and of every model its rank and metrics: "own ndcg@10".

    Args:
        path: A Parquet file, of mode 0600; replaced if it is there.
        users, held: Ids of the users, and of their held-out items.

    Raises:
        StorageError: it cannot be written.
    """
    columns = {"user": pl.Series(users, dtype=pl.String), "held_out": pl.Series(held, dtype=pl.String)}
    columns |= {name: pl.Series(mask) for name, mask in ranked.segments.items() if name != "all"}
    for model, quality in ranked.quality.items():
        columns[f"{model} rank"] = pl.Series(ranked.ranks[model].astype(np.float64))
        columns |= {f"{model} {metric}": pl.Series(quality[:, place]) for place, metric in enumerate(COMPARED)}
    with whole_file(path, mode=_MODE) as draft:
        pl.DataFrame(columns).write_parquet(draft, compression="zstd")
