"""A worker that is asked, and everything that ever left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from client.config.platform_file import load
from client.worker.request_handler import Worker
from shared.base.settings import Settings
from shared.protocol.messages import Answer


class Asking:
    """One platform in `root`, in a simulation."""

    def __init__(self, path: Path, settings: Settings, root: Path) -> None:
        self.path, self.settings, self.root, self.left = path, settings, root, list[Answer]()
        self.ledger = root / "ledger.jsonl"
        self.worker = self.open()

    def open(self) -> Worker:
        state = self.root / "state"
        return Worker(load(self.path), state=state, ledger=self.ledger, simulation=True, device=torch.device("cpu"))

    def restart(self) -> None:
        self.worker.close()
        self.worker = self.open()

    def ask(self, kind: type[Any], **values: Any) -> Any:
        self.left.append(self.worker.handle(kind(run="run-1", settings=self.settings, **values)))
        return self.left[-1]

    @property
    def memory(self) -> Path:
        return self.root / "state" / "runs" / "run-1.safetensors"
