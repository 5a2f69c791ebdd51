"""Public keys of items, by which platforms find out which items they have in common: one form for all spellings of one key.

A key has its kind before it ("isbn:9780306406157"), so that keys of two kinds are never the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import polars as pl

from client.config.source_schema import KeyKind
from client.sources.tables import Tables
from shared.preferences.item_index import Hashes, item_hashes
from shared.secagg.shared_catalogues import catalogue_digest


def isbn_key(text: str) -> str | None:
    """An ISBN as its 13 digits, or None where it is none: its length or its check digit is wrong.

    >>> isbn_key("0-306-40615-2"), isbn_key("978 0306406157"), isbn_key("080442957x"), isbn_key("0306406153")
    ('9780306406157', '9780306406157', '9780804429573', None)
    """
    digits = _plain(text)
    if len(digits) == 10:
        if not (digits[:9].isdecimal() and (digits[9].isdecimal() or digits[9] == "X")):
            return None
        values = [10 if digit == "X" else int(digit) for digit in digits]
        if sum(weight * value for weight, value in zip(range(10, 0, -1), values, strict=True)) % 11:
            return None
        first = "978" + digits[:9]
        return first + check_digit(first)
    return digits if len(digits) == 13 and digits[:3] in ("978", "979") and _checked(digits) else None


def gtin_key(text: str) -> str | None:
    """A GTIN as 14 digits, or None where it is none.

    >>> gtin_key("4006381333931"), gtin_key("036000291452"), gtin_key("4006381333932")
    ('04006381333931', '00036000291452', None)
    """
    digits = _plain(text)
    return digits.zfill(14) if len(digits) in (8, 12, 13, 14) and _checked(digits) else None


def _as_it_is(text: str) -> str | None:
    return text or None


def item_keys(spelled: pl.Series, kind: KeyKind) -> pl.Series:
    """Keys in their one form, '' where there is none; String.

    >>> item_keys(pl.Series(["0-306-40615-2", "?", None]), "isbn").to_list()
    ['isbn:9780306406157', '', '']
    >>> item_keys(pl.Series(["tt0111161"]), "imdb").to_list()
    ['imdb:tt0111161']
    """
    form = KEYS.get(kind, _as_it_is)
    found = ((text and form(text)) or "" for text in spelled)
    return pl.Series([key and f"{kind}:{key}" for key in found], dtype=pl.String)


def spelled_keys(text: str, known: Iterable[str]) -> list[str]:
    """Keys that a text may spell: with its kind before it, or of any kind that is known here.

    >>> spelled_keys("0-306-40615-2", ["isbn:9780306406157"]), spelled_keys("isbn:0306406152", [])
    (['isbn:9780306406157'], ['isbn:9780306406157'])
    """
    kind, colon, key = text.partition(":")
    asked = [(kind, key)] if colon else [(name, text) for name in dict.fromkeys(one.partition(":")[0] for one in known)]
    found = ((name, KEYS.get(name, _as_it_is)(spelled)) for name, spelled in asked)
    return [f"{name}:{form}" for name, form in found if form]


KEYS: Mapping[KeyKind, Callable[[str], str | None]] = {"isbn": isbn_key, "gtin": gtin_key}


def _plain(text: str) -> str:
    found = text.replace("-", "").replace(" ", "").upper()
    # Digits of other scripts look like digits to Python, and would make two keys of one.
    return found if found.isascii() else ""


def _checked(digits: str) -> bool:
    return digits.isdecimal() and check_digit(digits[:-1]) == digits[-1]


def check_digit(digits: str) -> str:
    """The last digit of an EAN: weights 3 and 1 in turns, from the right."""
    total = sum(int(digit) * (3 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(digits)))
    return str(-total % 10)


def hashes_of(tables: Tables) -> Hashes:
    """Hash of every item's public key, uint64 (items,): what platforms find out by which items they have in common."""
    return item_hashes(tables.item_keys, tables.item_ids, catalogue=catalogue_digest(tables.item_ids))
