"""Tables and text of commands: on whatever terminal, or on none, a word that somebody copies is in one piece."""

from __future__ import annotations

import io
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from rich.console import Console

from shared.base.terminal_table import terminal_console, terminal_table

_WORDS = st.lists(st.text("abcdefghij-", min_size=1, max_size=30), max_size=6).map(" ".join)
_FINGERPRINT = "5540-18c9-3ab3-06ff-2d5b-9af4-0ab0-3ee3"


def _shown(heads: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> str:
    table = terminal_table()
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, emoji=False).print(table)
    return out.getvalue()


@given(
    rows=st.lists(st.tuples(*[_WORDS] * 4), min_size=1, max_size=4),
    width=st.integers(44, 160),
)
@example(rows=[("shop-01", "approved", "online, 4 s ago", "2.00 of 8"), ("shop-02", "approved", "offline", "-")], width=44)
@example(rows=[("7", "owner", "approve", f"fingerprint {_FINGERPRINT}, node key")], width=80)
def test_no_word_is_cut_and_none_is_lost(rows: list[tuple[str, ...]], width: int) -> None:
    heads = ("platform", "standing", "connection", "ε of budget")
    found = _shown(heads, rows, width=width)
    assert all(len(line.rstrip()) <= width for line in found.splitlines())
    said = found.split()
    for word in " ".join(cell for row in rows for cell in row).split():
        assert word in said


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_each_platform_is_known_by_its_name(width: int) -> None:
    names = [f"shop-{number:02}" for number in range(1, 4)]
    rows = [(name, "approved", "online, 4 s ago", "0", "2.00 of 8", "-") for name in names]
    found = _shown(("platform", "standing", "connection", "rounds", "ε of budget", "last trouble"), rows, width=width)
    assert all(found.count(name) == 1 for name in names)


def test_a_table_that_fits_is_a_table() -> None:
    found = _shown(("run", "state"), [("first", "finished")], width=40)
    assert [line.split() for line in found.splitlines() if "first" in line] == [["first", "finished"]]


def test_without_a_terminal_a_path_is_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    path = f"/srv/{'folder of somebody/' * 20}model"
    out = io.StringIO()
    terminal_console(file=out).print(f"the model is in {path}", highlight=False)
    assert out.getvalue() == f"the model is in {path}\n"


def test_columns_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal_console(file=io.StringIO()).width == 60
