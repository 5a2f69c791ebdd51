"""Native kernels for a processor (`shared/layers/native/kernels`, C++): built once on a machine, and loaded into torch.

They are built by the C++ compiler that is there, as torch.compile's are, for the torch that is installed and the processor
that is there, and kept in the user's cache. Without a compiler everything goes on without them, and takes longer.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from shared.base.atomic_files import write_whole
from shared.base.errors import StorageError
from shared.model.backbone import BackboneShape

log = logging.getLogger("fedfuse.compile")
SOURCES = Path(__file__).with_name("kernels")
PATIENCE = 600.0
"""Seconds that building may take; it takes about 20."""
_NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "fma")
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", *(f"-m{feature}" for feature in _NEEDED))


class KernelError(Exception):
    """Why the kernels cannot be had."""


@cache
def kernel_obstacle() -> str:
    """What keeps the kernels from working here; they are built and loaded if nothing does.

    Found out once a process.

    Returns:
        Empty if nothing does.
    """
    try:
        torch.ops.load_library(str(built()))  # type: ignore[no-untyped-call]
        _try()
    except (KernelError, StorageError, OSError, RuntimeError) as error:
        log.debug("the kernels do not work", exc_info=True)
        return " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
    return ""


def ready() -> bool:
    """Whether they were built here before, and work: what is not worth building them for can use them."""
    try:
        library = _library(_cache())
        if not _whole(library):
            return False
    except OSError:
        log.debug("the kernels cannot be looked for", exc_info=True)
        return False
    return not kernel_obstacle()


def _try() -> None:
    """Have them merge a small weight, for which they need torch's products of blocks.

    Raises:
        KernelError: they do not give what they should.
        RuntimeError: torch has no such products for this processor, or was told not to use them.
    """
    random = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(size, generator=random) for size in ((64, 32), (8, 32), (64, 8)))
    _, packed, _, _ = torch.ops.fedfuse.merged(weight.bfloat16(), [a], [b], [0], [1.0])
    found = packed.permute(1, 3, 0, 2).reshape(64, 32).float()
    if not torch.allclose(found, weight + b @ a, atol=0.2, rtol=0.02):
        raise KernelError("they do not compute what they should")


def serves(shape: BackboneShape) -> bool:
    """Whether the kernels know layers of these widths."""
    head = shape.hidden // shape.heads
    return shape.hidden % 32 == 0 and shape.intermediate % 32 == 0 and head % 16 == 0 and head <= 64


def built(folder: Path | None = None) -> Path:
    """The library, from the cache or built now.

    Args:
        folder: Of the cache; by default `fedfuse` in the user's.

    Raises:
        KernelError: this processor does not have what they need, their sources or a compiler are missing, the compiler fails, or
            others could have written what is in the cache.
        OSError, StorageError: the cache cannot be used.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not torch.cpu._is_avx512_bf16_supported():
        raise KernelError("they are for processors with AVX-512 and bfloat16")
    if not any(SOURCES.glob("*.cpp")):
        raise KernelError("their sources are not in this copy of the code, as in a bundle that `flwr run` makes")
    folder = folder or _cache()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_own(folder)
    library = _library(folder)
    with (folder / "lock").open("w") as lock:
        # The kernel lets go of it when a process dies.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(library):
            for left in folder.glob("building-*"):
                shutil.rmtree(left, ignore_errors=True)
            _build(library)
    _require_own(library)
    return library


def _library(folder: Path) -> Path:
    return folder / f"kernels-{_digest([*SOURCES.glob('*.cpp'), *SOURCES.glob('*.h')])}.so"


def _build(library: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise KernelError("there is no C++ compiler")
    log.info("building kernels for this processor, once: about 20 s")
    root, began = Path(torch.__file__).parent, time.perf_counter()
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as scratch:
        made = Path(scratch) / "kernels.so"
        command = [*compiler.split(), *_FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        command += ["-isystem", str(root / "include"), *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(made)]
        command += [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603 - the user's own compiler
        except subprocess.TimeoutExpired:
            raise KernelError(f"{compiler} was not done after {PATIENCE:.0f} s") from None
        if done.returncode != 0:
            log.debug("%s: %s", " ".join(command), done.stderr)
            wrong = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise KernelError(f"{compiler} failed: {(wrong or [f'exit code {done.returncode}'])[0]}")
        content = made.read_bytes()
        write_whole(_sum_of(library), hashlib.sha256(content).hexdigest().encode(), mode=0o600)
        write_whole(library, content, mode=0o600)
    log.info("built kernels in %.0f s", time.perf_counter() - began)


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _whole(library: Path) -> bool:
    """Whether it is there as it was built: one that a full or failing disk cut short would end the process that loads it."""
    if not library.exists() or not _sum_of(library).exists():
        return False
    return hashlib.sha256(library.read_bytes()).hexdigest() == _sum_of(library).read_text(encoding="ascii")


def _digest(files: list[Path]) -> str:
    """Of everything that the library depends on."""
    sha = hashlib.sha256("\n".join([torch.__version__, *_FLAGS, os.environ.get("CXX", "")]).encode())
    for file in sorted(files):
        sha.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedfuse"
    except RuntimeError:  # no HOME and no entry in /etc/passwd, as in a container with an arbitrary user id
        raise KernelError("this user has no home folder, and XDG_CACHE_HOME names no other place for them") from None


def _require_own(path: Path) -> None:
    """What is loaded runs as this user: nobody else may have written it."""
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelError(f"{path} belongs to another user, or others may write to it; delete it")
