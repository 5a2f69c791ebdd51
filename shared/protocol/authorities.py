"""Which certificate authorities a coordinator's server may be of, said by the coordinator's federation key.

Every platform pins that key (it signs bundles and warrants), so what it says of the authorities needs no trust in the connection
that it comes over: that is how a platform learns of a new authority, before the old one ends or after. The platform sends a
nonce, and the signature is over it: no answer of an earlier day, when an authority that has leaked since was good, can be played
again.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode, b64encode
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from shared.base.errors import ProtocolError
from shared.secagg.identity import digest_of, signed_by

MOST = 3
"""Authorities at a time: the old one, the new one, and one to spare."""
LARGEST = 1 << 15
"""Bytes of an answer."""
_NONCE = re.compile(r"[0-9a-f]{64}")


def certificates_in(text: str) -> list[x509.Certificate]:
    """The certificates in a PEM text.

    Raises:
        ValueError: there is none, there are more than `MOST`, or there is something else.
    """
    try:
        found = x509.load_pem_x509_certificates(text.encode("ascii"))
    except x509.InvalidVersion:  # which is no ValueError
        raise ValueError("expected certificates in PEM") from None
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"expected 1 to {MOST} certificates in PEM")
    return found


def pem_bundle(certificates: list[x509.Certificate]) -> str:
    """Certificates as one text, each once, in their order."""
    return "".join(dict.fromkeys(one.public_bytes(Encoding.PEM).decode("ascii") for one in certificates))


def read_authorities(path: Path) -> str:
    """The authorities in a file, in the form in which they are compared; '' where they cannot be read."""
    try:
        return pem_bundle(certificates_in(path.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return ""


def authorities_digest(bundle: str) -> str:
    """SHA-256 of authorities in the form in which they are compared, hex: a platform says with it which ones it knows."""
    return hashlib.sha256(bundle.encode("ascii")).hexdigest()


def is_nonce(text: str) -> bool:
    """Whether that is a nonce, or a digest: 64 hexadecimal digits."""
    return bool(_NONCE.fullmatch(text))


def authorities_answer(bundle: str, *, nonce: str, key: Ed25519PrivateKey) -> dict[str, str]:
    """The answer to a platform that asks.

    Args:
        bundle: The authorities, in PEM.
        key: The coordinator's federation key.
    """
    return {"authorities": bundle, "signature": b64encode(key.sign(_digest(bundle, nonce))).decode("ascii")}


def proven_authorities(text: bytes, *, nonce: str, coordinator: bytes) -> str:
    """The authorities in an answer, in PEM.

    Args:
        coordinator: The pinned Ed25519 key, 32 bytes.

    Raises:
        ProtocolError: it is no answer to this nonce that the coordinator signed.
    """
    try:
        if len(text) > LARGEST:
            raise ValueError
        values = json.loads(text)
        bundle, signature = values["authorities"], b64decode(values["signature"], validate=True)
        if not isinstance(bundle, str) or not signed_by(coordinator, signature, _digest(bundle, nonce)):
            raise ValueError
        return pem_bundle(certificates_in(bundle))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolError("what answers does not prove which authorities the coordinator has") from None


def _digest(bundle: str, nonce: str) -> bytes:
    return digest_of("certificate authorities", bytes.fromhex(nonce), bundle.encode("utf-8"))
