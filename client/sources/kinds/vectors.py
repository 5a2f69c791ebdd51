"""Vectors: image, audio or any precomputed embeddings of users or of items, within a declared bound."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.config.source_schema import VectorsSource
from client.sources.cell_values import as_numbers
from client.sources.cleaning import UNKNOWN_ITEM, UNKNOWN_USER, Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.interactions import keyed
from client.sources.numbering import Numbering
from client.sources.readers.table_scan import reading
from client.sources.readers.text_encoding import id_lines
from client.sources.source_rows import Wanted, read_source
from client.sources.tables import SourceReport, Vectors
from shared.base.errors import InputError

NOT_FINITE = "value not finite"
_VECTOR = "vector {}"


def bounded(vectors: NDArray[np.float64], bound: float) -> NDArray[np.float32]:
    """Finite rows clipped to the L2 ball of radius `bound` and divided by it: norms are at most 1.

    >>> bounded(np.array([[3.0, 4.0], [0.0, 1.0]]), 2.0).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.5]]
    """
    # Relative to the largest entry, so that squares neither overflow nor vanish.
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    relative = vectors / largest
    with np.errstate(over="ignore"):
        limit = np.maximum(np.linalg.norm(relative, axis=1, keepdims=True), bound / largest)
    return np.asarray(relative / limit, np.float32)


def read_vectors(
    source: VectorsSource, cleaning: Cleaning, users: Numbering, items: Numbering
) -> tuple[str, Vectors, SourceReport]:
    """Whose the vectors are ('user' or 'item'), one row per user or item, and the report.

    Raises:
        InputError: the source cannot be read, does not say whose the vectors are, or no row is usable.
    """
    owner, frame, values = _matrix(source, cleaning) if source.ids is not None else _columns(source, cleaning)
    owners, unknown = (users, UNKNOWN_USER) if owner == "user" else (items, UNKNOWN_ITEM)
    frame = pl.DataFrame({"id": as_ids(frame[owner], cleaning.rules)}).with_row_index("row")
    frame = cleaning.keep(frame, pl.col("id").is_not_null(), otherwise=f"missing {owner}")
    frame = frame.with_columns(owners.numbers(frame["id"]).alias("number"))
    frame = cleaning.keep_known(frame, frame["number"].is_not_null(), ids=frame["id"], among=owners, otherwise=unknown)
    finite = np.isfinite(values[frame["row"].to_numpy()]).all(axis=1)
    frame = cleaning.keep(frame, pl.lit(pl.Series(finite, dtype=pl.Boolean)), otherwise=NOT_FINITE)
    kept = frame.unique("number", keep="first", maintain_order=True)
    cleaning.lose(f"duplicate {owner}", frame.height - kept.height)
    report = cleaning.report(kept.height)
    moved = np.zeros((len(owners), values.shape[1]), np.float32)
    present = np.zeros(len(owners), np.bool_)
    places = kept["number"].to_numpy()
    moved[places] = bounded(values[kept["row"].to_numpy()].astype(np.float64), source.bound)
    present[places] = True
    return owner, Vectors(values=moved, present=present), report


def _columns(source: VectorsSource, cleaning: Cleaning) -> tuple[str, pl.DataFrame, NDArray[np.float64]]:
    named = [role for role in ("user", "item") if role in source.columns]
    asked = [
        Wanted(name=role, column=source.column(role), required=bool(named), key=True, kind="id", single=True)
        for role in named or ("user", "item")
    ]
    vector = source.columns.get("vector", "vector")
    several = isinstance(vector, tuple)
    for number, column in enumerate(vector if isinstance(vector, tuple) else (vector,)):
        asked.append(Wanted(name=_VECTOR.format(number), column=column, kind="text" if several else "vector"))
    frame = read_source(source, cleaning, asked, public="item" in source.columns).frame
    owners = [role for role in ("user", "item") if role in frame.columns]
    if len(owners) != 1:
        found = "both columns 'user' and 'item'" if owners else "neither a column 'user' nor 'item'"
        raise InputError(
            f"source '{cleaning.source}' has {found}",
            where=cleaning.where,
            do="say whose the vectors are: columns = { item = ... }",
        )
    frame = keyed(frame, cleaning, owners)
    if isinstance(vector, tuple):
        cells = [frame[_VECTOR.format(number)] for number in range(len(vector))]
        columns = [as_numbers(one, decimal=source.decimal).fill_null(float("nan")).to_numpy() for one in cells]
        return owners[0], frame, np.stack(columns, axis=1)
    return owners[0], *_lists(frame, _width(source, frame, owners[0], cleaning), cleaning)


def _width(source: VectorsSource, frame: pl.DataFrame, owner: str, cleaning: Cleaning) -> int | None:
    """How long the vectors are: as declared; of items, which are public, else as most are. None if there is no vector.

    Raises:
        InputError: the vectors are users' and their width is not declared: one user must not decide whose vectors are read.
    """
    if source.width is not None:
        return source.width
    if owner == "user":
        raise InputError(
            f"the width of the users' vectors of source '{cleaning.source}' is not declared",
            where=cleaning.where,
            do="say how many numbers a vector has: width = 128",
        )
    lengths = frame[_VECTOR.format(0)].list.len()
    counted = lengths.filter(lengths > 0).value_counts().sort(["count", lengths.name], descending=[True, False])
    return int(counted[lengths.name][0]) if counted.height else None


def _lists(frame: pl.DataFrame, width: int | None, cleaning: Cleaning) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    name = _VECTOR.format(0)
    frame = cleaning.keep(frame, pl.col(name).list.len() > 0, otherwise="missing vector")
    if not frame.height or width is None:
        return frame, np.zeros((0, width or 0))
    frame = cleaning.keep(frame, pl.col(name).list.len() == width, otherwise=f"vector whose length is not {width}")
    return frame, frame[name].explode().fill_null(float("nan")).to_numpy().reshape(-1, width)


def _matrix(source: VectorsSource, cleaning: Cleaning) -> tuple[str, pl.DataFrame, NDArray[np.float64]]:
    assert source.ids is not None and source.path is not None
    owner = "user" if "user" in source.columns else "item"
    with reading(str(source.ids)):
        ids = id_lines(source.ids.read_bytes(), source.encoding)
    with reading(str(source.path[0])):
        matrix = np.load(source.path[0], mmap_mode="r", allow_pickle=False)
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise InputError("not a matrix of numbers", where=str(source.path[0]), do="expected a .npy array of shape (rows, width)")
    if len(matrix) != len(ids):
        raise InputError(
            f"{len(ids)} ids for {len(matrix)} rows of the matrix",
            where=str(source.ids),
            do="expected one id per line, one per row",
        )
    cleaning.read = len(ids)
    return owner, pl.DataFrame({owner: pl.Series(ids, dtype=pl.String)}), matrix
