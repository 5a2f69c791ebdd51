"""The shared encoder: a BERT whose lower layers are frozen and whose upper layers carry LoRA.

Written out as plain functions of tensors rather than as modules, so that the adapter is an argument: one copy
for evaluation, one copy per user for private training. It computes exactly what `transformers.BertModel` with
a PEFT adapter computes (Devlin et al. 2019; tested against both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.base.settings import ModelSettings
from shared.layers import manual_backward as layer
from shared.layers import reference_path as plain
from shared.layers.attention import attend
from shared.layers.frozen_maps import FrozenLayer, FrozenMap, FrozenNorm
from shared.layers.lora import Change, Parameters, changed, changes_of, linear
from shared.layers.native import build as native
from shared.layers.native import layer as blocked
from shared.layers.torch_compile import Compiled
from shared.model.adapter import HEAD, TARGETS, first_trained
from shared.model.backbone import Backbone


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
        kernels: Whether layers run through the kernels of `shared/layers/native/build.py`, which must be there, where they serve.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: ModelSettings,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
        kernels: bool = False,
    ) -> None:
        self.kernels = kernels and native.serves(backbone.shape)
        self.backbone, self.model, self.device, self.dtype, self.compiled = backbone, model, device, dtype, compiled
        self._upper = Compiled(self._trained_layers) if compiled else self._trained_layers
        self.cut = first_trained(backbone.shape, model)
        self.scale = model.alpha / model.rank
        self._frozen = frozen_weights(backbone, device, dtype)

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
        w = self._frozen.embeddings
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = F.embedding(ids, w["embeddings.word_embeddings.weight"])
        x = x + w["embeddings.token_type_embeddings.weight"][0] + w["embeddings.position_embeddings.weight"][positions]
        x = self._frozen.embedding_norm(x)
        allowed = _attention_mask(mask)
        for place in range(self.cut):
            x = self._layer(place, x, allowed, {})
        return x

    def pooled(self, batch: Batch, adapter: Parameters) -> Tensor:
        """The text's vector under an adapter: upper layers, mean over the real text tokens, LoRA head.

        Args:
            adapter: The federated tensors (`shared/model/adapter.py`), one copy for all or one per example.

        Returns:
            float32 (n, hidden), not normalised.
        """
        upper = self._upper if torch.is_grad_enabled() and not plain.asked() else self._trained_layers
        return upper(batch, adapter)

    def _trained_layers(self, batch: Batch, adapter: Parameters) -> Tensor:
        x, mask = batch.hidden.to(self.dtype), batch.mask
        text = x.shape[1]
        if batch.tokens is not None and batch.token_mask is not None:
            x = torch.cat([x, batch.tokens.to(self.dtype)], dim=1)
            mask = torch.cat([mask, batch.token_mask], dim=1)
        allowed = _attention_mask(mask)
        for place in range(self.cut, self.backbone.shape.layers):
            x = self._layer(place, x, allowed, adapter)
        if self.kernels and blocked.kernels_suit(x, []):
            counted = F.pad(batch.mask, (0, x.shape[1] - text))
            return self._head(blocked.mean(x, counted), adapter)
        total = (x[:, :text] * batch.mask.unsqueeze(-1)).sum(1, dtype=torch.float32)
        # A padded row has no token; the clamp keeps it at zero instead of 0 / 0.
        return self._head(total / batch.mask.sum(1, keepdim=True).clamp(min=1), adapter)

    def _head(self, mean: Tensor, adapter: Parameters) -> Tensor:
        return changed(mean, changes_of(adapter, HEAD, scale=self.scale, start=0, stop=self.hidden))

    def _layer(self, place: int, x: Tensor, allowed: Tensor, adapter: Parameters) -> Tensor:
        frozen = self._frozen.layers[place]
        maps = (frozen.stacked, frozen.mixing, frozen.up, frozen.down)
        changes = tuple(self._changes(of, adapter) for of in maps)
        if self.kernels and blocked.kernels_suit(x, changes):
            return blocked.native_layer(x, allowed, frozen, changes)
        if layer.backward_suits(x, changes):
            return layer.backward_layer(x, allowed, frozen, changes)
        stacked, mixing, up, down = (partial(linear, frozen=of, changes=each) for of, each in zip(maps, changes, strict=True))
        mixed = attend(stacked(x), allowed, frozen.heads)
        x = frozen.attention_norm(x + mixing(mixed))
        return frozen.output_norm(x + down(F.gelu(up(x))))

    def _changes(self, of: FrozenMap, adapter: Parameters) -> list[Change]:
        """What the adapter changes of the maps that are stacked in one."""
        found = []
        for place, part in enumerate(of.parts):
            start, stop = of.place(place)
            found += changes_of(adapter, part, scale=self.scale, start=start, stop=stop)
        return found


@dataclass(frozen=True, kw_only=True)
class FrozenWeights:
    """A backbone's weights on a device, in a dtype.

    Args:
        of: The backbone's own, which they were made of.
    """

    of: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    embedding_norm: FrozenNorm
    layers: Sequence[FrozenLayer]


def frozen_weights(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> FrozenWeights:
    """Those of every encoder that asks for the same: the platforms of a simulation share them."""
    # What is found holds the backbone's own weights, so that no others can have come to lie where they are.
    key = (id(backbone.weights), backbone.shape, backbone.layer_norm_eps, device, dtype)
    found = _SHARED.get(key)
    if found is None:
        weights = {name: value.to(device=device, dtype=dtype) for name, value in backbone.weights.items()}
        found = FrozenWeights(
            of=backbone.weights,
            embeddings={name: value for name, value in weights.items() if name.startswith("embeddings.")},
            embedding_norm=_norm(weights, "embeddings.LayerNorm", backbone),
            layers=[_frozen(weights, place, backbone) for place in range(backbone.shape.layers)],
        )
        _SHARED[key] = found
    return found


_SHARED: WeakValueDictionary[object, FrozenWeights] = WeakValueDictionary()


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


def _frozen(weights: Mapping[str, Tensor], place: int, backbone: Backbone) -> FrozenLayer:
    def mapped(*targets: str) -> FrozenMap:
        parts = tuple(f"encoder.layer.{place}.{TARGETS[target]}" for target in targets)
        weight, bias = (torch.cat([weights[f"{part}.{kind}"] for part in parts]) for kind in ("weight", "bias"))
        return FrozenMap(weight=weight, bias=bias, parts=parts)

    return FrozenLayer(
        stacked=mapped("query", "key", "value"),
        mixing=mapped("attention_output"),
        up=mapped("intermediate"),
        down=mapped("output"),
        attention_norm=_norm(weights, f"encoder.layer.{place}.attention.output.LayerNorm", backbone),
        output_norm=_norm(weights, f"encoder.layer.{place}.output.LayerNorm", backbone),
        heads=backbone.shape.heads,
    )


def _norm(weights: Mapping[str, Tensor], name: str, backbone: Backbone) -> FrozenNorm:
    return FrozenNorm(weight=weights[f"{name}.weight"], bias=weights[f"{name}.bias"], eps=backbone.layer_norm_eps)


def _attention_mask(mask: Tensor) -> Tensor:
    """bool (n, t); a row without any real token attends everywhere, so that no softmax is empty."""
    return mask | ~mask.any(1, keepdim=True)
