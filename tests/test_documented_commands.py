"""Every command in the papers and in the code's own messages is one that the command line takes: nothing is executed here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.papers import CODE, OF_TODAY, ROOT, SPAN, commands, name_of, problem, prose, shell_lines


def problems(line: str, *, whole: bool) -> list[tuple[str, str]]:
    """The line with what is wrong with each of its commands."""
    words = commands(line) if whole else commands(re.sub(r"[\[\]]", "", line))
    return [(line, found) for one in words if (found := problem(one, whole=whole))]


@pytest.mark.parametrize("paper", OF_TODAY, ids=name_of)
def test_commands_of_the_papers_are_taken(paper: Path) -> None:
    typed = [found for line in shell_lines(paper) for found in problems(line, whole=True)]
    told = [found for span in SPAN.findall(prose(paper.read_text())) for found in problems(span, whole=False)]
    assert not typed + told


def test_commands_that_messages_and_comments_name_are_taken() -> None:
    joined = {path: re.sub(r"\"\s*\n\s*f?\"", "", path.read_text()) for path in CODE}  # literals over several lines are one
    spans = [(path, span) for path, text in joined.items() for span in SPAN.findall(text)]
    assert len(spans) > 100
    assert not [(name_of(path), found) for path, span in spans for found in problems(span, whole=False)]


def test_all_pages_together_show_every_command() -> None:
    """A command that no page explains is found by nobody; the generated list does not count. `audit check` is `audit`."""
    told = " ".join(path.read_text() for path in OF_TODAY if path.name != "command-line.md")
    listed = re.findall(r"^#+ fedfuse (?!audit check)(.+)$", (ROOT / "docs" / "command-line.md").read_text(), re.MULTILINE)
    assert len(listed) > 40
    assert not [name for name in listed if f"fedfuse {name}" not in told]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("fedfuse simulate --rounds 10", None),
        ("fedfuse audit runs/first  # what it is", None),
        ("A=1 fedfuse simulate w --sed 1", "No such option '--sed'"),
        ("fedfuse simulate w --rounds ten", "not a valid integer"),
        ("fedfuse deploy files d --kind grafna", "is not one of"),
        ("fedfuse simulate w --set training.stepps=3", "no setting training.stepps"),
        ("fedfuse check a.toml b.toml", "unexpected extra argument"),
        ("fedfuse approve shop --server c", "Missing argument"),
        ("fedfuse client", "does nothing by itself"),
        ("cd x && fedfuse simulte w", "No such command"),
        ("flwr run . local --steam", "No such option '--steam'"),
        ("make tests", "no target"),
        ("python -m simulations.benchmarks.gains", "no module"),
        ("python -m simulations.benchmarks.gain --ot x", "no option"),
    ],
)
def test_this_check_sees_mistakes(line: str, wrong: str | None) -> None:
    found = [problem(words, whole=True) for words in commands(line)][-1]
    assert found is None if wrong is None else found is not None and wrong in found


@pytest.mark.parametrize("target", ["simulate", "test", "check", "docs", "site", "venv"])
def test_targets_of_make_run_what_the_papers_say(target: str) -> None:
    """Make's own account of what it would run; the environment counts as built."""
    command = ["make", "--dry-run", "--assume-old=.venv/.installed", target]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {
        "simulate": "fedfuse simulate",
        "test": "-m pytest",
        "check": "lint-imports",
        "docs": "docs/reference.py",
        "site": "docs/site.py",
    }
    assert expected.get(target, "") in said
