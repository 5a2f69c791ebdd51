"""A source's rows under the names of their roles, whatever holds them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from client.config.id_rules import USUAL_IDS, IdRules
from client.config.source_schema import Source
from client.config.table_location import Column, Lookup, Reading
from client.sources.cleaning import Cleaning
from client.sources.ids import HIDDEN, as_ids, flagged_ids
from client.sources.readers.cells import Kind, canonical_text, empty
from client.sources.readers.csv_records import BROKEN
from client.sources.readers.database import open_query, shown_url
from client.sources.readers.delimited import JOINED, RAGGED, open_delimited
from client.sources.readers.file_bytes import bytes_of, is_compressed, part_files
from client.sources.readers.json_lines import BROKEN as NO_OBJECT
from client.sources.readers.json_lines import open_json_lines
from client.sources.readers.table_scan import Key, Portion, Scan, reading
from client.sources.readers.text_encoding import by_line
from shared.base.errors import InputError

UNDECODED = "text that cannot be decoded"
HEADER = "the header again"
MARKED = "read as missing (`missing` says which)"
FLAW = "\0flaw"
"""Name of the column that says why a row is unusable as a whole; null where it is not."""
_CURES = {
    UNDECODED: 'encoding says what the file is written in, as in "cp1252" or "gb18030"',
    RAGGED: "separator, quote or escape may be others; ragged = true cuts such rows",
    JOINED: "carriage_returns = true reads each of them; false says that carriage returns are within cells and end no row",
    BROKEN: "line_breaks = true where quoted texts run over several lines, "
    r"""escape = "\\" where backslashes escape quotation marks, quote = "" where they are ordinary characters""",
    NO_OBJECT: "JSON lines hold one object a line: `jq -c .` makes lines of objects that run over several, "
    "`jq -c '.[]'` of an array",
}
"""What to do about a flaw of many rows."""
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One column to read.

    Args:
        name: What the column is called in the frame that comes back.
        column: Its name or position in the file.
        required: Whether the column's absence is an error.
        key: Whether a row is unusable without it.
        offset: Columns to go on from there.
        kind: How its cells are read.
        aliases: Other names of a column that is not required; where one is there in its place, a person is warned.
        single: Whether a text that looks like a list is no id.
        exact: Whether a column that is of integers, or of times, by type in every part may stay so: its texts would say the same,
            and take longer.
        explode: Whether a row is one for each entry of the list that its cell holds.
    """

    name: str
    column: Column
    required: bool = True
    key: bool = False
    offset: int = 0
    kind: Kind = "text"
    aliases: Sequence[str] = ()
    single: bool = False
    exact: bool = False
    explode: bool = False

    @staticmethod
    def ids(source: Source, *roles: str, explode: bool = False, exact: bool = False) -> list[Wanted]:
        """The ids that make a row: of users, items or friends, of which the last is a list if it is to be exploded."""
        return [
            Wanted(
                name=role,
                column=source.column(role),
                key=True,
                kind="id",
                single=True,
                exact=exact,
                explode=explode and role == roles[-1],
            )
            for role in roles
        ]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, cell by cell as text or as lists of numbers (`client/sources/readers/cells.py`).

    Args:
        frame: Columns named as they were wanted; those that are not required may be absent.
        labels: Column -> its own name in the file; absent where the file has no header.
    """

    frame: pl.DataFrame
    labels: dict[str, str]


def read_source(source: Source, cleaning: Cleaning, wanted: Sequence[Wanted], *, public: bool = False) -> Table:
    """The source's rows without those that are unusable as a whole, codes replaced by words.

    Args:
        public: Whether the rows are public, as `read_table` has it.

    Raises:
        InputError: the source cannot be read, or lacks a required column.
    """
    table = read_table(source, cleaning, wanted, source=cleaning.source, public=public)
    frame = table.frame
    for want in wanted:
        if want.name in source.lookup and want.name in frame.columns:
            frame = _replaced(frame, want, source.lookup[want.name], cleaning)
    return Table(frame=frame, labels=table.labels)


def read_table(
    how: Reading,
    cleaning: Cleaning | None,
    wanted: Sequence[Wanted],
    *,
    source: str,
    public: bool = False,
    rules: IdRules | None = None,
) -> Table:
    """The wanted columns of a file, of several files, or of a query.

    Args:
        cleaning: Where rows and their flaws are counted; None for a second table (words, links), whose unusable
            rows say nothing and are passed over.
        public: Whether the rows are public: then the keys that JSON lines hold say which columns there are. Else one row
            would decide what is read of others, and the columns are those that the platform file names.
        rules: How ids are made alike; by default those of `cleaning`.

    Raises:
        InputError: it cannot be read, or lacks a required column.
    """
    if how.line_breaks is None:
        how = how.model_copy(update={"line_breaks": public})
    if not public and how.path and not by_line(how.encoding):
        raise InputError(
            f"users' rows in {how.encoding}, where one stray byte moves all that follow it",
            where=place(how),
            do="convert the file to UTF-8",
        )
    rules = rules or (cleaning.rules if cleaning is not None else USUAL_IDS)
    frames: list[pl.DataFrame] = []
    labels: dict[str, str] = {}
    found: list[dict[str, Key]] = []
    wants = {want.name: want for want in wanted}
    for scan in (_open(how, path) for path in _files(how)):
        keys = _keys(scan, wanted, source, public=public)
        found.append(keys)
        named = {
            name: key if isinstance(key, str) else (scan.names or ())[key]
            for name, key in keys.items()
            if scan.named or scan.keyed
        }
        labels |= named
        absent = [want for want in wanted if want.name not in keys and isinstance(want.column, str)]
        passed = [key for want in absent if scan.keyed for key in (str(want.column), *want.aliases) if key not in keys.values()]
        if scan.named and cleaning is not None:
            for want in absent:
                _warn_of_alias(want, scan.names or (), labels, cleaning)
            for name, column in named.items():
                if (scan.names or ()).count(column) > 1 and isinstance(wants[name].column, str):
                    cleaning.warn(f"several columns are called '{column}': the first is read; {name} = POSITION takes another")
        cells = _Cells(wants, keys, how.missing, rules, {} if scan.keyed or not scan.decoded else named, cleaning)
        with reading(scan.where):
            for portion in scan.take(list(dict.fromkeys([*keys.values(), *passed]))):
                frames.append(cells.read(portion, decoded=scan.decoded))
                if cleaning is not None:
                    cleaning.read += len(portion.flaws)
                    for key in passed:
                        rows = sum(cell is not None for cell in portion.columns[key])
                        cleaning.lose(f"{key}: not read, since 'columns' does not name the key (row kept)", rows)
        if cleaning is not None and scan.keyed:
            cleaning.asked = partial(_asked, scan, list(keys.values()))
    # What is not required is read if any file has it: one part file without a column takes no other's cells away.
    names = [name for name in wants if any(name in keys for keys in found)]
    if cleaning is not None:
        _warn_of_parts(names, found, how, cleaning)
    nothing = pl.DataFrame({**{name: empty(wants[name].kind) for name in names}, FLAW: empty("text")})
    parts = _alike([_filled(part, names, wants).select(*names, FLAW) for part in frames], wants)
    frame = pl.concat(parts) if parts else nothing
    if cleaning is not None:
        for reason, rows in frame[FLAW].drop_nulls().value_counts().sort(FLAW).iter_rows():
            cleaning.lose(reason, rows)
            if reason in _CURES:
                cleaning.warn(f"rows are left out ({reason}): {_CURES[reason]}")
    whole = frame if frame[FLAW].null_count() == frame.height else frame.filter(pl.col(FLAW).is_null())
    return Table(frame=whole.drop(FLAW), labels=labels)


def place(how: Reading) -> str:
    """The first file or the URL without its password, for messages."""
    return str(how.path[0]) if how.path else shown_url(how.url or "")


def _files(how: Reading) -> list[Path | None]:
    """The files to read one after the other, or None for a query."""
    return [part for path in how.path for part in part_files(path)] if how.path else [None]


def _open(how: Reading, path: Path | None) -> Scan:
    if path is None:
        return open_query(how)
    match how.format_of(path):
        case "csv":
            return open_delimited(path, how)
        case "jsonl":
            return open_json_lines(path, how)
        case "parquet":
            return _open_parquet(path)
        case other:
            raise InputError(f"format '{other}' holds no columns", where=str(path), do="expected csv, jsonl or parquet")


def _open_parquet(path: Path) -> Scan:
    with reading(str(path)):
        lazy = pl.scan_parquet(io.BytesIO(bytes_of(path)) if is_compressed(path) else path, glob=False)
        names = lazy.collect_schema().names()

    def take(keys: Sequence[Key]) -> Iterator[Portion]:
        columns = (pl.col(names[int(key)]).alias(str(key)) for key in keys)
        frame = lazy.select(*columns, pl.lit(None, pl.String).alias(FLAW)).collect(engine="streaming")
        yield Portion(columns={key: frame[str(key)] for key in keys}, flaws=frame[FLAW])

    return Scan(where=str(path), names=names, take=take)


def _keys(scan: Scan, wanted: Sequence[Wanted], source: str, *, public: bool) -> dict[str, Key]:
    keys = {}
    lacking: list[Wanted] = []
    for want in wanted:
        # Of JSON lines with private rows only what is declared is read; else any row with such a key would decide.
        key = scan.find(want.column, offset=want.offset, public=public) if want.required or not scan.keyed or public else None
        if key is not None:
            keys[want.name] = key
        elif want.required:
            lacking.append(want)
    if lacking:
        said = [f"{one.column!r}{f' + {one.offset}' if one.offset else ''} (for '{one.name}')" for one in lacking]
        found = f"source '{source}': column {said[0]} does not exist{''.join(f', nor {one}' for one in said[1:])}"
        raise InputError(found, where=scan.where, do=scan.missing({one.name: one.column for one in lacking}))
    return keys


def _asked(scan: Scan, keys: Sequence[Key]) -> str:
    seen = list(scan.seen())
    within = f"; `jq -c '.{seen[0]}[]'` makes lines of rows that are a list under the key '{seen[0]}'" if len(seen) == 1 else ""
    return f"; keys that are read: {', '.join(map(repr, keys))}; {scan.columns()}{within}"


def _warn_of_alias(want: Wanted, names: Sequence[str], read: Mapping[str, str], cleaning: Cleaning) -> None:
    known = {name.strip().lower() for name in want.aliases}
    others = [name for name in names if name.strip().lower() in known and name not in read.values()]
    if others:
        say = f'columns = {{ {want.name} = "{others[0]}" }}'
        cleaning.warn(f"column '{others[0]}' is not read: the source has no column '{want.name}'; {say} takes it as {want.name}")


def _warn_of_parts(names: Sequence[str], found: Sequence[Mapping[str, Key]], how: Reading, cleaning: Cleaning) -> None:
    for name in names:
        lacking = [path for path, keys in zip(_files(how), found, strict=True) if name not in keys]
        if lacking:
            cleaning.warn(
                f"{len(lacking)} of {len(found)} files have no column for '{name}', so their rows have none: {lacking[0]}"
            )


def _filled(part: pl.DataFrame, names: Sequence[str], wants: Mapping[str, Wanted]) -> pl.DataFrame:
    """The rows of a file with every column that another file of the source has; missing where this one has none."""
    lacking = [name for name in names if name not in part.columns]
    return part.with_columns(pl.lit(None, empty(wants[name].kind).dtype).alias(name) for name in lacking) if lacking else part


class _Cells:
    """Reads portions of one file or query cell by cell.

    Args:
        header: Column -> its name in the header, where a row of texts may repeat it.
    """

    def __init__(
        self,
        wants: Mapping[str, Wanted],
        keys: Mapping[str, Key],
        missing: Sequence[str],
        rules: IdRules,
        header: Mapping[str, str],
        cleaning: Cleaning | None,
    ) -> None:
        self._wants, self._keys, self._rules, self._header, self._cleaning = wants, keys, rules, header, cleaning
        self._missing = pl.Series(missing, dtype=pl.String)

    def read(self, portion: Portion, *, decoded: bool) -> pl.DataFrame:
        """The cells as `canonical_text` has them, ids made alike, what is missing null, and why a row is unusable."""
        wants = [self._wants[name] for name in self._keys]
        columns = []
        typed = set()
        for want in wants:
            cells = portion.columns[self._keys[want.name]]
            if isinstance(cells, pl.Series) and cells.dtype != pl.String:
                typed.add(want.name)
            if want.exact and not want.explode and isinstance(cells, pl.Series) and _exact(cells.dtype, want.kind):
                columns.append(cells.alias(want.name))
            else:
                columns.append(canonical_text(cells, "ids" if want.explode else want.kind).alias(want.name))
        frame = pl.DataFrame([*columns, portion.flaws.alias(FLAW)])
        if decoded:
            frame = _decoded(_headerless(frame, self._header))
        for want in wants:
            if want.explode:
                frame = frame.explode(want.name)
            integers = isinstance(cells := portion.columns[self._keys[want.name]], pl.Series) and cells.dtype.is_integer()
            if want.kind == "id" and not integers:
                change = partial(self._changed, want.name)
                frame = frame.with_columns(
                    flagged_ids(frame[want.name], self._rules, single=want.single, changed=change).alias(want.name)
                )
            if want.kind != "vector" and (want.explode or want.name not in typed):
                frame = frame.with_columns(self._present(frame[want.name], want.name))
        return frame

    def _present(self, column: pl.Series, name: str) -> pl.Series:
        marked = column.str.strip_chars().is_in(self._missing.implode()).fill_null(False)
        if not marked.any():
            return column
        self._changed(name, MARKED, int(marked.sum()))
        return column.set(marked, None)

    def _changed(self, column: str, how: str, cells: int) -> None:
        if self._cleaning is not None:
            self._cleaning.change(column, how, cells)


def _exact(dtype: pl.DataType, kind: Kind) -> bool:
    return dtype.is_integer() or (kind == "time" and isinstance(dtype, pl.Datetime))


def _alike(parts: list[pl.DataFrame], wants: Mapping[str, Wanted]) -> list[pl.DataFrame]:
    """The parts with every column of one type: texts, unless all are of one exact type."""
    for name in parts[0].columns if parts else ():
        if len({part.schema[name] for part in parts}) > 1:
            # Texts are canonical already, and what is no id is marked in them.
            parts = [
                part
                if part.schema[name] == pl.String
                else part.with_columns(canonical_text(part[name], wants[name].kind).alias(name))
                for part in parts
            ]
    return parts


def _headerless(frame: pl.DataFrame, header: Mapping[str, str]) -> pl.DataFrame:
    """A row that repeats the header, as where exports were joined, is marked so; capital and small letters do not matter."""
    named = [name for name in header if frame.schema[name] == pl.String]
    if not named:
        return frame
    maybe = frame[named[0]].str.contains(f"(?i){pl.escape_regex(header[named[0]].strip())}").fill_null(False)
    if not maybe.any():
        return frame
    repeated = maybe
    for name in named:
        cells = frame[name].str.replace_all(f"[{HIDDEN}]", "").str.strip_chars().str.to_lowercase()
        repeated &= (cells == header[name].strip().lower()).fill_null(False)
    return frame.with_columns(pl.col(FLAW).fill_null(pl.when(pl.lit(repeated)).then(pl.lit(HEADER))))


def _decoded(frame: pl.DataFrame) -> pl.DataFrame:
    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name != FLAW]
    if not texts:
        return frame
    undecoded = pl.any_horizontal(pl.col(name).str.contains(_REPLACEMENT, literal=True).fill_null(False) for name in texts)
    return frame.with_columns(pl.col(FLAW).fill_null(pl.when(undecoded).then(pl.lit(UNDECODED))))


def _replaced(frame: pl.DataFrame, want: Wanted, lookup: Lookup, cleaning: Cleaning) -> pl.DataFrame:
    wanted = [Wanted(name="key", column=lookup.key, kind="id"), Wanted(name="value", column=lookup.value)]
    named = f"{cleaning.source}.lookup.{want.name}"
    words = read_table(lookup, None, wanted, source=named, public=True, rules=cleaning.rules).frame
    words = (
        words.with_columns(as_ids(words["key"], cleaning.rules).alias("key"))
        .drop_nulls()
        .unique("key", keep="first", maintain_order=True)
    )
    codes = pl.DataFrame({"key": as_ids(frame[want.name], cleaning.rules)})
    found = codes.join(words, on="key", how="left", maintain_order="left")
    wordless = codes["key"].is_not_null() & found["value"].is_null()
    frame = frame.with_columns(found["value"].alias(want.name))
    if want.key:
        return cleaning.keep(frame, pl.lit(~wordless), otherwise=f"{want.name}: code without a word")
    cleaning.lose(f"{want.name}: code without a word (row kept)", int(wordless.sum()))
    return frame
