"""`fedfuse doctor` at a platform: what is wrong on its side is distinguished from what is wrong at the coordinator's."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from client.config.deployment_folder import Deployment
from client.privacy.ledger_writer import LedgerWriter
from client.secagg.persistent_participant import identity_of
from client.setup.provisioning import create_platform_folder
from client.supernode import checkup
from client.supernode.gate_client import Heard
from client.supernode.sandbox import Wall
from server.deployment.folder import CoordinatorFolder
from server.deployment.provisioning import create_coordinator_folder, make_invitation
from shared.doctor.findings import Finding, Level
from shared.ledger.receipts import LedgerReceipt
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.gate_protocol import Standing
from simulations.local_deployment import free_ports

HEARD = Heard(standing=Standing.WELCOME, platform="shop", offset=0.4, version="0.1.0", minimum="0.1.0", protocol=4, pace=0.0)


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    port, control = free_ports(2)
    return create_coordinator_folder(
        tmp_path / "coordinator", host="127.0.0.1", name="spring", port=port, control_port=control, listen="127.0.0.1"
    )


@pytest.fixture
def shop(tmp_path: Path, coordinator: CoordinatorFolder) -> Deployment:
    data = tmp_path / "data"
    data.mkdir()
    (data / "orders.csv").write_text("user,item\nu1,i1\nu2,i2\n")
    (data / "items.csv").write_text("item,title\ni1,x\ni2,y\n")
    invitation = make_invitation(coordinator, "shop")
    return create_platform_folder(tmp_path / "shop", invitation, data=[data], users=100, epsilon=8.0, delta=1e-3).deployment


def of(shop: Deployment, *what: str) -> list[Finding]:
    return [one for one in checkup.check_platform(shop.folder) if one.what in what]


def test_a_new_one_before_the_coordinator_runs(shop: Deployment) -> None:
    found = list(checkup.check_platform(shop.folder))
    assert [(one.what, one.level) for one in found if one.level is Level.ERROR] == [("coordinator", Level.ERROR)]
    assert "does not answer" in found[-1].found


def test_tables_that_are_gone(shop: Deployment, tmp_path: Path) -> None:
    """A folder was renamed: all was well, and the worker did not start."""
    assert [(one.level, one.found) for one in of(shop, "sources")] == [(Level.OK, "2 files are there")]
    (tmp_path / "data" / "orders.csv").chmod(0o000)
    if os.geteuid() != 0:
        (found,) = [one for one in of(shop, "sources") if one.level is Level.ERROR]
        assert "may not be read" in found.found and "orders.csv" in found.found
    (tmp_path / "data").rename(tmp_path / "exports")
    found = of(shop, "sources")
    assert [one.level for one in found] == [Level.ERROR, Level.ERROR] and all(one.cure for one in found)
    assert sorted(name for one in found for name in ("orders.csv", "items.csv") if name in one.found) == [
        "items.csv",
        "orders.csv",
    ]


@pytest.mark.parametrize(
    ("heard", "what", "level", "says"),
    [
        (HEARD, "coordinator", Level.OK, "as shop"),
        (replace(HEARD, standing=Standing.PRESENT), "coordinator", Level.OK, "connected"),
        (replace(HEARD, standing=Standing.UNKNOWN, platform=""), "coordinator", Level.ERROR, "does not know"),
        (replace(HEARD, standing=Standing.REVOKED), "coordinator", Level.ERROR, "revoked"),
        (replace(HEARD, platform="video"), "coordinator", Level.ERROR, "'video'"),
        (replace(HEARD, standing=Standing.OUTDATED, minimum="9.0.0"), "coordinator", Level.ERROR, "9.0.0"),
        (replace(HEARD, offset=-90.0), "clock", Level.WARNING, "90.0 s behind"),
        (replace(HEARD, offset=400.0, standing=Standing.CLOCK), "clock", Level.ERROR, "400.0 s ahead"),
        (HEARD, "clock", Level.OK, "0.4 s"),
    ],
)
def test_what_the_coordinator_says(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch, heard: Heard, what: str, level: Level, says: str
) -> None:
    monkeypatch.setattr(checkup, "hear", lambda *args, **options: heard)
    (found,) = of(shop, what)
    assert found.level is level and says in found.found and bool(found.cure) == (level is not Level.OK)


def test_keys_that_others_can_read(shop: Deployment) -> None:
    shop.identity.chmod(0o640)
    shop.worker.chmod(0o755)
    keys, rights = of(shop, "keys", "rights")[:2]
    assert keys.level is Level.ERROR and keys.cure == f"chmod 600 {shop.identity}"
    assert rights.level is Level.WARNING and rights.cure == f"chmod 700 {shop.worker}"


def test_a_ledger_that_another_process_holds_and_a_socket_that_was_left(shop: Deployment) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(shop.socket))
    ledger = shop.worker / "ledger" / "shop.jsonl"
    ledger.parent.mkdir()
    with ledger.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = of(shop, "worker", "socket", "ledger")
    assert [one.level for one in found] == [Level.WARNING, Level.OK, Level.ERROR]
    assert [one.what for one in of(shop, "worker", "socket", "ledger")] == ["worker", "socket"]


def test_a_worker_at_another_socket_that_talks_to_its_messenger_alone(shop: Deployment, tmp_path: Path) -> None:
    """As root sees it beside the systemd units: the ledger is held, and whoever connects is sent away."""
    at = tmp_path / "worker.sock"
    ledger = shop.worker / "ledger" / "shop.jsonl"
    ledger.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, ledger.open("a") as file:
        listener.bind(str(at))
        listener.listen()
        listener.settimeout(30.0)
        ending = threading.Thread(target=lambda: [listener.accept()[0].close() for _ in range(2)])
        ending.start()
        fcntl.flock(file, fcntl.LOCK_EX)
        (found,) = [one for one in checkup.check_platform(shop.folder, at=at) if one.what in ("worker", "ledger")]
        ending.join()
        assert found.level is Level.OK and str(at) in found.found
        worker, held = of(shop, "worker", "ledger")  # at its own place nobody answers
    assert worker.level is Level.WARNING and "--socket" in worker.cure
    assert held.level is Level.ERROR and "--socket" in held.cure


class TestHalves:
    """Containers of worker and messenger have a half of the folder each, and nothing is missing there."""

    def test_the_workers(self, shop: Deployment) -> None:
        shop.folder.chmod(0o755)  # of a container: what is below is mounted
        shutil.rmtree(shop.node)
        found = list(checkup.check_platform(shop.folder))
        assert [one.what for one in found if one.level is not Level.OK] == ["worker", "peers"]
        assert checkup.written_folder(shop.folder) == shop.worker
        assert not {"coordinator", "tls", "cage", "certificate"} & {one.what for one in found}

    def test_the_messengers(self, shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkup, "hear", lambda *args, **options: HEARD)
        shutil.rmtree(shop.worker)
        shop.file.unlink()
        (shop.folder / "peers.toml").unlink(missing_ok=True)
        found = list(checkup.check_platform(shop.folder))
        assert [one for one in found if one.level is Level.ERROR] == []
        assert {"keys", "cage", "certificate", "clock", "coordinator"} <= {one.what for one in found}
        assert checkup.written_folder(shop.folder) == shop.node

    def test_the_workers_user_does_not_look_into_the_messengers(self, shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path) != shop.node)
        found = list(checkup.check_platform(shop.folder))
        assert "messenger" in {one.what for one in found} and not [one for one in found if one.level is Level.ERROR]

    def test_nor_connects_to_a_socket_that_is_the_messengers_alone(
        self, shop: Deployment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(path: Path, *, seconds: float | None = None) -> socket.socket:
            raise PermissionError

        monkeypatch.setattr(checkup, "connect_to", closed)
        ledger = shop.worker / "ledger" / "shop.jsonl"
        ledger.parent.mkdir()
        with ledger.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (found,) = of(shop, "worker", "ledger")
        assert found.level is Level.OK

    def test_two_users_share_a_folder(self, shop: Deployment) -> None:
        shop.folder.chmod(0o711)
        assert of(shop, "rights") == []
        shop.folder.chmod(0o755)
        (found,) = of(shop, "rights")
        assert found.cure == f"chmod 711 {shop.folder}"

    def test_a_platform_file_that_is_lost_is_no_half(self, shop: Deployment) -> None:
        shop.file.unlink()
        assert [one.level for one in of(shop, "platform.toml")] == [Level.ERROR]
        assert of(shop, "worker") == []


def test_a_ledger_that_went_back(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    path, identity = shop.worker / "ledger" / "shop.jsonl", identity_of(shop.worker, make=False)
    with LedgerWriter.open(path, platform="shop", budget=8.0, delta=1e-3, identity=identity) as writer:
        older = path.read_bytes()
        release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0)
        charge = writer.charge(release, run="spring", round=1, question="5" * 64)
        head = writer.record_release("a" * 64, charge=charge.hash, run="spring", round=1)
        receipt = LedgerReceipt(
            platform="shop", run="spring", round=1, kind="update", left="a" * 64, ledger=head, head_signature=writer.sign(head)
        ).text()
    monkeypatch.setattr(checkup, "hear", lambda *args, **options: replace(HEARD, receipt=receipt))
    assert [one.level for one in of(shop, "ledger")] == [Level.OK, Level.OK]
    path.write_bytes(older)
    (whole, found) = of(shop, "ledger")
    assert whole.level is Level.OK  # in itself it is
    assert found.level is Level.ERROR and "older copy" in found.found and "newest copy" in found.cure
    path.unlink()
    (found,) = of(shop, "ledger")
    assert found.level is Level.ERROR and "it is gone" in found.found
    # What was kept here says it without the coordinator.
    path.write_bytes(older)
    (shop.worker / "receipts.jsonl").write_text(receipt + "\n")
    monkeypatch.setattr(checkup, "hear", lambda *args, **options: HEARD)
    assert [one.level for one in of(shop, "ledger")] == [Level.ERROR]


def test_a_mistake_in_the_platform_file(shop: Deployment) -> None:
    shop.file.write_text(shop.file.read_text().replace("users = 100", "users = -1"))
    found = [one for one in of(shop, "platform.toml") if one.level is Level.ERROR]
    assert found and "users" in found[0].found


@pytest.mark.parametrize(
    ("closed", "level"),
    [
        (Wall(landlock=0, sockets=False), Level.WARNING),
        (Wall(landlock=3, sockets=True), Level.WARNING),
        (Wall(landlock=6, sockets=True), Level.OK),
    ],
)
def test_the_cage(monkeypatch: pytest.MonkeyPatch, closed: Wall, level: Level) -> None:
    monkeypatch.setattr(checkup, "wall", lambda: closed)
    assert checkup.check_cage().level is level
