"""The papers, the commands that they show, and what is wrong with one: parsed by the real command line, and not executed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import click
import flwr.cli.app
import typer.main

import fedfuse
from shared.base.settings import described

ROOT = Path(__file__).parents[2]
PAPERS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "runs", "build"} & set(path.relative_to(ROOT).parts))
OF_TODAY = [path for path in PAPERS if path.name != "CHANGELOG.md"]
"""The change log speaks of the past, so it may name what is gone."""
PACKAGES = ("client", "server", "shared", "strategies", "simulations")
CODE = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console", "shell")
SPAN = re.compile(r"`((?:fedfuse(?! \d)|flwr|make|python -m (?:client|simulations|tests|server)[\w.]*)(?: [^`]*)?)`")
"""Code within a sentence that begins like a command."""
COMMAND_LINES = {"fedfuse": fedfuse.app, "flwr": flwr.cli.app.app}
"""Programs whose own command line parses what is typed."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z_,.]*|.*\.\.\..*|.*\{.*\}.*|--.*")
"""A placeholder for a value: NAME, NAME,NAME, 8c2f-..., {name} in the code; in a list of options, the next one."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Without fenced code."""
    return FENCE.sub("", text)


def shell_lines(paper: Path, *, under: str = "") -> list[str]:
    """Lines of shell in fences, whole; of one section alone where its heading is named."""
    text = paper.read_text(encoding="utf-8")
    if under:
        _, found, text = text.partition(f"\n## {under}\n")
        assert found, f"{name_of(paper)} has no section {under!r}"
        text = text.partition("\n## ")[0]
    bodies = [body for language, body in FENCE.findall(text) if language in SHELL]
    return [line for body in bodies for line in body.replace("\\\n", " ").splitlines() if line.strip()]


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, as words, without what is assigned to the environment before them.

    >>> list(commands("$ (cd x && A=1 fedfuse check shop) > out  # reads"))
    [['cd', 'x'], ['fedfuse', 'check', 'shop'], ['out']]
    """
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        else:
            words.append(word)


def problem(words: list[str], *, whole: bool) -> str | None:
    """What is wrong with the words of one command, if anything is.

    Args:
        words: The program first.
        whole: Whether it is to be typed as it is; else it may lack arguments, as commands in sentences do.
    """
    program = Path(words[0]).name
    if program == "make":
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no target {unknown}" if unknown else None
    if program.startswith("python") and "-m" in words:
        return _problem_of_a_module(words[words.index("-m") + 1 :])
    if program not in COMMAND_LINES:
        return None
    wrong = _problem_of_a_command(program, [word for word in words[1:] if word not in ("OPTIONS", "--help", "-h")], whole=whole)
    return wrong or _unknown_setting(words)


def _unknown_setting(words: list[str]) -> str | None:
    for option, value in pairwise(words):
        key = value.partition("=")[0]
        if option in ("--set", "--over") and not PLACEHOLDER.fullmatch(key) and key not in described():
            return f"no setting {key}"
    return None


def _problem_of_a_module(words: list[str]) -> str | None:
    """A module of ours exists, and its source, or a file beside it, has each option's name."""
    module, *rest = words
    if not module.islower() or module.split(".")[0] not in (*PACKAGES, "tests"):
        return None
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        return f"no module {module}"
    text = "".join(path.read_text(encoding="utf-8") for path in Path(found.origin).parent.glob("*.py"))
    unknown = [word for word in rest if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
    return f"{module} has no option {unknown}" if unknown else None


@cache
def whole_command(program: str) -> click.Group:
    """The whole command line of a program."""
    command = typer.main.get_command(COMMAND_LINES[program])
    assert isinstance(command, click.Group)
    return command


def _problem_of_a_command(program: str, words: list[str], *, whole: bool) -> str | None:
    real = click.Parameter.type_cast_value

    def cast(self: click.Parameter, context: click.Context, value: Any) -> Any:
        """Values as their types have them, but no file need exist, and a placeholder is one."""
        placeholders = [PLACEHOLDER.fullmatch(str(one)) for one in (value if isinstance(value, (list, tuple)) else [value])]
        return value if isinstance(self.type, click.Path) or all(placeholders) else real(self, context, value)

    try:
        with mock.patch.object(click.Parameter, "type_cast_value", cast):
            _parse(whole_command(program), program, words, None)
    except click.exceptions.Exit:
        return None  # --version
    except click.UsageError as wrong:
        short = isinstance(wrong, click.MissingParameter) or "requires an argument" in wrong.format_message()
        return None if short and not whole else wrong.format_message()
    return None


def _parse(command: click.Command, name: str, words: list[str], parent: click.Context | None) -> None:
    """As click parses before it calls anything, down to the innermost command."""
    if command.no_args_is_help and not words:
        raise click.MissingParameter(f"`{name}` does nothing by itself")
    with command.make_context(name, list(words), parent=parent) as context:
        rest = [*context._protected_args, *context.args]
        if isinstance(command, click.Group) and rest and rest[0] != "COMMAND":
            inner, found, rest = command.resolve_command(context, rest)
            assert found is not None
            _parse(found, str(inner), rest, context)
