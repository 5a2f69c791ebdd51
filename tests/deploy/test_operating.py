"""A year in some minutes, with real processes and the very commands of docs/operating.md: a coordinator is lost and restored, a
platform's ledger goes back and is noticed, a platform dies and is taken out."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.base.errors import ExitCode
from shared.ledger.reading import read_ledger
from tests.deploy.stage import ROOT, Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
NAMES = ("ant", "bee", "cat")
PAGE = (ROOT / "docs" / "operating.md").read_text()


def archive(stage: Stage, what: str, *, folder: str, restore: bool = False) -> None:
    """Run the page's own `tar` for a folder: 'coordinator', or the 'platform' whose folder is named."""
    option = "-xpzf" if restore else "-czf"
    (line,) = re.findall(rf"^tar -C \S+ .*{option} /backup/{what}\.tar\.gz.*$", PAGE, re.MULTILINE)
    line = line.replace("/var/lib/fedfuse", str(stage.root)).replace("/backup/", f"{stage.root}/backup-{folder}-")
    line = re.sub(r"(?<![\w/-])platform(?=[/ ]|$)", folder, line)
    (stage.root / "x").mkdir(exist_ok=True)
    subprocess.run(["sh", "-c", f"umask 077; {line}"], check=True, cwd=stage.root / "x")


def end(stage: Stage, key: str) -> None:
    stage.processes[key].send_signal(signal.SIGTERM)
    stage.processes[key].wait(60)


def federate(stage: Stage, name: str, *, platforms: int = 3) -> subprocess.CompletedProcess[str]:
    """A federation of preferences: a minute, and charged."""
    settings = ["--set", "server.minimum_platforms=2", "--set", "preferences.items=4"]
    return stage.run(name, "--platforms", str(platforms), *settings, check=False)


def findings(stage: Stage, folder: Path) -> dict[str, list[str]]:
    done = stage.fedfuse("doctor", folder, "--json", check=False)
    found: dict[str, list[str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        found.setdefault(one["level"], []).append(f"{one['what']}: {one['found']}")
    return found


def test_a_year(stage: Stage, small_shop: Callable[[str], Path]) -> None:
    stage.found({name: small_shop(name) for name in NAMES})
    assert federate(stage, "spring").returncode == 0
    archive(stage, "platform", folder="ant")
    archive(stage, "coordinator", folder="coordinator")
    listed = subprocess.run(
        ["tar", "-tzf", stage.root / "backup-ant-platform.tar.gz"], capture_output=True, text=True, check=True
    )
    names = {line for line in listed.stdout.splitlines() if not line.endswith("/")}
    assert {"ant/worker/identity.key", "ant/worker/ledger/ant.jsonl", "ant/node/node.key", "ant/node/ca.crt"} <= names
    assert not [name for name in names if re.search(r"worker/(runs|trunk)|/socket/|/log/|node/(flwr|tmp|bin)", name)]

    # The coordinator's machine is lost. Platforms wait, and take part in a run of the restored one.
    end(stage, "server")
    shutil.rmtree(stage.coordinator)
    archive(stage, "coordinator", folder="coordinator", restore=True)
    assert not (stage.coordinator / "state").exists()
    stage.serve()
    stage.await_online(*NAMES)
    assert federate(stage, "summer").returncode == 0
    summer = read_ledger(stage.root / "ant" / "worker" / "ledger" / "ant.jsonl")
    assert summer.epsilon > 0

    # A platform's machine is lost, and a backup from before the summer comes back.
    end(stage, "ant")
    shutil.copytree(stage.root / "ant", stage.root / "newest")
    shutil.rmtree(stage.root / "ant")
    archive(stage, "platform", folder="ant", restore=True)
    older = read_ledger(stage.root / "ant" / "worker" / "ledger" / "ant.jsonl")
    assert older.epsilon < summer.epsilon
    assert any("an older copy was put back" in one for one in findings(stage, stage.root / "ant")["error"])
    stage.join("ant")
    stage.await_online("ant")
    assert federate(stage, "autumn").returncode != 0
    said = json.dumps(stage.events("autumn"))
    assert "ledger lacks answers that it has given" in said or '"ledger' in said
    assert read_ledger(stage.root / "ant" / "worker" / "ledger" / "ant.jsonl") == older  # not a charge
    # It remembers, and does not start again.
    end(stage, "ant")
    assert stage.fedfuse("client", "start", stage.root / "ant", check=False).returncode == ExitCode.PRIVACY
    # The newest copy is found.
    shutil.copy(stage.root / "newest" / "worker" / "ledger" / "ant.jsonl", stage.root / "ant" / "worker" / "ledger" / "ant.jsonl")
    assert not [one for one in findings(stage, stage.root / "ant").get("error", []) if one.startswith("ledger")]
    stage.join("ant")
    stage.await_online(*NAMES)
    assert federate(stage, "winter").returncode == 0

    # A platform dies for good.
    end(stage, "cat")
    stage.command("revoke", "cat", "--server", stage.coordinator)
    for name in ("ant", "bee"):
        stage.command("client", "distrust", stage.root / name, "cat")
        end(stage, name)
        stage.join(name)
    refused = federate(stage, "none", platforms=3)
    assert refused.returncode == ExitCode.BAD_INPUT and "2 are approved: ant, bee" in refused.stderr
    stage.await_online("ant", "bee")
    assert federate(stage, "after", platforms=2).returncode == 0
    assert set(stage.state("after")["platforms"]) == {"ant", "bee"}
    stage.join("cat")
    until(lambda: stage.processes["cat"].poll() is not None, "cat is refused for good", stage.logs)
    assert stage.processes["cat"].returncode == ExitCode.REFUSED
