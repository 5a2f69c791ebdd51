"""Trouble without a kill: cut networks, full disks, wrong clocks, doubles and old versions, with real processes. Minutes each."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.base.version import VERSION
from tests.deploy.seeded import seeded
from tests.deploy.stage import Stage, until
from tests.deploy.wire_cutter import WireCutter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Make = Callable[[str], Path]


def test_the_network_is_cut_for_a_minute(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=0.5) as made:
        cutter = WireCutter(stage.port)
        invitation = stage.root / "bee" / "invitation.toml"
        invitation.write_text(invitation.read_text().replace(f"127.0.0.1:{stage.port}", f"127.0.0.1:{cutter.port}"))
        made.start()
        settings = made.settings(rounds=6, reply_timeout=200.0)
        thread = made.launch("run", settings)
        made.await_line("bee", "begin", "train", 2)
        cutter.cut()
        began = time.monotonic()
        made.await_line("ant", "begin", "train", 3)  # the round went on without it
        with made.held("ant"):
            time.sleep(max(0.0, began + 60 - time.monotonic()))
            cutter.mend()
            mended = time.time()
            until(lambda: made.seen("bee") > mended, "bee is heard again", stage.logs)
        made.finish(thread)
        rounds = made.require_same("run", settings)
        assert rounds[2] == {"ant"} and rounds[6] == {"ant", "bee"}
        cutter.close()


@contextlib.contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[None]:
    """A file system of so many megabytes at `path`, with what was in it."""
    kept = path.with_name(f"{path.name}-kept")
    path.mkdir(parents=True, exist_ok=True)
    path.rename(kept)
    path.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        path.rmdir()
        kept.rename(path)
        pytest.skip("needs the right to mount")
    shutil.copytree(kept, path, dirs_exist_ok=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    return path


def test_a_platforms_disk_is_full(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=1.0) as made, small_disk(stage.root / "bee" / "worker", megabytes=24):
        made.start()
        settings = made.settings(rounds=5)
        thread = made.launch("run", settings)
        made.await_line("ant", "end", "train", 1)
        filler = fill(stage.root / "bee" / "worker")
        made.await_line("bee", "end", "train", 3)
        filler.unlink()
        made.finish(thread)
        rounds = made.require_same("run", settings)
        assert any(came == {"ant"} for came in rounds.values()) and rounds[5] == {"ant", "bee"}
        assert any(event["kind"] == "refused" and event["platform"] == "bee" for event in stage.events("run"))


def test_the_coordinators_disk_is_full(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=1.0) as made, small_disk(stage.coordinator / "runs", megabytes=24):
        made.start()
        settings = made.settings(rounds=4)
        thread = made.launch("run", settings, restarts=30)
        made.await_line("ant", "begin", "train", 2)
        filler = fill(stage.coordinator / "runs")
        until(lambda: any(event["kind"] == "restart" for event in made.heard), "an attempt failed", stage.logs, seconds=400)
        filler.unlink()
        made.finish(thread)
        assert set(map(frozenset, made.require_same("run", settings).values())) == {frozenset(made.names)}


SHIFTED = """
import datetime
_real = datetime.datetime
class Shifted(_real):
    @classmethod
    def now(cls, tz=None):
        return _real.now(tz) + datetime.timedelta(days={days})
datetime.datetime = Shifted
"""


@pytest.fixture
def deployed(stage: Stage, small_shop: Make) -> Stage:
    stage.make()
    stage.serve()
    stage.make_platform("ant", "--data", small_shop("ant"))
    return stage


def overlay(stage: Stage, name: str, content: str) -> str:
    """PYTHONPATH with a sitecustomize of that content."""
    folder = stage.root / name
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(content)
    return f"{folder}:{stage.environment['PYTHONPATH']}"


def said(stage: Stage, name: str) -> str:
    return (stage.root / f"{name}.log").read_text()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_is_off_by_a_day(deployed: Stage, days: int) -> None:
    process = deployed.join("ant", PYTHONPATH=overlay(deployed, "shifted", SHIFTED.format(days=days)))
    where = "ahead of" if days > 0 else "behind"
    until(lambda: f"s {where} the coordinator's" in said(deployed, "ant"), "the platform is told about its clock", deployed.logs)
    until(lambda: "clock is too far" in said(deployed, "server"), "the coordinator reads it too", deployed.logs)
    assert process.poll() is None  # it waits for the clock to be set
    process.terminate()
    assert process.wait(60) == 0
    deployed.join("ant")
    deployed.await_online("ant")


def test_two_clients_with_one_identity(deployed: Stage) -> None:
    first = deployed.join("ant")
    deployed.await_online("ant")
    # On the same machine, the same folder: the ledger has one writer.
    same = deployed.spawn("same", "client", "start", deployed.root / "ant", "--socket", deployed.root / "other.sock")
    assert same.wait(120) == 5
    assert "another process holds this ledger" in said(deployed, "same")
    # Elsewhere, with copied keys: the coordinator hears the first one.
    shutil.copytree(
        deployed.root / "ant", deployed.root / "copy", ignore=shutil.ignore_patterns("*.sock", "ledger", "flwr", "tmp")
    )
    deployed.join("copy")
    until(lambda: "is connected already" in said(deployed, "copy"), "the second is told", deployed.logs)
    until(lambda: "is connected already" in said(deployed, "server"), "the coordinator reads it", deployed.logs)
    assert first.poll() is None
    deployed.await_online("ant")


def test_an_old_client(deployed: Stage) -> None:
    old = "import shared.base.version\nshared.base.version.VERSION = '0.0.1'\n"
    process = deployed.join("ant", PYTHONPATH=overlay(deployed, "old", old))
    assert process.wait(120) == 6
    assert "this is fedfuse 0.0.1" in said(deployed, "ant") and f"needs at least {VERSION}" in said(deployed, "ant")
    assert f"fedfuse>={VERSION}" in said(deployed, "ant")
    until(
        lambda: f"fedfuse 0.0.1 is too old, at least {VERSION} is needed" in said(deployed, "server"),
        "the coordinator reads it",
        deployed.logs,
    )


def test_an_unknown_key_waits_for_its_approval(deployed: Stage, small_shop: Make) -> None:
    folder = deployed.root / "bee"
    deployed.fedfuse("client", "status", deployed.root / "ant")
    deployed.fedfuse(
        "init", "client", folder, "--invitation", deployed.invite("bee"), "--users", "40", "--data", small_shop("bee")
    )
    deployed.join("bee")
    until(lambda: "does not know this platform's key" in said(deployed, "bee"), "the platform is told", deployed.logs)
    until(lambda: "does not know this platform's key" in said(deployed, "server"), "the coordinator reads it", deployed.logs)
    deployed.approve("bee")
    deployed.await_online("bee")


def test_a_certificate_that_has_expired(deployed: Stage) -> None:
    from server.deployment.certificates import Certificates

    deployed.processes["server"].terminate()
    deployed.processes["server"].wait(60)
    certificates = Certificates.of(deployed.coordinator)
    certificates.issue("127.0.0.1", days=-1)
    refused = deployed.fedfuse("server", "start", deployed.coordinator, check=False)
    assert refused.returncode == 5 and "expired" in refused.stderr and "fedfuse server renew" in refused.stderr
    deployed.fedfuse("server", "renew", deployed.coordinator)
    deployed.serve()
    deployed.join("ant")  # with the old invitation: the authority is the same
    deployed.await_online("ant")
