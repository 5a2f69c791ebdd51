"""Whom the gate believes: a request counts for the key that it names once that key's signature on it is verified, never before.

Guarantees: a request without a valid signature changes nothing that is kept (`Judge.seen`) and nothing that a platform or the
operator learns of anybody; the log says of all such requests together no more than `LINES` a minute, in words of ours.
A key that proves itself and is on no list is kept among the last `STRANGERS` of its kind, under its fingerprint.
"""

from __future__ import annotations

import binascii
import logging
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import verify_signature

from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from shared.base.version import VERSION, release
from shared.protocol.authorities import is_nonce
from shared.protocol.gate_protocol import COMPLAINT_DOMAIN, COMPLAINT_HEADER, VERSION_HEADER, Standing
from shared.protocol.keys import fingerprint
from shared.protocol.messages import PROTOCOL

log = logging.getLogger("fedfuse.gate")

QUESTIONS = 30.0
"""Looks for work a second that the server bears from all SuperNodes together: Flower takes some 8 ms for one."""
AGAIN = 60.0
"""Seconds before the same refusal of the same platform is logged once more."""
STRANGERS = 100
"""Keys on no list of which the last refusal is kept."""
LINES = 10
"""Lines a minute that the log gets of strangers, all together; likewise of requests that nobody signed, and of bad requests."""
CREDENTIALS = (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
_LONGEST = 2048
"""Characters of any credential; the key of the largest curve has some 360."""
_CURVES = (SECP256R1, SECP384R1, SECP521R1)


class Allowance:
    """At most `count` in any `seconds`; counts what was left out.

    Args:
        count: How many may come at once.
        seconds: After which as many may come again.
    """

    def __init__(self, count: int = LINES, seconds: float = AGAIN) -> None:
        self._count, self._seconds = count, seconds
        self._from, self._taken = float("-inf"), 0
        self.left_out = 0

    def take(self, now: float) -> bool:
        """Whether one more is allowed."""
        if not 0 <= now - self._from < self._seconds:
            self._from, self._taken = now, 0
        if self._taken >= self._count:
            self.left_out += 1
            return False
        self._taken += 1
        return True

    def omitted(self) -> str:
        """What to add to the next line that is allowed; forgets the count."""
        count, self.left_out = self.left_out, 0
        return f" (and {count} more that were not logged)" if count else ""


@dataclass
class Seen:
    """What the gate knows of one key's requests, all of them proven; times in seconds since 1970.

    Args:
        last: Its last request of any kind that was let through.
        alive: The last one of a SuperNode that has not said that it stops.
        authorities: Digest of the certificate authorities that it knows, as it says.
    """

    last: float = 0.0
    requests: int = 0
    alive: float = 0.0
    refused: float = 0.0
    reason: str = ""
    version: str = ""
    authorities: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a request is judged.

    Args:
        platform: Whose key signed it; None if the key is on no list, or if nobody's signature holds.
        mark: Fingerprint of the key that signed it; '' where no signature holds.
    """

    standing: Standing
    platform: ApprovedPlatform | None = None
    mark: str = ""

    @property
    def proven(self) -> bool:
        """Whether the key that the request names did sign it."""
        return self.mark != ""


class Judge:
    """Who may pass, and what was seen of everybody who proved who they are.

    Args:
        minimum: Least version of Fedfuse that platforms must have.
        receipts: A platform's last receipt, which it gets when it greets; '' where there is none.
    """

    def __init__(self, platforms: Platforms, *, minimum: str, receipts: Callable[[str], str] = lambda platform: "") -> None:
        self._platforms, self._minimum, self._receipts = platforms, minimum, receipts
        self._said: dict[tuple[str, str], float] = {}
        self._strangers: OrderedDict[str, None] = OrderedDict()
        self._of_strangers, self._of_nobody = Allowance(), Allowance()
        self.seen: dict[str, Seen] = {}

    def judge(self, headers: dict[str, str], *, now: float) -> Verdict:
        """The standing of a request by its headers.

        Raises:
            StorageError: the list of platforms is damaged.
        """
        return self._judge(headers, signature=FLEET_HTTP_SIGNATURE_HEADER, domain=b"", now=now)

    def judge_complaint(self, headers: dict[str, str], *, now: float) -> Verdict:
        """As `judge`, of a complaint: it came over a connection that proves nothing, so its signature counts here alone."""
        return self._judge(headers, signature=COMPLAINT_HEADER, domain=COMPLAINT_DOMAIN, now=now)

    def _judge(self, headers: dict[str, str], *, signature: str, domain: bytes, now: float) -> Verdict:
        named = _named(headers, signature)
        if named is None:
            return Verdict(standing=Standing.UNSIGNED)
        key, line, stamp, made = named
        if not verify_signature(key, domain + stamp.encode("ascii"), made):
            return Verdict(standing=Standing.UNSIGNED)
        platform, mark = self._platforms.by_key(line), fingerprint(line)
        standing = self._standing(platform, age=now - _seconds(stamp), version=headers.get(VERSION_HEADER, ""))
        return Verdict(standing=standing, platform=platform, mark=mark)

    def _standing(self, platform: ApprovedPlatform | None, *, age: float, version: str) -> Standing:
        if platform is None:
            return Standing.UNKNOWN
        if platform.revoked is not None:
            return Standing.REVOKED
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return Standing.CLOCK
        if version and (release(version) or (0, 0, 0)) < (release(self._minimum) or (0, 0, 0)):
            return Standing.OUTDATED
        return Standing.WELCOME

    def note(self, verdict: Verdict, *, now: float, version: str = "", why: str = "", authorities: str = "") -> None:
        """Remember what became of a request whose signature holds, and log refusals at a bounded rate.

        Args:
            version: Of the platform's Fedfuse, as it says.
            why: What to log and show instead of the standing's own word; a word of ours.
            authorities: Digest of those that the platform knows, as it says.
        """
        platform, mark, standing = verdict.platform, verdict.mark, verdict.standing
        if not verdict.proven:
            if self._of_nobody.take(now):
                log.warning("refused a request: %s%s", why or standing.explained(), self._of_nobody.omitted())
            return
        version = "".join(character for character in version[:40] if character.isascii() and character.isprintable())
        explained = why or standing.explained(version=version, minimum=self._minimum)
        if platform is None:
            seen = self._stranger(f"key {mark}")
            seen.refused, seen.reason, seen.version = now, why or standing.value, version or seen.version
            if self._of_strangers.take(now):
                log.warning("refused key %s: %s%s", mark, explained, self._of_strangers.omitted())
            return
        self._forget(f"key {mark}")  # it was a stranger's until it was approved
        seen = self.seen.setdefault(platform.name, Seen())
        seen.version = version or seen.version
        if is_nonce(authorities):  # of the same form
            seen.authorities = authorities
        if standing is Standing.WELCOME and not why:
            seen.last, seen.requests = now, seen.requests + 1
            return
        seen.refused, seen.reason = now, why or standing.value
        if now - self._said.get((mark, seen.reason), float("-inf")) >= AGAIN:
            self._said[mark, seen.reason] = now
            log.warning("refused %s (%s): %s", platform.name, mark, explained)

    def greeting(self, verdict: Verdict, *, now: float) -> dict[str, Any]:
        """What a platform learns about itself."""
        name = verdict.platform.name if verdict.platform is not None else ""
        return {
            "standing": verdict.standing.value,
            "platform": name,
            "receipt": self._receipts(name) if name else "",
            "time": now,
            "version": VERSION,
            "minimum": self._minimum,
            "pace": len(self._platforms.approved()) / QUESTIONS,
            "protocol": PROTOCOL,
        }

    def _stranger(self, name: str) -> Seen:
        self._strangers[name] = None
        self._strangers.move_to_end(name)
        while len(self._strangers) > STRANGERS:
            self._forget(next(iter(self._strangers)))
        return self.seen.setdefault(name, Seen())

    def _forget(self, name: str) -> None:
        if name in self._strangers:
            del self._strangers[name]
            self.seen.pop(name, None)


def _named(headers: dict[str, str], signature: str) -> tuple[EllipticCurvePublicKey, str, str, bytes] | None:
    """Key, its OpenSSH line, time stamp and signature that headers name; None where they are none of a SuperNode's."""
    try:
        words = [headers[name] for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, signature)]
        if any(len(word) > _LONGEST or not word.isascii() for word in words):
            return None
        key = load_pem_public_key(b64decode(words[0], validate=True))
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
            return None
        line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
        _seconds(words[1])
        return key, line, words[1], b64decode(words[2], validate=True)
    # Key material in odd forms: the library raises what the form deserves, and none of it is a bug here.
    except (KeyError, ValueError, TypeError, OverflowError, OSError, binascii.Error, UnsupportedAlgorithm, NotImplementedError):
        return None


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
