"""The shared encoder: a BERT whose lower layers are frozen and whose upper layers carry LoRA.

Written out as plain functions of tensors rather than as modules, so that the adapter is an argument: one copy
for evaluation, one copy per user for private training. It computes exactly what `transformers.BertModel` with
a PEFT adapter computes (Devlin et al. 2019; tested against both).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.adapter import HEAD, TARGETS, first_trained
from shared.attention import attend
from shared.backbone import Backbone
from shared.compiled import Compiled
from shared.lora import Parameters, changed, changes_of, linear
from shared.settings import ModelSettings

_STACKED = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences that reached the first trainable layer.

    Args:
        hidden: (n, t, hidden). Trunk features, zero where padded.
        mask: bool (n, t). True on real tokens.
        tokens: (n, s, hidden) source tokens that join the sequence, or None.
        token_mask: bool (n, s). True where the source is present.
    """

    hidden: Tensor
    mask: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None


class Encoder:
    """A backbone cut in two: `trunk` (frozen, cached) and `pooled` (trained).

    Args:
        dtype: Of the frozen weights and the activations; bfloat16 where the processor has it, else float32.
        compiled: Whether the trained layers run through torch.compile where a gradient is asked for.
    """

    def __init__(
        self, backbone: Backbone, model: ModelSettings, *, device: torch.device, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        self.backbone, self.model, self.device, self.dtype, self.compiled = backbone, model, device, dtype, compiled
        self._upper = Compiled(self._trained_layers) if compiled else self._trained_layers
        self.cut = first_trained(backbone.shape, model)
        self.scale = model.alpha / model.rank
        self._eps = backbone.layer_norm_eps
        self._heads = backbone.shape.heads
        self._weights = {name: value.to(device=device, dtype=dtype) for name, value in backbone.weights.items()}
        for layer in range(backbone.shape.layers):
            # One product instead of three: queries, keys and values have the same input.
            for kind in ("weight", "bias"):
                parts = [self._weights.pop(f"{_layer(layer, name)}.{kind}") for name in _STACKED]
                self._weights[f"encoder.layer.{layer}.stacked.{kind}"] = torch.cat(parts)

    @property
    def hidden(self) -> int:
        """Width of every vector that the encoder gives."""
        return self.backbone.shape.hidden

    @torch.no_grad()
    def trunk(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Frozen features of token ids: embeddings and every layer below the first trainable one.

        Args:
            ids: int64 (n, t).
            mask: bool (n, t).

        Returns:
            (n, t, hidden) in `dtype`; it depends on the text alone, never on the adapter.
        """
        w = self._weights
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = F.embedding(ids, w["embeddings.word_embeddings.weight"])
        x = x + w["embeddings.token_type_embeddings.weight"][0] + w["embeddings.position_embeddings.weight"][positions]
        x = self._norm("embeddings.LayerNorm", x)
        allowed = _attention_mask(mask)
        for layer in range(self.cut):
            x = self._layer(layer, x, allowed, {})
        return x

    def pooled(self, batch: Batch, adapter: Parameters) -> Tensor:
        """The text's vector under an adapter: upper layers, mean over the real text tokens, LoRA head.

        Args:
            adapter: The federated tensors (`shared/adapter.py`), one copy for all or one per example.

        Returns:
            float32 (n, hidden), not normalised.
        """
        upper = self._upper if torch.is_grad_enabled() else self._trained_layers
        return upper(batch, adapter)

    def _trained_layers(self, batch: Batch, adapter: Parameters) -> Tensor:
        x, mask = batch.hidden.to(self.dtype), batch.mask
        text = x.shape[1]
        if batch.tokens is not None and batch.token_mask is not None:
            x = torch.cat([x, batch.tokens.to(self.dtype)], dim=1)
            mask = torch.cat([mask, batch.token_mask], dim=1)
        allowed = _attention_mask(mask)
        for layer in range(self.cut, self.backbone.shape.layers):
            x = self._layer(layer, x, allowed, adapter)
        weight = batch.mask.to(torch.float32).unsqueeze(-1)
        # A padded row has no token; the clamp keeps it at zero instead of 0 / 0.
        mean = (x[:, :text].float() * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return changed(mean, changes_of(adapter, HEAD, scale=self.scale, start=0, stop=self.hidden))

    def _layer(self, layer: int, x: Tensor, allowed: Tensor, adapter: Parameters) -> Tensor:
        at = f"encoder.layer.{layer}."
        stacked = self._linear(at + "stacked", [_layer(layer, name) for name in _STACKED], x, adapter)
        mixed = attend(stacked, allowed, self._heads)
        x = self._norm(at + "attention.output.LayerNorm", x + self._mapped(layer, "attention_output", mixed, adapter))
        inner = F.gelu(self._mapped(layer, "intermediate", x, adapter))
        return self._norm(at + "output.LayerNorm", x + self._mapped(layer, "output", inner, adapter))

    def _mapped(self, layer: int, target: str, x: Tensor, adapter: Parameters) -> Tensor:
        name = _layer(layer, target)
        return self._linear(name, [name], x, adapter)

    def _linear(self, name: str, maps: list[str], x: Tensor, adapter: Parameters) -> Tensor:
        """The frozen map `name`, in which `maps` are stacked, with what the adapter changes of each."""
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        size = len(weight) // len(maps)
        changes = [
            change
            for place, part in enumerate(maps)
            for change in changes_of(adapter, part, scale=self.scale, start=place * size, stop=(place + 1) * size)
        ]
        return linear(x, weight, bias, changes)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[name + ".weight"], self._weights[name + ".bias"], self._eps)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if capable else torch.float32
    return torch.float32


def default_device() -> torch.device:
    """The first GPU there is, else the processor."""
    return devices()[0]


def devices() -> list[torch.device]:
    """Every GPU of this machine, or the one device that it has instead: platforms of a simulation share them."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]


def _layer(layer: int, target: str) -> str:
    return f"encoder.layer.{layer}.{TARGETS[target]}"


def _attention_mask(mask: Tensor) -> Tensor:
    """bool (n, t); a row without any real token attends everywhere, so that no softmax is empty."""
    return mask | ~mask.any(1, keepdim=True)
