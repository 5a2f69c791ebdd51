"""A field of a ledger line is what a ledger would have written, to the last value that it may have."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from shared.base.errors import PrivacyError, StorageError
from shared.ledger.field_checks import hold, matching, moment, number, whole_number

NUMBERS: list[Any] = [-1e-300, math.inf, math.nan, 1, True, "1.0", None, [1.0]]
WHOLE: list[Any] = [-1, 8, True, 1.0, "1", None]


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e308])
def test_a_number_is_finite_and_not_negative(value: float) -> None:
    assert number({"n": value}, "n", "line 1") == value


@pytest.mark.parametrize("value", NUMBERS)
def test_no_other_is(value: Any) -> None:
    for infinite in (False, True):
        with pytest.raises(StorageError, match="n is") as caught:
            number({"n": value}, "n", "line 7", infinite=infinite)
        assert caught.value.where == "line 7"


def test_infinity_is_a_word_where_it_may_be() -> None:
    assert number({"n": "inf"}, "n", "", infinite=True) == math.inf
    with pytest.raises(StorageError, match="n is 'inf'"):
        number({"n": "inf"}, "n", "")


def test_a_whole_number_has_bounds() -> None:
    assert [whole_number({"n": value}, "n", "", at_most=7) for value in (0, 7)] == [0, 7]
    assert whole_number({"n": 1 << 62}, "n", "") == 1 << 62
    for value in WHOLE:
        with pytest.raises(StorageError, match="n is"):
            whole_number({"n": value}, "n", "", at_most=7)
    with pytest.raises(StorageError, match="n is"):
        whole_number({"n": (1 << 62) + 1}, "n", "")


def test_a_text_is_of_its_pattern_whole() -> None:
    pattern = re.compile("[a-c]+")
    assert matching({"t": "abc"}, "t", pattern, "") == "abc"
    for value in ("abcd", "xabc", "", "abc\n", 3, None):
        with pytest.raises(StorageError, match="t is"):
            matching({"t": value}, "t", pattern, "")


def test_a_moment_is_written_in_one_way() -> None:
    assert moment({"t": "2026-02-28T23:59:59Z"}, "t", "") == "2026-02-28T23:59:59Z"
    for value in ("2026-02-29T00:00:00Z", "2026-2-28T23:59:59Z", "2026-02-28T23:59:59", "2026-02-28 23:59:59Z", "", 3, None):
        with pytest.raises(StorageError, match="t is"):
            moment({"t": value}, "t", "")


def test_what_does_not_hold_was_altered() -> None:
    hold(True, "never said", "")
    with pytest.raises(PrivacyError, match="its hash is another"):
        hold(False, "its hash is another", "line 3")
