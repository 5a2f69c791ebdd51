"""Platforms of a stage with seeded workers, and the same run computed again in this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from client.app import app
from client.config.platform_file import load
from client.messenger import worker_link as link
from client.worker.request_handler import Worker
from server.deployment.flower_control import Control
from server.deployment.folder import open_coordinator
from server.deployment.launch import Launch, federate_deployed, record
from server.run.federation import run_federation
from shared.base.settings import Settings, build
from shared.ledger.reading import read_ledger
from shared.model.adapter import layout_of
from shared.model.backbone import shape_of
from shared.protocol.messages import Answer, Request, Train
from simulations.in_process_grid import InProcessGrid
from tests.deploy.stage import ROOT, Stage, until


class Seeded:
    """A stage whose platforms can be struck at any moment, and whose run can be repeated exactly.

    Args:
        seconds: That every worker waits before it answers.
    """

    def __init__(self, stage: Stage, *, seconds: float = 1.5) -> None:
        self.stage, self.seconds = stage, seconds
        self.names: list[str] = []
        self.hostile: dict[str, str] = {}
        self.slow: dict[str, float] = {}
        self.stopping = threading.Event()
        self.result: dict[str, Any] | Exception | None = None
        self.heard: list[dict[str, Any]] = []

    def settings(self, **over: Any) -> Settings:
        values: dict[str, Any] = {
            "rounds": 4, "simulation": True, "reply_timeout": 40.0,
            "model": {"backbone": self.stage.backbone, "layers": 1, "rank": 2, "item_tokens": 12, "user_tokens": 16},
            "training": {"local_steps": 2, "sample_rate": 0.5, "views": 2, "targets": 2},
            "privacy": {"generator": "seeded", "epsilon": 50.0},
        }  # fmt: skip
        for key, value in over.items():
            old = values.get(key)
            values[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return build(values, where="test")

    def add(self, name: str, tables: Path) -> None:
        self.stage.make_platform(name, "--data", tables, users=40)
        self.names.append(name)

    def start_worker(self, name: str) -> None:
        folder, seconds = self.stage.root / name, self.slow.get(name, self.seconds)
        words = [sys.executable, "-m", "tests.deploy.seeded_worker", folder / "platform.toml", folder / "worker"]
        words += [self.socket(name), self.trace(name), seconds, *([self.hostile[name]] if name in self.hostile else [])]
        with (self.stage.root / f"{name}-worker.log").open("ab") as log:
            self.stage.processes[f"{name}-worker"] = subprocess.Popen(
                list(map(str, words)), cwd=ROOT, env=self.stage.environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self.socket(name).exists, f"{name}'s socket", self.stage.logs)

    def start_node(self, name: str) -> None:
        """The messenger, kept running as `fedfuse client start` keeps it."""

        def keep() -> None:
            while not self.stopping.is_set():
                process = self.stage.spawn(
                    f"{name}-node", "client", "node", self.stage.root / name, "--socket", self.socket(name)
                )
                while process.poll() is None and not self.stopping.is_set():
                    time.sleep(0.1)
                self.stopping.wait(1.0)

        threading.Thread(target=keep, daemon=True).start()

    def start(self) -> None:
        for name in self.names:
            self.start_worker(name)
            self.start_node(name)
        self.stage.await_online(*self.names)

    def stop(self) -> None:
        self.stopping.set()

    def socket(self, name: str) -> Path:
        return self.stage.root / name / "socket" / "worker.sock"

    def trace(self, name: str) -> Path:
        return self.stage.root / name / "trace.jsonl"

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.trace(name)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def await_line(self, name: str, what: str, kind: str, round_: int, *, seconds: float = 240.0) -> None:
        until(
            lambda: any((line["what"], line["kind"], line["round"]) == (what, kind, round_) for line in self.lines(name)),
            f"{name} {what}s {kind} {round_}", self.stage.logs, seconds=seconds, every=0.02,
        )  # fmt: skip

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """That platform answers nothing meanwhile, so that no round ends."""
        with self._while_there(self.trace(name).with_suffix(".hold")):
            yield

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """That platform's worker stops meanwhile in the middle of its training: charged, and nothing remembered."""
        with self._while_there(self.trace(name).with_suffix(".pause")):
            yield

    @contextlib.contextmanager
    def _while_there(self, hold: Path) -> Iterator[None]:
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def kill_node(self, name: str) -> None:
        """SIGKILL to the SuperNode and all that it has started."""
        os.killpg(self.stage.processes[f"{name}-node"].pid, signal.SIGKILL)

    def node_runs(self, name: str) -> bool:
        """Whether the platform's SuperNode has been let in and has its own processes."""
        process = self.stage.processes[f"{name}-node"]
        return process.poll() is None and any("launcher.py" in line for line in _below(process.pid))

    def seen(self, name: str) -> float:
        """When the coordinator's gate last let a request of that platform through."""
        with Control(open_coordinator(self.stage.coordinator)) as control:
            return float(control.seen().get(name, {}).get("last", 0.0))

    def launch(self, run: str, settings: Settings, **over: Any) -> threading.Thread:
        """`fedfuse run` in a thread; `result` is what came of it."""
        coordinator = open_coordinator(self.stage.coordinator)
        launch = Launch(coordinator=coordinator, run=run, settings=settings, nodes=len(self.names), wait=180.0, **over)
        record(launch)

        def run_it() -> None:
            try:
                self.result = federate_deployed(launch, self.heard.append)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.result = error

        thread = threading.Thread(target=run_it, daemon=True)
        thread.start()
        return thread

    def finish(self, thread: threading.Thread, *, seconds: float = 900.0) -> dict[str, Any]:
        thread.join(seconds)
        assert not thread.is_alive(), self.stage.logs()
        assert isinstance(self.result, dict), f"{self.result}\n{self.heard[-15:]}\n{self.stage.logs()}"
        return self.result

    def trained(self, name: str) -> set[int]:
        """Rounds of which the platform's worker had an update to give, as it says itself."""
        lines = self.lines(name)
        return {line["round"] for line in lines if (line["what"], line.get("answer")) == ("end", "update")}

    def charged(self, name: str, run: str) -> list[tuple[str, int]]:
        entries = read_ledger(self.stage.root / name / "worker" / "ledger" / f"{name}.jsonl").entries
        return [(str(entry.kind), entry.round) for entry in entries if entry.run == run]

    def participants(self, run: str) -> dict[int, set[str]]:
        """Round -> whose updates its checkpoint holds. An attempt that was cut off begins its round anew."""
        found: dict[int, set[str]] = {}
        now: set[str] = set()
        training = False
        for event in self.stage.events(run):
            if event["kind"] in ("resumed", "evaluated", "joined"):
                training, now = True, now if event["kind"] == "joined" else set()
            elif event["kind"] == "answered" and training:
                now.add(event["platform"])
            elif event["kind"] in ("dropped", "refused") and event.get("platform"):
                now.discard(event["platform"])
            elif event["kind"] == "round":
                found[event["round"]], now = now, set()
        return found

    def require_same(self, run: str, settings: Settings) -> dict[int, set[str]]:
        """The model equals that of a run in this process in which the rounds simply had those participants.

        A platform that trained in a round and whose answer never came has trained in the other run as well: its optimizer
        has moved on. One that was charged and could not keep what it trained (its disk was full) has not.
        """
        rounds = self.participants(run)
        assert sorted(rounds) == list(range(1, settings.rounds + 1)), rounds
        for name in self.names:
            paid = [round_ for kind, round_ in self.charged(name, run) if kind == "train"]
            assert len(paid) == len(set(paid)), f"{name} was charged twice: {paid}"
            assert {round_ for round_, came in rounds.items() if name in came} <= self.trained(name) <= set(paid), (
                f"{name} was not charged: {paid}"
            )
        got = _checkpoint(self.stage.folder(run), run, settings)
        want = self._again(run, settings, rounds)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=2e-6, err_msg=name)
        moved = max(float(np.abs(value).max()) for value in want.values())
        assert moved > 1e-3  # there was something to agree on
        return rounds

    def _again(self, run: str, settings: Settings, rounds: dict[int, set[str]]) -> dict[str, Any]:
        folder = self.stage.root / f"again-{run}"
        nodes: dict[int, dict[str, Any]] = {}
        with contextlib.ExitStack() as stack:
            for number, name in enumerate(self.names, 2):
                worker = Worker(
                    load(self.stage.root / name / "platform.toml"), state=folder / name, ledger=folder / f"{name}.jsonl",
                    simulation=True, device=torch.device("cpu"),
                )  # fmt: skip
                trained = self.trained(name)
                chosen = {round_ for round_, came in rounds.items() if name in came}
                key = f"{run}-{name}"
                link.register(key, link.Direct(_Absent(worker, trained, chosen)))
                stack.callback(link.forget, key)
                stack.callback(worker.close)
                nodes[number] = {"link": key}
            with InProcessGrid(app=app, nodes=nodes) as grid:
                outcome = run_federation(
                    grid=grid, settings=settings, run=run, out=folder / "run", nodes=len(nodes), export=lambda *_: None
                )
        return dict(outcome.adapter)


def _below(pid: int) -> list[str]:
    """Command lines of a process' descendants."""
    lines = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(child.cmdline()))
    return lines


class _Absent:
    """A worker that is asked in rounds in which it trained, and heard in rounds in which it was heard."""

    def __init__(self, worker: Worker, trained: set[int], heard: set[int]) -> None:
        self._worker, self._trained, self._heard = worker, trained, heard

    def handle(self, request: Request) -> Answer:
        if not isinstance(request, Train):
            return self._worker.handle(request)
        if request.round in self._trained:
            answer = self._worker.handle(request)
            if request.round in self._heard:
                return answer
        raise ConnectionError("was not heard in this round")


def _checkpoint(folder: Path, run: str, settings: Settings) -> dict[str, Any]:
    from server.run.checkpoint import load_checkpoint

    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    return dict(load_checkpoint(folder, run=run, settings=settings, layout=layout).adapter)


@contextlib.contextmanager
def seeded(stage: Stage, make: Callable[[str], Path], names: list[str], **over: Any) -> Iterator[Seeded]:
    """A coordinator that serves, and platforms that are online."""
    made = Seeded(stage, **over)
    stage.make()
    stage.serve()
    for name in names:
        made.add(name, make(name))
    try:
        yield made
    finally:
        made.stop()
