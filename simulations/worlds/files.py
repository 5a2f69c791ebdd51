"""Files of a generated world: each appears whole or not at all, and the same rows give the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, insert
from sqlalchemy.pool import NullPool

from shared.base.errors import StorageError

Rows = Sequence[Mapping[str, Any]]
"""Rows of one table, all with the same keys; None is a missing value."""


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name once the block is over and the bytes are on disk.

    Raises:
        StorageError: the file cannot be written (disk full, no permission).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(path), do="check space and rights"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8, with the line ends it has."""
    with write_folder(path) as draft:
        draft.write_bytes(text.encode("utf-8"))


def write_csv(path: Path, rows: Rows, *, separator: str = ",") -> None:
    """A header and the rows; a missing value is an empty field."""
    with write_folder(path) as draft:
        _frame(rows).write_csv(draft, separator=separator, line_terminator="\n")


def write_jsonl(path: Path, rows: Rows) -> None:
    """One JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_parquet(path: Path, rows: Rows, *, schema: Mapping[str, Any]) -> None:
    """Columns of the given polars types."""
    with write_folder(path) as draft:
        pl.DataFrame(rows, schema=dict(schema), orient="row").write_parquet(draft, compression="zstd", statistics=False)


def write_sqlite(path: Path, tables: Mapping[str, Rows]) -> None:
    """One SQLite database; a column whose values are all int (or missing) is INTEGER, any other TEXT."""
    with write_folder(path) as draft:
        engine = create_engine(f"sqlite:///{draft}", poolclass=NullPool)
        metadata = MetaData()
        made = {name: Table(name, metadata, *_columns(rows)) for name, rows in tables.items()}
        metadata.create_all(engine, tables=list(made.values()))
        with engine.begin() as connection:
            for name, rows in tables.items():
                connection.execute(insert(made[name]), [dict(row) for row in rows])
        engine.dispose()


def _frame(rows: Rows) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def _columns(rows: Rows) -> list[Column[Any]]:
    def kind(name: str) -> type[Integer | Text]:
        return Integer if all(row[name] is None or isinstance(row[name], int) for row in rows) else Text

    return [Column(name, kind(name)) for name in rows[0]]
