"""The gate over real TLS: who is refused, and that both sides say why; and what the public port does not reach."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from client.supernode import gate_client as greeting
from client.supernode.gate_client import Away, Refused, greet
from server.deployment.approved_platforms import Platforms
from server.deployment.certificates import Certificates
from server.deployment.gate import BUNDLE_PATH, HTTP, LARGEST, SILENCE, STATUS_PATH, Gate
from server.deployment.gate_verdicts import QUESTIONS, Judge
from shared.base.errors import ExitCode, ProtocolError
from shared.protocol.invitation import Application
from shared.protocol.keys import load_node_key, make_ed25519, make_node_key

VERSION = "1.2.3"


async def flower(scope: Any, receive: Any, send: Any) -> None:
    """Stands in for Flower's application: says what reached it."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = f"{scope['path']} {size}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Site:
    """A coordinator's gate that runs, and a platform's keys."""

    folder: Path
    public: int
    private: int
    judge: Judge
    platforms: Platforms
    revived: list[int]
    applications: dict[str, Application] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.public}"

    @property
    def authority(self) -> Path:
        return Certificates.of(self.folder).authority

    def platform(self, name: str, *, approve: bool = True) -> Path:
        key = self.folder / f"{name}.key"
        line = make_node_key(key)
        identity = make_ed25519(self.folder / f"{name}-identity.key")
        self.applications[name] = Application.make(
            identity=identity, federation="f", platform=name, node_key=line, version=VERSION
        )
        if approve:
            self.approve(name)
        return key

    def approve(self, name: str) -> None:
        self.platforms.approve(self.applications[name])

    def greet_quietly(self, key: Path) -> None:
        """A greeting that is refused."""
        with pytest.raises(Refused):
            self.greet(key)

    def greet(self, key: Path, **over: Any) -> greeting.Greeting:
        return greet(self.address, **{"authority": self.authority, "key": load_node_key(key), "seconds": 5.0, **over})

    def get(self, port: int, path: str, **over: Any) -> httpx.Response:
        verify = ssl.create_default_context(cafile=str(self.authority))
        return httpx.post(f"https://127.0.0.1:{port}{path}", verify=verify, timeout=10.0, **over)


def bound(host: str = "127.0.0.1") -> socket.socket:
    made = socket.socket()
    made.bind((host, 0))
    return made


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def make(name: str = "site", *, days: int = 30, listen: str = "127.0.0.1", bundles: Any = None) -> Site:
        folder = tmp_path / name
        certificates = Certificates.of(folder)
        certificates.make_authority(name)
        certificates.issue("127.0.0.1", days=days)
        public, private = bound(listen), bound()
        platforms = Platforms(folder / "platforms.json")
        judge = Judge(platforms, minimum="0.1.0")
        revived: list[int] = []
        gate = Gate(flower, judge, private=private.getsockname()[1], bundles=bundles, revive=revived.append)
        config = uvicorn.Config(
            gate,  # type: ignore[arg-type]
            ssl_keyfile=str(certificates.server_key),
            ssl_certfile=str(certificates.server),
            log_config=None,
            access_log=False,
            **HTTP,
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[public, private])), daemon=True)
        thread.start()
        servers.append((server, thread))
        end = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.02)
        return Site(folder, public.getsockname()[1], private.getsockname()[1], judge, platforms, revived)

    yield make
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    return open_site()


class TestBothSidesSayWhy:
    def test_an_approved_platform_is_welcome(self, site: Site) -> None:
        found = site.greet(site.platform("shop"))
        assert (found.platform, abs(found.offset) < 5) == ("shop", True)
        assert site.judge.seen["shop"].version

    def test_the_pace_follows_the_number_of_platforms(self, site: Site) -> None:
        assert site.greet(site.platform("shop")).pace == pytest.approx(1 / QUESTIONS)
        assert site.greet(site.platform("video")).pace == pytest.approx(2 / QUESTIONS)

    def test_an_unknown_key(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        key = site.platform("shop", approve=False)
        with pytest.raises(Refused, match="does not know this platform's key") as caught:
            site.greet(key)
        assert "fedfuse approve" in caught.value.do
        assert not caught.value.final  # it may be approved any moment
        assert "does not know this platform's key" in caplog.text and "SHA256:" in caplog.text

    def test_a_revoked_platform(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        key = site.platform("shop")
        site.greet(key)
        site.platforms.revoke("shop")
        with pytest.raises(Refused, match="has revoked this platform") as caught:
            site.greet(key)
        assert caught.value.final and caught.value.exit_code is ExitCode.REFUSED
        assert "refused shop" in caplog.text and "revoked" in caplog.text

    def test_another_authority(self, site: Site, open_site: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
        other = open_site("other")
        with pytest.raises(Refused, match="not of the authority in the invitation"):
            site.greet(site.platform("shop"), authority=other.authority)
        assert "refused shop" in caplog.text
        assert "not of the authority in its invitation" in caplog.text

    def test_an_expired_certificate(self, open_site: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
        site = open_site("old", days=-1)
        assert Certificates.of(site.folder).days_left() < 0
        with pytest.raises(Refused, match="has expired") as caught:
            site.greet(site.platform("shop"))
        assert "fedfuse server renew" in caught.value.do
        assert "certificate has expired" in caplog.text

    def test_another_name(self, open_site: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
        site = open_site("elsewhere", listen="127.0.0.2")  # every address of 127.0.0.0/8 is this machine
        key = site.platform("shop")
        with pytest.raises(Refused, match="another name"):
            greet(f"127.0.0.2:{site.public}", authority=site.authority, key=load_node_key(key), seconds=5.0)
        assert "for another name" in caplog.text

    @pytest.mark.parametrize("days", [-1, 1])
    def test_a_clock_that_is_off_by_a_day(
        self, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, days: int
    ) -> None:
        key = site.platform("shop")
        shifted = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        monkeypatch.setattr(greeting, "_now", lambda: shifted)
        with pytest.raises(Refused, match=r"clock is 86\d\d\d s (ahead of|behind)") as caught:
            site.greet(key)
        assert not caught.value.final  # it can be set
        assert "clock is too far" in caplog.text

    @pytest.mark.parametrize("version", ["0.0.9", "0.0.1", "not a version"])
    def test_an_old_version(
        self, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        key = site.platform("shop")
        monkeypatch.setattr(greeting, "VERSION", version)
        with pytest.raises(Refused, match=r"needs at least 0\.1\.0") as caught:
            site.greet(key)
        assert "fedfuse>=0.1.0" in caught.value.do and caught.value.final
        assert "too old" in caplog.text and version in caplog.text

    def test_another_protocol(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        key = site.platform("shop")
        monkeypatch.setattr(greeting, "PROTOCOL", 0)
        with pytest.raises(Refused, match="protocol 0"):
            site.greet(key)

    def test_a_key_that_did_not_sign(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        real, other = load_node_key(site.platform("shop")), load_node_key(site.platform("video"))

        class Borrowed:
            public_key, sign = real.public_key, other.sign

        with pytest.raises(Refused, match="not signed"):
            greet(site.address, authority=site.authority, key=Borrowed(), seconds=5.0)  # type: ignore[arg-type]

    def test_two_clients_with_one_identity(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        key = site.platform("shop")
        site.greet(key)
        site.greet(key)  # a greeting alone is no client
        assert site.get(site.public, "/v1/fleet/send-node-heartbeat", headers=signed(site, key)).status_code == 200
        with pytest.raises(Refused, match="connected already") as caught:
            site.greet(key)
        assert not caught.value.final and "refused shop" in caplog.text
        assert site.get(site.public, "/v1/fleet/deactivate-node", headers=signed(site, key)).status_code == 200
        site.greet(key)  # the first has said that it stops
        assert site.get(site.public, "/v1/fleet/pull-messages", headers=signed(site, key)).status_code == 200
        site.judge.seen["shop"].alive -= SILENCE
        site.platforms.registered(site.platforms.approved()[0].node_key, 4711)
        site.greet(key)  # it was killed, and is silent long enough
        assert site.revived == [4711]

    def test_nobody_there(self, site: Site) -> None:
        with bound() as unused, pytest.raises(Away):
            greet(
                f"127.0.0.1:{unused.getsockname()[1]}",
                authority=site.authority,
                key=load_node_key(site.platform("shop")),
                seconds=2.0,
            )

    def test_something_else_answers(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        key = site.platform("shop")
        monkeypatch.setattr(greeting, "GREETING_PATH", "/health")
        with pytest.raises(ProtocolError, match="no coordinator"):
            site.greet(key)


def signed(site: Site, key: Path) -> dict[str, str]:
    return greeting._signed(load_node_key(key))


class TestThePublicPort:
    @pytest.mark.parametrize(
        "path",
        ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/openapi.json", STATUS_PATH,
         BUNDLE_PATH, "/v1/fleet", "/v1/fleet/../control/start-run", "//v1/control/start-run", "/v1/FLEET/x"],
    )  # fmt: skip
    def test_reaches_nothing_but_the_fleet(self, site: Site, path: str) -> None:
        """Whoever reaches Flower's Control interface runs code on the coordinator's machine."""
        headers = signed(site, site.platform("shop"))
        answer = site.get(site.public, path, headers=headers)
        assert answer.status_code in (401, 404)
        assert "/" not in answer.text  # Flower's stand-in names the path that reached it

    def test_lets_an_approved_platform_through(self, site: Site) -> None:
        headers = signed(site, site.platform("shop"))
        answer = site.get(site.public, "/v1/fleet/pull-messages", headers=headers, content=b"x" * 1000)
        assert (answer.status_code, answer.text) == (200, "/v1/fleet/pull-messages 1000")
        assert site.judge.seen["shop"].requests == 1

    def test_who_asks_again_to_be_connected_has_not_got_the_answer(self, site: Site) -> None:
        """Flower refuses a second activation for good, and the SuperNode ends: a server that was late for once would lose it."""
        key = site.platform("shop")
        site.platforms.registered(site.applications["shop"].node_key, 4711)
        joins, pulls = "/v1/fleet/activate-node", "/v1/fleet/pull-messages"
        for path, revived in ((joins, 0), (joins, 1), (joins, 2), (pulls, 2), (joins, 2), (joins, 3)):
            assert site.get(site.public, path, content=b"x", headers=signed(site, key)).status_code == 200
            assert site.revived == [4711] * revived, path

    def test_shuts_out_a_revoked_platform_at_once(self, site: Site) -> None:
        key = site.platform("shop")
        assert site.get(site.public, "/v1/fleet/pull-messages", headers=signed(site, key)).status_code == 200
        site.platforms.revoke("shop")
        answer = site.get(site.public, "/v1/fleet/pull-messages", headers=signed(site, key))
        # 401 is what makes Flower's SuperNode stop by itself.
        assert (answer.status_code, "revoked" in answer.text) == (401, True)

    def test_reads_nothing_large_of_strangers(self, site: Site) -> None:
        known, stranger = site.platform("shop"), site.platform("stranger", approve=False)
        large = b"x" * ((1 << 16) + 1)
        forged = {**signed(site, known), "flwr-signature": signed(site, stranger)["flwr-signature"]}
        for headers in (signed(site, stranger), forged, {}):
            assert site.get(site.public, "/v1/fleet/push-object", headers=headers, content=large).status_code == 401
        assert site.get(site.public, "/v1/fleet/push-object", headers=signed(site, known), content=large).status_code == 200
        assert (
            site.get(site.public, "/v1/fleet/push-object", headers=signed(site, known), content=iter([b"x"])).status_code == 413
        )
        too_long = {**signed(site, known), "content-length": str(LARGEST + 1)}
        with socket.create_connection(("127.0.0.1", site.public)) as raw:
            context = ssl.create_default_context(cafile=str(site.authority))
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
                lines = [f"{name}: {value}" for name, value in too_long.items()]
                wrapped.sendall(("\r\n".join(["POST /v1/fleet/push-object HTTP/1.1", "host: x", *lines]) + "\r\n\r\n").encode())
                assert b"413" in wrapped.recv(100)

    def test_complaints_are_words_of_a_closed_list(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        verify = ssl.create_default_context(cafile=str(site.authority))
        answer = httpx.get(f"https://127.0.0.1:{site.public}/fedfuse/v1/complaint?rm%20-rf%20/", verify=verify)
        assert answer.status_code == 404
        assert "rm" not in caplog.text


class TestABodyAsLongAsAnnounced:
    """The server below the gate may be another, which lets more through than a request announces."""

    def ask(self, site: Site, parts: list[bytes], *, announced: int, inside: Any = flower) -> list[dict[str, Any]]:
        """What is answered to a request of an approved platform whose body comes in parts."""
        headers = {**signed(site, site.platform("shop")), "content-length": str(announced)}
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/fleet/push-object",
            "server": ("127.0.0.1", site.public),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        coming = iter(parts)
        left = len(parts)
        answered: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": next(coming), "more_body": left > 0}

        async def send(message: Any) -> None:
            answered.append(dict(message))

        asyncio.run(Gate(inside, site.judge, private=site.private)(scope, receive, send))
        return answered

    def test_what_was_announced_passes_in_parts(self, site: Site) -> None:
        start, body = self.ask(site, [b"x" * 600, b"", b"x" * 400], announced=1000)
        assert (start["status"], body["body"]) == (200, b"/v1/fleet/push-object 1000")

    def test_less_passes(self, site: Site) -> None:
        assert self.ask(site, [b"x" * 999], announced=1000)[1]["body"] == b"/v1/fleet/push-object 999"

    @pytest.mark.parametrize("parts", [[b"x" * 1001], [b"x" * 1000, b"x"], [b"x"] * 2000], ids=["at once", "then", "bit by bit"])
    def test_one_byte_more_does_not(self, site: Site, parts: list[bytes]) -> None:
        reached = []

        async def inside(scope: Any, receive: Any, send: Any) -> None:
            while True:
                reached.append(await receive())

        start, body = self.ask(site, parts, announced=1000, inside=inside)
        assert start["status"] == 413 and b"more came" in body["body"]
        assert sum(len(message["body"]) for message in reached) <= 1000

    def test_an_answer_that_has_begun_is_not_begun_again(self, site: Site) -> None:
        async def hasty(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await receive()

        assert [part["type"] for part in self.ask(site, [b"x" * 9], announced=8, inside=hasty)] == ["http.response.start"]


class TestThePrivatePort:
    def test_everything_passes(self, site: Site) -> None:
        assert site.get(site.private, "/v1/control/start-run").text == "/v1/control/start-run 0"

    def test_says_who_was_seen(self, site: Site) -> None:
        site.greet(site.platform("shop"))
        verify = ssl.create_default_context(cafile=str(site.authority))
        seen = httpx.get(f"https://127.0.0.1:{site.private}{STATUS_PATH}", verify=verify).json()["seen"]
        assert seen["shop"]["requests"] == 1

    def test_takes_bundles(self, open_site: Callable[..., Site]) -> None:
        site = open_site("bundles", bundles=lambda content: {"app": content.decode()})
        assert site.get(site.private, BUNDLE_PATH, content=b"x").json() == {"app": "x"}
