"""A real worker with a simulation's seeded noise, behind its real socket: a deployment that can be computed again exactly.

    python -m tests.deploy.seeded_worker PLATFORM_FILE STATE SOCKET TRACE SECONDS [HOSTILE]

It says in TRACE when it begins and ends a request, and waits SECONDS before each, so that a test can strike in between; and as
long as there is a file TRACE with the suffix `.hold`. It also says when a step of training is done, after the charge and before
anything is remembered, and stays there as long as there is one with the suffix `.pause`.
HOSTILE spoils the updates of round 2.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.config.platform_file import load
from client.messenger.unix_socket import listen
from client.worker.request_handler import Worker
from client.worker.socket_server import Door
from shared.protocol.messages import Answer, Request, Train, Update

torch.set_num_threads(1)


class Traced:
    """Tells what the worker is doing, and takes its time."""

    def __init__(self, trace: Path, seconds: float, hostile: str) -> None:
        self._trace, self._seconds, self._hostile = trace, seconds, hostile
        self.worker: Worker
        self._now: Request

    @property
    def name(self) -> str:
        return self.worker.name

    def handle(self, request: Request, warrant: str = "", receipt: str = "") -> Answer:
        self._now = request
        self._say("begin", request)
        time.sleep(self._seconds)
        while self._trace.with_suffix(".hold").exists():
            time.sleep(0.05)
        answer = self.worker.handle(request, warrant, receipt)
        self._say("end", request, answer=answer.kind)
        return self._spoiled(answer) if isinstance(request, Train) and request.round == 2 else answer

    def progress(self, what: str, done: int, total: int) -> None:
        """What the worker tells of its work."""
        if what == "training":
            self._say("step", self._now)
            while self._trace.with_suffix(".pause").exists():
                time.sleep(0.05)

    def _say(self, what: str, request: Request, **more: str) -> None:
        line = {"what": what, "kind": request.kind, "round": getattr(request, "round", 0), "time": time.time(), **more}
        with self._trace.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _spoiled(self, answer: Answer) -> Answer:
        if not self._hostile or not isinstance(answer, Update):
            return answer
        spoil = {
            "nan": lambda value: np.full_like(value, np.nan),
            "shape": lambda value: np.zeros((1, 1), np.float32),
            "large": lambda value: (100 * np.maximum(np.abs(value), np.abs(value).mean())).astype(np.float32),
        }[self._hostile]
        return replace(answer, change={name: spoil(value) for name, value in answer.change.items()})


def main() -> None:
    file, state, socket, trace, seconds = sys.argv[1:6]
    platform = load(file)
    traced = Traced(Path(trace), float(seconds), sys.argv[6] if len(sys.argv) > 6 else "")
    traced.worker = Worker(
        platform,
        state=Path(state),
        ledger=Path(state) / "ledger" / f"{platform.name}.jsonl",
        simulation=True,
        device=torch.device("cpu"),
        progress=traced.progress,
    )
    Door(traced, listen(Path(socket))).serve()


if __name__ == "__main__":
    main()
