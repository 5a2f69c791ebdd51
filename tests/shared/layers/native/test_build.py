"""Building the kernels: once, whole or not at all, and loaded only if nobody else could have written them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shared.layers.native import build as native
from shared.layers.native.build import KernelError, built

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the kernels are for processors with AVX-512 and bfloat16"
)
ROOT = Path(__file__).parents[4]


def compiler(folder: Path, *lines: str) -> str:
    """A script that takes a compiler's place: it counts its calls, and does these lines; `$to` is where its output belongs."""
    script = folder / "compiler"
    find = 'while [ "$1" != "-o" ]; do shift; done; to="$2"'
    script.write_text("\n".join(["#!/bin/sh", f"echo called >> {folder}/calls", find, *lines, ""]))
    script.chmod(0o700)
    return str(script)


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_it_is_built_once_and_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    library = built(tmp_path / "cache")
    assert library.read_text() == "made\n"
    assert library.stat().st_mode & 0o777 == 0o600
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert built(tmp_path / "cache") == library
    assert calls(tmp_path) == 1
    assert [path.name for path in library.parent.glob("building-*")] == []


def test_other_sources_are_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    sources = tmp_path / "kernels"
    sources.mkdir()
    (sources / "one.cpp").write_text("1")
    (sources / "one.h").write_text("1")
    monkeypatch.setattr(native, "SOURCES", sources)
    first = built(tmp_path / "cache")
    (sources / "one.h").write_text("2")
    assert built(tmp_path / "cache") != first
    assert calls(tmp_path) == 2


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo half > "$to"', "echo 'x.cpp:1: error: no such thing' >&2", "exit 1"))
    with pytest.raises(KernelError, match=r"compiler failed: x\.cpp:1: error: no such thing"):
        built(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.so")) == []
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo whole > "$to"'))
    assert built(tmp_path / "cache").read_text() == "whole\n"


def test_a_compiler_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(native, "PATIENCE", 0.5)
    with pytest.raises(KernelError, match="was not done after"):
        built(tmp_path / "cache")


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
        built(tmp_path / "cache")


def test_a_processor_that_lacks_what_they_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(KernelError, match="AVX-512"):
        built(tmp_path / "cache")


@pytest.mark.parametrize("what", ["folder", "library"])
def test_what_others_may_write_to_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    library = built(tmp_path / "cache")
    (library if what == "library" else library.parent).chmod(0o777)
    with pytest.raises(KernelError, match="others may write to it"):
        built(tmp_path / "cache")


def test_processes_wait_for_the_one_that_builds_and_not_for_one_that_died(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": compiler(tmp_path, "sleep 1", 'echo made > "$to"')}
    command = [
        sys.executable,
        "-c",
        f"from pathlib import Path; from shared.layers.native.build import built; built(Path({str(tmp_path / 'cache')!r}))",
    ]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    died = start()
    while not (tmp_path / "calls").exists():
        assert died.poll() is None
        time.sleep(0.01)
    died.kill()
    died.wait()
    assert list((tmp_path / "cache").glob("building-*")) != []
    pair = [start(), start()]
    assert [process.wait() for process in pair] == [0, 0]
    assert calls(tmp_path) == 2
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".sha256", ".so"]


def test_an_obstacle_is_said_in_one_line_and_found_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 3"))
    native.kernel_obstacle.cache_clear()
    try:
        assert native.kernel_obstacle() == native.kernel_obstacle() == f"{tmp_path}/compiler failed: exit code 3"
        assert calls(tmp_path) == 1
    finally:
        native.kernel_obstacle.cache_clear()


def test_a_library_that_cannot_be_loaded_is_an_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo nonsense > "$to"'))
    native.kernel_obstacle.cache_clear()
    try:
        assert "file too short" in native.kernel_obstacle()
    finally:
        native.kernel_obstacle.cache_clear()


@pytest.mark.parametrize("damage", ["cut short", "changed", "without its sum"])
def test_a_library_that_was_damaged_on_disk_is_built_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    library = built(tmp_path / "cache")
    if damage == "without its sum":
        library.with_suffix(".sha256").unlink()
    else:
        library.write_text("ma" if damage == "cut short" else "mads\n")
    assert built(tmp_path / "cache").read_text() == "made\n"
    assert calls(tmp_path) == 2


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("torch.backends.mkldnn.enabled = False", "Brgemm"),
        ("native.torch.allclose = lambda *_, **__: False", "they do not compute what they should"),
    ],
)
def test_kernels_that_do_not_work_are_an_obstacle(setting: str, expected: str) -> None:
    code = f"import torch\nfrom shared.layers.native import build as native\n{setting}\nprint(native.kernel_obstacle())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert expected in done.stdout


def test_a_moments_work_takes_what_is_there_and_builds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    monkeypatch.setattr(native, "kernel_obstacle", lambda: "")
    assert not native.ready()
    assert not (tmp_path / "calls").exists() and not (tmp_path / "fedfuse").exists()
    library = built(tmp_path / "fedfuse")
    assert native.ready()
    monkeypatch.setattr(native, "kernel_obstacle", lambda: "they do not work")
    assert not native.ready()
    monkeypatch.setattr(native, "kernel_obstacle", lambda: "")
    library.write_text("cut")
    assert not native.ready()


def test_without_their_sources_they_are_an_obstacle_and_no_empty_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo made > "$to"'))
    monkeypatch.setattr(native, "SOURCES", tmp_path / "none")
    with pytest.raises(KernelError, match="sources are not in this copy"):
        built(tmp_path / "cache")
    assert not (tmp_path / "calls").exists() and not (tmp_path / "cache").exists()


def test_a_user_without_a_home_trains_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with an arbitrary user id has no HOME and no entry in /etc/passwd; this ended the training."""

    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))
    with pytest.raises(KernelError, match="XDG_CACHE_HOME"):
        built()
