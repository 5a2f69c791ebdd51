"""A file is whole or not there: whatever fails, the old content stays and no draft is left."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from shared.base.atomic_files import new_folder, write_whole
from shared.base.errors import InputError, StorageError


def test_writes_the_bytes_with_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_whole(path, b"first")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"first", 0o644)
    write_whole(path, b"", mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"", 0o600)
    assert [part.name for part in path.parent.iterdir()] == ["file"]


class TestFailure:
    @pytest.mark.parametrize(
        ("owner", "name"),
        [(os, "fsync"), (os, "fdopen"), (tempfile, "mkstemp"), (Path, "chmod"), (Path, "replace")],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_of_any_step_leaves_the_old_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
    ) -> None:
        path = tmp_path / "file"
        write_whole(path, b"old")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(StorageError, match="No space left") as caught:
                write_whole(path, b"new")
        assert caught.value.where == str(path)
        assert caught.value.do
        assert path.read_bytes() == b"old"
        assert [part.name for part in tmp_path.iterdir()] == ["file"]

    def test_of_a_write_half_way(self, tmp_path: Path) -> None:
        import resource

        path = tmp_path / "file"
        write_whole(path, b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A real limit of the system, not a pretended one: the kernel itself refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(StorageError):
                write_whole(path, bytes(1 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == b"old"
        assert [part.name for part in tmp_path.iterdir()] == ["file"]

    def test_by_interrupt_leaves_no_draft(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "file", b"new")
        assert not list(tmp_path.iterdir())

    def test_where_no_folder_can_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"in the way")
        with pytest.raises(StorageError):
            write_whole(tmp_path / "file" / "below", b"new")


def test_a_reader_never_meets_a_part(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 200_000
    write_whole(path, b"0" * size)
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            seen.add(content[:1] if content == content[:1] * size else b"torn")

    reader = threading.Thread(target=read)
    reader.start()
    for digit in b"123456789":
        write_whole(path, bytes([digit]) * size)
    done.set()
    reader.join()
    assert seen
    assert b"torn" not in seen


class TestANewFolder:
    def test_it_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "a" / "new"):
            write_whole(tmp_path / "a" / "new" / "file", b"x")
        assert (tmp_path / "a" / "new").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "a" / "new" / "file").read_bytes() == b"x"

    @pytest.mark.parametrize("error", [InputError("wrong"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
    @pytest.mark.parametrize("there", [True, False])
    def test_what_is_not_finished_is_taken_away(self, tmp_path: Path, there: bool, error: BaseException) -> None:
        folder = tmp_path / "new"
        if there:
            folder.mkdir()
        with pytest.raises(type(error)), new_folder(folder):
            write_whole(folder / "keys" / "a.key", b"x", mode=0o600)
            write_whole(folder / "file", b"x")
            raise error
        assert folder.exists() == there
        with new_folder(folder):  # and the same can be done again
            write_whole(folder / "file", b"x")

    def test_what_is_somebodys_stays(self, tmp_path: Path) -> None:
        write_whole(tmp_path / "file", b"x")
        with pytest.raises(InputError, match="not empty"), new_folder(tmp_path):
            pass
        assert (tmp_path / "file").read_bytes() == b"x"
