"""One private step on the device: does it run, does it end where the processor's does, and is its sum one of users?

    python -m simulations.benchmarks.gpu.smoke [--backbone minilm|FOLDER] [--device cpu|cuda] [--users 32] [--length 64]

Prints JSON. The gaps are of sums of clipped gradients, relative to the norm of the processor's: `processor_gap` is the device's
sum against the processor's, `halves_gap` is the sum in one pass against the sum of two halves, which rounding alone tells apart.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from client.privacy.bounded_sum import BoundedSum
from client.privacy.noise_sources import SecureNoise
from client.training.adam import Adam
from shared.model.backbone import EMBEDDED, load_backbone
from simulations.benchmarks.training import Private, device_of, problem


def gap(found: BoundedSum, expected: BoundedSum) -> float:
    """Norm of the difference over the norm of what is expected."""
    right = expected.vector()
    return float(np.linalg.norm(found.vector() - right) / np.linalg.norm(right))


def main() -> None:
    """Take the step and print."""
    parser = argparse.ArgumentParser(description="One private step on the device.")
    parser.add_argument("--backbone", default=EMBEDDED, help="minilm or a folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence, one a user")
    options = parser.parse_args()
    device = device_of(parser, options.device)
    backbone, users, length = load_backbone(options.backbone), options.users, options.length
    sides = {
        place: Private(
            backbone,
            problem(backbone.shape, batch=users, length=length, device=place),
            layers=backbone.shape.layers,
        )
        for place in (torch.device("cpu"), device)
    }
    private = sides[device]
    began = time.perf_counter()
    whole = private.gradient()
    first = time.perf_counter() - began
    expected = sides[torch.device("cpu")].gradient()
    halves = private.gradient(slice(users // 2)).plus(private.gradient(slice(users // 2, None)))
    before = {name: value.clone() for name, value in private.parameters.items()}
    began = time.perf_counter()
    Adam(learning_rate=1e-3).step(private.parameters, private.mechanism.privatise(private.gradient(), SecureNoise())[0])
    moved = math.sqrt(sum(float((private.parameters[name] - value).square().sum()) for name, value in before.items()))
    if not 0 < moved < math.inf:
        raise SystemExit(f"a private step moved the adapter by {moved}")
    found = {
        "backbone": Path(backbone.name).name,
        "device": str(device),
        "users": users,
        "length": length,
        "first_gradient_seconds": round(first, 3),
        "step_seconds": round(time.perf_counter() - began, 4),
        "moved": moved,
        "processor_gap": gap(whole, expected),
        "halves_gap": gap(halves, whole),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
