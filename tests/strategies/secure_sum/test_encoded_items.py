"""Whose items' vectors serve another round: those of everybody who is asked, and not for longer than the settings say."""

from __future__ import annotations

import pytest

from strategies.secure_sum.encoded_items import Encoded


def encoded(round_: int, holders: tuple[int, ...] = (1, 2, 4)) -> Encoded:
    return Encoded(round=round_, since=5, question=b"q", holders=holders)


@pytest.mark.parametrize(
    ("server_round", "asked", "serves"),
    [
        (6, {1, 2, 4}, True),
        (6, {2}, True),
        (6, set(), True),
        (6, {1, 3}, False),
        (7, {1}, True),
        (8, {1}, False),
        (4, {1}, False),
    ],
)
def test_they_serve_whom_they_are_of_for_some_rounds(server_round: int, asked: set[int], serves: bool) -> None:
    assert encoded(5).serves(server_round, asked, rounds=3) is serves


def test_a_round_that_is_asked_again_goes_on_as_before_whoever_is_there_now() -> None:
    assert encoded(5).serves(5, {1, 3}, rounds=3) and encoded(9).serves(9, {3}, rounds=1)
    assert not encoded(6).serves(5, {1}, rounds=3)  # that round is over


def test_who_missed_a_round_has_them_no_more() -> None:
    first = encoded(5, holders=()).answered((1, 2, 4))
    assert first.holders == (1, 2, 4) and (first.round, first.since, first.question) == (5, 5, b"q")
    later = Encoded(round=6, since=5, question=b"q", holders=(1, 2, 4))
    assert later.answered((4, 2, 3)).holders == (2, 4) and later.answered(()).holders == ()
