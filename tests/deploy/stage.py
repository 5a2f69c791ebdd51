"""A coordinator and platforms as processes of their own on this machine: started, killed and asked through the command line."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulations.local_deployment import LocalDeployment, fedfuse_words

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds that a state is waited for; these machines are shared."""


class Stage(LocalDeployment):
    """Everything below one folder; `close` ends all that was started."""

    def __init__(self, root: Path, *, backbone: str, name: str = "spring") -> None:
        super().__init__(root, name=name, patience=PATIENCE, environment={"PYTHONPATH": str(ROOT), "COLUMNS": "160"})
        self.backbone = backbone

    def fedfuse(self, *words: str | Path, check: bool = True, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            fedfuse_words(*words),
            cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            pytest.fail(f"fedfuse {' '.join(map(str, words))}: {done.returncode}\n{said}\n{self.logs()}")
        return done

    def command(self, *words: str | Path) -> str:
        return self.fedfuse(*words).stdout

    def spawn(self, key: str, *words: str | Path, **over: Any) -> subprocess.Popen[bytes]:
        """Start a command that stays."""
        return self.start(key, fedfuse_words(*words), **over)

    def make_platform(
        self, name: str, *sources: str | Path, users: int = 100, epsilon: float = 50.0, delta: float = 1e-3
    ) -> Path:
        """Invite, make and approve a platform; its draft is used but for the tiny backbone, which it has to allow."""
        folder = self.draft(name, *sources, users=users, epsilon=epsilon, delta=delta)
        self.edit(folder, '# backbones = ["minilm"]', f"backbones = [{json.dumps(self.backbone)}]")
        # A few users at a large epsilon: little noise will do.
        self.edit(folder, "minimum_noise_multiplier = 0.3 ", "minimum_noise_multiplier = 0.05 ")
        self.approve(name)
        return folder

    def edit(self, folder: Path, old: str, new: str) -> None:
        text = (folder / "platform.toml").read_text()
        assert old in text, text
        (folder / "platform.toml").write_text(text.replace(old, new))

    def found(self, tables: Mapping[str, Path]) -> None:
        """A federation whose platforms trust each other, and no one of which need fear another at the coordinator's side.

        Args:
            tables: Platform -> its tables.
        """
        self.make()
        self.serve()
        for name, path in tables.items():
            self.make_platform(name, "--data", path)
        for name in tables:
            self.trust(name, tables)
            self.edit(self.root / name, "colluders = 1 ", "colluders = 0 ")
            self.join(name)
        self.await_online(*tables)

    def status(self) -> dict[str, Any]:
        done = self.fedfuse("status", "--server", self.coordinator, "--json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {"platforms": [], "server": False}

    def run(self, name: str, *words: str, check: bool = True, timeout: float = 900.0) -> subprocess.CompletedProcess[str]:
        """A federation, from its start to its end."""
        return self.fedfuse(
            "run", "--server", self.coordinator, "--name", name, *self.tiny(), *words, check=check, timeout=timeout
        )

    def tiny(self) -> list[str]:
        """Options that make a run small."""
        settings = {
            "model.backbone": self.backbone, "model.layers": 1, "model.rank": 2, "model.item_tokens": 12, "model.user_tokens": 16,
            "training.local_steps": 2, "training.sample_rate": 0.5, "training.views": 2, "reply_timeout": 120.0,
        }  # fmt: skip
        return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]

    def folder(self, run: str) -> Path:
        return self.coordinator / "runs" / run

    def state(self, run: str) -> dict[str, Any]:
        path = self.folder(run) / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def await_round(self, run: str, round_: int) -> None:
        until(lambda: any(event["kind"] == "round" and event["round"] >= round_ for event in self.events(run)),
              f"round {round_} of {run}", self.logs)  # fmt: skip

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes of this stage whose command line has all these words."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.root) in line and all(word in line for word in words):
                found.append(process)
        return found

    def below(self, key: str, *words: str) -> list[psutil.Process]:
        """Descendants of a process that was started here, with these words."""
        found = []
        for process in psutil.Process(self.processes[key].pid).children(recursive=True):
            try:
                if all(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def logs(self) -> str:
        parts = []
        for path in sorted([*self.root.glob("*.log"), *self.root.glob("*/log/*.log")]):
            lines = [line for line in path.read_text(errors="replace").splitlines() if "DEBUG" not in line]
            parts.append(f"--- {path.relative_to(self.root)}\n" + "\n".join(lines[-15:]))
        return "\n".join(parts)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        for process in [*self.find(), *(psutil.Process(p.pid) for p in self.processes.values() if p.poll() is None)]:
            try:
                process.kill()
            except psutil.Error:
                continue


def until(
    holds: Callable[[], object], what: str, logs: Callable[[], str] = str, *, seconds: float = PATIENCE, every: float = 0.2
) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"after {seconds:g} s not: {what}\n{logs()}")
        time.sleep(every)


def csv(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path
