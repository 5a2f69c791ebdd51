"""The gradient of a batch as it comes in training: in how many passes, and with freed memory kept or given back.

    python -m simulations.benchmarks.passes [--users 96] [--length 64] [--layers 2] [--turns 15] [--eager] [--json]

On a processor, with the default backbone; every side computes the same sum of clipped gradients. `given back` is what glibc comes
to by itself (it keeps free twice the largest block that it ever got from the system alone, here the wide inner layer), `kept`
what `shared/layers/malloc_tuning.py` asks for. The order of the sides changes in every turn, all in one process; a figure is the
median over turns, a ratio is the first side's time over this one's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from rich.console import Console

from client.compute.backend import uses_kernels
from client.privacy.bounded_sum import BoundedSum
from shared.base.settings import Settings
from shared.layers.malloc_tuning import KEPT, keep, set_thresholds
from shared.model.backbone import load_backbone
from shared.model.encoder import compute_dtype
from simulations.benchmarks.report import report
from simulations.benchmarks.training import Private, Step, measure, problem

SIZES = (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to divide the batch into passes.

    Args:
        sequences: Of one pass, at most.
        kept: Whether freed memory stays with the process.
    """

    sequences: int
    kept: bool

    def __str__(self) -> str:
        return f"at most {self.sequences} a pass, memory {'kept' if self.kept else 'given back'}"


def even(users: int, most: int) -> int:
    """Users of a pass where no pass takes more than `most`, and all about as many, as training has them."""
    return -(-users // -(-users // most))


def gradient(private: Private, *, users: int, each: int) -> BoundedSum:
    """Of the first `users`, so many a pass."""
    first, *rest = (private.gradient(slice(begin, begin + each)) for begin in range(0, users, each))
    for part in rest:
        first = first.plus(part)
    return first


def step(private: Private, side: Side, *, users: int, block: int) -> Step:
    """The gradient in this side's way.

    Args:
        block: Bytes of a sequence's wide inner layer.
    """
    each = even(users, side.sequences)

    def run() -> None:
        set_thresholds(mmap=KEPT if side.kept else each * block, trim=KEPT if side.kept else 2 * each * block)
        gradient(private, users=users, each=each)

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How many users go through a pass, and what becomes of freed memory.")
    parser.add_argument("--users", type=int, default=96)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--layers", type=int, default=2, help="trained layers, from the top")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--eager", action="store_true", help="without the native kernels")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if not keep():
        parser.error("this needs glibc")
    device, backbone = torch.device("cpu"), load_backbone("minilm")
    at = problem(backbone.shape, batch=options.users, length=options.length, device=device)
    kernels = not options.eager and uses_kernels(Settings(), device, backbone.shape)
    private = Private(backbone, at, layers=options.layers, kernels=kernels)
    block = options.length * backbone.shape.intermediate * compute_dtype(device).itemsize
    sides = [Side(sequences=size, kept=kept) for kept in (False, True) for size in SIZES]
    steps = {str(side): step(private, side, users=options.users, block=block) for side in sides}
    with Console(stderr=True).status("measuring") as status:
        results = measure(steps, turns=options.turns, device=device, say=status.update)
    report(
        results,
        base=str(sides[0]),
        sides="side",
        title=f"gradient of {options.users} x {options.length} tokens, {torch.get_num_threads()} threads",
        facts={"users": options.users, "length": options.length, "layers": options.layers},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
