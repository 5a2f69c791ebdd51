"""Checks that need no deployment folder: versions, memory, disk, the environment."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from shared.doctor.findings import Finding, fault, fine, warning
from shared.flower.flower_patches import TESTED

MIB, GIB = 1 << 20, 1 << 30
SHOWN = ("flwr", "torch", "cryptography")
"""Packages whose versions are said even where all is well."""
LEAST_MEMORY, LEAST_DISK = 1 * GIB, 256 * MIB
"""Bytes free below which starting something is no use: a worker takes some 0.5 GiB before it trains."""
SCARCE_MEMORY, SCARCE_DISK = 2 * GIB, 2 * GIB
FILES = 1024
"""Open files that a SuperLink with many platforms needs."""
LOCAL = ("127.0.0.1", "localhost")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def check_machine(folder: Path, *, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that can be looked at anywhere.

    Args:
        folder: Whose disk must have free space.
    """
    yield check_python()
    yield from check_packages()
    yield check_memory()
    yield check_disk(folder)
    yield check_open_files()
    yield from check_environment(environment)


def check_python() -> Finding:
    """Whether this Python is one that Fedfuse is made for."""
    found = f"Python {sys.version.split()[0]}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return fine("python", found)
    return fault("python", found, "use Python 3.11 to 3.13")


def check_packages(
    requirements: Iterable[str] | None = None, *, version: Callable[[str], str] = metadata.version
) -> Iterator[Finding]:
    """Whether what is installed is what Fedfuse asks for; a line for each that is not, and one for all that are.

    Args:
        requirements: As package metadata writes them; Fedfuse's own if None.
        version: Package -> its version; raises `PackageNotFoundError`.
    """
    if requirements is None:
        try:
            requirements = metadata.requires("fedfuse") or []
        except metadata.PackageNotFoundError:
            yield warning("packages", "fedfuse itself is not installed", "pip install it, or: make venv")
            return
    good, wrong = {}, 0
    for wanted in map(Requirement, requirements):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        cure = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong += 1
            yield fault("packages", f"{wanted.name} is not installed", cure)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            good[wanted.name] = found
        else:
            wrong += 1
            yield fault("packages", f"{wanted.name} {found}, and {wanted.specifier} is wanted", cure)
    if "flwr" in good and not good["flwr"].startswith(f"{TESTED}."):
        wrong += 1
        yield fault("packages", f"flwr {good['flwr']}, and this Fedfuse works with {TESTED}", f"pip install 'flwr=={TESTED}.*'")
    if not wrong:
        shown = ", ".join(f"{name} {good[name]}" for name in SHOWN if name in good)
        yield fine("packages", f"{len(good)} as they should be ({shown})" if shown else f"{len(good)} as they should be")


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Whether memory is left."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError, IndexError):
        return warning("memory", "cannot be read on this system", f"see that a platform has {SCARCE_MEMORY // GIB} GiB")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free, {os.cpu_count()} processors"
    cure = f"end what uses it, or take a machine with {SCARCE_MEMORY // GIB} GiB for each platform"
    if free < LEAST_MEMORY:
        return fault("memory", found, cure)
    return warning("memory", found, cure) if free < SCARCE_MEMORY else fine("memory", found)


def check_disk(folder: Path) -> Finding:
    """Whether the disk has free space, and the folder may be written to."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return fault("disk", f"{folder} may not be written to", "work as its owner, or give it to this user")
    free = shutil.disk_usage(folder).free
    state = os.statvfs(folder)
    found, cure = (
        f"{free / GIB:.1f} GiB are free at {folder}",
        "free space: ledgers, answers and checkpoints must be written",
    )
    if free < LEAST_DISK:
        return fault("disk", found, cure)
    if state.f_files and state.f_favail < 1000:
        return fault("disk", f"{found}, and {state.f_favail} files more", cure)
    return warning("disk", found, cure) if free < SCARCE_DISK else fine("disk", found)


def check_open_files() -> Finding:
    """Whether a process may open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "as many as one likes" if soft == resource.RLIM_INFINITY else f"{soft} at once"
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return fine("open files", found)
    return warning("open files", found, f"ulimit -n {FILES}" if hard >= FILES or hard < 0 else "raise the limit as administrator")


def check_environment(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that change where processes connect to, what they report, and which code they find."""
    quiet = True
    if environment.get("FLWR_TELEMETRY_ENABLED", "0") != "0":
        quiet = False
        yield warning("environment", "FLWR_TELEMETRY_ENABLED lets Flower report home", "export FLWR_TELEMETRY_ENABLED=0")
    proxies = [name for name in _PROXIES if environment.get(name)]
    if proxies:
        quiet = False
        excepted = re.split(r"[,\s]+", environment.get("NO_PROXY", "") or environment.get("no_proxy", ""))
        if "*" in excepted or set(LOCAL) <= set(excepted):
            yield fine("environment", f"{', '.join(proxies)} set, and not for this machine")
        else:
            yield fault(
                "environment",
                f"{', '.join(proxies)} would also be asked for this machine's own addresses",
                f"export NO_PROXY={','.join(LOCAL)}",
            )
    if environment.get("LD_PRELOAD"):
        quiet = False
        yield warning("environment", "LD_PRELOAD loads other code into every process", "unset LD_PRELOAD unless you mean it")
    if quiet:
        yield fine("environment", "no telemetry, no proxy, no foreign code")
