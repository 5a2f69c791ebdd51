"""Files to vectors, part by part, so that an interrupted call goes on where it was.

A part is named by the encoder and by the names, sizes and times of its files: what has changed is embedded anew, nothing else.
The output appears whole or not at all. Several files of an item give the mean of their vectors, of length 1 again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.embedding.media_decoding import BrokenMedia
from client.embedding.media_encoder import Inputs, MediaEncoder
from client.embedding.media_files import FoundMedia, MediaFile
from shared.base.atomic_files import whole_file
from shared.base.errors import InputError, StorageError
from shared.base.progress import Progress, counted

BATCH = 16
_BATCHES_PER_PART = 8
_SCHEMA: dict[str, Any] = {"item": pl.String, "file": pl.String, "vector": pl.List(pl.Float32), "broken": pl.String}


@dataclass(frozen=True, kw_only=True)
class EmbeddedFiles:
    """What was made.

    Args:
        items: With a vector.
        files: That could be read.
        width: Numbers of a vector.
        broken: Files that could not be read, and why.
        passed: Files that were left out, and why.
    """

    items: int
    files: int
    width: int
    broken: Mapping[str, str]
    passed: Mapping[str, str]


def embed_files(
    found: FoundMedia, encoder: MediaEncoder, *, out: Path, batch: int = BATCH, progress: Progress | None = None
) -> EmbeddedFiles:
    """Write a Parquet file with columns item and vector, which a source of vectors reads as it is, in the order of ids.

    Args:
        out: A .parquet file; replaced if it is there.
        batch: Files that are encoded at once.

    Raises:
        InputError: no file could be read, or an option is wrong.
        StorageError: it cannot be written.
    """
    if out.suffix != ".parquet":
        raise InputError(f"--out ends in {out.suffix!r}", where=str(out), do="name a file that ends in .parquet")
    if batch < 1:
        raise InputError(f"--batch is {batch}", do="give 1 or more")
    if not found.files:
        raise InputError(
            f"there is no {encoder.kind} file to embed ({len(found.passed)} others were passed over)",
            do="name files, or folders that hold them",
        )
    parts = out.with_name(f".{out.name}.parts")
    advance = counted(progress, "embedding files", len(found.files))
    step = batch * _BATCHES_PER_PART
    try:
        parts.mkdir(parents=True, exist_ok=True)
        done = []
        for begin in range(0, len(found.files), step):
            some = found.files[begin : begin + step]
            path = parts / f"{_name(encoder.digest, some)}.parquet"
            if not path.exists():
                with whole_file(path) as draft:
                    _part(some, encoder, batch).write_parquet(draft)
            done.append(path)
            advance(len(some))
        table = pl.concat([pl.read_parquet(path) for path in done])
        broken = table.filter(pl.col("broken").is_not_null())
        usable = table.filter(pl.col("vector").is_not_null())
        named = dict(zip(broken["file"].to_list(), broken["broken"].to_list(), strict=True))
        if not usable.height:
            first, why = next(iter(named.items()))
            raise InputError(f"none of {len(named)} files could be read; the first: {why}", where=first, do="look at the files")
        items, vectors = _by_item(usable)
        with whole_file(out) as draft:
            columns = {
                "item": pl.Series(items, dtype=pl.String),
                "vector": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32)),
            }
            pl.DataFrame(columns).write_parquet(draft, compression="zstd")
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(out), do="check space and rights"
        ) from error
    shutil.rmtree(parts, ignore_errors=True)
    return EmbeddedFiles(
        items=len(items),
        files=usable.height,
        width=vectors.shape[1],
        broken=named,
        passed={str(path): why for path, why in found.passed.items()},
    )


def _name(encoder: str, files: Sequence[MediaFile]) -> str:
    about = [encoder, [[str(file.path.resolve()), file.item, file.size, file.changed] for file in files]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _part(files: Sequence[MediaFile], encoder: MediaEncoder, batch: int) -> pl.DataFrame:
    made: dict[int, NDArray[np.float32]] = {}
    broken: dict[int, str] = {}
    for numbers, inputs in _batches(files, encoder, batch, broken):
        try:
            made |= dict(zip(numbers, encoder.vectors(inputs), strict=True))
        except BrokenMedia:
            # At least one of them is the cause: encode each alone to find it.
            for number, one in zip(numbers, inputs, strict=True):
                try:
                    made[number] = encoder.vectors([one])[0]
                except BrokenMedia as error:
                    broken[number] = str(error)
    rows = {
        "item": [file.item for file in files],
        "file": [str(file.path) for file in files],
        "vector": [made[number].tolist() if number in made else None for number in range(len(files))],
        "broken": [broken.get(number) for number in range(len(files))],
    }
    return pl.DataFrame(rows, schema=_SCHEMA)


def _batches(
    files: Sequence[MediaFile], encoder: MediaEncoder, batch: int, broken: dict[int, str]
) -> Iterator[tuple[list[int], list[Inputs]]]:
    """Files of equal shapes, at most `batch` at once; those that cannot be read are put into `broken`."""
    waiting: dict[tuple[object, ...], tuple[list[int], list[Inputs]]] = {}
    for number, file in enumerate(files):
        try:
            inputs = encoder.prepared(file.path)
        except BrokenMedia as error:
            broken[number] = str(error)
            continue
        shape = tuple((key, tuple(value.shape)) for key, value in sorted(inputs.items()))
        numbers, held = waiting.setdefault(shape, ([], []))
        numbers.append(number)
        held.append(inputs)
        if len(held) == batch:
            yield waiting.pop(shape)
    yield from waiting.values()


def _by_item(table: pl.DataFrame) -> tuple[list[str], NDArray[np.float32]]:
    """Items in the order of their ids, and the mean of each one's vectors, of length 1."""
    vectors = np.stack([np.asarray(one, np.float64) for one in table["vector"].to_list()])
    items, where = np.unique(np.asarray(table["item"].to_list(), dtype=object).astype(str), return_inverse=True)
    total = np.zeros((len(items), vectors.shape[1]))
    np.add.at(total, where, vectors)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return [str(item) for item in items], (total / np.maximum(length, 1e-12)).astype(np.float32)
