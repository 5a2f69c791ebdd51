"""The vectors of many texts, as for an item bank or an evaluation: how many tokens are encoded at once.

    python -m simulations.benchmarks.encoding [--device cpu|cuda] [--backbone minilm|FOLDER] [--rows 1500] [--layers 2]
        [--turns 9] [--eager] [--json]

With the backbone above a cached trunk, texts of 6 to 64 tokens, 28 in the mean, sorted and padded as
`client/model/towers.py` does it. Every side computes the same vectors; their order changes in every turn, all in one process; a
figure is the median over turns, a ratio is the time at 2048 tokens over this one's.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from client.compute.backend import uses_kernels
from client.compute.batching import Passes
from client.compute.resident_features import Features
from shared.base.settings import ModelSettings, Settings
from shared.layers.malloc_tuning import keep
from shared.model.backbone import EMBEDDED, Backbone, load_backbone
from shared.model.encoder import Batch, Encoder, compute_dtype
from simulations.benchmarks.report import report
from simulations.benchmarks.training import Step, device_of, measure, random_adapter

SIDES = (1024, 2048, 4096, 8192, 65536)
BASE = 2048
_LONGEST = 64


class EncodedTexts:
    """Random features of random lengths, and an adapter at random.

    Args:
        rows: How many texts.
        layers: That are trained, from the top; the features are those below.
        kernels: Whether the layers run in the native CPU kernels, which must be built.
    """

    def __init__(self, backbone: Backbone, device: torch.device, *, rows: int, layers: int, kernels: bool = False) -> None:
        model, random = ModelSettings(layers=layers), np.random.default_rng(0)
        self._encoder = Encoder(backbone, model, device=device, dtype=compute_dtype(device), kernels=kernels)
        self._lengths = np.sort(np.clip(random.gamma(4, 6, rows) + 4, 6, _LONGEST).astype(np.int64))
        ends = np.concatenate([[0], np.cumsum(self._lengths)])
        flat = torch.from_numpy(random.normal(0, 1, (int(ends[-1]), backbone.shape.hidden)).astype(np.float32))
        self._features = Features(flat.to(torch.bfloat16), ends, device, self._encoder.dtype)
        self._adapter = random_adapter(backbone.shape, model, device)

    @torch.no_grad()
    def vectors(self, tokens: int) -> Tensor:
        """float32 (rows, hidden), so many tokens at a time."""

        def encoded(part: slice, _: int) -> Tensor:
            rows = np.arange(len(self._lengths))[part]
            hidden, mask = self._features.gather(rows, length=int(self._lengths[rows[-1]]))
            return self._encoder.pooled(Batch(hidden=hidden, mask=mask), self._adapter)

        return torch.cat(list(Passes(self._encoder.device.type, tokens=tokens).run(self._lengths, encoded)))

    def step(self, tokens: int) -> Step:
        """`vectors` as a side of the benchmark."""
        return lambda: self.vectors(tokens)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How many tokens go through the encoder at once.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backbone", default=EMBEDDED, help="minilm or a folder")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--layers", type=int, default=2, help="trained layers, from the top")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--eager", action="store_true", help="without the native kernels")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = device_of(parser, options.device)
    keep()
    backbone = load_backbone(options.backbone)
    kernels = not options.eager and uses_kernels(Settings(), device, backbone.shape)
    texts = EncodedTexts(backbone, device, rows=options.rows, layers=options.layers, kernels=kernels)
    with Console(stderr=True).status("measuring") as status:
        results = measure({str(side): texts.step(side) for side in SIDES}, turns=options.turns, device=device, say=status.update)
    report(
        results,
        base=str(BASE),
        sides="tokens at once",
        title=f"vectors of {options.rows} texts, {torch.get_num_threads()} threads",
        facts={"rows": options.rows, "layers": options.layers, "backbone": options.backbone},
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
