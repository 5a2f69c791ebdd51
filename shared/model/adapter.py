"""The adapter format: which tensors a federation trains and sends, under which names, and how they begin.

An adapter is a mapping of names to float32 arrays. For each trainable layer i and target map W (k x d) there
are `encoder.layer.<i>.<module>.lora_A` (r x d) and `...lora_B` (k x r), named as PEFT names the modules, and for
the pooled output `head.lora_A`, `head.lora_B`. The update of a map is alpha / r * B A (Hu et al. 2021).

A scheme with a core (`shared/model/factor_schedule.py`) federates one `...lora_R` (r x r) a map instead, between fixed factors
that each party makes itself (`shared/model/fixed_factors.py`); one with a residual has frozen factors beside these
(`shared/model/residual_factors.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError, ProtocolError
from shared.base.settings import ModelSettings, Settings
from shared.model.backbone import BackboneShape, shape_of
from shared.model.factor_schedule import PLAIN, Scheme, scheme_of
from shared.protocol.messages import Arrays, Factors

Layout = Mapping[str, tuple[int, int]]
"""Name -> shape of every federated tensor, in a fixed order."""

HEAD = "head"
TARGETS: Mapping[str, str] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
"""Name in the settings -> module path inside a BERT layer."""


def targets_of(model: ModelSettings) -> tuple[str, ...]:
    """The target maps named in the settings.

    Raises:
        InputError: a name is unknown or repeated.
    """
    names = tuple(name.strip() for name in model.targets.split(","))
    unknown = [name for name in names if name not in TARGETS]
    if unknown or len(set(names)) != len(names):
        raise InputError(f"model.targets names {model.targets!r}", do=f"choose from {', '.join(TARGETS)}, each once")
    return names


def first_trained(shape: BackboneShape, model: ModelSettings) -> int:
    """Index of the first trainable layer; the layers below it are the frozen trunk.

    >>> shape = BackboneShape(hidden=384, layers=6, heads=12, intermediate=1536, vocabulary=30522, positions=512)
    >>> first_trained(shape, ModelSettings())
    4
    """
    wanted = model.layers or max(1, round(shape.layers / 3))
    if wanted > shape.layers:
        raise InputError(f"model.layers = {wanted}, but the backbone has {shape.layers}", do="lower model.layers")
    return shape.layers - wanted


def maps_of(shape: BackboneShape, model: ModelSettings) -> dict[str, tuple[int, int]]:
    """The maps that carry an adapter: name -> (out, in), as torch stores a linear map's weight."""
    sizes = {"intermediate": (shape.intermediate, shape.hidden), "output": (shape.hidden, shape.intermediate)}
    maps = {
        f"encoder.layer.{layer}.{TARGETS[target]}": sizes.get(target, (shape.hidden, shape.hidden))
        for layer in range(first_trained(shape, model), shape.layers)
        for target in targets_of(model)
    }
    return {**maps, HEAD: (shape.hidden, shape.hidden)}


def layout_of(
    shape: BackboneShape, model: ModelSettings, scheme: Scheme = PLAIN, *, rank: int | None = None
) -> dict[str, tuple[int, int]]:
    """The names and shapes of the federated tensors.

    Args:
        rank: Of one platform, where ranks may differ; None: the run's.
    """
    r = rank or model.rank
    layout: dict[str, tuple[int, int]] = {}
    for name, (out, inner) in maps_of(shape, model).items():
        if scheme.core:
            layout[f"{name}.lora_R"] = (r, r)
        else:
            layout[f"{name}.lora_A"] = (r, inner)
            layout[f"{name}.lora_B"] = (out, r)
    return layout


def initial(settings: Settings) -> dict[str, NDArray[np.float32]]:
    """The global adapter before training: A uniform as PEFT's default (He et al. 2015, a = sqrt 5), B (or R) zero.

    The same seed gives every party the same adapter, so that frozen A need not be sent (FFA-LoRA).
    """
    return drawn(layout_of(shape_of(settings.model.backbone), settings.model, scheme_of(settings.strategy)), seed=settings.seed)


def drawn(layout: Layout, *, seed: int, again: int = 0) -> dict[str, NDArray[np.float32]]:
    """An adapter that changes nothing: A drawn by chance, all else zero.

    Args:
        again: Which of the seed's adapters, for strategies that draw A anew; 0 is `initial`'s.
    """
    adapter: dict[str, NDArray[np.float32]] = {}
    for index, (name, shape) in enumerate(layout.items()):
        if is_a(name):
            bound = 1.0 / np.sqrt(shape[1])
            random = np.random.default_rng([seed, index, *([again] if again else [])])
            adapter[name] = random.uniform(-bound, bound, shape).astype(np.float32)
        else:
            adapter[name] = np.zeros(shape, np.float32)
    return adapter


def is_a(name: str) -> bool:
    """Whether a federated tensor is a factor A."""
    return name.endswith(".lora_A")


def trained(names: Mapping[str, object], factors: Factors) -> list[str]:
    """The names that a round trains and sends, given which factors.

    >>> trained({"head.lora_A": 0, "head.lora_B": 0}, Factors.B)
    ['head.lora_B']
    """
    wanted = tuple(f".lora_{letter}" for letter in factors.value.upper())
    return [name for name in names if name.endswith(wanted)]


def most_trained(adapter: Arrays, cycle: Sequence[Factors]) -> int:
    """Most parameters that one round trains, of rounds that train these factors in turn."""
    return max(sum(adapter[name].size for name in trained(adapter, factors)) for factors in cycle)


def adapter_digest(arrays: Arrays) -> str:
    """SHA-256 of an adapter's names, shapes and values, in hex: which adapter a model is, or began from."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name], np.float32)
        sha.update(f"|{name}|{value.shape}|".encode() + value.tobytes())
    return sha.hexdigest()


def require_layout(arrays: Arrays, layout: Layout, *, where: str) -> None:
    """Check an adapter from another party: names, shapes, and every value finite.

    Raises:
        ProtocolError: anything differs.
    """
    if set(arrays) != set(layout):
        raise ProtocolError(f"the adapter's tensors differ by {sorted(set(arrays) ^ set(layout))[:3]}", where=where)
    for name, shape in layout.items():
        if arrays[name].shape != shape:
            raise ProtocolError(f"{name} has shape {arrays[name].shape}, expected {shape}", where=where)
        if not np.isfinite(arrays[name]).all():
            raise ProtocolError(f"{name} holds values that are not finite", where=where)
