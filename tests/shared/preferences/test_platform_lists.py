"""Lists of items: what two platforms have in common, and what a message of them may not be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import ProtocolError
from shared.preferences import platform_lists
from shared.preferences.item_index import declared_items, item_hashes, list_digest, parse_items, places_of
from shared.preferences.platform_lists import PlatformLists

hashes = st.lists(st.integers(0, 60), max_size=12, unique=True).map(lambda found: np.array(sorted(found), np.uint64))
lists = st.lists(hashes, min_size=1, max_size=5)


@given(lists)
def test_they_come_back_as_they_were_sent(own: list[np.ndarray]) -> None:
    made = PlatformLists.of(own)
    again = PlatformLists.read(made.text(), platforms=len(own))
    for number, items in enumerate(own):
        assert again.digest(number) == list_digest(items)
    assert np.array_equal(again.index, made.index)


@given(lists)
def test_shared_is_what_two_have(own: list[np.ndarray]) -> None:
    made = PlatformLists.of(own)
    everything = sorted({int(item) for items in own for item in items})
    expected = [item for item in everything if sum(item in items for items in own) >= 2]
    assert made.shared().tolist() == expected
    for item in expected:
        assert made.owners(np.array([item], np.uint64)) == {at for at, items in enumerate(own) if item in items}


@given(lists, st.integers(0, 400))
def test_a_text_that_is_cut_or_longer_is_refused(own: list[np.ndarray], at: int) -> None:
    text = PlatformLists.of(own).text()
    for bad in (text[: min(at, len(text) - 1)], text + b"\0"):
        with pytest.raises(ProtocolError):
            PlatformLists.read(bad, platforms=len(own))
    with pytest.raises(ProtocolError):
        PlatformLists.read(b"\xff\xff\xff\x7f" + text[4:], platforms=len(own))


@pytest.mark.parametrize("bad", [b"1234567", np.array([2, 1], "<u8").tobytes(), np.array([2, 2], "<u8").tobytes()])
def test_a_list_out_of_order_or_of_half_a_hash_is_refused(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_items(bad)


def test_a_list_that_is_too_long_is_refused() -> None:
    assert len(parse_items(declared_items(np.arange(5, dtype=np.uint64)), most=5)) == 5
    with pytest.raises(ProtocolError):
        parse_items(declared_items(np.arange(6, dtype=np.uint64)), most=5)


@given(hashes, hashes)
def test_places(some: np.ndarray, index: np.ndarray) -> None:
    for value, place in zip(some.tolist(), places_of(some, index).tolist(), strict=True):
        assert (place == -1) == (value not in index) and (place == -1 or index[place] == value)


def test_an_item_without_a_key_is_the_same_only_in_the_same_catalogue() -> None:
    one = item_hashes(["", "isbn:9780306406157"], ["1", "2"], catalogue=b"a" * 32)
    same = item_hashes(["isbn:9780306406157", ""], ["9", "1"], catalogue=b"a" * 32)
    other = item_hashes(["isbn:9780306406157", ""], ["9", "1"], catalogue=b"b" * 32)
    assert one[0] == same[1] != other[1] and one[1] == same[0] == other[0]
    # A key is never an id, whatever they are called.
    assert item_hashes(["x"], ["y"], catalogue=b"")[0] != item_hashes([""], ["x"], catalogue=b"")[0]


def test_lists_are_as_long_as_a_message_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, and in platforms times items, which is the memory that reading takes."""
    made = PlatformLists.of([np.arange(10, dtype=np.uint64)] * 3)
    text = made.text()
    assert len(text) == 4 + 8 * 10 + 3 * 2
    monkeypatch.setattr(platform_lists, "MOST", len(text))
    assert PlatformLists.read(made.text(), platforms=3).shared().tolist() == list(range(10))
    monkeypatch.setattr(platform_lists, "MOST", len(text) - 1)
    for refused in (made.text, lambda: PlatformLists.read(text, platforms=3)):
        with pytest.raises(ProtocolError, match="item lists"):
            refused()
    monkeypatch.setattr(platform_lists, "MOST", 400)
    many = PlatformLists.of([np.arange(10, dtype=np.uint64)] * 40)
    text = many.text()
    assert len(text) < 399
    assert PlatformLists.read(text, platforms=40).shared(owners=40).tolist() == list(range(10)) and many.text() == text
    monkeypatch.setattr(platform_lists, "MOST", 399)
    for refused in (many.text, lambda: PlatformLists.read(text, platforms=40)):
        with pytest.raises(ProtocolError, match="item lists"):
            refused()


def test_of_nothing_there_is_a_list_too() -> None:
    made = PlatformLists.of([np.zeros(0, np.uint64)] * 2)
    assert made.text() == bytes(4) and PlatformLists.read(bytes(4), platforms=2).shared().tolist() == []
    for short in (b"", bytes(3)):
        with pytest.raises(ProtocolError, match="item lists"):
            PlatformLists.read(short, platforms=2)
