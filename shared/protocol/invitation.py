"""What the coordinator and a platform hand each other before they ever connect: an invitation, and an application.

Both are TOML that a person can read, and hold no secret: addresses, certificates, public keys. What makes them trustworthy is
the way they are handed over; each shows a fingerprint that two people can compare over the telephone.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.base.errors import InputError
from shared.base.settings import explain
from shared.base.version import release
from shared.protocol.authorities import certificates_in
from shared.protocol.keys import ed25519_from_line, ed25519_line, fingerprint, node_key_from_line

LARGEST = 1 << 18
"""Bytes of either; an invitation with a thousand members' keys is half of it."""
_DOTS = 300
"""Dots in a line, at most: tomllib's memory grows with the square of the parts of a dotted key, which has one line."""
_DOMAIN = b"fedfuse application 1\n"

PlatformName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or len(text) > 300:
        raise ValueError("expected HOST:PORT")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("expected HOST:PORT")
    return text


def _certificates(text: str) -> str:
    try:
        certificates_in(text)
    except ValueError:
        raise ValueError("expected a certificate in PEM") from None
    return text


def _version(text: str) -> str:
    if release(text) is None:
        raise ValueError("expected a version such as 1.2.3")
    return text


def _identity(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ValueError("expected 32 bytes in base64")
    # Base64 has several spellings of some bytes, and identities are compared as text.
    return base64.b64encode(raw).decode("ascii")


Ed25519Line = Annotated[str, AfterValidator(lambda text: ed25519_line(ed25519_from_line(text)))]
IdentityKey = Annotated[str, AfterValidator(_identity)]


def _node_key(text: str) -> str:
    return node_key_from_line(text).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1

    def text(self) -> str:
        """As TOML."""
        return tomli_w.dumps(self.model_dump(mode="python"), multiline_strings=True)

    @classmethod
    def _parse(cls, text: str | bytes, *, where: str, what: str) -> Self:
        try:
            if len(text) > LARGEST:
                raise InputError(f"is larger than {LARGEST} bytes", where=where, do=f"name a file with {what}")
            words = text.decode("utf-8-sig") if isinstance(text, bytes) else text
            if any(line.count(".") > _DOTS for line in words.split("\n")):
                raise ValueError
            return cls.model_validate(tomllib.loads(words.replace("\r\n", "\n")))
        except ValidationError as error:
            raise InputError(explain(error), where=where, do=f"ask for {what} once more") from None
        except (ValueError, RecursionError):
            raise InputError(f"is not {what}", where=where, do=f"name the file with {what}") from None


class Invitation(_Document):
    """What a platform needs to take part in a federation.

    Args:
        federation: The federation's name.
        platform: The name under which this platform is invited.
        address: HOST:PORT of the coordinator's server.
        minimum_version: Least version of Fedfuse that may take part.
        coordinator: Key (Ed25519, OpenSSH) that signs bundles and warrants.
        models: Key (Ed25519, OpenSSH) that signs published models.
        authority: Certificate that the server's certificate is checked against; two while the authority is changed.
        members: Platform -> Ed25519 identity (base64) of those approved so far, for the secure sum.
    """

    federation: PlatformName
    platform: PlatformName
    address: Annotated[str, AfterValidator(_address)]
    minimum_version: Annotated[str, AfterValidator(_version)]
    coordinator: Ed25519Line
    models: Ed25519Line
    authority: Annotated[str, AfterValidator(_certificates)]
    members: dict[PlatformName, IdentityKey] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What two people compare: over everything but the platform's name and the members."""
        digest = hashlib.sha256(b"fedfuse invitation\n")
        for part in (self.federation, self.address, self.coordinator, self.models, self.authority):
            digest.update(len(part).to_bytes(4, "big") + part.encode())
        return grouped(digest.digest())

    def fingerprints(self) -> dict[str, str]:
        """What a person compares of each part by itself: the address as it is, keys and the authority by their fingerprints."""
        return {
            "address": self.address,
            "authority": fingerprint_of_authorities(self.authority),
            "coordinator": fingerprint(self.coordinator),
            "models": fingerprint(self.models),
        }


class Application(_Document):
    """What the coordinator needs of a platform: its public keys.

    Args:
        node_key: The SuperNode's public key (OpenSSH).
        identity: Ed25519 identity in the secure sum (base64).
        version: Of the platform's Fedfuse.
        proof: Signature by the identity over federation, platform and node key: all of it comes from one hand.
    """

    federation: PlatformName
    platform: PlatformName
    node_key: Annotated[str, AfterValidator(_node_key)]
    identity: IdentityKey
    version: Annotated[str, AfterValidator(_version)]
    proof: str = Field(max_length=100)

    @classmethod
    def make(cls, *, identity: Ed25519PrivateKey, **fields: Any) -> Application:
        """An application signed by its identity."""
        public = base64.b64encode(identity.public_key().public_bytes_raw()).decode("ascii")
        proof = identity.sign(_content(fields["federation"], fields["platform"], fields["node_key"]))
        return cls(identity=public, proof=base64.b64encode(proof).decode("ascii"), **fields)

    @property
    def fingerprint(self) -> str:
        """What two people compare: the identity's, as other platforms see it; with it the platform signed its SuperNode's key."""
        return fingerprint_of(self.identity)

    @model_validator(mode="after")
    def _proved(self) -> Application:
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.identity))
            content = _content(self.federation, self.platform, self.node_key)
            key.verify(base64.b64decode(self.proof, validate=True), content)
        except (InvalidSignature, ValueError):
            raise ValueError("proof: the application was changed after it was made") from None
        return self


def parse_invitation(text: str | bytes, *, where: str) -> Invitation:
    """The invitation in a text that came from elsewhere.

    Raises:
        InputError: it is none.
    """
    return Invitation._parse(text, where=where, what="an invitation")


def parse_application(text: str | bytes, *, where: str) -> Application:
    """The application in a text that came from elsewhere.

    Raises:
        InputError: it is none, or it was changed on the way.
    """
    return Application._parse(text, where=where, what="a platform's application")


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return parse_invitation(read_whole(path, do="name the file with the invitation"), where=str(path))


def read_application(path: Path) -> Application:
    """The application in a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return parse_application(read_whole(path, do="name the platform's application.toml"), where=str(path))


def read_whole(path: Path, *, do: str) -> bytes:
    """A small file's bytes.

    Args:
        do: What to do, for the error where it cannot be read.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), do=do) from None


def _content(federation: str, platform: str, node_key: str) -> bytes:
    return _DOMAIN + b"\n".join(part.encode() for part in (federation, platform, node_key))


def grouped(digest: bytes) -> str:
    """The first 128 bits of a digest, as two people compare them."""
    text = digest.hex()[:32]
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def fingerprint_of_authorities(bundle: str) -> str:
    """What two people compare of the coordinator's certificate authorities, with a + between them."""
    return "+".join(grouped(one.fingerprint(hashes.SHA256())) for one in certificates_in(bundle))


def fingerprint_of(identity: str) -> str:
    """What two people compare of an identity.

    >>> fingerprint_of("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    '1efb-13e2-7f62-294c-1a0d-0ced-b0ed-11c5'
    """
    return grouped(hashlib.sha256(b"fedfuse identity\n" + base64.b64decode(identity)).digest())
