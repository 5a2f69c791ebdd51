"""The wheel works where the repository is not: built, installed beside nothing but the dependencies, run in an empty folder."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check", "-w", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode and "No matching distribution found for hatchling" in made.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be had")
    assert made.returncode == 0, made.stderr
    (found,) = out.glob("fedfuse-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and borrows everything else."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = next((place / "lib").glob("python3*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Paths of other environments, but none through which the repository itself is found.
    borrowed = [path for path in (*site.getsitepackages(), *sys.path) if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    command = place / "bin" / "fedfuse"
    command.write_text(f"#!{place / 'bin' / 'python'}\nfrom fedfuse import main\nmain()\n")
    command.chmod(0o755)
    return command


def run(command: Path, folder: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_what_is_no_python(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("server/report/page.css", "server/report/page.html.j2", "fedfuse.py", "simulations/worlds/generated.py"):
        assert needed in names
    assert any(name.startswith("shared/layers/native/kernels/") and name.endswith((".cpp", ".h")) for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_an_installed_wheel_writes_its_service_files(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "deploy", "files", "services")
    found = {path.relative_to(tmp_path / "services") for path in (tmp_path / "services").rglob("*") if path.is_file()}
    shipped = ROOT / "shared" / "deploy"
    wanted = {path.relative_to(shipped) for path in shipped.glob("*/**/*") if path.is_file() and "__pycache__" not in path.parts}
    assert found == wanted
    unit = (tmp_path / "services" / "systemd" / "fedfuse-server.service").read_text()
    assert f"ExecStart={installed} --log-format json server start" in unit  # the command of this very environment


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_simulates_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = "import fedfuse, client, simulations; print(fedfuse.__file__, client.__file__, simulations.__file__)"
    found = subprocess.run([installed.with_name("python"), "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(ROOT) + os.sep not in found.stdout.replace(str(installed.parents[1]), "")
    assert "--seeds" in run(installed, tmp_path, "simulate", "--help")
    run(installed, tmp_path, "world", "new", "world", "--scale", "0.1")
    metrics = json.loads(run(installed, tmp_path, "simulate", "world", "--out", "run", "--json"))
    assert set(metrics["platforms"]) == {"shop", "corner", "video", "news"}
    run(installed, tmp_path, "evaluate", "world/shop.toml", "--model", "run/model", "--k", "5", "--json")
