"""A run's curves for TensorBoard, written as it goes; no torch and no TensorFlow is needed."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.summary import Writer

from server.monitoring.run_events import Event, Kind
from shared.protocol.messages import Label


class TensorBoardWriter:
    """A watcher that writes scalars under `folder`: one curve per platform for every metric and for
    `epsilon`, `bytes_up` and `bytes_down`, over rounds, and the norm of every round's `change` of the global adapter.

    Losses are the platforms' own, and none is released. An infinite epsilon (privacy off) has no place on an axis.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(str(folder))

    def __call__(self, event: Event) -> None:
        """Take in an event; those that carry tallies move the curves."""
        for platform, tally in event.tallies.items():
            if event.kind is Kind.ROUND:
                self._point("epsilon", platform, tally.epsilon, event.round)
                self._point("bytes_up", platform, tally.bytes_up, event.round)
                self._point("bytes_down", platform, tally.bytes_down, event.round)
            elif event.kind is Kind.EVALUATED:
                metrics = tally.metrics(Label.BEFORE if event.round == 0 else Label.FEDERATED)
                if metrics is not None and metrics.round == event.round:
                    for name, mean in metrics.quality.items():
                        self._point(name, platform, mean, event.round)
        if event.change is not None:
            self._writer.add_scalar("change", event.change, event.round)
        if event.tallies:
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and stop the writer's thread."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _point(self, curve: str, platform: str, value: float, round_: int) -> None:
        if math.isfinite(value):
            self._writer.add_scalar(f"{curve}/{platform}", float(value), round_)
