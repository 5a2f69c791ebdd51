"""The folders: small, each with one line that says what belongs there, and no two public names alike."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("client", "server", "shared", "strategies", "simulations")
MOST = 18
ENTRANCE = "main"
"""What a module that is run by its name begins with."""


def folders() -> list[Path]:
    return sorted({path.parent for name in TOP for path in (ROOT / name).rglob("*.py")})


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", folders(), ids=shown)
def test_a_folder_is_small_and_says_what_belongs_there(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST, sorted(path.name for path in modules)
    (line,) = (folder / "__init__.py").read_text().splitlines()
    assert line.startswith('"""') and line.endswith('."""')


def test_no_two_public_classes_or_functions_have_one_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for folder in folders():
        for path in folder.glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    found[node.name].append(shown(path))
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name != ENTRANCE} == {}


def test_commands_have_one_style_of_tables() -> None:
    """Some commands drew boxes and others did not. Benchmarks are no commands of `fedfuse`."""
    made = re.compile(r"(?<![\w.])Table\(|\(Table\)")
    others = [
        shown(path)
        for folder in folders()
        for path in folder.glob("*.py")
        if re.search(r"from rich\.table import .*\bTable\b", text := path.read_text(encoding="utf-8")) and made.search(text)
    ]
    assert [path for path in others if not path.startswith("simulations/benchmarks/")] == ["shared/base/terminal_table.py"]
