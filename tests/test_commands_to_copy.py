"""Commands in messages: a path in one is a word of the shell, whatever is in its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedfuse import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "server", "shared", "simulations")
FILES = [ROOT / "fedfuse.py", *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
# Programs that messages tell people to run, followed by their words; what ends a sentence or a clause ends the command.
_OURS = "|".join(sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
_COMMAND = re.compile(rf"\b(?:fedfuse (?:{_OURS})\b|chmod |chown |mv |rm |tensorboard )[^;,`.:()\n]*$")
# Names that were checked when they were made (small letters, digits, - and _) need no quoting.
_NAMES = re.compile(r"(\brun|\bname|\bfirst|\boption|\bat|\bregistry|\bkey|\bshare|\brights)(!r)?$")
_QUOTED = re.compile(r"^(shell_word|shlex\.(quote|join))\(")


def _unquoted(tree: ast.AST) -> Iterator[str]:
    for found in ast.walk(tree):
        if not isinstance(found, ast.JoinedStr):
            continue
        before = ""
        for part in found.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            source = ast.unparse(part.value)
            if _COMMAND.search(before) and not _QUOTED.match(source) and not _NAMES.search(source):
                yield f"{before[-60:]}{{{source}}}"
            before += "X"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_path_in_a_command_is_one_word(path: Path) -> None:
    assert list(_unquoted(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_what_is_looked_for_is_found() -> None:
    said = "f'fedfuse server start {folder} --x {run}; see {folder}, or chmod 600 {path}; fedfuse check {shell_word(path)}'"
    assert [one[-8:] for one in _unquoted(ast.parse(said))] == ["{folder}", "0 {path}"]
