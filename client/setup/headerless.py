"""Delimited text whose first line is a row: that it is one, and what its columns may be by what they hold."""

from __future__ import annotations

import polars as pl

from client.config.table_location import Column
from client.setup.list_columns import holds_lists, holds_marks
from client.setup.schema_inference import Guess, column_roles, marked_remark, threshold_of, time_written
from client.setup.table_preview import Sample
from client.setup.unread_times import time_column

_ALIKE = 0.8
"""Share of a column's cells that are formed as its header is, from which on that is no header."""
_WORDY = 15
"""Characters of a title, in the mean."""
_SCALE = 20
"""Different ratings, at most."""


def seems_headerless(sample: Sample) -> bool:
    """Whether the first line of a table has numbers or ids where the others have such, and names neither users nor items."""
    frame = sample.frame
    if not frame.height or {"user", "item"} & column_roles(frame).keys():
        return False
    named = [name for at, name in enumerate(frame.columns, 1) if name != f"column {at}"]
    if not all(_is_number(name) for name in named if frame.schema[name].is_numeric()):
        return False
    return any(_is_a_cell(name, frame[name]) for name in named)


def guess_by_position(frame: pl.DataFrame) -> Guess | None:
    """What a table without a header may be; its columns are called by their positions."""
    remarks = ["the file has no header: what each column is was guessed by what it holds"]
    lists = [name for name in frame.columns if holds_lists(frame[name])]
    marked = [name for name in frame.columns if holds_marks(frame[name])]
    timed, time_format, remark = _time(frame, without=[*lists, *marked])
    remarks += remark
    times = {} if timed is None else {"time": timed}
    ids = [name for name in frame.columns if name not in (*lists, *marked, timed) and _are_ids(frame[name])]
    if lists and ids:
        user = next((name for name in ids if frame[name].n_unique() < frame.height), ids[-1])
        return Guess(
            kind="interactions",
            columns={"user": user, "item": lists[0], **times},
            explode=True,
            time_format=time_format,
            remarks=[*remarks, *(marked_remark(f"column {name}") for name in marked)],
        )
    wordy = [name for name in frame.columns if _is_wordy(frame[name])]
    if wordy and ids and frame[ids[0]].n_unique() == frame.height:
        return _items(frame, ids, wordy, remarks)
    user_item = [name for name in ids if frame[name].n_unique() < frame.height]
    if wordy or len(user_item) < 2:
        return None
    value = next((name for name in user_item[2:] if frame[name].dtype.is_numeric() and frame[name].n_unique() <= _SCALE), None)
    remarks.append("columns: exchange user and item if the items come first")
    if value is not None:
        remarks.append("threshold: from this value on an item counts as liked")
    return Guess(
        kind="interactions",
        columns={"user": user_item[0], "item": user_item[1], **({} if value is None else {"value": value}), **times},
        threshold=None if value is None else threshold_of(frame[value]),
        time_format=time_format,
        remarks=remarks,
    )


def _items(frame: pl.DataFrame, ids: list[str], wordy: list[str], remarks: list[str]) -> Guess:
    described = dict(zip(("title", "description"), wordy, strict=False))
    few = max(50, frame.height // 2)
    kinds = [name for name in ids[1:] if frame[name].dtype == pl.String and frame[name].n_unique() <= few]
    return Guess(
        kind="items",
        columns={"item": ids[0], **described, **({"category": kinds[0]} if kinds else {})},
        texts=kinds[1:3],
        remarks=remarks,
    )


def _time(frame: pl.DataFrame, *, without: list[str]) -> tuple[str | None, str | None, list[str]]:
    others: dict[Column, pl.Series] = {name: frame[name] for name in frame.columns if name not in without}
    found = time_column(others, [])
    if found is not None:
        return str(found[0]), None, []
    for name, cells in others.items():
        time_format, remarks = time_written(cells)
        if time_format is not None:
            return str(name), time_format, list(remarks)
    return None, None, []


def _is_a_cell(name: str, cells: pl.Series) -> bool:
    """Whether a name is formed as most cells below it are, and holds a digit."""
    if not any(character.isdigit() for character in name) or cells.dtype.is_nested():
        return False
    if cells.dtype.is_numeric():
        return _is_number(name)
    shapes = _shapes(cells.cast(pl.String, strict=False).drop_nulls())
    return len(shapes) > 0 and float((shapes == _shapes(pl.Series([name]))[0]).mean() or 0.0) >= _ALIKE


def _shapes(texts: pl.Series) -> pl.Series:
    """How texts are formed: one `a` for letters, one `0` for digits."""
    return texts.str.replace_all("[A-Za-z]+", "a").str.replace_all("[0-9]+", "0")


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _are_ids(cells: pl.Series) -> bool:
    if cells.dtype.is_nested():
        return False
    texts = cells.cast(pl.String, strict=False).drop_nulls()
    return len(texts) > 0 and not texts.str.contains(r"\s|://|^\[").any()


def _is_wordy(cells: pl.Series) -> bool:
    if cells.dtype != pl.String:
        return False
    texts = cells.drop_nulls()
    texts = texts.filter(~texts.str.contains(r"^[\[{]|://"))
    spaced = float(texts.str.contains(" ").mean() or 0.0)  # type: ignore[arg-type]
    return len(texts) > 0 and spaced > 0.5 and float(texts.str.len_chars().mean() or 0.0) > _WORDY  # type: ignore[arg-type]
