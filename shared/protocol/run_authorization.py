"""What the coordinator of a federation signs for one run: whose run it is, its name and its settings.

Code in Flower's bundle runs on the platform and may claim anything. A platform that pins its coordinator's key takes a
request only with a warrant over the very run and settings that the request names, so that no other federation, and nobody
who merely reached the SuperLink, can ask in this one's name. A warrant is no secret: it gives nothing to who reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ProtocolError

_DOMAIN = b"fedfuse warrant 1\n"
"""Signed before the content, so that a signature made for another purpose can never pass as a warrant's."""
MAX_TEXT = 2048


def federation_of(public: bytes) -> str:
    """The id of the federation whose coordinator has that Ed25519 public key (32 bytes): half of its SHA-256, in hex."""
    return hashlib.sha256(b"fedfuse federation\n" + public).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Warrant:
    """Leave to ask for one run.

    Args:
        federation: Id of the federation, as `federation_of` gives it.
        run: Name of the run.
        settings: Digest of its settings, as `shared.base.settings.settings_digest` gives it.
        expires: Seconds since 1970; requests are refused after it.
        signature: Ed25519 (RFC 8032), 64 bytes.
    """

    federation: str
    run: str
    settings: str
    expires: int
    signature: bytes = field(default=b"", repr=False)

    def signed(self, key: Ed25519PrivateKey) -> Warrant:
        """The same with the signature of `key`."""
        return Warrant(
            federation=self.federation,
            run=self.run,
            settings=self.settings,
            expires=self.expires,
            signature=key.sign(self._content()),
        )

    def text(self) -> str:
        """One line of ASCII."""
        return json.dumps({**self._fields(), "signature": base64.b64encode(self.signature).decode("ascii")}, sort_keys=True)

    def require(self, public: bytes, *, run: str, settings: str, now: float) -> None:
        """Return only if this warrant allows that run with those settings, in the federation whose key is `public`.

        Raises:
            ProtocolError: it does not, and in which respect.
        """
        federation = federation_of(public)
        if self.federation != federation:
            raise ProtocolError(f"the warrant is of federation {self.federation}, this platform belongs to {federation}")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(self.signature, self._content())
        except (InvalidSignature, ValueError):
            raise ProtocolError("the warrant is not signed by this federation's coordinator") from None
        if self.run != run:
            raise ProtocolError(f"the warrant is for run {self.run!r}, the request for {run!r}")
        if self.settings != settings:
            raise ProtocolError(f"run {run!r} was warranted with other settings")
        if now > self.expires:
            raise ProtocolError(f"the warrant of run {run!r} expired {now - self.expires:.0f} s ago")

    def _fields(self) -> dict[str, str | int]:
        return {"federation": self.federation, "run": self.run, "settings": self.settings, "expires": self.expires}

    def _content(self) -> bytes:
        return _DOMAIN + json.dumps(self._fields(), sort_keys=True).encode()


def parse_warrant(text: str) -> Warrant:
    """The warrant in a line that came from elsewhere; nothing is believed of it before `require`.

    Raises:
        ProtocolError: it is no warrant.
    """
    if not text:
        raise ProtocolError("the request came without a warrant of the coordinator")
    try:
        if len(text) > MAX_TEXT:
            raise ValueError
        values = json.loads(text)
        signature = base64.b64decode(values.pop("signature"), validate=True)
        kinds = {"federation": str, "run": str, "settings": str, "expires": int}
        if {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError
        return Warrant(**values, signature=signature)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ProtocolError("the request came with something that is no warrant") from None
