"""What is said to be done is on the disk: not in a cache that a power cut would take.

A kill leaves the system's caches alone, so only the calls of `fsync` tell. `Disk` keeps what was synced, and nothing else: the
bytes of a file when it was last synced, and the names in a folder when that was. What a scenario promises must be there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from client.privacy.ledger_writer import LedgerWriter
from client.run.run_state import RunState, load_run_state, save_run_state
from server.registry.pull import pull_model
from server.registry.registry import Registry
from server.registry.store import FolderStore, open_store
from server.run.checkpoint import NAME, Checkpoint, save_checkpoint
from shared.base.atomic_files import create_whole, write_whole
from shared.base.settings import Settings
from shared.ledger.reading import parse_ledger
from shared.model.adapter import initial
from shared.privacy.releases import Release, ReleaseKind
from shared.registry.signing import Signer, make_key_pair
from shared.secagg.identity import Identity
from tests.support.kill_scenarios import Tenths

MakeRun = Callable[..., Path]


class Disk:
    """What a power cut would leave under `root`, all of which is taken to be there at the start."""

    def __init__(self, root: Path) -> None:
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for folder, _, files in os.walk(root):
            self._folder(Path(folder))
            for name in files:
                path = Path(folder) / name
                self._bytes[path.stat().st_ino] = path.read_bytes()

    def synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._folder(path)
        else:
            self._bytes[os.fstat(descriptor).st_ino] = path.read_bytes()

    def content(self, path: Path, root: Path) -> bytes | None:
        """The bytes at `path`, None if its name or one on the way would be gone."""
        at = root.stat().st_ino
        for part in path.relative_to(root).parts:
            if part not in self._names.get(at, {}):
                return None
            at = self._names[at][part]
        return self._bytes.get(at, b"")

    def _folder(self, path: Path) -> None:
        self._names[path.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made, real = Disk(tmp_path), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        made.synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield made


def test_the_disk_knows_what_was_not_synced(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "careless").write_bytes(b"x")
    assert disk.content(tmp_path / "careless", tmp_path) is None
    with (tmp_path / "half").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    assert disk.content(tmp_path / "half", tmp_path) is None  # its name is nowhere
    write_whole(tmp_path / "new" / "folder" / "careful", b"x")
    assert disk.content(tmp_path / "new" / "folder" / "careful", tmp_path) == b"x"
    write_whole(tmp_path / "new" / "folder" / "careful", b"yy")
    assert disk.content(tmp_path / "new" / "folder" / "careful", tmp_path) == b"yy"
    assert create_whole(tmp_path / "other" / "created", b"z")
    assert disk.content(tmp_path / "other" / "created", tmp_path) == b"z"


def test_a_charge(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "state" / "shop.jsonl"
    with LedgerWriter.open(
        path, platform="shop", budget=8.0, delta=1e-5, identity=Identity(b"i" * 32), accountant=Tenths()
    ) as writer:
        for number in range(1, 4):
            writer.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=2.0), run="spring", round=number, question="5" * 64)
            left = disk.content(path, tmp_path)
            assert left is not None and parse_ledger(left, where="the disk").head == writer.head


def test_a_checkpoint_and_a_platforms_memory(disk: Disk, tmp_path: Path, tiny_settings: Callable[..., Settings]) -> None:
    settings = tiny_settings()
    for round_ in (1, 2):
        adapter = {name: value + np.float32(round_) for name, value in initial(settings).items()}
        checkpoint = Checkpoint(run="r", round=round_, settings=settings, adapter=adapter, tallies={})
        save_checkpoint(tmp_path / "run", checkpoint)
        assert disk.content(tmp_path / "run" / NAME, tmp_path) == (tmp_path / "run" / NAME).read_bytes()
        state = RunState(settings="s", finished=round_, prior=torch.full((3,), float(round_)))
        save_run_state(tmp_path / "runs" / "r.safetensors", state)
        left = disk.content(tmp_path / "runs" / "r.safetensors", tmp_path)
        assert left == (tmp_path / "runs" / "r.safetensors").read_bytes()
    assert load_run_state(tmp_path / "runs" / "r.safetensors").finished == 2  # type: ignore[union-attr]


def test_keys(disk: Disk, tmp_path: Path) -> None:
    make_key_pair(tmp_path / "keys" / "a.key", tmp_path / "keys" / "a.pub")
    for name in ("a.key", "a.pub"):
        assert disk.content(tmp_path / "keys" / name, tmp_path) == (tmp_path / "keys" / name).read_bytes()


def test_a_version_is_there_only_after_its_files(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, signer: Signer
) -> None:
    run = make_run()
    disk, real = Disk(tmp_path), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        disk.synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    registry = Registry(open_store(str(tmp_path / "registry")), [signer.public])
    moments: list[int] = []
    create = FolderStore.create

    def watched(self: FolderStore, name: str, data: bytes) -> bool:
        found = [path for path in (tmp_path / "registry" / "models").rglob("*") if path.is_file()]
        moments.append(len(found))
        assert all(disk.content(path, tmp_path) == path.read_bytes() for path in found)
        return create(self, name, data)

    monkeypatch.setattr(FolderStore, "create", watched)
    manifest = registry.publish(run, signer)
    assert moments == [len(manifest.files)]
    for path in (tmp_path / "registry").rglob("*"):
        if path.is_file():
            assert disk.content(path, tmp_path) == path.read_bytes(), path
    pulled = pull_model(str(tmp_path / "registry"), tmp_path / "out", trusted=[signer.public])
    for entry in pulled.manifest.files:
        assert disk.content(tmp_path / "out" / entry.name, tmp_path) == (tmp_path / "out" / entry.name).read_bytes()


@pytest.fixture
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Signer(Ed25519PrivateKey.generate())
