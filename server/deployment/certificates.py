"""The coordinator's own certificate authority, and the TLS certificate of its server.

The authority signs nothing but this one server's certificates, and platforms trust it for nothing else. Its key is needed
only to renew; it may be kept elsewhere meanwhile.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.base.atomic_files import create_whole, write_whole
from shared.base.errors import InputError, StorageError
from shared.protocol.keys import read_secret

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
Record = Callable[[str], object]
"""Writes down what is about to be done, given the certificate (PEM) that it is done with; else it is not done."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_EARLIER = datetime.timedelta(days=2)
"""Before now that a certificate begins: a platform's clock may be behind."""


@dataclass(frozen=True)
class Certificates:
    """The files of an authority and its server."""

    authority_key: Path
    authority: Path
    server_key: Path
    server: Path

    @classmethod
    def of(cls, folder: Path) -> Certificates:
        """Those of a coordinator's folder."""
        ca, tls = folder / "ca", folder / "tls"
        return cls(ca / "ca.key", ca / "ca.crt", tls / "server.key", tls / "server.crt")

    @property
    def trusted(self) -> Path:
        """All authorities that the server's certificate may be of; while a rotation goes on, two (`authority_rotation`)."""
        told = self.authority.with_name("trusted.crt")
        return told if told.exists() else self.authority

    @property
    def next_authority_key(self) -> Path:
        """Key of the authority that platforms know already and that does not sign yet."""
        return self.authority.with_name("next.key")

    def make_authority(self, federation: str, *, days: int = AUTHORITY_DAYS, record: Record | None = None) -> None:
        """Make the authority's key (0600) and certificate.

        Args:
            record: Called with the certificate (PEM) before anything is written.

        Raises:
            InputError: there is one; every platform trusts that one.
            FedfuseError: as `record`; nothing is written then.
        """
        if self.authority_key.exists() or self.authority.exists():
            raise InputError("an authority is there already", where=str(self.authority), do="use it; every platform trusts it")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedfuse federation {federation}"[:64])])
        builder = (
            _builder(name, name, key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        if record is not None:
            record(certificate.decode("ascii"))
        if not create_whole(self.authority_key, _pem(key), mode=0o600):
            raise InputError(
                "an authority is there already", where=str(self.authority_key), do="use it; every platform trusts it"
            )
        write_whole(self.authority, certificate)

    def issue(self, host: str, *, days: int = SERVER_DAYS, record: Record | None = None) -> None:
        """Make a new key and certificate for the server, in place of older ones.

        Args:
            host: Name or address under which platforms reach it; this machine's own names are added, for its own use.
            record: As for `make_authority`.

        Raises:
            StorageError: the authority's key cannot be read.
            InputError: the host is neither a name nor an address.
            FedfuseError: as `record`; the certificate is as it was.
        """
        authority_key = load_pem_private_key(read_secret(self.authority_key), password=None)
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        authority = _load(self.authority)
        key = ec.generate_private_key(ec.SECP256R1())
        names = list(dict.fromkeys([certificate_name(host), certificate_name("localhost"), certificate_name("127.0.0.1")]))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        builder = (
            _builder(subject, authority.subject, key.public_key(), days=days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        )
        certificate = builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)
        if record is not None:
            record(certificate.decode("ascii"))
        write_whole(self.server_key, _pem(key), mode=0o600)
        write_whole(self.server, certificate)

    def days_left(self, *, now: datetime.datetime | None = None) -> float:
        """Days until the server's certificate expires; negative once it has."""
        moment = now or datetime.datetime.now(datetime.UTC)
        return (_load(self.server).not_valid_after_utc - moment).total_seconds() / 86400

    def require_valid(self) -> None:
        """Raises:
        StorageError: the server's certificate has expired; every platform would refuse it.
        """
        left = self.days_left()
        if left <= 0:
            raise StorageError(
                f"the server's certificate expired {abs(left):.1f} days ago, so every platform refuses it",
                where=str(self.server),
                do="fedfuse server renew",
            )


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # A certificate that is made expired on purpose must still begin before it ends.
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _EARLIER)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def certificate_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it.

    Raises:
        InputError: it is neither a name nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise InputError(f"{host!r} is neither a name nor an address", where="--host", do="give what platforms will connect to")
    return x509.DNSName(host)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(path), do="fedfuse server renew") from None
    except ValueError:
        raise StorageError("is no certificate", where=str(path), do="restore it, or: fedfuse server renew") from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
