"""Ids made alike: each cell by the platform's declared rules, whatever the other cells hold."""

from __future__ import annotations

import re
from collections.abc import Callable

import polars as pl

from client.config.id_rules import USUAL_IDS, IdRules
from client.sources.readers.cells import INEXACT, UNUSABLE, canonical_text

LISTED = "looks like a list of several, not one id (explode = true in the source reads its entries)"
WHOLE, COMPOSED, INVISIBLE, SPACES = (
    "whole numbers written with a decimal point",
    "letters with a combining accent",
    "invisible characters",
    "spaces",
)
"""What was made alike, as `fedfuse check` says it."""

# Soft hyphens, zero-width spaces, direction marks, tags; the joiners stay, for some scripts are spelled with them.
HIDDEN = (
    r"\u{AD}\u{34F}\u{180E}\u{200B}\u{200E}\u{200F}\u{202A}-\u{202E}\u{2060}-\u{206F}\u{FEFF}\u{FFF9}-\u{FFFB}\u{E0000}-\u{E007F}"
)
_HIDDEN = rf"[{HIDDEN}]|[\x00-\x08\x0E-\x1F\x7F-\x84\x86-\x9F]|^[\u200C\u200D]+|[\u200C\u200D]+$"
_JOINED_ASCII = r"([\x21-\x7E])[\u200C\u200D]+"
_OTHER_SPACES = r"[\u{A0}\u{1680}\u{2000}-\u{200A}\u{202F}\u{205F}\u{3000}]"
_ODD = r"[^\x21-\x7E]|\.0*$|[eE]\+\d|^$|[\[({,;|]"
"""What is in an id that may not be spelled as it is: most ids are plain."""
_DECIMAL = r"^(-?\d+)\.0*$"
_SCIENTIFIC = r"^-?\d(?:\.\d+)?[eE]\+\d+$"
_EXACT = str(2**53)
"""Below it every integer is exact as a float64."""
_DIGITS = 10
"""Exponent up to which scientific notation keeps all digits: spreadsheets write 12 digits and more as 1.79E+11."""
_TOKEN = r"[\"']?[\w-]*\d[\w-]*[\"']?"  # noqa: S105 - no password
_LISTS = (
    r"^\[.*\]$|^\{.*\}$|^\(.*\)$"
    rf"|^{_TOKEN}(?:\s*[,;|]\s*{_TOKEN})+[,;|]?$"
    r"|^[A-Za-z]{1,3}\d{2,}(?:\s+[A-Za-z]{1,3}\d{2,}){2,}$"
)


def as_ids(column: pl.Series, rules: IdRules = USUAL_IDS) -> pl.Series:
    """Ids as strings, null where missing or no id.

    >>> as_ids(pl.Series([1.0, None, 7.0])).to_list(), as_ids(pl.Series([" 1.0", "guest", "2.50"])).to_list()
    (['1', None, '7'], ['1', 'guest', '2.50'])
    >>> as_ids(pl.Series(["Jose\\u0301", "a\\u200bb", "1e+05"])).to_list()
    ['José', 'ab', '100000']
    """
    ids = flagged_ids(column, rules)
    return ids.set(ids.str.starts_with(UNUSABLE).fill_null(False), None)


def spelled_id(text: str, rules: IdRules) -> str:
    """An id that a person types, as the tables have it; as it is typed where it is none.

    >>> spelled_id(" 7.0", USUAL_IDS), spelled_id("Jose\u0301", USUAL_IDS)
    ('7', 'José')
    """
    if not re.search(_ODD, text):
        return text
    return as_ids(pl.Series([text], dtype=pl.String), rules)[0] or text


def flagged_ids(
    column: pl.Series, rules: IdRules, *, single: bool = False, changed: Callable[[str, int], None] | None = None
) -> pl.Series:
    """Ids as strings, null where missing; what is no id is `UNUSABLE` and the reason.

    Args:
        single: Whether texts that look like lists are refused.
        changed: Told how many cells each rule has changed.
    """
    ids = column if column.dtype == pl.String else canonical_text(column, "id")
    if column.dtype.is_integer():
        return ids
    # Most ids are plain, and are left alone at the cost of one look.
    odd = ids.str.contains(_ODD).fill_null(False)
    if not odd.any():
        return ids
    kept = ids.filter(odd)
    cleaned = _cleaned(kept, rules, changed or (lambda _, __: None), single=single)
    return ids.scatter(odd.arg_true(), cleaned) if len(kept) < len(ids) else cleaned.alias(ids.name)


def _cleaned(ids: pl.Series, rules: IdRules, changed: Callable[[str, int], None], *, single: bool) -> pl.Series:
    unusable = ids.str.starts_with(UNUSABLE).fill_null(False)
    whole = ids

    def step(name: str, after: pl.Series) -> None:
        nonlocal ids
        after = after.zip_with(~unusable, whole)
        rows = int((after != ids).fill_null(False).sum())
        if rows:
            changed(name, rows)
        ids = after

    if rules.composed:
        step(COMPOSED, ids.str.normalize("NFC"))
    if rules.invisible:
        step(INVISIBLE, ids.str.replace_all(_JOINED_ASCII, "$1").str.replace_all(_HIDDEN, ""))
    if rules.spaces:
        step(SPACES, ids.str.replace_all(_OTHER_SPACES, " ").str.strip_chars())
    if rules.whole_numbers:
        step(WHOLE, _whole(ids))
        unusable = ids.str.starts_with(UNUSABLE).fill_null(False)
    elif (lossy := _lossy(ids)).any():
        ids = ids.set(lossy & ~unusable, UNUSABLE + INEXACT)
    if single and rules.refuse_lists:
        listed = ids.str.contains(_LISTS).fill_null(False) & ~unusable
        ids = ids.set(listed, UNUSABLE + LISTED)
    return ids.set((ids == "").fill_null(False), None)


def _whole(ids: pl.Series) -> pl.Series:
    """Integers in their one spelling; what a float may have rounded is no id."""
    lossy = _lossy(ids)
    small = ids.str.contains(_SCIENTIFIC).fill_null(False) & ~lossy
    if small.any():
        numbers = ids.filter(small).cast(pl.Float64, strict=False)
        whole = numbers.set(numbers != numbers.floor(), None).cast(pl.Int64).cast(pl.String)
        ids = ids.scatter(small.arg_true(), whole.zip_with(whole.is_not_null(), ids.filter(small)))
    ids = ids.set(lossy, UNUSABLE + INEXACT)
    return ids.str.replace(_DECIMAL, "$1").replace("-0", "0")


def _lossy(ids: pl.Series) -> pl.Series:
    """Which texts a floating-point number wrote that does not hold all digits: 1.79E+18, 1790000000000000001.0."""
    digits = ids.str.extract(r"^-?(\d+)\.0*$").str.strip_chars_start("0")
    length = digits.str.len_chars()
    decimal = (length > len(_EXACT)) | ((length == len(_EXACT)) & (digits >= _EXACT))
    exponent = ids.set(~ids.str.contains(_SCIENTIFIC).fill_null(False), None).str.extract(r"\+(\d{1,9})").cast(pl.Int64)
    return decimal.fill_null(False) | (exponent > _DIGITS).fill_null(False)
