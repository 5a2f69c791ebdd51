"""What the papers name exists: links, files, commands with their options, targets of `make`, modules, settings."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import typer.main

import fedfuse

ROOT = Path(__file__).parents[1]
reference = runpy.run_path(str(ROOT / "docs" / "reference.py"), run_name="reference")
site = runpy.run_path(str(ROOT / "docs" / "site.py"), run_name="site")
PAPERS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "runs", "build"} & set(path.relative_to(ROOT).parts))
PACKAGES = ("client", "server", "shared", "strategies", "simulations")
CODE = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
OF_TODAY = [path for path in PAPERS if path.name != "CHANGELOG.md"]
"""The change log speaks of the past, so it may name what is gone."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:client|server|shared|strategies|simulations|tests|docs)/[\w./-]+)`")
SPAN = re.compile(r"`((?:fedfuse|make|python -m (?:client|simulations|tests|server)[\w.]*)(?: [^`]*)?)`")
"""Code within a sentence that begins like a command."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(text: str) -> str:
    return FENCE.sub("", text)


@cache
def _anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", _prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("paper", PAPERS, ids=_name)
def test_links_lead_somewhere(paper: Path) -> None:
    for link in LINK.findall(_prose(paper.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        found = (paper.parent / target).resolve() if target else paper
        assert found.exists(), f"{_name(paper)} links to {link}"
        if anchor and found.suffix == ".md":
            assert anchor in _anchors(found), f"{_name(paper)} links to {link}: its headings are {sorted(_anchors(found))}"


@pytest.mark.parametrize("paper", OF_TODAY, ids=_name)
def test_files_that_are_named_exist(paper: Path) -> None:
    missing = [named for named in FILE.findall(paper.read_text()) if not list(ROOT.glob(named.rstrip("/")))]
    assert not missing


def test_files_that_the_code_names_exist() -> None:
    named = {(_name(path), found) for path in CODE for found in FILE.findall(path.read_text())}
    assert len(named) > 50
    assert not [(path, found) for path, found in sorted(named) if not list(ROOT.glob(found.rstrip("/")))]


def _command_lines(paper: Path) -> Iterator[str]:
    """Lines of shell in fences, whole, and commands within sentences."""
    text = paper.read_text()
    for language, body in FENCE.findall(text):
        if language in ("sh", "bash", "console", "shell"):
            yield from body.replace("\\\n", " ").splitlines()
    yield from SPAN.findall(_prose(text))


def _commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, as words, without what is assigned to the environment before them.

    >>> list(_commands("$ (cd x && A=1 fedfuse check shop) > out  # reads"))
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


def _problem(words: list[str]) -> str | None:
    """What is wrong with the words of one command, if anything is."""
    program = Path(words[0]).name
    if program == "make":
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no target {unknown}" if unknown else None
    if program.startswith("python") and "-m" in words:
        module = words[words.index("-m") + 1]
        if module.islower() and module.split(".")[0] in (*PACKAGES, "tests"):
            try:
                found = importlib.util.find_spec(module)
            except ModuleNotFoundError:
                found = None
            return None if found else f"no module {module}"
        return None
    return _problem_of_fedfuse(words[1:]) if program == "fedfuse" else None


@cache
def _front_door() -> click.Command:
    return typer.main.get_command(fedfuse.app)


def _problem_of_fedfuse(words: list[str]) -> str | None:
    command = _front_door()
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-\d.*", word):
            if word.split("=")[0] not in options | {"--help", "-h"}:
                return f"`{command.name}` has no option {word}"
        elif isinstance(command, click.Group):
            # `fedfuse audit RUN` is `fedfuse audit check RUN`.
            inner = command.commands.get(word) or (command.commands["check"] if command.name == "audit" else None)
            if inner is None:
                # NAME or PATH in a synopsis.
                if not re.fullmatch(r"[a-z][a-z-]*", word):
                    return None
                return f"`{command.name}` has no command {word}"
            command = inner
            options |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return None


@pytest.mark.parametrize("paper", OF_TODAY, ids=_name)
def test_commands_and_their_options_exist(paper: Path) -> None:
    wrong = []
    for line in _command_lines(paper):
        for words in _commands(line):
            if problem := _problem(words):
                wrong.append((line, problem))
    assert not wrong


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("fedfuse simulate --rounds 10", None),
        ("A=1 fedfuse simulate w --sed 1", "no option --sed"),
        ("cd x && fedfuse simulte w", "no command simulte"),
        ("make tests", "no target"),
        ("python -m simulations.benchmarks.gains", "no module"),
    ],
)
def test_this_check_sees_mistakes(line: str, problem: str | None) -> None:
    found = [_problem(words) for words in _commands(line)][-1]
    assert found is None if problem is None else found is not None and problem in found


@pytest.mark.parametrize("page", reference["PAGES"])
def test_pages_that_are_made_from_the_code_are_what_it_says(page: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == reference["PAGES"][page](), "run `make docs`"


def test_every_argument_and_option_says_what_it_is() -> None:
    assert "|  |\n" not in reference["command_line"]()
    assert "|  |\n" not in reference["message_format"]()


def test_the_words_of_errors_in_the_troubleshooting_page_are_the_codes() -> None:
    words = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    code = "".join(path.read_text() for path in CODE)
    joined = re.sub(r"\"\s*\n\s*f?\"", "", code)  # Literals over several lines are one.
    assert len(words) > 25
    assert not [one for one in words if one not in joined]


def _examples(paper: str) -> list[str]:
    return [body for language, body in FENCE.findall((ROOT / "docs" / paper).read_text()) if language == "python"]


def test_the_recipes_work_as_they_are_written() -> None:
    made: dict[str, Any] = {}
    for code in _examples("extending.md"):
        exec(compile(code, "docs/extending.md", "exec"), made)
    random = np.random.default_rng(0)
    text, image = torch.randn(4, 8), torch.randn(4, 3)
    operator = made["Maximum"]()
    local = operator.initial({"image": 3}, 8, random)
    there = torch.tensor([True, True, False, False])
    fused = operator.combine(local, text, {"image": (image, there)})
    torch.testing.assert_close(fused.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(fused[2:], torch.nn.functional.normalize(text, dim=-1)[2:])
    combiner = made["Midmean"]({"x": (1, 1)}, faulty=1)
    for value in (1.0, 2.0, 3.0, 4.0, 1e6):
        combiner.add({"x": np.full((1, 1), value, np.float32)}, weight=1)
    assert combiner.change()["x"].item() == 3.0


def test_links_to_what_is_no_paper_become_text_on_the_site() -> None:
    text = "[a](../README.md#x) [b](../LICENSE) [c](https://example.org) ![d](d.png)"
    kept = site["_among_papers"](text, Path("docs/audit.md"), {Path("README.md")})
    assert kept == "[a](../README.md#x) b [c](https://example.org) ![d](d.png)"


def test_the_site_builds_strictly_and_asks_nothing_of_others() -> None:
    assert site["main"]() == 0
    pages = list((ROOT / "build" / "site").rglob("*.html"))
    assert len(pages) > 15
    fetched = re.compile(r"""(?:<(?:script|img|iframe)[^>]*\ssrc|<link[^>]*\shref)=["']?(https?:)?//""")
    assert not [page.name for page in pages if fetched.search(page.read_text())]
