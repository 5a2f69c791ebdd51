"""Publishing and pulling: a reader gets the model that was published, whole, or a clear no."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server.manifest import publish
from server.registry import pull
from shared.errors import FedfuseError, InputError, StorageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "card.md").write_text("hello")
    publish(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("source", [lambda m: str(m), lambda m: str(m.parent), lambda m: m.as_uri(), lambda m: str(m) + "/"])
def test_pull_copies_byte_for_byte(model: Path, tmp_path: Path, source: Callable[[Path], str]) -> None:
    pulled = pull(source(model), tmp_path / "out")
    assert contents(pulled.folder) == contents(model)


def test_pull_from_memory_filesystem(model: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in contents(model).items():
        memory.pipe(f"/published/{name}", content)
    assert contents(pull("memory://published", tmp_path / "out").folder) == contents(model)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: (m / "deep" / "card.md").write_text("hullo"),
        lambda m: (m / "deep" / "card.md").write_text("hello, and more"),
        lambda m: (m / "deep" / "card.md").write_text("hel"),
        lambda m: (m / "deep" / "card.md").unlink(),
    ],
)
def test_what_does_not_match_never_arrives(model: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(model)
    with pytest.raises(StorageError):
        pull(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "a\\..\\b", "", ".", "a//b", "manifest.json"])
def test_a_manifest_cannot_reach_outside(model: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"][0]["name"] = name
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FedfuseError):
        pull(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_is_not_followed(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hello")
    (model / "deep" / "card.md").unlink()
    (model / "deep" / "card.md").symlink_to(secret)
    with pytest.raises(StorageError, match="link"):
        pull(str(model), tmp_path / "out")


def test_an_occupied_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        pull(str(model), tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine": b"x"}


@pytest.mark.parametrize("content", ["", "{}", "[1]", "nonsense", '{"format": 99, "files": []}'])
def test_a_manifest_that_is_none(model: Path, tmp_path: Path, content: str) -> None:
    (model / "manifest.json").write_text(content)
    with pytest.raises(FedfuseError):
        pull(str(model), tmp_path / "out")


def test_a_model_that_is_too_large(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit"):
        pull(str(model), tmp_path / "out", max_bytes=100)
