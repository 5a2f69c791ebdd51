"""Who published a model: an Ed25519 key pair (RFC 8032), its files, and signatures over manifests.

The private key stays with the coordinator in one file that only its owner may read. The public key is what a puller is
given once, by a way that it trusts (`fedfuse pull URL --trust key.pub`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from shared.base.atomic_files import create_whole
from shared.base.errors import InputError, ProtocolError, StorageError
from shared.protocol.keys import ed25519_from_line, load_ed25519, make_ed25519

_DOMAIN = b"fedfuse model manifest\n"
"""Signed before the content, so that a signature for another purpose can never pass as one of these."""
_MAX_KEY = 1 << 14


class Untrusted(ProtocolError):
    """Who published a model, or that it is the newest one, is not proven."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes."""

    raw: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the 32 bytes, in hex: how a manifest names the key, and how people compare keys."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Signer:
    """A private key that is ready to sign."""

    _key: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The key that checks its signatures."""
        return PublicKey(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, content: bytes) -> str:
        """The signature of `content`, base64. The same content and key always give the same one."""
        return base64.b64encode(self._key.sign(_DOMAIN + content)).decode("ascii")


def make_key_pair(private: Path, public: Path) -> PublicKey:
    """Make a new key pair: `private` for its owner alone (0600), `public` to hand out (0644), both PEM.

    Raises:
        InputError: one of the files is there already; a key is never written over.
        StorageError: they cannot be written.
    """
    if public.exists() or public.is_symlink():
        raise InputError("a key is there already", where=str(public), do="use it, or name another file; keys are not replaced")
    signer = Signer(make_ed25519(private))
    key = Ed25519PublicKey.from_public_bytes(signer.public.raw)
    if not create_whole(public, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        private.unlink()  # made a moment ago, by this very call
        raise InputError("a key was made here at the same time", where=str(public), do="use that one, or name another file")
    return signer.public


def load_signer(path: Path) -> Signer:
    """The private key in a file; errors as `shared.protocol.keys.load_ed25519`."""
    return Signer(load_ed25519(path))


def load_trusted(path: Path) -> PublicKey:
    """The public key in a file, in PEM or as OpenSSH writes one (an invitation names it so).

    Raises:
        InputError: it is not an Ed25519 public key.
        StorageError: it cannot be read.
    """
    try:
        if not path.is_file():  # a fifo would keep us waiting
            raise InputError("is not a file", where=str(path), do="name a key file")
        with path.open("rb") as file:
            data = file.read(_MAX_KEY + 1)
    except OSError as error:
        raise StorageError(f"the key cannot be read ({error.strerror})", where=str(path), do="check path and rights") from None
    if b"PRIVATE KEY" in data:
        raise InputError(
            "is a private key", where=str(path), do="name the public key; the private one stays with the coordinator"
        )
    try:
        if len(data) > _MAX_KEY:
            raise ValueError
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----") else ed25519_from_line(data.decode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("is not a public key", where=str(path), do="name the file that the coordinator gave out") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("is a public key, but not an Ed25519 one", where=str(path), do="name the coordinator's model key")
    return PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def require_signature(content: bytes, signature: str, signer: str, trusted: Iterable[PublicKey], *, where: str) -> PublicKey:
    """The trusted key that signed `content`.

    Args:
        signature: Base64, as `Signer.sign` gives it; '' for none.
        signer: Fingerprint that the content names. Only a hint for the message: every trusted key is tried.

    Guarantees: returns only if one of `trusted` made this very signature over this very content (RFC 8032, 5.1.7).

    Raises:
        Untrusted: there is no signature, or none of the keys made it.
    """
    if not signature:
        raise Untrusted("nobody has signed this model", where=where, do="pull a published one, or say --unsigned")
    keys = tuple(trusted)
    try:
        raw = base64.b64decode(signature, validate=True)
    except ValueError:
        raise Untrusted("the signature is not base64", where=where, do="pull from elsewhere") from None
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(raw, _DOMAIN + content)
        except InvalidSignature:
            continue
        return key
    if any(key.fingerprint == signer for key in keys):
        raise Untrusted(
            "the manifest was changed after it was signed", where=where, do="pull from elsewhere, and tell who runs the registry"
        )
    raise Untrusted(
        f"the model is signed by key {signer[:16]}, not by {' or '.join(key.fingerprint[:16] for key in keys)}",
        where=where,
        do="ask the coordinator, by a way that you trust, whether its key has changed",
    )
