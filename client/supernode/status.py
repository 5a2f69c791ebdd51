"""A platform's status from its own files: budget, runs, and whether its worker answers. Nothing here leaves the platform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.config.deployment_folder import Deployment
from client.config.platform_file import load
from client.supernode.sandbox import wall
from client.supernode.supervisor import greets
from shared.ledger.reading import read_ledger


@dataclass(frozen=True, kw_only=True)
class PlatformState:
    """One platform.

    Args:
        worker: Whether it answers at its socket.
        wall: How this kernel cages the messenger, and what it leaves open.
        spent, budget: Epsilon by the ledger, over all runs.
        runs: Run -> rounds that were charged.
    """

    name: str
    federation: str
    address: str
    worker: bool
    wall: str
    spent: float
    budget: float
    delta: float
    ledger: Path
    runs: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """For machines; an infinite epsilon is the string 'inf'."""

        def shown(value: float) -> float | str:
            return "inf" if value == math.inf else value

        return {
            "name": self.name,
            "federation": self.federation,
            "address": self.address,
            "worker": self.worker,
            "wall": self.wall,
            "spent": shown(self.spent),
            "budget": shown(self.budget),
            "left": shown(max(self.budget - self.spent, 0.0)) if self.spent < math.inf else 0.0,
            "delta": self.delta,
            "ledger": str(self.ledger),
            "runs": self.runs,
        }


def state_of(deployment: Deployment, *, at: Path | None = None) -> PlatformState:
    """The status of that platform.

    Raises:
        InputError: its file has a mistake.
        StorageError, PrivacyError: its ledger cannot be read, or was altered.
    """
    file, invitation = load(deployment.file), deployment.invited()
    ledger = read_ledger(file.ledger) if file.ledger.exists() else None
    runs: dict[str, int] = {}
    for entry in ledger.entries if ledger else ():
        runs[entry.run] = max(runs.get(entry.run, 0), entry.round)
    return PlatformState(
        name=file.name,
        federation=invitation.federation,
        address=invitation.address,
        worker=greets(at or deployment.socket),
        wall=str(wall()),
        spent=ledger.epsilon if ledger else 0.0,
        budget=file.privacy.epsilon,
        delta=file.privacy.delta,
        ledger=file.ledger,
        runs=runs,
    )
