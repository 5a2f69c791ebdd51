"""Columns whose cells hold several ids each: a history, a basket, what was shown and what of it was clicked."""

from __future__ import annotations

import polars as pl

_ENTRY = r"[\w-]*\d[\w-]*"
_QUOTED = rf"[\"']?{_ENTRY}[\"']?"
_PLAIN = r"[A-Za-z]{0,3}\d+"
_LISTED = rf"^[\[({{]?\s*{_QUOTED}(?:\s*[,;|]\s*{_QUOTED})+\s*[\])}}]?$|^{_PLAIN}(?:\s+{_PLAIN})+$"
_SINGLE = rf"^[\[({{]?\s*{_QUOTED}\s*[\])}}]?$"
_MARKED = r"^\S+-[01](?:[\s,;|]+\S+-[01])*$"
_SHARE = 0.2
"""Share of the cells with several entries, from which on a column is one of lists: many hold one entry alone."""


def holds_lists(cells: pl.Series) -> bool:
    """Whether the cells are lists of ids, by type or as they are written.

    >>> holds_lists(pl.Series(["N55 N12", "N7", None])), holds_lists(pl.Series(["101, 102", "Crosby, Stills"]))
    (True, False)
    >>> holds_lists(pl.Series([[1, 2], [3]])), holds_lists(pl.Series([[0.5, 2.0]])), holds_lists(pl.Series(["2024-01-01 10:00"]))
    (True, False, False)
    """
    if isinstance(cells.dtype, pl.List):
        entries = cells.drop_nulls().explode().drop_nulls()
        return entries.dtype.is_integer() or (entries.dtype == pl.String and bool(entries.str.contains(r"^\S*\d\S*$").all()))
    texts = _texts(cells)
    if texts is None:
        return False
    listed = texts.str.contains(_LISTED)
    return bool(listed.mean() >= _SHARE and (listed | texts.str.contains(_SINGLE)).all()) and not holds_marks(cells)  # type: ignore[operator]


def holds_marks(cells: pl.Series) -> bool:
    """Whether behind each entry is 1 or 0: whether what was shown was clicked.

    >>> holds_marks(pl.Series(["N1-0 N2-1", "N3-0"])), holds_marks(pl.Series(["a-1", "b-2"]))
    (True, False)
    """
    texts = _texts(cells)
    if texts is None:
        return False
    return bool(texts.str.contains(_MARKED).all() and texts.str.contains(r"\s").any())


def _texts(cells: pl.Series) -> pl.Series | None:
    """The cells that hold something; None where they are no texts."""
    if cells.dtype != pl.String:
        return None
    texts = cells.drop_nulls().str.strip_chars()
    texts = texts.filter(texts != "")
    return texts if len(texts) else None
