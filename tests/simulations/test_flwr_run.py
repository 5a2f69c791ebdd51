"""`flwr run .` under Flower's own simulation: same apps, same environment, nothing installed per run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.base.settings import Settings, flatten
from shared.ledger.audit import audit_run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
Write = Callable[..., Path]


def test_flowers_table_of_defaults_is_ours() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= {f"{key}.{inner}": leaf for inner, leaf in value.items()} if isinstance(value, dict) else {key: value}
    assert flat == {"world": "", "out": "", **flatten(Settings())}


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


@pytest.mark.engine
def test_flwr_run(superlink: dict[str, str], write_platform: Write, tiny_bert: str, tmp_path: Path) -> None:
    write_platform("shop")
    world = write_platform("video", seed=1).parent
    out = tmp_path / "run"
    values = {
        "world": str(world),
        "out": str(out),
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
