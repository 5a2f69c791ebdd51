"""A new certificate authority while platforms stay, over real TLS: a client that is never started again, one that was away."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.supernode.authority_update import LiveAuthorities, ask_authorities, greet_or_renew, watch_authorities
from client.supernode.gate_client import Away, Refused, UnprovenServer, greet
from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import (
    RotationStage,
    begin_rotation,
    finish_rotation,
    rotation_stage,
    switch_authority,
    tell_authorities,
    trusted_bundle,
)
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.gate import HTTP, Gate
from server.deployment.gate_verdicts import Judge
from server.deployment.provisioning import create_coordinator_folder, make_invitation
from server.operators.log_witness import LogWitness
from shared.base.errors import InputError, ProtocolError
from shared.protocol.authorities import authorities_answer, authorities_digest, proven_authorities, read_authorities
from shared.protocol.invitation import Application, parse_invitation
from shared.protocol.keys import load_ed25519, load_node_key, make_ed25519, make_node_key
from simulations.local_deployment import free_ports
from tests.server.deployment.test_gate import bound, flower
from tests.support.waiting import until


@dataclass
class Server:
    """A coordinator's gate, which can be started again on its ports."""

    coordinator: CoordinatorFolder
    judge: Judge
    running: tuple[uvicorn.Server, threading.Thread] | None = None

    def start(self) -> None:
        import asyncio
        import socket

        certificates, file = self.coordinator.certificates, self.coordinator.file
        tell_authorities(certificates)
        key = load_ed25519(self.coordinator.federation_key)
        witness = LogWitness(self.coordinator, key)
        gate = Gate(
            flower,
            self.judge,
            private=file.control_port,
            authorities=lambda nonce: authorities_answer(trusted_bundle(certificates), nonce=nonce, key=key),
            witness=witness.answer,
            notice=witness.notice,
        )
        sockets = []
        for port in (file.port, file.control_port):
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("127.0.0.1", port))
            sockets.append(made)
        config = uvicorn.Config(
            gate,  # type: ignore[arg-type]
            ssl_keyfile=str(certificates.server_key),
            ssl_certfile=str(certificates.server),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            **HTTP,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=sockets)), daemon=True)
        thread.start()
        self.running = (server, thread)
        until(lambda: server.started)

    def stop(self) -> None:
        if self.running is not None:
            self.running[0].should_exit = True
            self.running[1].join(10)
            self.running = None

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class Platform:
    """What a platform has of the coordinator."""

    address: str
    authority: Path
    key: Path
    coordinator: str

    def greet(self) -> object:
        return greet(self.address, authority=self.authority, key=load_node_key(self.key), seconds=5.0)

    def greet_or_renew(self) -> object:
        key = load_node_key(self.key)
        return greet_or_renew(self.address, authority=self.authority, key=key, coordinator=self.coordinator)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    port, control = free_ports(2)
    folder = create_coordinator_folder(
        tmp_path / "coordinator", host="127.0.0.1", name="spring", port=port, control_port=control, listen="127.0.0.1"
    )
    made = Server(folder, Judge(Platforms(folder.platforms), minimum="0.1.0"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def platform(server: Server, tmp_path: Path) -> Callable[[str], Platform]:
    def make(name: str) -> Platform:
        place = tmp_path / name
        key, invitation = place / "node.key", make_invitation(server.coordinator, name)
        application = Application.make(
            identity=make_ed25519(place / "identity.key"),
            federation="spring",
            platform=name,
            node_key=make_node_key(key),
            version="1.0.0",
        )
        Platforms(server.coordinator.platforms).approve(application)
        (place / "ca.crt").write_text(invitation.authority)
        return Platform(server.coordinator.address, place / "ca.crt", key, invitation.coordinator)

    return make


def test_platforms_stay_through_the_whole_rotation(server: Server, platform: Callable[[str], Platform]) -> None:
    shop, coordinator = platform("shop"), server.coordinator
    old = read_authorities(shop.authority)
    # As in the SuperNode: one client for its whole life, whose context is made once.
    live, stop = LiveAuthorities(), threading.Event()
    context = live.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=shop.authority.read_text())
    changed = threading.Event()

    def take(bundle: str) -> None:
        live.add(bundle)
        shop.greet()
        changed.set()

    thread = watch_authorities(
        shop.address, authority=shop.authority, coordinator=shop.coordinator, changed=take, every=0.05, stop=stop
    )
    with httpx.Client(verify=context, base_url=f"https://{shop.address}") as client:
        assert client.get("/health").status_code == 200
        begin_rotation(coordinator)
        assert rotation_stage(coordinator.certificates) is RotationStage.BEGUN
        assert changed.wait(30)
        # The coordinator's people see that it knows both; the server still shows the old one's certificate.
        told = authorities_digest(trusted_bundle(coordinator.certificates))
        assert server.judge.seen["shop"].authorities == told
        assert read_authorities(shop.authority).startswith(old) and read_authorities(shop.authority) != old
        switch_authority(coordinator, days=30)
        with pytest.raises(InputError, match="old authority"):
            finish_rotation(coordinator)  # the server that runs has not been started again
        server.restart()
        assert client.get("/health").status_code == 200  # the same client, and a certificate of the new authority
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl_shows(coordinator, old)
        shop.greet()
        changed.clear()
        finish_rotation(coordinator)
        assert changed.wait(30)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert rotation_stage(coordinator.certificates) is RotationStage.NONE
    assert read_authorities(shop.authority) == read_authorities(coordinator.certificates.authority)
    assert not list((coordinator.folder / "ca").glob("old*")) and not list((coordinator.folder / "ca").glob("next*"))
    # A second rotation begins where the first ended.
    begin_rotation(coordinator)


def ssl_shows(coordinator: CoordinatorFolder, authority: str) -> None:
    import socket

    context = ssl.create_default_context(cadata=authority)
    with (
        socket.create_connection(("127.0.0.1", coordinator.file.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1"),
    ):
        pass


def test_who_was_away_comes_back_by_itself(server: Server, platform: Callable[[str], Platform]) -> None:
    shop, coordinator = platform("shop"), server.coordinator
    begin_rotation(coordinator)
    switch_authority(coordinator, days=30)
    server.restart()
    finish_rotation(coordinator)
    with pytest.raises(UnprovenServer):
        shop.greet()
    shop.greet_or_renew()
    shop.greet()
    assert read_authorities(shop.authority) == read_authorities(coordinator.certificates.authority)


def test_another_servers_authority_is_not_taken(server: Server, platform: Callable[[str], Platform], tmp_path: Path) -> None:
    """Somebody in the middle who has a certificate of an authority of their own, and does not have the federation's key."""
    shop = platform("shop")
    before, pinned = shop.authority.read_bytes(), load_ed25519(server.coordinator.federation_key).public_key().public_bytes_raw()
    port, control = free_ports(2)
    other = create_coordinator_folder(
        tmp_path / "other", host="127.0.0.1", name="spring", port=port, control_port=control, listen="127.0.0.1"
    )
    middle = Server(other, Judge(Platforms(other.platforms), minimum="0.1.0"))
    middle.start()
    try:
        shop.address = other.address
        with pytest.raises(UnprovenServer, match="not of the authority"):
            shop.greet_or_renew()
        with pytest.raises(ProtocolError, match="does not prove"):
            ask_authorities(other.address, coordinator=pinned)
    finally:
        middle.stop()
    assert shop.authority.read_bytes() == before
    with pytest.raises((Away, Refused)):
        shop.greet_or_renew()


KEY = Ed25519PrivateKey.from_private_bytes(b"c" * 32)


def test_an_answer_is_of_its_question_alone(server: Server) -> None:
    bundle, public = trusted_bundle(server.coordinator.certificates), KEY.public_key().public_bytes_raw()
    nonce, later = "a" * 64, "b" * 64
    answer = authorities_answer(bundle, nonce=nonce, key=KEY)
    assert proven_authorities(json.dumps(answer).encode(), nonce=nonce, coordinator=public) == bundle
    stranger = authorities_answer(bundle, nonce=nonce, key=Ed25519PrivateKey.generate())
    bad = [
        (answer, later),  # an answer of an earlier day
        (stranger, nonce),
        ({**answer, "authorities": bundle * 2}, nonce),
        ({**answer, "signature": ""}, nonce),
        ({"authorities": bundle}, nonce),
        (authorities_answer("", nonce=nonce, key=KEY), nonce),
        (authorities_answer("nothing", nonce=nonce, key=KEY), nonce),
        ([], nonce),
    ]
    for found, asked in bad:
        with pytest.raises(ProtocolError):
            proven_authorities(json.dumps(found).encode(), nonce=asked, coordinator=public)
    with pytest.raises(ProtocolError):
        proven_authorities(b"[" * 100_000, nonce=nonce, coordinator=public)


def test_the_gate_answers_nonces_alone(server: Server) -> None:
    place = f"https://{server.coordinator.address}/fedfuse/v1/authority"
    verify = ssl.create_default_context(cafile=str(server.coordinator.certificates.authority))
    assert httpx.get(f"{place}?{'a' * 64}", verify=verify).status_code == 200
    for query in ("", "?", f"?{'a' * 63}", f"?{'A' * 64}", f"?{'a' * 65}", f"?nonce={'a' * 64}"):
        assert httpx.get(place + query, verify=verify).status_code == 404
    assert httpx.post(f"{place}?{'a' * 64}", verify=verify).status_code == 404


def test_steps_come_in_their_order_and_can_be_repeated(server: Server) -> None:
    coordinator = server.coordinator
    certificates = coordinator.certificates
    for step in (lambda: switch_authority(coordinator, days=1), lambda: finish_rotation(coordinator)):
        with pytest.raises(InputError):
            step()
    begin_rotation(coordinator)
    first = read_authorities(certificates.trusted)
    begin_rotation(coordinator)
    assert read_authorities(certificates.trusted) == first
    invitation = make_invitation(coordinator, "shop")
    assert parse_invitation(invitation.text(), where="x").authority == first
    assert len(invitation.fingerprints()["authority"].split("+")) == 2
    # A switch that was cut short before its last step.
    following = {name: (coordinator.folder / "ca" / name).read_bytes() for name in ("next.key", "next.crt")}
    switch_authority(coordinator, days=30)
    for name, content in following.items():
        (coordinator.folder / "ca" / name).write_bytes(content)
        (coordinator.folder / "ca" / name).chmod(0o600)
    assert rotation_stage(certificates) is RotationStage.BEGUN
    switch_authority(coordinator, days=30)
    assert set(read_authorities(certificates.trusted).split("-----BEGIN")) == set(first.split("-----BEGIN"))
    with pytest.raises(InputError, match="not finished"):
        begin_rotation(coordinator)
    server.restart()
    finish_rotation(open_coordinator(coordinator.folder))
    assert (coordinator.folder / "ca" / "ca.key").stat().st_mode & 0o077 == 0
    bound().close()
