"""What a simulation says while it works."""

from __future__ import annotations

import io

from rich.console import Console

from shared.base.settings import Settings
from simulations.commands import loading
from simulations.terminal import ProgressBoard


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_in_a_log_a_line_says_what_begins() -> None:
    """Where standard error was no terminal, as under a scheduler, minutes went by without a word."""
    console = Console(file=io.StringIO(), width=100)
    with loading(console):
        assert said(console) == ["loading torch and Flower ..."]
    with ProgressBoard(console, Settings(), platforms=2) as board:
        for done in range(3):
            board.progress("[a]", "reading texts", done, 3)
        board.progress("b", "reading texts", 1, 3)
        for platform in ("[a]", "b"):
            board.progress(platform, "federated, round 1/10: training", 1, 8)
        board.progress("b", "federated, round 2/10: training", 1, 8)
        expected = [
            "reading texts: [a]",
            "reading texts: b",
            "federated, round 1/10: training",
            "federated, round 2/10: training",
        ]
        assert said(console)[1:] == [f"{line} ..." for line in expected]


def test_on_a_terminal_nothing_of_it_stays() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with loading(console), ProgressBoard(console, Settings(), platforms=1) as board:
        board.progress("a", "reading texts", 1, 3)
    assert not any("..." in line for line in said(console))
