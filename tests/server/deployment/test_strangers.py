"""What nobody signed changes nothing at the gate: no state, no answer to others, and few lines of the log."""

from __future__ import annotations

import base64
import datetime
import logging
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.supernode import gate_client as greeting
from server.deployment.gate import FLEET, HEADERS, STATUS_PATH, Sparing
from server.deployment.gate_verdicts import LINES, STRANGERS, Allowance
from shared.protocol.gate_protocol import COMPLAINT_DOMAIN, COMPLAINT_HEADER, COMPLAINT_PATH, GREETING_PATH, Complaint
from shared.protocol.keys import load_node_key
from tests.server.deployment.test_gate import Site, open_site, signed, site

__all__ = ["open_site", "site"]

HEARTBEAT = f"{FLEET}send-node-heartbeat"
KEY, STAMP, SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"


def pem(key: Any) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode()


def seen(site: Site) -> dict[str, Any]:
    verify = ssl.create_default_context(cafile=str(site.authority))
    found: dict[str, Any] = httpx.get(f"https://127.0.0.1:{site.private}{STATUS_PATH}", verify=verify).json()["seen"]
    return found


def forged(site: Site, key: Path, how: str) -> dict[str, str]:
    """Headers that name an approved platform's key, which did not sign them."""
    honest = signed(site, key)
    if how == "no signature":
        return {name: value for name, value in honest.items() if name.lower() != SIGNATURE}
    if how == "an empty one":
        return {**honest, SIGNATURE: ""}
    if how == "of another time":
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
        return {**honest, STAMP: later.isoformat()}
    stranger = ec.generate_private_key(ec.SECP384R1())
    made = stranger.sign(honest[STAMP].encode(), ec.ECDSA(hashes.SHA256()))
    return {**honest, SIGNATURE: base64.b64encode(made).decode()}


class TestAForgedRequest:
    @pytest.mark.parametrize("how", ["of a stranger", "no signature", "an empty one", "of another time"])
    def test_makes_no_platform_look_alive(self, site: Site, how: str) -> None:
        """One every 35 s kept a platform out, and the operator saw it alive."""
        key = site.platform("shop")
        for _ in range(3):
            answer = site.get(site.public, HEARTBEAT, headers=forged(site, key, how))
            assert answer.status_code == 401
        assert seen(site) == {}
        assert site.greet(key).platform == "shop"  # and not: a client of this platform is connected already

    @pytest.mark.parametrize("path", [HEARTBEAT, f"{FLEET}deactivate-node", GREETING_PATH, f"{COMPLAINT_PATH}?expired"])
    def test_leaves_what_was_seen_of_the_platform(self, site: Site, path: str) -> None:
        key = site.platform("shop")
        site.platforms.registered(site.platforms.approved()[0].node_key, 4711)
        assert site.get(site.public, HEARTBEAT, headers=signed(site, key)).status_code == 200
        before = seen(site)
        site.get(site.public, path, headers=forged(site, key, "of a stranger"))
        site.get(site.public, path, headers={**forged(site, key, "of a stranger"), "fedfuse-version": "6.6.6"})
        assert seen(site) == before and site.revived == []

    def test_says_little_in_the_log(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        known, stranger = site.platform("shop"), site.platform("stranger", approve=False)
        for number in range(4 * LINES):
            site.get(site.public, HEARTBEAT, headers={**forged(site, known, "of a stranger"), "x": str(number)})
        assert len(caplog.records) == LINES
        site.greet_quietly(stranger)
        assert "SHA256" in caplog.records[-1].getMessage()  # a key that proves itself is another matter
        assert len(caplog.records) == LINES + 1


ODD: dict[str, Callable[[], str]] = {
    "RSA": lambda: pem(rsa.generate_private_key(65537, 2048)),
    "DSA": lambda: pem(dsa.generate_private_key(1024)),
    "Ed25519": lambda: pem(ed25519.Ed25519PrivateKey.generate()),
    "Ed448": lambda: pem(ed448.Ed448PrivateKey.generate()),
    "X25519": lambda: pem(x25519.X25519PrivateKey.generate()),
    "secp256k1": lambda: pem(ec.generate_private_key(ec.SECP256K1())),
    "brainpool": lambda: pem(ec.generate_private_key(ec.BrainpoolP384R1())),
    "secp224r1": lambda: pem(ec.generate_private_key(ec.SECP224R1())),
    "an unknown curve": lambda: der("3056301006072a8648ce3d020106052b8104001103420004" + "11" * 64),
    "an unknown algorithm": lambda: der("300d300706032a03040500030200ff"),
    "parameters instead of a curve": lambda: der("301a301306072a8648ce3d02013008020101300306010103030004aa"),
    "a point that is not on its curve": lambda: der("3059301306072a8648ce3d020106082a8648ce3d03010703420004" + "01" * 64),
    "a point at infinity": lambda: der("3019301306072a8648ce3d020106082a8648ce3d030107030200" + "00"),
    "no PEM": lambda: base64.b64encode(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").decode(),
    "no base64": lambda: "!" * 40,
    "nothing": lambda: "",
    "long": lambda: base64.b64encode(bytes(9000)).decode(),
}


def der(text: str) -> str:
    body = base64.b64encode(bytes.fromhex(text)).decode()
    return base64.b64encode(f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode()).decode()


class TestAnOddRequest:
    @pytest.mark.parametrize("name", ODD)
    def test_a_key_is_refused_in_words(self, site: Site, caplog: pytest.LogCaptureFixture, name: str) -> None:
        """Some of them were a traceback each time."""
        headers = {**signed(site, site.platform("shop")), KEY: ODD[name]()}
        answer = site.get(site.public, HEARTBEAT, headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (401, "the request is not signed by the key that it names")
        assert site.get(site.public, GREETING_PATH, headers=headers).json()["standing"] == "unsigned"
        assert seen(site) == {} and "Traceback" not in caplog.text and not any(one.exc_info for one in caplog.records)

    @pytest.mark.parametrize(
        "stamp", ["", "now", "0001-01-01T00:00:00", "9999-12-31T23:59:59", "2030-02-30", "1" * 5000, "2030-01-01T00:00:00+99:99"]
    )
    def test_a_time_is_refused_in_words(self, site: Site, caplog: pytest.LogCaptureFixture, stamp: str) -> None:
        key = load_node_key(site.platform("shop"))
        made = base64.b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode()
        answer = site.get(site.public, HEARTBEAT, headers={KEY: pem(key), STAMP: stamp, SIGNATURE: made})
        assert answer.status_code == 401 and not any(one.exc_info for one in caplog.records)

    @pytest.mark.parametrize("size", ["", "-1", "1e3", "\u0661", "9" * 11, "9" * 5000, "0x10", "+1"])
    def test_a_length_is_refused_in_words(self, site: Site, caplog: pytest.LogCaptureFixture, size: str) -> None:
        assert raw(site, signed(site, site.platform("shop")), size=size) in (400, 413)
        assert not any(one.exc_info for one in caplog.records)

    def test_too_many_headers(self, site: Site) -> None:
        headers = signed(site, site.platform("shop"))
        many = {f"x-{number}": "y" for number in range(HEADERS)}
        for path in (HEARTBEAT, GREETING_PATH, "/health", "/nowhere"):
            assert site.get(site.public, path, headers={**headers, **many}).status_code == 431
        assert raw(site, {**headers, "x": "y" * 20_000}, size="0") in (400, 431)
        assert raw(site, {**headers, "x": "y" * 200_000}, size="0") in (400, 431)
        assert seen(site) == {}

    @pytest.mark.parametrize("name", [KEY, STAMP, SIGNATURE, "content-length"])
    def test_a_header_that_came_twice(self, site: Site, name: str) -> None:
        """Flower reads the first, and the gate once judged the last."""
        ours, theirs = signed(site, site.platform("shop")), signed(site, site.platform("video"))
        twice = [*theirs.items(), ("content-length", "0"), (name, ours.get(name, "1"))]
        assert raw(site, twice, size=None) == 400
        assert seen(site) == {}

    def test_more_than_was_announced(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        headers = {**signed(site, site.platform("shop")), "transfer-encoding": "chunked"}
        status = raw(site, headers, size="4", body=b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n")
        assert status in (400, 413) and not any(one.exc_info for one in caplog.records)


def raw(site: Site, headers: Any, *, size: str | None, body: bytes = b"") -> int:
    """A heartbeat written by hand; its status."""
    lines = [f"{name}: {value}" for name, value in (headers.items() if isinstance(headers, dict) else headers)]
    lines += [] if size is None else [f"content-length: {size}"]
    head = "\r\n".join([f"POST {HEARTBEAT} HTTP/1.1", "host: x", *lines]) + "\r\n\r\n"
    context = ssl.create_default_context(cafile=str(site.authority))
    plain = socket.create_connection(("127.0.0.1", site.public), timeout=10)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
        try:
            wrapped.sendall(head.encode() + body)
            return int(wrapped.recv(100).split()[1])
        except (ssl.SSLEOFError, ConnectionError):
            return 400  # it had read enough, answered and hung up


class TestKeysOfNobody:
    def test_the_last_ones_are_kept(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(STRANGERS + 20):
            key = ec.generate_private_key(ec.SECP256R1())
            verdict = site.judge.judge(lowered(greeting._signed(key)), now=time.time())
            site.judge.note(verdict, now=time.time())
        assert len(site.judge.seen) == STRANGERS
        assert len(caplog.records) == LINES
        assert verdict.mark in list(site.judge.seen)[-1]

    def test_one_that_is_approved_is_no_stranger(self, site: Site) -> None:
        key = site.platform("shop", approve=False)
        site.greet_quietly(key)
        assert [name[:10] for name in seen(site)] == ["key SHA256"]
        site.approve("shop")
        site.greet(key)
        assert list(seen(site)) == ["shop"]


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class TestComplaints:
    """They go to a server that proved nothing, so what is in them must be of no use to it."""

    @pytest.fixture
    def complaint(self, site: Site, open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        sent: list[dict[str, str]] = []
        real = greeting._get

        def get(address: str, path: str, headers: dict[str, str], *more: Any) -> tuple[int, bytes]:
            sent.append(headers)
            return real(address, path, headers, *more)

        monkeypatch.setattr(greeting, "_get", get)
        with pytest.raises(greeting.Refused, match="not of the authority"):
            site.greet(site.platform("shop"), authority=open_site("other").authority)
        assert len(sent) == 2  # the greeting, which TLS kept back, and the complaint
        return sent[1]

    def test_do_not_open_the_gate(self, site: Site, complaint: dict[str, str]) -> None:
        """A machine in the middle could act in the platform's name for five minutes."""
        assert "it says" in seen(site)["shop"]["reason"]
        for headers in (complaint, {**complaint, SIGNATURE: complaint[COMPLAINT_HEADER]}):
            assert site.get(site.public, HEARTBEAT, headers=headers).status_code == 401
            assert site.get(site.public, GREETING_PATH, headers=headers).json()["standing"] == "unsigned"
        assert seen(site)["shop"]["requests"] == 0

    def test_are_believed_of_the_key_that_signed_them_alone(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        key = load_node_key(site.platform("shop"))
        with_flowers = greeting._signed(key)
        other = greeting._signed(load_node_key(site.platform("video")), COMPLAINT_HEADER, COMPLAINT_DOMAIN)
        mixed = {**greeting._signed(key, COMPLAINT_HEADER, COMPLAINT_DOMAIN), COMPLAINT_HEADER: other[COMPLAINT_HEADER]}
        for headers in (with_flowers, mixed, {}):
            answer = site.get(site.public, f"{COMPLAINT_PATH}?{Complaint.EXPIRED.value}", headers=headers)
            assert answer.status_code == 401
        assert seen(site) == {} and "expired" not in caplog.text


class TestTheLog:
    def test_an_allowance_is_for_a_time(self) -> None:
        allowance = Allowance(2, 10.0)
        assert [allowance.take(now) for now in (0.0, 1.0, 2.0, 9.9, 10.0, 11.0, 12.0)] == [
            True,
            True,
            False,
            False,
            True,
            True,
            False,
        ]
        assert "3 more" in allowance.omitted() and allowance.omitted() == ""
        assert allowance.take(-100.0)  # a clock that was set back does not close it for ever

    def test_a_library_is_kept_short(self, caplog: pytest.LogCaptureFixture) -> None:
        """Anybody can send what is no HTTP; uvicorn says so each time."""
        logger = logging.getLogger("test.of.uvicorn")
        logger.addFilter(Sparing())
        for _ in range(100):
            logger.warning("Invalid HTTP request received.")
        assert len(caplog.records) == LINES
        logger.info("started")
        assert len(caplog.records) == LINES  # below the level; but not because of the filter
        assert Sparing().filter(logging.LogRecord("x", logging.INFO, "", 0, "started", None, None))

    def test_a_damaged_list_is_said_a_few_times(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        headers = signed(site, site.platform("shop"))
        (site.folder / "platforms.json").write_text("{")
        for _ in range(2 * LINES):
            answer = site.get(site.public, HEARTBEAT, headers=headers)
            assert answer.status_code == 503
        assert len(caplog.records) == LINES and "list of platforms" in caplog.text
