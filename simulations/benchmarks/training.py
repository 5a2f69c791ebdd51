"""Private training against ordinary training and against Opacus: whole steps of all sides, interleaved in one process.

    python -m simulations.benchmarks.training --device cpu|cuda [--backbone bert-base|minilm|FOLDER] [--json]

Every side sees the same token ids, item bank and targets, trains the same LoRA factors (rank 8 on query and value) and ends
in new parameters. Ours: forward, backward, per-user clipping, noise from the cryptographic generator, Adam. `peft`:
Hugging Face transformers with PEFT and AdamW in bfloat16 autocast without privacy, the fastest of torch's fused attention
and the eager form, each compiled and not. `peft_fp32`: the same in float32, not compiled. `opacus`: GradSampleModule and
DPOptimizer around that model, the faster of float32 and bfloat16 autocast. The order of the sides changes in every turn; a figure
is the median over turns, a ratio is ours over theirs in sequences a second. Peak memory is of the GPU; on a
processor, of torch's allocator while one step runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from client.compute.backend import uses_kernels
from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import SecureNoise
from client.training.adam import Adam
from client.training.per_user_gradients import clip_of, clipped_sum
from shared.base.settings import ModelSettings, Settings
from shared.model.adapter import layout_of
from shared.model.backbone import EMBEDDED, Backbone, BackboneShape, folder_of, load_backbone
from shared.model.encoder import Batch, Encoder, compute_dtype

ITEMS = 1000
TEMPERATURE = 0.05
BERT_BASE = "bert-base"
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What all sides train on.

    Args:
        ids: int64 (n, t).
        bank: float32 (items, hidden), unit rows.
        targets: int64 (n,).
    """

    ids: Tensor
    bank: Tensor
    targets: Tensor

    @property
    def mask(self) -> Tensor:
        """bool (n, t): every token is real."""
        return torch.ones_like(self.ids, dtype=torch.bool)

    def losses(self, pooled: Tensor) -> Tensor:
        """Softmax over the bank, one loss a sequence."""
        scores = F.normalize(pooled, dim=1) @ self.bank.T / TEMPERATURE
        return F.cross_entropy(scores, self.targets, reduction="none")


def problem(shape: BackboneShape, *, batch: int, length: int, device: torch.device) -> Problem:
    """Random tokens, items and targets."""
    random = torch.Generator().manual_seed(0)
    return Problem(
        ids=torch.randint(1000 % shape.vocabulary, shape.vocabulary, (batch, length), generator=random).to(device),
        bank=F.normalize(torch.randn(ITEMS, shape.hidden, generator=random), dim=1).to(device),
        targets=torch.randint(0, ITEMS, (batch,), generator=random).to(device),
    )


def random_adapter(shape: BackboneShape, model: ModelSettings, device: torch.device) -> dict[str, Tensor]:
    """Factors drawn at random, the same every time."""
    random = torch.Generator().manual_seed(1)
    return {name: (0.02 * torch.randn(size, generator=random)).to(device) for name, size in layout_of(shape, model).items()}


class Private:
    """Our model on a problem, one user a sequence, with factors drawn at random.

    Args:
        layers: That are trained, from the top. The features below come from a cache, so they are made once, here.
    """

    def __init__(self, backbone: Backbone, at: Problem, *, layers: int, compiled: bool = False, kernels: bool = False) -> None:
        device, model, users = at.ids.device, ModelSettings(layers=layers), len(at.ids)
        self._at = at
        self._encoder = Encoder(backbone, model, device=device, dtype=compute_dtype(device), compiled=compiled, kernels=kernels)
        self._hidden = self._encoder.trunk(at.ids, at.mask)
        self.parameters = random_adapter(backbone.shape, model, device)
        self.mechanism = Mechanism(
            users=10 * users,
            sample_rate=0.1,
            clip=1.0,
            noise_multiplier=1.0,
            dimension=sum(value.numel() for value in self.parameters.values()),
        )
        self._real = torch.ones(users, dtype=torch.bool, device=device)
        self._clip = clip_of(compiled=compiled)

    def gradient(self, rows: slice = slice(None)) -> BoundedSum:
        """Sum of the clipped gradients of some users, in one pass."""
        at = Problem(ids=self._at.ids[rows], bank=self._at.bank, targets=self._at.targets[rows])
        batch = Batch(hidden=self._hidden[rows], mask=at.mask)
        return clipped_sum(
            lambda copies: at.losses(self._encoder.pooled(batch, copies)),
            self.parameters,
            self._real[rows],
            self.mechanism,
            clip=self._clip,
        )


def ours(backbone: Backbone, at: Problem, *, layers: int, compiled: bool, kernels: bool = False) -> Step:
    """Our private step on the top `layers`."""
    private = Private(backbone, at, layers=layers, compiled=compiled, kernels=kernels)
    optimizer, noise = Adam(learning_rate=1e-3), SecureNoise()
    return lambda: optimizer.step(private.parameters, private.mechanism.privatise(private.gradient(), noise)[0])


def stock(source: Any, at: Problem, *, half: bool, attention: str, compiled: bool, private: bool) -> Step:
    """Hugging Face + PEFT, with Opacus around it if `private`."""
    from peft import LoraConfig, get_peft_model
    from transformers.models.bert import BertModel

    device = at.ids.device
    if isinstance(source, str):
        bert = BertModel.from_pretrained(source, add_pooling_layer=False, attn_implementation=attention)
    else:
        source._attn_implementation = attention
        bert = BertModel(source, add_pooling_layer=False)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    model: Any = get_peft_model(bert, config).to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=1e-3)
    if private:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        model = GradSampleModule(model, strict=False)
        optimizer = DPOptimizer(optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=len(at.ids))
    elif compiled:
        model = torch.compile(model, dynamic=False)
    mask = at.mask.long()

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
            states = model(input_ids=at.ids, attention_mask=mask).last_hidden_state
        torch.autograd.backward(at.losses(states.float().mean(1)).mean())
        optimizer.step()
        optimizer.zero_grad()

    return step


def sides(backbone: Backbone, source: Any, at: Problem, *, compile_: bool) -> dict[str, Step]:
    """Every side by its name; variants of one side share the name before the colon."""
    gpu = at.ids.device.type == "cuda"
    third = max(1, round(backbone.shape.layers / 3))
    found: dict[str, Step] = {}
    if uses_kernels(Settings(), at.ids.device, backbone.shape):
        for side, layers in (("all_layers", backbone.shape.layers), ("cached_trunk", third)):
            found[f"{side}:kernels"] = ours(backbone, at, layers=layers, compiled=False, kernels=True)
    for compiled in (False, True) if compile_ else (False,):
        tag = "compiled" if compiled else "eager"
        found[f"all_layers:{tag}"] = ours(backbone, at, layers=backbone.shape.layers, compiled=compiled)
        found[f"cached_trunk:{tag}"] = ours(backbone, at, layers=third, compiled=compiled)
        for attention in ("sdpa", "eager"):
            found[f"peft:{attention} attention, {tag}"] = stock(
                source, at, half=True, attention=attention, compiled=compiled, private=False
            )
    found["peft_fp32:sdpa attention, eager"] = stock(source, at, half=False, attention="sdpa", compiled=False, private=False)
    found["peft_fp32:eager attention, eager"] = stock(source, at, half=False, attention="eager", compiled=False, private=False)
    for half in (True,) if gpu else (False, True):
        name = f"opacus:{'bf16 autocast' if half else 'float32'}"
        found[name] = stock(source, at, half=half, attention="eager", compiled=False, private=True)
    return found


def measure(steps: dict[str, Step], *, turns: int, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Median seconds, first-call seconds and peak bytes of each side; the order is drawn anew in every turn."""
    first: dict[str, float] = {}
    for name, step in steps.items():
        say(f"first step of {name}")
        first[name] = _timed(step, device)
        _timed(step, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    random = np.random.default_rng(0)
    for turn in range(turns):
        say(f"turn {turn + 1} of {turns}")
        for name in random.permutation(list(steps)):
            seconds[name].append(_timed(steps[name], device))
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "fastest": min(seconds[name]),
            "first_call_seconds": round(first[name], 2),
            "peak_mib": round(_peak(step, device) / 2**20, 3),
        }
        for name, step in steps.items()
    }


def _timed(step: Step, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(step: Step, device: torch.device) -> int:
    """Most bytes held at once during a step, beyond what was held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def summary(results: dict[str, Any], *, batch: int) -> dict[str, Any]:
    """The best variant of each side, and the ratios."""
    best: dict[str, str] = {}
    for name in results:
        side = name.partition(":")[0]
        if side not in best or results[name]["seconds"] < results[best[side]]["seconds"]:
            best[side] = name
    rate = {side: batch / results[name]["seconds"] for side, name in best.items()}
    ratios = {
        f"{mine}_vs_{theirs}": round(rate[mine] / rate[theirs], 2)
        for mine in ("all_layers", "cached_trunk")
        for theirs in ("peft", "peft_fp32", "opacus")
    }
    return {"best": best, "sequences_per_second": {side: round(value, 1) for side, value in rate.items()}, "ratios": ratios}


def matrix_rate(device: torch.device) -> float:
    """Measured bf16 (or float32) multiply-add rate of the device on a large product, in floating point operations a second."""
    size = 8192 if device.type == "cuda" else 1536
    a = torch.randn(size, size, device=device, dtype=compute_dtype(device))
    return 2 * size**3 / min(_timed(lambda: torch.mm(a, a), device) for _ in range(8))


def arithmetic(shape: BackboneShape, *, batch: int, length: int) -> float:
    """Floating point operations that the frozen maps of an all-layers step need: forward, and back to the inputs.

    The first layer's query, key and value need no way back: what is below them is frozen.
    """
    per_layer = 4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate
    return 2.0 * batch * length * (2 * shape.layers * per_layer - 3 * shape.hidden**2)


def device_of(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """The device of that name; the parser ends the process where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    return torch.device(name)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A private training step against ordinary PEFT and against Opacus.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--backbone",
        help=f"{BERT_BASE} (random weights), minilm or a folder; default: minilm, on a GPU {BERT_BASE}",
    )
    parser.add_argument("--batch", type=int, help="sequences of a step; default 32 on a processor, 256 on a GPU")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--turns", type=int, help="measured steps of each side; default 7 on a processor, 30 on a GPU")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled variants out (compiling takes minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    device = device_of(parser, options.device)
    gpu = device.type == "cuda"
    batch, turns = options.batch or (256 if gpu else 32), options.turns or (30 if gpu else 7)
    errors = Console(stderr=True)
    warnings.filterwarnings("ignore")
    with errors.status("loading") as status:
        backbone, source = _loaded(options.backbone or (BERT_BASE if gpu else EMBEDDED))
        at = problem(backbone.shape, batch=batch, length=options.length, device=device)
        steps = sides(backbone, source, at, compile_=not options.no_compile)
        results = measure(steps, turns=turns, device=device, say=status.update)
        rate = matrix_rate(device)
    found = summary(results, batch=batch)
    floor = arithmetic(backbone.shape, batch=batch, length=options.length) / rate
    found |= {
        "device": torch.cuda.get_device_name(device) if gpu else f"{torch.get_num_threads()} threads",
        "backbone": f"{BERT_BASE} (random weights)" if backbone.name == BERT_BASE else backbone.name,
        "batch": batch,
        "length": options.length,
        "matrix_tflops": round(rate / 1e12, 2),
        "all_layers_share_of_matrix_rate": round(floor / results[found["best"]["all_layers"]]["seconds"], 2),
        "sides": results,
    }
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    Console().print(_table(found))
    share = found["all_layers_share_of_matrix_rate"]
    print(f"all layers: {share:.0%} of the time is what the frozen maps' products need at {found['matrix_tflops']} TFLOP/s")


def _loaded(name: str) -> tuple[Backbone, Any]:
    """The backbone, and where `transformers` has the same: a folder, or a configuration for random weights."""
    return _base() if name == BERT_BASE else (load_backbone(name), str(folder_of(name) or name))


def _base() -> tuple[Backbone, Any]:
    """BERT-base with random weights: speed does not depend on them, and nothing is downloaded."""
    from transformers.models.bert import BertConfig, BertModel

    config = BertConfig()
    weights = BertModel(config, add_pooling_layer=False).state_dict()
    shape = BackboneShape(hidden=768, layers=12, heads=12, intermediate=3072, vocabulary=config.vocab_size, positions=512)
    no_text: Any = None  # the problem is token ids
    eps = config.layer_norm_eps
    return Backbone(name=BERT_BASE, shape=shape, layer_norm_eps=eps, weights=weights, tokenizer=no_text, sha256="random"), config


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"training step, {found['backbone']}, {found['batch']} x {found['length']} tokens, {found['device']}")
    for column in (
        "side",
        "variant",
        "ms",
        "sequences/s",
        "peak MiB",
        "all layers\nours / theirs",
        "cached trunk\nours / theirs",
    ):
        table.add_column(column, justify="left" if column in ("side", "variant") else "right")
    for name, result in found["sides"].items():
        side, _, variant = name.partition(":")
        chosen = found["best"][side] == name
        ratios = [found["ratios"].get(f"{mine}_vs_{side}") if chosen else None for mine in ("all_layers", "cached_trunk")]
        cells = ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        speed = found["batch"] / result["seconds"]
        table.add_row(side, variant, f"{1000 * result['seconds']:.1f}", f"{speed:.0f}", f"{result['peak_mib']:.0f}", *cells)
    return table


if __name__ == "__main__":
    main()
