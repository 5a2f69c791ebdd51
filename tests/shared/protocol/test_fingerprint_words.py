"""Fingerprints as words: nothing of the 96 bits is lost, and no other words pass; one number for whom everybody trusts."""

from __future__ import annotations

import base64
import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.protocol.fingerprint_words import federation_number, fingerprint_words, is_fingerprint, shown_fingerprint
from shared.protocol.invitation import grouped

_DIGESTS = st.binary(min_size=16, max_size=16)
_MEMBERS = st.dictionaries(
    st.text("abcdefgh0123456789-_", min_size=1, max_size=8), st.binary(min_size=32, max_size=32), max_size=3
)
# Each letter's value, as the paper's table has it.
_LETTERS = {letter: value for letters in ("bdfghjklmnprstvz", "aiou") for value, letter in enumerate(letters)}


def _read(words: str) -> bytes:
    """By the paper: con-vo-con-vo-con are 4, 2, 4, 2, 4 bits."""
    bits = "".join(format(_LETTERS[letter], "02b" if letter in "aiou" else "04b") for word in words.split() for letter in word)
    return int(bits, 2).to_bytes(12, "big")


@given(_DIGESTS)
def test_six_words_are_the_first_96_bits(digest: bytes) -> None:
    words = fingerprint_words(grouped(digest))
    assert len(words.split()) == 6 and {len(word) for word in words.split()} == {5}
    assert _read(words) == digest[:12]


@given(one=_DIGESTS, other=_DIGESTS)
def test_either_form_is_that_fingerprint_and_no_other(one: bytes, other: bytes) -> None:
    found = grouped(one)
    for said in (
        found,
        found.upper(),
        fingerprint_words(found),
        fingerprint_words(found).replace(" ", "-").title(),
        f" {found} ",
    ):
        assert is_fingerprint(said, found)
        assert is_fingerprint(said, grouped(other)) == (said.strip().lower() == grouped(other) or one[:12] == other[:12])
    assert not is_fingerprint(" ".join(fingerprint_words(found).split()[:5]), found)
    assert not is_fingerprint("", found)


@pytest.mark.parametrize("text", ["fed.example.org:8000", "", "1efb+2efc", "1EFB-13e2"])
def test_what_is_no_fingerprint_has_no_words(text: str) -> None:
    assert shown_fingerprint(text) == text
    assert is_fingerprint(text, text) and not is_fingerprint("babab " * 6, text)
    with pytest.raises(ValueError, match="eight groups"):
        fingerprint_words(text)


def _text(members: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(key).decode() for name, key in members.items()}


@given(members=_MEMBERS, other=_MEMBERS)
def test_a_number_is_of_one_set(members: dict[str, bytes], other: dict[str, bytes]) -> None:
    number = federation_number("spring", _text(members))
    assert number == federation_number("spring", dict(reversed(_text(members).items())))
    assert [len(group) for group in number.split("-")] == [5] * 8
    assert (number == federation_number("spring", _text(other))) == (members == other)
    assert number != federation_number("autumn", _text(members))


def test_names_and_keys_do_not_run_into_one_another() -> None:
    assert federation_number("s", {"a": "bc"}) != federation_number("s", {"ab": "c"})


def test_the_number_is_what_its_description_says() -> None:
    parts = ("spring", "shop", "AAAA", "video", "BBBB")
    text = b"fedfuse federation\n" + b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)
    slow = hashlib.pbkdf2_hmac("sha256", hashlib.sha256(text).digest(), b"fedfuse federation number", 131072, 24)
    assert federation_number("spring", {"video": "BBBB", "shop": "AAAA"}).replace("-", "") == str(int.from_bytes(slow) % 10**40)
