"""Ids made alike: each cell by the platform's declared rules, whatever the other cells hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import polars as pl

from client.config.id_rules import USUAL_IDS, IdRules
from client.sources.readers.cells import INEXACT, UNUSABLE, canonical_text, each

LISTED = "looks like a list of several, not one id"
WHOLE, COMPOSED, INVISIBLE, SPACES, UUIDS, FOLDED = (
    "whole numbers written with a decimal point",
    "letters with a combining accent",
    "invisible characters",
    "spaces",
    "UUIDs in capital letters or in braces",
    "capital letters and other forms of characters",
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
_HEX = "[0-9A-Fa-f]"
_UUID = rf"^(?:\{{|(?i:urn:uuid:))?{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}\}}?$"
_WRAPPED = r"^(?:\{(.*)\}|urn:uuid:(.*))$"
_OTHER_UUID = r"[A-Z{}]|^urn:"
_CAPITAL = r"[A-Z]"
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
    if not rules.folded and not re.search(_ODD, text) and not (rules.uuids and re.fullmatch(_UUID, text)):
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
    changed = changed or (lambda _, __: None)
    if rules.uuids:
        # Before all else, for of what is already a UUID no other rule has anything to say.
        ids, rows = _uuids(ids)
        if rows:
            changed(UUIDS, rows)
    # Most ids are plain, and are left alone at the cost of a look or two.
    odd = ids.str.contains(_ODD).fill_null(False)
    if rules.folded:
        odd |= ids.str.contains(_CAPITAL).fill_null(False)
    if not odd.any():
        return ids
    kept = ids.filter(odd)
    cleaned = _cleaned(kept, rules, changed, single=single)
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

    before: pl.Series | None = None
    # Until nothing changes: a space may be before what nobody sees, and that between a letter and its accent.
    while before is None or not (ids == before).fill_null(True).all():
        before = ids
        if rules.invisible:
            step(INVISIBLE, ids.str.replace_all(_JOINED_ASCII, "$1").str.replace_all(_HIDDEN, ""))
        if rules.composed:
            step(COMPOSED, ids.str.normalize("NFC"))
        if rules.folded:
            step(FOLDED, folded_ids(ids))
        if rules.spaces:
            step(SPACES, ids.str.replace_all(_OTHER_SPACES, " ").str.strip_chars())
        if rules.uuids:
            step(UUIDS, _uuids(ids)[0])
    if rules.whole_numbers:
        step(WHOLE, _whole(ids))
        unusable = ids.str.starts_with(UNUSABLE).fill_null(False)
    elif (lossy := _lossy(ids)).any():
        ids = ids.set(lossy & ~unusable, UNUSABLE + INEXACT)
    if single and rules.refuse_lists:
        listed = ids.str.contains(_LISTS).fill_null(False) & ~unusable
        ids = ids.set(listed, UNUSABLE + LISTED)
    return ids.set((ids == "").fill_null(False), None)


def folded_ids(ids: pl.Series) -> pl.Series:
    """Ids without the difference of capital and small letters, and of other forms of one character (NFKC, case folding).

    >>> folded_ids(pl.Series(["Ann@X.org", "\uff11\uff12", "Stra\u00dfe", None])).to_list()
    ['ann@x.org', '12', 'strasse', None]
    """
    other = ids.str.contains(r"[^\x00-\x7F]").fill_null(False)
    plain = ids.str.to_lowercase()
    if not other.any():
        return plain
    return plain.scatter(other.arg_true(), pl.Series(each(_folded, ids.filter(other).to_list()), dtype=pl.String))


def _folded(text: str) -> str:
    # Until nothing changes, as Unicode's own toNFKC_Casefold: folding may leave what can be composed, and the reverse.
    while (after := unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())) != text:
        text = after
    return text


def _uuids(ids: pl.Series) -> tuple[pl.Series, int]:
    """UUIDs in their one spelling, whatever else there is unchanged; and how many cells that changes."""
    spelled = ids.str.contains(_UUID).fill_null(False)
    if spelled.any():
        spelled &= ids.str.contains(_OTHER_UUID).fill_null(False)
    if not spelled.any():
        return ids, 0
    given = ids.filter(spelled)
    lower = given.str.to_lowercase()
    if (wrapped := ~lower.str.contains(r"^[0-9a-f]")).any():
        lower = lower.zip_with(~wrapped, lower.str.replace(_WRAPPED, "$1$2"))
    # A brace alone belongs to no UUID.
    lower = lower.zip_with(~lower.str.contains(r"[{}]"), given)
    return ids.clone().scatter(spelled.arg_true(), lower), int((lower != given).sum())


def _whole(ids: pl.Series) -> pl.Series:
    """Integers in their one spelling; what a float may have rounded is no id."""
    lossy = _lossy(ids)
    small = ids.str.contains(_SCIENTIFIC).fill_null(False) & ~lossy
    if small.any():
        numbers = ids.filter(small).cast(pl.Float64, strict=False)
        whole = numbers.set(numbers != numbers.floor(), None).cast(pl.Int64).cast(pl.String)
        ids = ids.clone().scatter(small.arg_true(), whole.zip_with(whole.is_not_null(), ids.filter(small)))
    ids = ids.set(lossy, UNUSABLE + INEXACT)
    return ids.str.replace(_DECIMAL, "$1").replace("-0", "0")


def _lossy(ids: pl.Series) -> pl.Series:
    """Which texts a floating-point number wrote that does not hold all digits: 1.79E+18, 1790000000000000001.0."""
    digits = ids.str.extract(r"^-?(\d+)\.0*$").str.strip_chars_start("0")
    length = digits.str.len_chars()
    decimal = (length > len(_EXACT)) | ((length == len(_EXACT)) & (digits >= _EXACT))
    exponent = ids.set(~ids.str.contains(_SCIENTIFIC).fill_null(False), None).str.extract(r"\+(\d{1,9})").cast(pl.Int64)
    return decimal.fill_null(False) | (exponent > _DIGITS).fill_null(False)
