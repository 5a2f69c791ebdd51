"""Recommendations for every user of a platform, to a file. Nothing of it leaves.

Users are ranked a block at a time, on all processors, and parts of the table are written as they are done: so memory does not
grow with users, and a call that was interrupted goes on where it was, as long as sources, model and options are the same. The
file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.recommender.global_model import GlobalModel
from client.recommender.lists.top_items import top_items
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.fitted_platform import FittedPlatform, ModelInputs
from client.recommender.serving.kept_model import Shelf
from client.recommender.tell import Reports, Tell, silent
from shared.base.atomic_files import whole_file
from shared.base.errors import InputError, StorageError
from shared.base.progress import Progress

if TYPE_CHECKING:
    from shared.registry.signing import PublicKey

FORMATS = (".parquet", ".csv")
_SCORES_AT_ONCE = 1 << 21
"""So that arrays stay below what is given back to the system at once: fresh memory takes longer than ranking."""
_USERS_AT_ONCE = 512
_USERS_PER_PART = 20_000
_MODE = 0o600
_SCHEMA = {"user": pl.String, "rank": pl.Int32, "item": pl.String, "score": pl.Float32, "probability": pl.Float32}


def recommend_everybody(
    file: PlatformFile,
    *,
    out: Path,
    model: Path | None = None,
    top: int = 10,
    texts: bool = False,
    cache: Path,
    state: Path | None = None,
    trusted: Sequence[PublicKey] = (),
    say: Tell = silent,
    tell: Tell = silent,
    progress: Progress | None = None,
) -> int:
    """Write the best items that each user has not had: columns user, rank, item, score and probability.

    Users are in the order of the tables. A probability is that of `client.recommender.lists.recommended.Recommendation`, and
    missing where the model has none.

    Args:
        out: A `.parquet` or `.csv` file, of mode 0600; replaced if it is there.
        model, top, texts, cache, state, trusted, say, tell, progress: As `client.recommender.serving.recommend.recommend_items`.

    Returns:
        The number of users.

    Raises:
        StorageError, Untrusted: the model's folder is not what was published.
        InputError: an option, the model or the sources cannot be used.
        StorageError: the file cannot be written.

    | given | result |
    |---|---|
    | `top` 0, or another ending than `.parquet` and `.csv` | `InputError` |
    | a `top` beyond what a user has not had | as many rows of that user as there are items left |
    """
    if top < 1:
        raise InputError(f"--top is {top}", do="ask for at least one item")
    if out.suffix not in FORMATS:
        raise InputError(f"--out ends in {out.suffix!r}", where=str(out), do=f"name a file that ends in {' or '.join(FORMATS)}")
    inputs = ModelInputs(model=model, state=state, trusted=trusted, texts=texts, cache=cache)
    at_hand = FittedPlatform(file, inputs, Reports(say=say, tell=tell, progress=progress))
    shelf, fitted = at_hand.shelf, at_hand.model_for(-1, liked=0)
    # Without a digest nobody can tell whether a part is of the same rows.
    mark = hashlib.sha256(f"{at_hand.digest}|{top}|{texts}|{list(_SCHEMA)}".encode()).hexdigest()[:16]
    parts = out.with_name(f".{out.name}.{mark if at_hand.digest else os.getpid()}")
    try:
        parts.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = [_part(parts, shelf, fitted, begin, top, progress) for begin in range(0, shelf.users, _USERS_PER_PART)]
        tell("writing the file")
        with whole_file(out, mode=_MODE) as draft:
            rows = pl.scan_parquet(done, glob=False) if done else pl.LazyFrame(schema=_SCHEMA)
            rows.sink_csv(draft) if out.suffix == ".csv" else rows.sink_parquet(draft, compression="zstd")
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(out), do="check space and rights"
        ) from error
    shutil.rmtree(parts, ignore_errors=True)
    return shelf.users


def best_items(
    model: PlatformModel | GlobalModel, shelf: Shelf, users: NDArray[np.int64], *, top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best items that each user has not had, and their scores, (users, top), best first.

    Where fewer are left than asked for, -1 takes the place of the others. Of equal scores the first in the catalogue comes first.
    """
    scores = model.scores(users)
    row, _, item = shelf.known.entries(users)
    scores[row, item] = -np.inf
    _without_twins(scores, shelf, row, item)
    return top_items(scores, min(top, shelf.items))


def _without_twins(scores: NDArray[np.float32], shelf: Shelf, row: NDArray[np.int64], item: NDArray[np.int64]) -> None:
    """Another entry of an item that was met is no news."""
    twins = shelf.twins
    if not len(twins.values):
        return
    place, _, other = twins.entries(item)
    scores[row[place], other] = -np.inf


def _part(
    folder: Path, shelf: Shelf, model: PlatformModel | GlobalModel, begin: int, top: int, progress: Progress | None
) -> Path:
    path = folder / f"{begin:012d}.parquet"
    end = min(begin + _USERS_PER_PART, shelf.users)
    if not path.exists():
        items = pl.Series(list(shelf.item_ids), dtype=pl.String)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = list(threads.map(lambda users: best_items(model, shelf, users, top=top), _blocks(begin, end, shelf.items)))
        item, score = (np.concatenate([block[side] for block in found]) for side in (0, 1))
        user, rank = np.nonzero(item >= 0)
        calibration = model.calibration
        likely = None if calibration is None else calibration.probabilities(score[user, rank])
        table = pl.DataFrame(
            {
                "user": pl.Series(shelf.user_ids[begin:end], dtype=pl.String).gather(user),
                "rank": (rank + 1).astype(np.int32),
                "item": items.gather(item[user, rank]),
                "score": score[user, rank],
                "probability": None if likely is None else likely.astype(np.float32),
            },
            schema=_SCHEMA,
        )
        with whole_file(path, mode=_MODE) as draft:
            table.write_parquet(draft, compression="zstd")
    if progress:
        progress("ranking users", end, shelf.users)
    return path


def _blocks(begin: int, end: int, items: int) -> Iterator[NDArray[np.int64]]:
    step = max(1, min(_USERS_AT_ONCE, _SCORES_AT_ONCE // max(items, 1)))
    for first in range(begin, end, step):
        yield np.arange(first, min(first + step, end))
