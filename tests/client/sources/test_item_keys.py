"""Public keys of items: one form for every spelling, and none for what is no key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.config.platform_file import load
from client.sources.item_keys import gtin_key, isbn_key
from client.sources.platform_tables import read_tables

Write = Callable[..., Path]
TEN, THIRTEEN = "0306406152", "9780306406157"


@pytest.mark.parametrize("spelled", [TEN, "0-306-40615-2", "0 306 40615 2", THIRTEEN, "978-0-306-40615-7"])
def test_all_spellings_of_a_book_are_one_key(spelled: str) -> None:
    assert isbn_key(spelled) == THIRTEEN


@pytest.mark.parametrize(
    "spelled", ["", "X", "030640615", "0306406153", "9780306406158", "1230306406157", "X306406152", "0306406152X", "\u0660" * 13]
)
def test_what_is_no_isbn(spelled: str) -> None:
    assert isbn_key(spelled) is None


@given(st.integers(0, 10**9 - 1))
def test_every_tens_check_digit_has_its_thirteen(number: int) -> None:
    """Exactly one of the eleven check digits is right; the other ten are no key."""
    found = [key for last in "0123456789X" if (key := isbn_key(f"{number:09d}{last}"))]
    assert len(found) == 1 and found[0].startswith(f"978{number:09d}") and isbn_key(found[0]) == found[0]


def test_lengths_of_a_products_number_are_one_key() -> None:
    assert gtin_key("036000291452") == gtin_key("0036000291452") == gtin_key("00036000291452") == "00036000291452"
    assert gtin_key("96385074") == "00000096385074"
    assert gtin_key("36000291452") is None and gtin_key("036000291453") is None and gtin_key("") is None


def test_a_platforms_items_have_their_keys(write_platform: Write) -> None:
    items = f"item,title,code\ni0,A,{TEN}\ni1,B,978-0-306-40615-7\ni2,C,none\ni3,D,\n" + "".join(
        f"i{number},T,\n" for number in range(4, 12)
    )
    path = write_platform(files={"shop-items.csv": items})
    text = path.read_text()
    plain = read_tables(load(path))
    assert not any(plain.item_keys)
    kind = 'kind = "items"'
    path.write_text(text.replace(kind, f'{kind}\nkeys = "isbn"', 1).replace(kind, f'{kind}\ncolumns = {{ key = "code" }}', 1))
    assert list(read_tables(load(path)).item_keys)[:4] == [f"isbn:{THIRTEEN}"] * 2 + ["", ""]


def test_a_column_of_that_name_is_no_key_unless_it_is_declared(write_platform: Write) -> None:
    songs = "item,title,key\n" + "".join(f"i{number},T,C major\n" for number in range(12))
    tables = read_tables(load(write_platform(files={"shop-items.csv": songs})))
    assert not any(tables.item_keys)
