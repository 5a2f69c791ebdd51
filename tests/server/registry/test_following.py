"""How far a reader follows a registry that nobody signed: to the first manifest that proves nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server.registry import registry as module
from server.registry.pull import pull_model
from server.registry.registry import INDEX, Registry
from server.registry.store import FolderStore, open_store
from shared.base.errors import FedfuseError, StorageError
from shared.registry.manifest import Manifest, parse_manifest
from shared.registry.signing import Signer, Untrusted

MakeRun = Callable[..., Path]
Keys = Callable[[str], tuple[Signer, Path]]
MANY = 40


@pytest.fixture
def signer(keys: Keys) -> Signer:
    return keys("coordinator")[0]


@pytest.fixture
def address(tmp_path: Path, make_run: MakeRun, signer: Signer) -> Path:
    """A registry with two versions."""
    found = Registry(open_store(str(tmp_path / "r")), [signer.public])
    for number in (1, 2):
        found.publish(make_run(f"r{number}", seed=number), signer)
    return tmp_path / "r"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all objects that are opened."""
    opened: list[str] = []
    real = FolderStore.open
    monkeypatch.setattr(FolderStore, "open", lambda self, name: opened.append(name) or real(self, name))  # type: ignore[func-returns-value]
    return opened


def at(address: Path, number: int) -> Path:
    return address / "manifests" / f"{number:06d}.json"


def forge(address: Path, count: int, *, signer: Signer | None = None) -> None:
    """Whoever can write into the store goes on with the history: each manifest names the hash of the one before."""
    last = max(int(path.stem) for path in (address / "manifests").iterdir())
    manifest = parse_manifest(at(address, last).read_bytes(), "")
    for number in range(last + 1, last + 1 + count):
        before = manifest.sha256
        manifest = Manifest.model_validate(
            {**dict(manifest), "version": number, "previous": before, "signature": "" if signer is None else manifest.signature}
        )
        if signer is not None:
            manifest = manifest.signed(signer)
        at(address, number).write_bytes(manifest.content)


@pytest.mark.parametrize("stranger", [False, True], ids=["unsigned", "signed by a stranger"])
def test_nothing_follows_a_manifest_that_nobody_signed(
    address: Path, signer: Signer, keys: Keys, tmp_path: Path, read: list[str], stranger: bool
) -> None:
    """Ten thousand were once read, of a MiB each, before the first signature was looked at."""
    forge(address, MANY, signer=keys("stranger")[0] if stranger else None)
    read.clear()
    with pytest.raises(Untrusted):
        pull_model(str(address), tmp_path / "out", trusted=[signer.public])
    assert [name for name in read if name.startswith("manifests/")] == ["manifests/000002.json", "manifests/000003.json"]


def test_an_index_that_points_at_a_forged_one(address: Path, signer: Signer, tmp_path: Path, read: list[str]) -> None:
    forge(address, MANY)
    (address / INDEX).write_bytes(json.dumps({"format": 1, "newest": 20}).encode())
    read.clear()
    with pytest.raises(Untrusted):
        pull_model(str(address), tmp_path / "out", trusted=[signer.public], model="1")
    assert [name for name in read if name.startswith("manifests/")] == ["manifests/000020.json"]


def test_what_is_signed_is_followed_back_without_end(
    address: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forge(address, MANY, signer=signer)
    (address / INDEX).write_bytes(json.dumps({"format": 1, "newest": MANY}).encode())
    monkeypatch.setattr(module, "FURTHER", 10)
    assert len(list(Registry(open_store(str(address)), [signer.public]).versions())) == MANY + 2


@pytest.mark.parametrize("newest", [2, MANY], ids=["onward", "back"])
def test_without_a_key_it_is_followed_for_a_while(
    address: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, newest: int, read: list[str]
) -> None:
    forge(address, MANY)
    (address / INDEX).write_bytes(json.dumps({"format": 1, "newest": newest}).encode())
    monkeypatch.setattr(module, "FURTHER", 10)
    read.clear()
    registry = Registry(open_store(str(address)))
    with pytest.raises(StorageError if newest == 2 else Untrusted, match="10 versions"):
        list(registry.versions())
    assert len(read) <= 16
    with pytest.raises(FedfuseError, match="10 versions"):
        pull_model(str(address), tmp_path / "out", unsigned=True, model="nowhere")


def test_a_puller_is_not_led_back_without_end(
    address: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pull_model(str(address), tmp_path / "out", unsigned=True, model="1")
    forge(address, MANY)
    (address / INDEX).write_bytes(json.dumps({"format": 1, "newest": MANY + 2}).encode())
    monkeypatch.setattr(module, "FURTHER", 10)
    before = hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).digest()
    with pytest.raises(Untrusted, match="10 versions"):
        pull_model(str(address), tmp_path / "out", unsigned=True)
    assert hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).digest() == before
