"""SQL databases through SQLAlchemy: a table or a query, streamed into polars, never written to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from client.config.table_location import Reading
from client.sources.readers.table_scan import Key, Portion, Scan
from shared.base.errors import InputError

_ROWS_AT_ONCE = 50_000


def open_query(how: Reading) -> Scan:
    """The declared table or query.

    Raises:
        InputError: the URL cannot be used, the database cannot be reached, or it refuses the query.
    """
    assert how.url is not None
    url, where = how.url, shown_url(how.url)
    with _result(how, url, where) as result:
        names = list(result.keys())

    def take(keys: Sequence[Key]) -> Iterator[Portion]:
        with _result(how, url, where) as result:
            for rows in result.partitions(_ROWS_AT_ONCE):
                columns = list(zip(*rows, strict=True))
                flaws = pl.Series([None], dtype=pl.String).new_from_index(0, len(rows))
                yield Portion(columns={key: columns[int(key)] for key in keys}, flaws=flaws)

    # SQLite keeps a text as the bytes that it was given.
    return Scan(where=where, names=names, take=take, decoded=sql.make_url(url).get_backend_name() == "sqlite")


def shown_url(url: str) -> str:
    """A URL without its password."""
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return "the source's url"


def reason_of(error: Exception) -> str:
    """The first line of what the database's driver says, which may quote a row: for a person at a terminal alone."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _result(how: Reading, url: str, where: str) -> Iterator[sql.CursorResult[tuple[object, ...]]]:
    engine = _engine(url, where)
    try:
        # Streamed, so that a driver that can keeps one part of the answer in memory and not all of it.
        with engine.connect().execution_options(stream_results=True) as connection:
            yield connection.execute(_query(how.query) if how.query else _table(how.table or ""))
    except SQLAlchemyError as error:
        do = "check 'url', 'table' and 'query' in the platform file"
        raise InputError("the database refused", where=where, do=do, quote=reason_of(error)) from None
    finally:
        engine.dispose()


def _engine(url: str, where: str) -> sql.Engine:
    try:
        address = sql.make_url(url)
        file = address.database
        if address.get_backend_name() == "sqlite" and file and not file.startswith((":memory:", "file:")):
            # SQLite would make an empty database of a path that is wrong.
            if not Path(file).is_file():
                raise InputError("the SQLite file does not exist", where=where, do="check 'url' in the platform file")
            address = address.set(database=f"file:{quote(Path(file).as_posix())}", query={"mode": "ro", "uri": "true"})
        engine = sql.create_engine(address)
        sql.event.listen(engine, "connect", _lenient)
        return engine
    except ImportError as error:
        raise InputError(
            f"the database's driver is not installed ({error.name})", where=where, do="install it beside fedfuse with pip"
        ) from None
    except (SQLAlchemyError, ValueError, TypeError, OSError):
        raise InputError(
            "not a database URL", where=where, do="expected one such as postgresql://user@host/name or sqlite:///file.db"
        ) from None


def _lenient(connection: Any, _: object) -> None:
    """Make texts of values that Python cannot hold, where the driver would refuse the whole answer for one of them."""
    driver = type(connection).__module__.split(".")[0]
    if driver == "sqlite3":
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
    elif driver == "psycopg":
        from psycopg.adapt import Loader

        class Text(Loader):
            def load(self, data: Any) -> str:
                return bytes(data).decode("utf-8", "replace")

        # Such as 'infinity', and years after 9999.
        for name in ("date", "timestamp", "timestamptz", "time", "timetz", "interval"):
            connection.adapters.register_loader(name, Text)
        connection.execute("set datestyle to iso")
        connection.commit()


def _query(text: str) -> sql.TextClause:
    """The person's own SQL, unchanged: a percent sign or a colon in it is no parameter of ours."""
    return sql.text(re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", text))


def _table(name: str) -> sql.Select[tuple[object]]:
    schema, _, table = name.rpartition(".")
    return sql.select(sql.literal_column("*")).select_from(sql.table(table, schema=schema or None))
