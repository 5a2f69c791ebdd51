"""An interpreter that has what is missing, from folders of wheels and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What came of it.

    Args:
        python: Interpreter for the steps.
        rc: 0 where everything that is required is there; pip's code, or 124 where it took too long, else.
        said: The end of what pip said.
    """

    python: str
    rc: int
    said: str


def install(requirements: Sequence[str], wheels: Sequence[Path], folder: Path) -> Installed:
    """Make a virtual environment that sees this interpreter's packages, and add from the wheels what is missing.

    What is there in a fitting version stays, above all torch. Where wheels are missing, those that are there are installed
    nevertheless: a step that does without the missing ones can run.

    Args:
        wheels: Folders of them.
        folder: Of the environment; new.
    """
    making = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(folder)]
    subprocess.run(making, check=True)  # noqa: S603 - this interpreter
    python = folder / "bin" / "python"
    # This interpreter may be of a virtual environment itself, whose packages the new one would not see.
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "parent.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
    flags = ["--no-index", "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *flags]
    links = [word for place in wheels for word in ("--find-links", str(place))]
    rc, said = _run([*pip, *links, *requirements])
    if rc:
        every = [str(path) for place in wheels for path in sorted(place.glob("*.whl"))]
        again, more = _run([*pip, "--no-deps", *every]) if every else (rc, "no wheels there")
        said += f"\ninstalled without regard to what is missing: {'done' if again == 0 else more}"
    return Installed(python=str(python), rc=rc, said=said[-4000:])


def _run(words: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603 - this interpreter's pip
    except subprocess.TimeoutExpired:
        return 124, f"pip took more than {PATIENCE:.0f} s"
    return done.returncode, (done.stdout + done.stderr).strip()
