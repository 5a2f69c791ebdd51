"""Runs the steps one after another and writes a line of JSON after each, so that a cut loses what had not ended, and no more.

    python -m simulations.benchmarks.gpu.runner OUT [--minutes 8] [--wheels FOLDER ...] [--tiny]

`OUT/results.jsonl` has the machine in its first line, then what was installed, then the steps. `OUT/log.txt` has what they said,
`OUT/summary.txt` the summary in words. Needs nothing but Python's own library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from shared.model.backbone import EMBEDDED
from simulations.benchmarks.gpu.install import install
from simulations.benchmarks.gpu.plan import MACHINE, GpuStep, backbone_step, limit, steps
from simulations.benchmarks.gpu.summary import summarised
from simulations.benchmarks.gpu.wheels import ROOT, requirements

LEAST_SECONDS = 5.0
"""With less left, a step is not begun."""
_GRACE = 3.0
"""Seconds from SIGTERM to SIGKILL."""
_TAIL = 2000


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: exit status (minus the signal's number, where one ended it), seconds, and the most memory in KiB."""

    rc: int
    seconds: float
    peak_kib: int
    timed_out: bool


class Results:
    """Lines of JSON, each on the disk before the next step begins.

    Raises:
        FileExistsError: the folder has results already.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "results.jsonl"
        self.lines: list[dict[str, Any]] = []
        with self.path.open("x"):
            pass

    def add(self, line: dict[str, Any]) -> None:
        """Append and sync."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class StepRunner:
    """Runs steps in processes of their own.

    Args:
        python: Interpreter.
        out: For `log.txt`.
        scratch: For what a step prints, and its temporary files.
    """

    def __init__(self, *, python: str, out: Path, scratch: Path) -> None:
        self._python, self._log, self._scratch = python, out / "log.txt", scratch

    def run(self, step: GpuStep, seconds: float) -> dict[str, Any]:
        """Run a step for at most so many seconds, and return its line of the results."""
        printed, memory = self._scratch / f"{step.name}.out", self._scratch / f"{step.name}.memory"
        counted = ["simulations.benchmarks.gpu.step", str(memory)] if step.torch else []
        words = [self._python, "-m", *counted, step.module, *step.options]
        with self._log.open("a+", encoding="utf-8", errors="replace") as log, printed.open("w") as out:
            log.write(f"\n== {step.name}: {step.module} {' '.join(step.options)}\n")
            log.flush()
            began = log.tell()
            # What torch compiles is kept for the next step, and goes with everything else.
            environment = {**os.environ, "TMPDIR": str(self._scratch), **step.environment}
            ended = watched(words, seconds, stdout=out, stderr=log, environment=environment)
            log.seek(began)
            said = log.read()[-_TAIL:]
        line = {
            "step": step.name,
            "what": step.what,
            "rc": ended.rc,
            "seconds": round(ended.seconds, 2),
            "limit": round(seconds, 1),
            "timed_out": ended.timed_out,
            "peak_host_mib": round(ended.peak_kib / 1024, 1),
            "peak_device_mib": _device_mib(memory),
            "figures": figures_in(printed.read_text(encoding="utf-8", errors="replace")),
        }
        return line if ended.rc == 0 else line | {"said": said}


def watched(words: Sequence[str], seconds: float, *, stdout: Any, stderr: Any, environment: Mapping[str, str]) -> Ended:
    """Run a process and all that it starts for at most so many seconds; none of them outlives this call."""
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - the plan's words
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
    asked: float | None = None
    try:
        while True:
            # Of this process and its own, unlike resource.getrusage, which would give the largest step so far.
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            now = time.monotonic()
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return Ended(rc=process.returncode, seconds=now - began, peak_kib=used.ru_maxrss, timed_out=asked is not None)
            if asked is None and now - began > seconds:
                asked = now
                os.killpg(process.pid, signal.SIGTERM)
            elif asked is not None and now - asked > _GRACE:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):  # all of them have ended by themselves
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.wait()


def figures_in(printed: str) -> Any:
    """The JSON that a step printed: all of it, or the last line that is some; None where there is none."""
    for text in (printed, *reversed(printed.splitlines())):
        try:
            return json.loads(text)
        except ValueError:
            continue
    return None


def _device_mib(memory: Path) -> float | None:
    found = figures_in(memory.read_text(encoding="utf-8")) if memory.exists() else None
    most = found["peak_device_bytes"] if isinstance(found, dict) else None
    return None if most is None else round(most / 2**20, 1)


def run_steps(plan: Sequence[GpuStep], runner: StepRunner, results: Results, *, until: float) -> None:
    """Run them in order; one that fails, or for which no time is left, is written down, and the next has its turn.

    Args:
        until: Of `time.monotonic`.
    """
    for place, step in enumerate(plan):
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            results.add({"step": step.name, "what": step.what, "rc": None, "said": "not begun: no time was left"})
            continue
        print(f"{step.what} ...", flush=True)
        results.add(runner.run(step, limit(step, plan[place + 1 :], left)))


def measure_gpu(out: Path, *, minutes: float, wheels: Sequence[Path], tiny: bool) -> list[dict[str, Any]]:
    """The machine, what is missing, and all steps; what they leave behind is deleted.

    Returns:
        The lines of the results.
    """
    until = time.monotonic() + 60 * minutes
    results = Results(out)
    scratch = Path(tempfile.mkdtemp(prefix="fedfuse-gpu-"))
    try:
        results.add(StepRunner(python=sys.executable, out=out, scratch=scratch).run(MACHINE, MACHINE.most))
        python = sys.executable
        if wheels:
            began = time.monotonic()
            installed = install(requirements(), wheels, scratch / "python")
            python = installed.python
            seconds = round(time.monotonic() - began, 2)
            results.add({"step": "install", "what": "installing", "rc": installed.rc, "seconds": seconds, "said": installed.said})
        runner = StepRunner(python=python, out=out, scratch=scratch)
        finding = backbone_step(scratch / "random-bert", tiny=tiny)
        results.add(runner.run(finding, finding.most))
        found = results.lines[-1]["figures"]
        backbone = found["backbone"] if isinstance(found, dict) else EMBEDDED
        run_steps(steps(scratch, backbone=backbone, tiny=tiny), runner, results, until=until)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        text = "\n".join(summarised(results.lines, tiny=tiny)) + "\n"
        (out / "summary.txt").write_text(text, encoding="utf-8")
        print(text, end="", flush=True)
    return results.lines


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run, and end with 1 if a step failed."""
    parser = argparse.ArgumentParser(description="What Fedfuse does on this machine's GPU.")
    parser.add_argument("out", type=Path, help="folder for the results; has none yet")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--wheels", type=Path, action="append", default=[], help="folder of wheels; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="on the processor, in sizes that mean nothing")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"{options.minutes} minutes: give more than 0")
    if (options.out / "results.jsonl").exists():
        parser.error(f"{options.out} has results already: name a new folder")
    signal.signal(signal.SIGTERM, _stop)
    lines = measure_gpu(options.out, minutes=options.minutes, wheels=options.wheels, tiny=options.tiny)
    sys.exit(1 if any(line["rc"] != 0 for line in lines) else 0)


if __name__ == "__main__":
    main()
