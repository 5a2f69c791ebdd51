"""Changes the program at places drawn by a seed, and says what share of the changes its tests notice.

    python -m tests.support.mutants --seed 7 --number 40 [--area privacy ...] [--json]

A mutant is the program with one small change (`tests.support.mutations`). Each is made in a temporary copy of the tree, never in
the checkout, and meets the tests that can see it, nearest first, until one fails: the module's doctests and the file that mirrors
it, the files beside that one, then those that import it, over two others at most. A test that hangs has failed. One that fails
without the mutant too says nothing, and is left out. Seconds are a processor's, so a machine that others use says the same.

A seed draws from all areas in turn, and a greater number goes on where a smaller one ended. Outcomes are appended to a file one
by one, so the same command goes on after an interruption; with --again it judges once more what survived. A survivor is a place
to look at: a test is missing, or the change makes no difference that anybody could see.

(mutmut and cosmic-ray go through whole modules; neither draws by area and seed, nor knows which tests see a module.)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from ast import Import, ImportFrom, parse, walk
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.support.mutations import Mutant, mutants_in

ROOT = Path(__file__).parents[2]
AREAS = {
    "privacy": ("client/privacy/*.py", "shared/privacy/*.py", "client/training/*.py"),
    "secure-sum": ("shared/secagg/*.py", "client/secagg/*.py", "strategies/secure_sum/*.py"),
    "ledger": ("shared/ledger/*.py",),
    "sources": ("client/sources/**/*.py",),
    "strategies": ("strategies/*.py",),
    "server": ("server/**/*.py",),
    "evaluation": ("client/evaluation/*.py", "client/run/*.py"),
    "preferences": ("shared/preferences/*.py",),
    "recommender": ("client/recommender/**/*.py",),
    "attacks": ("simulations/attack/*.py",),
}
WARM = "torch transformers.models.bert.modeling_bert flwr.app flwr.serverapp opacus polars hypothesis sqlalchemy pydantic"
"""What most tests import: loaded once, for every run is a fork of this process."""
ENVIRONMENT = {"CI": "true", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
ONE_TEST = 120
"""Seconds after which a test is said to hang, of a machine that nobody else uses."""
RESULTS = ROOT / "runs" / "mutants"


def drawn(seed: int, number: int, areas: Iterable[str]) -> list[Mutant]:
    """A sample, from one area after the other in turn."""
    lines = []
    for area in areas:
        paths = sorted(path for pattern in AREAS[area] for path in ROOT.glob(pattern))
        found = [mutant for path in paths for mutant in mutants_in(path.read_text(), file=_shown(path), area=area)]
        random.Random(f"{seed} {area}").shuffle(found)
        lines.append(found)
    return list(islice((mutant for turn in zip_longest(*lines) for mutant in turn if mutant is not None), number))


def stages_of(file: str) -> Iterator[list[str]]:
    """The tests that can see a module, nearest first; none comes twice."""
    mirror = f"tests/{Path(file).parent}/test_{Path(file).stem}.py"
    stages = [[file, mirror], sorted(_shown(path) for path in (ROOT / mirror).parent.glob("test_*.py"))]
    edge, seen = {file}, {file}
    for _ in range(3):
        edge = {user for user, used in _uses().items() if used & edge} - seen
        seen |= edge
        stages.append(
            sorted((name for name in edge if "/test_" in name), key=lambda name: (file.split("/")[0] not in name, name))
        )
    known: set[str] = set()
    for stage in stages:
        yield [name for name in stage if name not in known and (ROOT / name).is_file()]
        known.update(stage)


@functools.cache
def _uses() -> dict[str, set[str]]:
    """File -> the files that it imports, and the `conftest.py` files above a test."""
    uses: dict[str, set[str]] = {}
    for path in ROOT.glob("[!.]*/**/*.py"):
        modules: set[str] = set()
        for node in walk(parse(path.read_text())):
            if isinstance(node, Import):
                modules.update(name.name for name in node.names)
            elif isinstance(node, ImportFrom) and node.module:
                modules.update([node.module, *(f"{node.module}.{name.name}" for name in node.names)])
        uses[_shown(path)] = {module.replace(".", "/") + ".py" for module in modules}
        if path.name.startswith("test_"):
            uses[_shown(path)].update(_shown(folder / "conftest.py") for folder in path.parents if ROOT in folder.parents)
    return uses


def _spent() -> float:
    """Seconds that all tests until now have taken of a processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spent_by(process: int) -> float:
    """The same by one that runs, and by those that it waited for."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Copy:
    """The tree in another folder, in which mutants are written one after the other."""

    def __init__(self, folder: Path) -> None:
        self._tree, self._output = folder / "tree", folder / "output.txt"
        shutil.copytree(ROOT, self._tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "dist"))
        self._base, self._cache = folder / "t", folder / "cache"
        self._sound: set[str] = set()
        self._unsound: set[str] = set()

    def outcome(self, mutant: Mutant, *, seconds: float) -> str:
        """The test that fails, "hangs" or "cannot be run"; else nothing, or "no time left" for the rest of the tests."""
        end = _spent() + seconds
        path = self._tree / mutant.file
        source = path.read_bytes()
        for stage in filter(None, stages_of(mutant.file)):
            while True:
                path.write_bytes(mutant.applied(source))
                code = self._pytest(stage, end - _spent())
                path.write_bytes(source)
                if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                    break
                if code is None:
                    return "no time left"
                failed = self._failed()
                if all(map(self._is_sound, failed)):
                    return next(iter(failed), "hangs" if code == pytest.ExitCode.TESTS_FAILED else "cannot be run")
        return ""

    def _is_sound(self, test: str) -> bool:
        """Whether a test passes without any mutant."""
        if test not in self._sound | self._unsound:
            (self._sound if self._pytest([test], 5 * ONE_TEST) == pytest.ExitCode.OK else self._unsound).add(test)
        return test in self._sound

    def _failed(self) -> list[str]:
        path = self._cache / "v" / "cache" / "lastfailed"
        return list(json.loads(path.read_text())) if path.exists() else []

    def _pytest(self, tests: Sequence[str], seconds: float) -> int | None:
        """Its exit code; None once the time is over."""
        tests = [test for test in tests if test not in self._unsound and (self._tree / test.split("::")[0]).is_file()]
        if not tests:
            return pytest.ExitCode.NO_TESTS_COLLECTED
        shutil.rmtree(self._cache, ignore_errors=True)
        patience = max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))
        options = ["-x", "-q", "--tb=short", "-m", "not slow and not deploy and not engine"]
        options += [f"--timeout={ONE_TEST * patience:.0f}"]
        options += ["--timeout-method=thread", f"--basetemp={self._base}", "-o", f"cache_dir={self._cache}"]
        options += [f"--deselect={test}" for test in self._unsound]
        run = multiprocessing.get_context("fork").Process(target=self._in_fork, args=([*options, *tests],))
        end = time.monotonic() + 2 * patience * max(seconds, 1)
        run.start()
        while run.is_alive() and _spent_by(run.pid or 0) < max(seconds, 1) and time.monotonic() < end:
            run.join(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid or 0, signal.SIGKILL)
        run.join()
        return None if run.exitcode == -signal.SIGKILL else run.exitcode

    def _in_fork(self, arguments: list[str]) -> None:
        os.setsid()
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self._tree)
        os.environ["PYTHONPATH"] = str(self._tree)
        sys.path[:] = [str(self._tree), *(path for path in sys.path if Path(path).resolve() != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        os._exit(pytest.main(arguments))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="what is drawn")
    parser.add_argument("--number", type=int, required=True, help="mutants to draw")
    parser.add_argument("--area", action="append", choices=list(AREAS), help="draw from it alone; may be repeated")
    parser.add_argument(
        "--seconds", type=float, default=300, help="of a processor, for one mutant's tests together (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="judge what survived once more, say after a test was written")
    parser.add_argument("--results", type=Path, help="the file of outcomes (default: runs/mutants/SEED.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args()
    path: Path = chosen.results or RESULTS / f"{chosen.seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    by_mutant = {Mutant(**line["mutant"]): str(line["outcome"]) for line in known}
    sample = drawn(chosen.seed, chosen.number, chosen.area or AREAS)
    wanted = [mutant for mutant in sample if mutant not in by_mutant or (chosen.again and survived(by_mutant[mutant]))]
    if wanted:
        os.environ.update(ENVIRONMENT)
        for name in WARM.split():
            importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, path.open("a") as file:
        tree = Copy(Path(folder))
        for mutant in wanted:
            outcome = by_mutant[mutant] = tree.outcome(mutant, seconds=chosen.seconds)
            print(json.dumps({"mutant": asdict(mutant), "outcome": outcome}), file=file, flush=True)
            print(f"{mutant}: {outcome or 'survived'}", file=sys.stderr, flush=True)
    found = report({mutant: by_mutant[mutant] for mutant in sample})
    print(json.dumps(found) if chosen.json else in_words(found))


def survived(outcome: str) -> bool:
    """Whether no test failed."""
    return outcome in ("", "no time left")


def report(outcomes: dict[Mutant, str]) -> dict[str, Any]:
    """Mutants and how many were killed, by area; and the survivors, each as one line."""
    areas = dict.fromkeys(mutant.area for mutant in outcomes)
    of = {area: [outcome for mutant, outcome in outcomes.items() if mutant.area == area] for area in areas} | {
        "all": list(outcomes.values())
    }
    counts = {area: {"mutants": len(each), "killed": sum(not survived(one) for one in each)} for area, each in of.items()}
    left = [f"{mutant}{f' ({outcome})' if outcome else ''}" for mutant, outcome in outcomes.items() if survived(outcome)]
    return {"areas": counts, "survivors": left}


def in_words(found: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"{area:12} {n['killed']:4} of {n['mutants']:4} killed, {n['killed'] / n['mutants']:4.0%}"
        for area, n in found["areas"].items()
    ]
    return "\n".join([*lines, *(["", "survivors:"] if found["survivors"] else []), *found["survivors"]])


if __name__ == "__main__":
    main()
