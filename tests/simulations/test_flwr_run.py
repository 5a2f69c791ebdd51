"""`flwr run .` under Flower's own simulation: same apps, same environment, nothing installed per run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shared.base.setting_overrides import with_strategy
from shared.base.settings import build, flatten
from shared.ledger.audit import audit_run
from simulations.local_deployment import free_ports

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NO_INSTALL = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
BUSY = ("Failed to start local SuperLink", "timed out during startup")
"""What Flower and Ray say on a machine so busy that what they start does not answer within their 15 and 30 s."""
Write = Callable[..., Path]


def test_flowers_table_of_defaults_is_ours() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= {f"{key}.{inner}": leaf for inner, leaf in value.items()} if isinstance(value, dict) else {key: value}
    assert flat == {"world": "", "out": "", **flatten(build(with_strategy({}), where="nothing named"))}


def test_the_environment_that_make_builds_has_flower_install_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_INSTALL, raising=False)
    (line,) = re.findall(r"^NO_INSTALL := echo '(import os; .*)'$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    exec(line)  # as Python does with a .pth file's line at every start
    assert os.environ.pop(NO_INSTALL) == "1"


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a Flower user who has never run anything, on ports of its own; ends the SuperLink that Flower starts."""
    http, control = free_ports(2)
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flwr-home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        NO_INSTALL: "1",  # as in the environment that `make venv` builds
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    yield environment
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in process.environ().get("FLWR_HOME", "") and process.pid != os.getpid():
                process.kill()


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_what_a_flower_user_types(managed: dict[str, str], tmp_path: Path) -> None:
    """Nothing is named, prepared or installed: two shops are generated, and share what is liked together."""
    words = ["flwr", "run", ".", "local", "--stream"]
    for _ in range(8):
        ran = subprocess.run(words, cwd=ROOT, env=managed, capture_output=True, text=True, timeout=800, check=False)
        if not any(said in ran.stdout + ran.stderr for said in BUSY):
            break
    listed = subprocess.run(
        ["flwr", "list", "local", "--format", "json"],
        cwd=ROOT,
        env=managed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    log = tmp_path / "flwr-home" / "local-superlink" / "superlink.log"
    print(ran.stdout[-4000:], ran.stderr[-2000:], listed.stdout, log.read_text()[-3000:] if log.exists() else "")
    assert "finished:completed" in [run["status"] for run in json.loads(listed.stdout)["runs"]]
    assert "are generated in" in ran.stdout + ran.stderr and "uv sync" not in ran.stdout + ran.stderr
    out = max((tmp_path / "flwr-home" / "fedfuse").iterdir(), key=lambda path: path.stat().st_mtime)
    assert (out / "model" / "preferences.safetensors").exists() and audit_run(out).ok
    assert sorted(path.name for path in (out / "ledger").glob("*.jsonl")) == ["shop-01.jsonl", "shop-02.jsonl"]


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A local SuperLink in simulation mode, started in a folder of its own, and the environment that reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home, neutral = tmp_path / "flwr-home", tmp_path / "neutral"
    home.mkdir()
    neutral.mkdir()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "fedfuse"\n\n[superlink.fedfuse]\naddress = "{address}"\ninsecure = true\n', encoding="utf-8"
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    words = [
        "--simulation",
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-runtime-dependency-installation",
    ]
    log = (tmp_path / "superlink.log").open("w")
    process = subprocess.Popen(
        [str(BIN / "flower-superlink"), *words], cwd=neutral, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "superlink.log").read_text()
                assert time.monotonic() < deadline, "the SuperLink did not come up"
                time.sleep(0.2)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


@pytest.mark.slow
@pytest.mark.engine
def test_flwr_run(superlink: dict[str, str], write_platform: Write, tiny_bert: str, tmp_path: Path) -> None:
    write_platform("shop")
    world = write_platform("video", seed=1).parent
    out = tmp_path / "run"
    values = {
        "world": str(world),
        "out": str(out),
        "strategy": "fedavg",
        "privacy.noise": "local",
        "preferences.items": 0,
        "rounds": 2,
        "model.backbone": tiny_bert,
        "model.layers": 1,
        "model.rank": 2,
        "training.local_steps": 2,
        "training.sample_rate": 0.5,
        "privacy.epsilon": 50.0,
        "simulation": True,
        "privacy.generator": "seeded",
    }
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    words = [
        "run",
        str(ROOT),
        "fedfuse",
        "--stream",
        "--federation-config",
        "num-supernodes=2 client-resources-num-cpus=1",
        "-c",
        config,
    ]
    ran = subprocess.run(
        [str(BIN / "flwr"), *words], cwd=tmp_path, env=superlink, capture_output=True, text=True, timeout=280, check=False
    )
    # Flower's exit code says nothing: the state of the run does.
    listed = subprocess.run(
        [str(BIN / "flwr"), "list", "fedfuse", "--format", "json"],
        cwd=tmp_path,
        env=superlink,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    state = json.loads(listed.stdout)
    log = (tmp_path / "superlink.log").read_text()
    print(ran.stdout[-4000:], ran.stderr[-2000:], listed.stdout, log[-3000:])  # shown when the test fails
    assert state["runs"][0]["status"] == "finished:completed"
    assert (out / "model" / "manifest.json").exists()
    assert sorted(path.name for path in (out / "ledger").glob("*.jsonl")) == ["shop.jsonl", "video.jsonl"]
    assert audit_run(out).ok
