"""What a year brings, with real processes and the very commands of docs/operating.md: a coordinator is lost and restored, a
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
from shared.ledger.format import Ledger
from shared.ledger.reading import read_ledger
from tests.deploy.stage import ROOT, Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
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


def federate(stage: Stage, name: str, *, platforms: int = 2) -> subprocess.CompletedProcess[str]:
    """One charged round."""
    settings = ["--rounds", "1", "--noise", "local", "--set", "server.minimum_platforms=2", "--restarts", "1", "--wait", "120"]
    return stage.run(name, "--platforms", str(platforms), *settings, check=False)


def findings(stage: Stage, folder: Path) -> dict[str, list[str]]:
    done = stage.fedfuse("doctor", folder, "--json", check=False)
    found: dict[str, list[str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        found.setdefault(one["level"], []).append(f"{one['what']}: {one['found']}")
    return found


def ledger(stage: Stage) -> Ledger:
    return read_ledger(stage.root / "ant" / "worker" / "ledger" / "ant.jsonl")


def test_a_coordinator_is_lost_and_restored(stage: Stage, small_shop: Callable[[str], Path]) -> None:
    stage.found({name: small_shop(name) for name in ("ant", "bee")})
    assert federate(stage, "spring").returncode == 0
    archive(stage, "coordinator", folder="coordinator")
    end(stage, "server")
    shutil.rmtree(stage.coordinator)
    archive(stage, "coordinator", folder="coordinator", restore=True)
    assert not (stage.coordinator / "state").exists()
    # Platforms have waited; Flower's database is made anew, and they are registered in it.
    stage.serve()
    stage.await_online("ant", "bee")
    before = ledger(stage).epsilon
    assert federate(stage, "summer").returncode == 0
    assert ledger(stage).epsilon > before
    assert {one["run"]: one["state"] for one in map(stage.state, ("spring", "summer"))} == {
        "spring": "finished",
        "summer": "finished",
    }


def test_an_older_backup_of_a_coordinator_is_noticed_before_the_first_run(
    stage: Stage, small_shop: Callable[[str], Path]
) -> None:
    """Who is online at once has shown what it keeps of the log: no run is quicker."""
    stage.found({name: small_shop(name) for name in ("ant", "bee")})
    archive(stage, "coordinator", folder="coordinator")
    stage.command("invite", "cat", "--server", stage.coordinator)
    kept = [stage.root / name / "node" / "log-head" for name in ("ant", "bee")]
    invited = (stage.coordinator / "operators" / "log.jsonl").stat().st_mtime
    until(lambda: all(path.exists() and path.stat().st_mtime > invited for path in kept), "both keep the head", stage.logs)
    end(stage, "server")
    shutil.rmtree(stage.coordinator)
    archive(stage, "coordinator", folder="coordinator", restore=True)
    stage.serve()
    refused = federate(stage, "early")  # begins at once, and waits for the platforms
    assert refused.returncode == ExitCode.STORAGE, (refused.stdout, refused.stderr)
    assert "was seen: the log, and with it perhaps the list of platforms, is an older copy" in " ".join(refused.stderr.split())
    assert ledger(stage).epsilon == 0
    stage.command("server", "restored", stage.coordinator)
    stage.await_online("ant", "bee")
    assert federate(stage, "later").returncode == 0
    assert ledger(stage).epsilon > 0


def test_a_ledger_goes_back_and_is_noticed(stage: Stage, small_shop: Callable[[str], Path]) -> None:
    stage.found({name: small_shop(name) for name in ("ant", "bee")})
    archive(stage, "platform", folder="ant")
    kept = stage.root / "backup-ant-platform.tar.gz"
    listed = subprocess.run(["tar", "-tzf", kept], capture_output=True, text=True, check=True)
    names = {line for line in listed.stdout.splitlines() if not line.endswith("/")}
    assert {"ant/worker/identity.key", "ant/worker/ledger/ant.jsonl", "ant/node/node.key", "ant/node/ca.crt"} <= names
    assert not [name for name in names if re.search(r"worker/(runs|trunk)|/socket/|/log/|node/(flwr|tmp|bin)", name)]
    assert federate(stage, "spring").returncode == 0
    spent = ledger(stage)

    # The platform's machine is lost, and the backup from before the spring comes back.
    end(stage, "ant")
    (stage.root / "ant").rename(stage.root / "newest")
    archive(stage, "platform", folder="ant", restore=True)
    older = ledger(stage)
    assert older.epsilon < spent.epsilon
    assert any("an older copy was put back" in one for one in findings(stage, stage.root / "ant")["error"])
    stage.join("ant")
    stage.await_online("ant")
    assert federate(stage, "autumn").returncode != 0
    assert "ledger (its ledger lacks answers that it has given" in json.dumps(stage.events("autumn"))
    assert ledger(stage) == older  # not a charge
    # It remembers, and does not start again.
    end(stage, "ant")
    assert stage.fedfuse("client", "start", stage.root / "ant", check=False).returncode == ExitCode.PRIVACY

    # The newest copy is found.
    (where,) = (stage.root / "ant").glob("worker/ledger/ant.jsonl")
    shutil.copy(stage.root / "newest" / "worker" / "ledger" / "ant.jsonl", where)
    assert not [one for one in findings(stage, stage.root / "ant").get("error", []) if one.startswith("ledger")]
    stage.join("ant")
    stage.await_online("ant", "bee")
    assert federate(stage, "winter").returncode == 0
    assert ledger(stage).epsilon > spent.epsilon


def test_a_platform_dies_and_is_taken_out(stage: Stage, small_shop: Callable[[str], Path]) -> None:
    stage.found({name: small_shop(name) for name in ("ant", "bee", "cat")})
    end(stage, "cat")
    stage.command("revoke", "cat", "--server", stage.coordinator)
    for name in ("ant", "bee"):
        stage.command("client", "distrust", stage.root / name, "cat")
        end(stage, name)
        stage.join(name)
    refused = federate(stage, "none", platforms=3)
    assert refused.returncode == ExitCode.BAD_INPUT and "2 are approved: ant, bee" in refused.stderr
    stage.await_online("ant", "bee")
    assert federate(stage, "after").returncode == 0
    assert set(stage.state("after")["platforms"]) == {"ant", "bee"}
    stage.join("cat")
    until(lambda: stage.processes["cat"].poll() is not None, "cat is refused for good", stage.logs)
    assert stage.processes["cat"].returncode == ExitCode.REFUSED
