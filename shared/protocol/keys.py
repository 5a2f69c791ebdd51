"""Key files: made once, for their owner alone, never written over, and refused where others can read them.

Three kinds: a SuperNode's key (ECDSA on P-384, OpenSSH, as Flower asks for), a platform's identity in the secure sum and a
coordinator's federation key (both Ed25519, PEM). Nothing of a secret is ever in an error or a `repr`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from shared.base.atomic_files import create_whole
from shared.base.errors import InputError, StorageError, shell_word

_LARGEST = 1 << 14


def make_ed25519(path: Path) -> Ed25519PrivateKey:
    """A new Ed25519 key in `path` (0600, PEM).

    Raises:
        InputError: a file is there already; a key is never written over.
    """
    key = Ed25519PrivateKey.generate()
    _write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def make_node_key(path: Path) -> str:
    """A new SuperNode key in `path` (0600, OpenSSH); returns its public line.

    Raises:
        InputError: a file is there already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def load_ed25519(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in a file.

    Raises:
        InputError: it is none.
        StorageError: others can read it, or nobody can.
    """
    return parse_ed25519(read_secret(path), where=str(path))


def parse_ed25519(data: bytes, *, where: str) -> Ed25519PrivateKey:
    """The Ed25519 key (PEM) in what was read of `where`.

    Raises:
        InputError: it is none.
    """
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError("is no private key in PEM", where=where, do="name the key file that `fedfuse init` made") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("is not an Ed25519 key", where=where, do="name the key file that `fedfuse init` made")
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The SuperNode key in a file.

    Raises:
        InputError: it is none.
        StorageError: others can read it, or nobody can.
    """
    try:
        key = load_ssh_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError("is not a private key in OpenSSH form", where=str(path), do="name the file keys/node.key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("is not an elliptic-curve key", where=str(path), do="name the file keys/node.key")
    return key


def ed25519_line(key: Ed25519PublicKey) -> str:
    """A public key in OpenSSH form, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def ed25519_from_line(text: str) -> Ed25519PublicKey:
    """The inverse of `ed25519_line`; a comment is allowed.

    Raises:
        ValueError: it is no Ed25519 public key.
    """
    key = _public(text)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("expected an Ed25519 public key in OpenSSH form: 'ssh-ed25519 AAAA...'")
    return key


def node_key_from_line(text: str) -> ec.EllipticCurvePublicKey:
    """A SuperNode's public key, as OpenSSH writes it.

    Raises:
        ValueError: it is no elliptic-curve key on a NIST curve of at least 256 bits.
    """
    key = _public(text)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise ValueError("expected an elliptic-curve public key in OpenSSH form: 'ecdsa-sha2-nistp384 AAAA...'")
    return key


def fingerprint(text: str) -> str:
    """What people compare of an OpenSSH public key: as `ssh-keygen -l` prints it.

    >>> fingerprint("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f")[:14]
    'SHA256:ZkAslGj'
    """
    blob = base64.b64decode(text.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def read_secret(path: Path) -> bytes:
    """The content of a key file that only its owner can read.

    Raises:
        StorageError: others can read it, or it cannot be read.
        InputError: it is too large to be a key, or no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise InputError("is not a file", where=str(path), do="name a key file")
            if state.st_mode & 0o077:
                raise StorageError(
                    f"others may read this private key (mode {stat.S_IMODE(state.st_mode):04o})",
                    where=str(path),
                    do=f"chmod 600 {shell_word(path)}, and make a new key if somebody may have read it",
                )
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise StorageError(f"the key cannot be read ({error.strerror})", where=str(path), do="check path and rights") from None
    if len(data) > _LARGEST:
        raise InputError("is too large to be a key", where=str(path), do="name a key file")
    return data


def _write_secret(path: Path, data: bytes) -> None:
    # One step: between a look and a write somebody else may have made theirs, and it would be lost.
    if not create_whole(path, data, mode=0o600):
        raise InputError("a key is there already", where=str(path), do="use it, or choose another folder; keys are not replaced")


def _public(text: str) -> object:
    try:
        if len(text) > _LARGEST:
            raise ValueError
        return load_ssh_public_key(text.strip().encode("ascii"))
    except (ValueError, UnsupportedAlgorithm, UnicodeEncodeError, NotImplementedError):  # the last: a compressed point
        raise ValueError("expected a public key in OpenSSH form") from None
