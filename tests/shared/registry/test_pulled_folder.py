"""A model's folder after the pull: what was changed in it shows, and a forged manifest does by its signature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.base.errors import InputError, StorageError
from shared.registry.manifest import MANIFEST, Origin, describe
from shared.registry.pulled_folder import require_unaltered
from shared.registry.signing import PublicKey, Signer, Untrusted, load_signer, make_key_pair

OPENED = ("weights.safetensors", "more.safetensors")
ORIGIN = Origin(
    name="spring",
    run="spring",
    created="2026-01-01T00:00:00Z",
    strategy="preferences",
    rounds=0,
    platforms=("shop",),
    settings_sha256="0" * 64,
    backbone="tiny",
    backbone_sha256="",
    adapter_sha256="",
    start_sha256="",
)


@pytest.fixture
def signers(tmp_path: Path) -> list[Signer]:
    for name in ("coordinator", "stranger"):
        make_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    return [load_signer(tmp_path / f"{name}.key") for name in ("coordinator", "stranger")]


@pytest.fixture
def folder(tmp_path: Path, signers: list[Signer]) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "weights.safetensors").write_bytes(b"12345678")
    (made / "README.md").write_text("how to use it")
    sign(made, signers[0])
    return made


def sign(folder: Path, signer: Signer) -> None:
    (folder / MANIFEST).write_bytes(describe(folder, ORIGIN).signed(signer).content)


def test_what_was_pulled_is_taken(folder: Path, signers: list[Signer]) -> None:
    for trusted in ([], [signers[0].public], [signers[1].public, signers[0].public]):
        manifest = require_unaltered(folder, opened=OPENED, trusted=trusted)
        assert manifest is not None and [entry.name for entry in manifest.files] == ["README.md", "weights.safetensors"]


def _flip(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"12345679")


def _lengthen(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"123456780")


def _remove(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def _add(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"of nobody's")


def _link(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder.parent / "elsewhere")
    (folder / "weights.safetensors").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("alter", [_flip, _lengthen, _remove, _add, _link])
@pytest.mark.parametrize("asks", [False, True])
def test_a_folder_altered_after_the_pull_is_refused(
    folder: Path, signers: list[Signer], alter: Callable[[Path], None], asks: bool
) -> None:
    alter(folder)
    trusted: list[PublicKey] = [signers[0].public] if asks else []
    with pytest.raises(StorageError, match=r"(weights|more)\.safetensors") as caught:
        require_unaltered(folder, opened=OPENED, trusted=trusted)
    assert "pull the model again" in caught.value.do


def test_a_file_that_nobody_opens_may_lie_beside(folder: Path) -> None:
    (folder / "notes.txt").write_text("of the operator's")
    assert require_unaltered(folder, opened=OPENED)


def test_a_manifest_that_was_forged_with_the_file_shows_by_its_signature(folder: Path, signers: list[Signer]) -> None:
    _flip(folder)
    for forged in (describe(folder, ORIGIN), describe(folder, ORIGIN).signed(signers[1])):
        (folder / MANIFEST).write_bytes(forged.content)
        assert require_unaltered(folder, opened=OPENED)
        with pytest.raises(Untrusted):
            require_unaltered(folder, opened=OPENED, trusted=[signers[0].public])


def test_without_a_manifest_nothing_can_be_told(folder: Path, signers: list[Signer]) -> None:
    (folder / MANIFEST).unlink()
    assert require_unaltered(folder, opened=OPENED) is None
    with pytest.raises(Untrusted, match="no manifest"):
        require_unaltered(folder, opened=OPENED, trusted=[signers[0].public])
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(InputError):
        require_unaltered(folder, opened=OPENED)
