"""The text model's quality after each evaluated round of a simulation, kept in the run's folder for when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server.monitoring.run_events import Event, Kind, Tally
from shared.base.atomic_files import write_whole

HISTORY = "rounds.json"


class RoundHistory:
    """A watcher of a run.

    Args:
        out: The run's folder.
        resume: Whether what an interrupted run has kept there is continued.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        self._path = out / HISTORY
        self._known: dict[str, dict[int, dict[str, float]]] = {}
        if resume and self._path.exists():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = {name: {int(one.pop("round")): one for one in rounds} for name, rounds in kept.items()}

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if event.kind is Kind.EVALUATED:
            self.take(event.tallies.values())
            write_whole(self._path, (json.dumps({name: self.of(name) for name in self._known}, indent=2) + "\n").encode())

    def take(self, tallies: Iterable[Tally]) -> None:
        """Add what platforms' tallies say of the model before the first round and after the last one that was evaluated."""
        for tally in tallies:
            for metrics in (tally.before, tally.federated):
                if metrics is not None:
                    own = self._known.setdefault(tally.platform, {})
                    own[metrics.round] = metrics.quality.rounded()

    def of(self, platform: str) -> list[dict[str, Any]]:
        """Round, and every metric, in the order of rounds."""
        return [{"round": number, **quality} for number, quality in sorted(self._known.get(platform, {}).items())]
