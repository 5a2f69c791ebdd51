"""Each check of a machine on one that is well, and on one that is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from shared.base.errors import ExitCode
from shared.doctor.findings import Level, exit_code, findings_json
from shared.doctor.machine import GIB, check_disk, check_environment, check_machine, check_memory, check_packages


def installed(**versions: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version


def test_this_machine_says_something_of_everything(tmp_path: Path) -> None:
    found = list(check_machine(tmp_path, environment={}))
    assert {one.what for one in found} == {"python", "packages", "memory", "disk", "open files", "environment"}
    assert all(bool(one.cure) == (one.level is not Level.OK) for one in found)


def test_packages() -> None:
    wanted = ["torch>=2,<3", "numpy>=2", "psutil>=7; extra == 'dev'"]
    (good,) = check_packages(wanted, version=installed(torch="2.5.1+cpu", numpy="2.1"))
    assert good.level is Level.OK and "torch 2.5.1+cpu" in good.found
    old, missing = check_packages(wanted, version=installed(torch="1.9"))
    assert (old.level, missing.level) == (Level.ERROR, Level.ERROR)
    assert "torch 1.9" in old.found and "numpy is not installed" in missing.found and "pip install 'torch" in old.cure
    (flower,) = check_packages(["flwr>=1"], version=installed(flwr="1.3.0"))
    assert flower.level is Level.ERROR and "works with" in flower.found


@pytest.mark.parametrize(("free", "level"), [(0.5, Level.ERROR), (1.5, Level.WARNING), (4, Level.OK)])
def test_memory(tmp_path: Path, free: float, level: Level) -> None:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 8388608 kB\nMemAvailable: {int(free * GIB / 1024)} kB\n")
    assert check_memory(path).level is level
    assert check_memory(tmp_path / "none").level is Level.WARNING


@pytest.mark.parametrize(("free", "level"), [(0.1, Level.ERROR), (1, Level.WARNING), (9, Level.OK)])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, level: Level) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert check_disk(tmp_path).level is level


@pytest.mark.parametrize(
    ("environment", "levels"),
    [
        ({"FLWR_TELEMETRY_ENABLED": "0"}, [Level.OK]),
        ({"FLWR_TELEMETRY_ENABLED": "1"}, [Level.WARNING]),
        ({"HTTPS_PROXY": "http://proxy:3128"}, [Level.ERROR]),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "127.0.0.1,localhost,.corp"}, [Level.OK]),
        ({"LD_PRELOAD": "/tmp/x.so", "https_proxy": "x", "no_proxy": "*"}, [Level.OK, Level.WARNING]),
    ],
)
def test_environment(environment: dict[str, str], levels: list[Level]) -> None:
    found = list(check_environment(environment))
    assert [one.level for one in found] == levels
    assert "http://proxy" not in str(found)  # a proxy's address may hold a password


def test_warnings_are_in_nobodys_way() -> None:
    found = list(check_environment({"FLWR_TELEMETRY_ENABLED": "1"}))
    assert exit_code(found) is ExitCode.OK and findings_json(found)["ok"] is True
    assert exit_code([*found, *check_environment({"HTTPS_PROXY": "x"})]) is ExitCode.FAILED
