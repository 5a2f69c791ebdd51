"""The gradient of a batch as it comes in training: in how many passes, and with freed memory kept or given back.

    python -m simulations.benchmarks.passes [--users 96] [--length 64] [--layers 2] [--turns 15] [--json]

On a processor, with the default backbone; every side computes the same sum of clipped gradients. `given back` is what glibc comes
to by itself (it keeps free twice the largest block that it ever got from the system alone, here the wide inner layer), `kept`
what `shared/heap.py` asks for. The order of the sides changes in every turn, all in one process; a figure is the median over
turns, a ratio is the first side's time over this one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from client.gradients import Clipped, clipped_sum
from client.mechanism import Mechanism
from shared.adapter import layout_of
from shared.backbone import load_backbone
from shared.encoder import Batch, Encoder, compute_dtype
from shared.heap import KEPT, keep, set_thresholds
from shared.settings import ModelSettings
from simulations.benchmarks.training import Problem, problem

SIZES = (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to go through the batch.

    Args:
        sequences: Of one pass, at most.
        kept: Whether freed memory stays with the process.
    """

    sequences: int
    kept: bool

    def __str__(self) -> str:
        return f"at most {self.sequences} a pass, memory {'kept' if self.kept else 'given back'}"


class Work:
    """One batch of users, one sequence each.

    Args:
        users: In the batch.
        length: Tokens of a sequence.
        layers: That are trained, from the top; the features below them are made once, as a cache would give them.
    """

    def __init__(self, *, users: int, length: int, layers: int) -> None:
        device, model = torch.device("cpu"), ModelSettings(layers=layers)
        backbone = load_backbone("minilm")
        self._at = problem(backbone.shape, batch=users, length=length, device=device)
        self._encoder = Encoder(backbone, model, device=device, dtype=compute_dtype(device))
        self._hidden = self._encoder.trunk(self._at.ids, self._at.mask)
        self._row = length * backbone.shape.intermediate * self._hidden.element_size()
        random = torch.Generator().manual_seed(1)
        layout = layout_of(backbone.shape, model)
        self._parameters = {name: 0.02 * torch.randn(shape, generator=random) for name, shape in layout.items()}
        self._mechanism = Mechanism(users=10 * users, sample_rate=0.1, clip=1.0, noise_multiplier=1.0)

    def run(self, side: Side) -> Clipped:
        """Its gradient."""
        users = len(self._at.ids)
        # Even passes, as training has them.
        passes = np.array_split(np.arange(users), -(-users // side.sequences))
        block = len(passes[0]) * self._row
        set_thresholds(mmap=KEPT if side.kept else block, trim=KEPT if side.kept else 2 * block)
        first, *rest = map(self._part, passes)
        for part in rest:
            first = first.plus(part)
        return first

    def _part(self, rows: np.ndarray) -> Clipped:
        at = Problem(ids=self._at.ids[rows], bank=self._at.bank, targets=self._at.targets[rows])
        batch = Batch(hidden=self._hidden[rows], mask=at.mask)
        real = torch.ones(len(rows), dtype=torch.bool)
        return clipped_sum(lambda copies: at.losses(self._encoder.pooled(batch, copies)), self._parameters, real, self._mechanism)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How many users go through a pass, and what becomes of freed memory.")
    parser.add_argument("--users", type=int, default=96)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--layers", type=int, default=2, help="trained layers, from the top")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if not keep():
        parser.error("this needs glibc")
    work = Work(users=options.users, length=options.length, layers=options.layers)
    sides = [Side(sequences=size, kept=kept) for kept in (False, True) for size in SIZES]
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    random = np.random.default_rng(0)
    for _ in track(range(options.turns + 1), console=Console(stderr=True), description="turns"):
        for at in random.permutation(len(sides)):
            began = time.perf_counter()
            work.run(sides[at])
            seconds[sides[at]].append(time.perf_counter() - began)
    # The first turn makes the kernels.
    medians = {side: statistics.median(times[1:]) for side, times in seconds.items()}
    base = medians[sides[0]]
    if options.json:
        found = [{"side": str(side), "seconds": round(at, 4), "ratio": round(base / at, 3)} for side, at in medians.items()]
        batch = {"users": options.users, "length": options.length, "layers": options.layers}
        json.dump({**batch, "sides": found}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("side", title=f"gradient of {options.users} x {options.length} tokens, {torch.get_num_threads()} threads")
    table.add_column("ms", justify="right")
    table.add_column("ratio", justify="right")
    for side, median in medians.items():
        table.add_row(str(side), f"{1000 * median:.1f}", f"{base / median:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
