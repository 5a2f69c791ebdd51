"""Wheels for a machine without a network that has Python 3.12 and torch 2.11: all that Fedfuse needs beside these.

    python -m simulations.benchmarks.gpu.wheels FOLDER [--leave-out NAME ...]

torch and NVIDIA's libraries, gigabytes that the machine has, are not fetched: pip is shown an empty wheel in torch's place.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
TORCH = "2.11.0"
_GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64")
"""pip takes a platform by its exact name; glibc 2.39 is Ubuntu 24.04's."""


def requirements() -> list[str]:
    """What the steps need, as pip takes it: the dependencies, and the extra `device`."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*table["dependencies"], *table["optional-dependencies"]["device"]]


def name_of(requirement: str) -> str:
    """The project's name in a requirement, as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def write_wheel(folder: Path, name: str, version: str, *, modules: Mapping[str, str] | None = None) -> Path:
    """Write a pure-Python wheel without dependencies.

    Args:
        name: As in a wheel's file name, with underscores.
        modules: File name and text of each.

    Returns:
        Its path.
    """
    info = f"{name}-{version}.dist-info"
    files = dict(modules or {}) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: fedfuse\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{file},sha256={_digest(text)},{len(text.encode())}" for file, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def download_command(folder: Path, instead: Path) -> list[str]:
    """The call of pip that fetches the wheels.

    Args:
        instead: Folder with the empty wheel of torch.
    """
    wanted = [one for one in requirements() if name_of(one) != "torch"]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    return [*pip, "--dest", str(folder), "--find-links", str(instead), *target, f"torch=={TORCH}+elsewhere", *wanted]


def main() -> None:
    """Fetch them."""
    parser = argparse.ArgumentParser(description="Fetch wheels for a machine with Python 3.12, torch 2.11 and no network.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="what the machine has in a fitting version")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as instead:
        write_wheel(Path(instead), "torch", f"{TORCH}+elsewhere")
        done = subprocess.run(download_command(options.folder, Path(instead)), check=False)  # noqa: S603 - this interpreter's pip
    # pip resolves the versions with all of them in view, so what is left out goes afterwards.
    without = {name_of(name) for name in options.leave_out} | {"torch"}
    for path in options.folder.glob("*.whl"):
        if name_of(path.name.partition("-")[0]) in without:
            path.unlink()
    if done.returncode:
        sys.exit(done.returncode)
    found = list(options.folder.glob("*.whl"))
    print(f"{len(found)} wheels, {sum(path.stat().st_size for path in found) / 2**20:.0f} MiB, in {options.folder}")


if __name__ == "__main__":
    main()
