"""Asks the coordinator for this platform's status, before Flower's SuperNode is started and whenever it has stopped.

Flower's SuperNode exits silently when it is refused. The gate says why, over the same TLS and with the same signature.
"""

from __future__ import annotations

import base64
import datetime
import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from shared.base.errors import ExitCode, FedfuseError, ProtocolError
from shared.base.version import VERSION
from shared.ledger.receipts import MAX_RECEIPT
from shared.protocol.authorities import authorities_digest, read_authorities
from shared.protocol.gate_protocol import (
    AUTHORITY_HEADER,
    COMPLAINT_DOMAIN,
    COMPLAINT_HEADER,
    COMPLAINT_PATH,
    GREETING_PATH,
    VERSION_HEADER,
    Complaint,
    Standing,
)
from shared.protocol.log_witness import HEADER as LOG_HEADER
from shared.protocol.messages import PROTOCOL

LARGEST = 1 << 16

_UNTRUSTED = {
    9: Complaint.EXPIRED,
    10: Complaint.EXPIRED,
    18: Complaint.AUTHORITY,
    19: Complaint.AUTHORITY,
    20: Complaint.AUTHORITY,
    62: Complaint.NAME,
    64: Complaint.NAME,
}
"""OpenSSL's codes of what is wrong with a certificate."""


class Refused(FedfuseError):
    """The coordinator does not let this platform take part, or this platform does not trust the coordinator's server.

    Args:
        final: Nothing will change by waiting.
    """

    def __init__(self, found: str, *, where: str = "", do: str = "", final: bool = False) -> None:
        super().__init__(found, where=where, do=do)
        self.final = final
        # A service manager starts again what failed, and leaves alone what was refused for good.
        self.exit_code = ExitCode.REFUSED if final else ExitCode.FAILED


class UnprovenServer(Refused):
    """The server's certificate is not the one that was promised."""


class Away(FedfuseError):
    """Nobody answers at the coordinator's address."""


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What the coordinator said.

    Args:
        platform: The name under which it knows this platform.
        offset: This machine's clock minus the coordinator's, seconds.
        version: Of the coordinator's Fedfuse.
        pace: Seconds between two looks for work that the coordinator's server can bear from so many platforms.
    """

    platform: str
    offset: float
    version: str
    pace: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What the coordinator's server answered, before it is judged.

    Args:
        standing: Of this platform.
        minimum: Least version of Fedfuse that it wants.
        protocol: Of its messages.
        receipt: The last one of this platform's answers (`shared/ledger/receipts.py`), as it came; '' where there is none.
    """

    standing: Standing
    platform: str
    offset: float
    version: str
    minimum: str
    protocol: int
    pace: float
    receipt: str = ""


def greet(address: str, *, authority: Path, key: ec.EllipticCurvePrivateKey, shown: str = "", seconds: float = 10.0) -> Greeting:
    """Greet the coordinator's server.

    Args:
        shown: The sealed head of the operators' log that this platform keeps (`shared/protocol/log_witness.py`); '' for none.

    Raises:
        Refused: it refuses this platform, or its certificate is not the one that was promised.
        Away: it cannot be reached.
        ProtocolError: what answers is no coordinator.
    """
    return _judged(hear(address, authority=authority, key=key, shown=shown, seconds=seconds), address)


def hear(address: str, *, authority: Path, key: ec.EllipticCurvePrivateKey, shown: str = "", seconds: float = 10.0) -> Heard:
    """What the coordinator's server says of this platform, whatever it is.

    Raises:
        UnprovenServer: its certificate is not the one that was promised.
        Away, ProtocolError: as `greet`.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        about = {VERSION_HEADER: VERSION, AUTHORITY_HEADER: authorities_digest(read_authorities(authority))}
        about |= {LOG_HEADER: shown} if shown else {}
        status, body = _get(address, GREETING_PATH, {**_signed(key), **about}, context, seconds)
    except ssl.SSLCertVerificationError as error:
        complaint = _UNTRUSTED.get(error.verify_code, Complaint.OTHER)
        _complain(address, complaint, key, seconds)
        raise _untrusted(complaint, address, authority, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise Away(
            f"the coordinator's server does not answer ({error or type(error).__name__})",
            where=address,
            do="see whether it runs, and whether this machine may reach it",
        ) from None
    return _read(status, body, address)


def _read(status: int, body: bytes, address: str) -> Heard:
    try:
        if status != http.client.OK:
            raise ValueError
        values: dict[str, Any] = json.loads(body)
        standing = Standing(values["standing"])
        theirs, version, minimum = float(values["time"]), str(values["version"])[:40], str(values["minimum"])[:40]
        protocol, platform, pace = int(values["protocol"]), str(values["platform"])[:64], float(values.get("pace", 0.0))
        receipt = str(values.get("receipt", ""))[:MAX_RECEIPT]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("what answers is no coordinator of Fedfuse", where=address, do="check the address") from None
    return Heard(
        standing=standing,
        platform=platform,
        offset=_now().timestamp() - theirs,
        version=version,
        minimum=minimum,
        protocol=protocol,
        pace=pace,
        receipt=receipt,
    )


def _judged(heard: Heard, address: str) -> Greeting:
    standing, offset, version, minimum, protocol = heard.standing, heard.offset, heard.version, heard.minimum, heard.protocol
    if standing is Standing.UNKNOWN:
        raise Refused(
            standing.explained(), where=address, do="send application.toml to the coordinator, who runs: fedfuse approve"
        )
    if standing is Standing.REVOKED:
        raise Refused(standing.explained(), where=address, do="ask the coordinator why", final=True)
    if standing is Standing.CLOCK:
        ahead = "ahead of" if offset > 0 else "behind"
        raise Refused(
            f"this machine's clock is {abs(offset):.0f} s {ahead} the coordinator's", where=address, do="set the clock, then wait"
        )
    if standing is Standing.OUTDATED or (standing is Standing.WELCOME and protocol != PROTOCOL):
        raise Refused(
            f"this is fedfuse {VERSION} (protocol {PROTOCOL}); the coordinator has {version} (protocol {protocol}) "
            f"and needs at least {minimum}",
            where=address,
            do=f"install it: pip install 'fedfuse>={minimum}'" if protocol >= PROTOCOL else f"install fedfuse=={version}",
            final=True,
        )
    if standing is Standing.PRESENT:
        raise Refused(
            standing.explained(), where=address, do="stop the other; if it was killed just now, this one waits half a minute"
        )
    if standing is Standing.UNSIGNED:
        raise Refused(standing.explained(), where=address, do="check keys in node/", final=True)
    return Greeting(platform=heard.platform, offset=offset, version=version, pace=heard.pace)


def _get(address: str, path: str, headers: dict[str, str], context: ssl.SSLContext, seconds: float) -> tuple[int, bytes]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=seconds, context=context)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST)
    finally:
        connection.close()


def get_unverified(address: str, path: str, *, headers: dict[str, str] | None = None, seconds: float = 10.0) -> tuple[int, bytes]:
    """Status and body of a GET over a connection that proves nothing: what goes out and what comes in has to prove itself.

    Raises:
        OSError, http.client.HTTPException: nobody answers, or nobody who speaks HTTP.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return _get(address, path, headers or {}, context, seconds)


def _signed(key: ec.EllipticCurvePrivateKey, header: str = FLEET_HTTP_SIGNATURE_HEADER, domain: bytes = b"") -> dict[str, str]:
    """The headers with which Flower's SuperNode signs a request, or those of another domain."""
    stamp = _now().isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(domain + stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        header: base64.b64encode(signature).decode("ascii"),
    }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _complain(address: str, complaint: Complaint, key: ec.EllipticCurvePrivateKey, seconds: float) -> None:
    """Tell whoever is there why it is not trusted: one word of a closed list, over a connection that proves nothing.

    With Flower's signature, whoever is there could speak to the coordinator in this platform's name for five minutes.
    """
    try:
        headers = _signed(key, COMPLAINT_HEADER, COMPLAINT_DOMAIN)
        get_unverified(address, f"{COMPLAINT_PATH}?{complaint.value}", headers=headers, seconds=seconds)
    except (OSError, http.client.HTTPException, socket.gaierror):
        return  # it was a courtesy


def _untrusted(complaint: Complaint, address: str, authority: Path, error: ssl.SSLCertVerificationError) -> UnprovenServer:
    found, do = {
        Complaint.AUTHORITY: (
            "the server's certificate is not of the authority in the invitation",
            "make sure that this is the coordinator's address; if its authority has changed, ask for a new invitation",
        ),
        Complaint.EXPIRED: (
            "the server's certificate has expired, or this machine's clock is wrong",
            "check the clock; the coordinator runs: fedfuse server renew",
        ),
        Complaint.NAME: ("the server's certificate is for another name", "ask the coordinator under which name it is reached"),
        Complaint.OTHER: (f"the server's certificate is not valid ({error.verify_message})", "ask the coordinator"),
    }[complaint]
    return UnprovenServer(found, where=f"{address}, checked with {authority}", do=do)
