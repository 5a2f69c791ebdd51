"""The authority and the server's certificate: what each says it may be used for, for whom, and from when until when."""

from __future__ import annotations

import datetime
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.deployment.certificates import Certificates, certificate_name
from shared.base.errors import InputError, StorageError

DAY = datetime.timedelta(days=1)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates.of(tmp_path)
    made.make_authority("spring")
    made.issue("fed.example.org")
    return made


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def public_bytes(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def common(name: x509.Name) -> str:
    (one,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(one.value)


def uses(certificate: x509.Certificate) -> set[str]:
    """What its key may be used for."""
    words = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    found = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert found.critical
    return {word for word in (*words, "key_cert_sign", "crl_sign") if getattr(found.value, word)}


def test_the_authority_signs_certificates_of_servers_and_nothing_else(certificates: Certificates) -> None:
    authority = loaded(certificates.authority)
    assert common(authority.subject) == common(authority.issuer) == "fedfuse federation spring"
    assert uses(authority) == {"key_cert_sign", "crl_sign"}
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and (basic.value.ca, basic.value.path_length) == (True, 0)  # and no other authority
    key = load_pem_private_key(certificates.authority_key.read_bytes(), password=None)
    assert public_bytes(key.public_key()) == public_bytes(authority.public_key())  # type: ignore[union-attr]
    assert len(list(authority.extensions)) == 3


def test_the_server_is_a_server_and_signs_no_certificate(certificates: Certificates) -> None:
    server, authority = loaded(certificates.server), loaded(certificates.authority)
    server.verify_directly_issued_by(authority)
    assert common(server.subject) == "fed.example.org" and uses(server) == {"digital_signature"}
    basic = server.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and (basic.value.ca, basic.value.path_length) == (False, None)
    extended = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(extended.value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one.value) for one in names] == ["fed.example.org", "localhost", "127.0.0.1"]
    mine = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    issuer = server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert issuer == mine != server.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    key = load_pem_private_key(certificates.server_key.read_bytes(), password=None)
    assert public_bytes(key.public_key()) == public_bytes(server.public_key())  # type: ignore[union-attr]
    assert len(list(server.extensions)) == 6


def test_keys_are_for_their_owner_alone(certificates: Certificates) -> None:
    for path in (certificates.authority_key, certificates.server_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_no_name_is_there_twice(certificates: Certificates, host: str) -> None:
    certificates.issue(host)
    names = loaded(certificates.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(str(one.value) for one in names) == ["127.0.0.1", "localhost"]


@pytest.mark.parametrize("days", [1, 30, 365, -1, -400])
def test_it_begins_before_now_and_ends_in_so_many_days(certificates: Certificates, days: int) -> None:
    before = datetime.datetime.now(datetime.UTC)
    certificates.issue("h", days=days)
    server = loaded(certificates.server)
    end = server.not_valid_after_utc
    assert abs(end - before - days * DAY) < datetime.timedelta(minutes=2)
    # A clock may be two days behind; what has expired was valid for two days once.
    assert abs(min(before, end) - server.not_valid_before_utc - 2 * DAY) < datetime.timedelta(minutes=2)
    for later in (-3.5, 0.0, 10.0):
        assert certificates.days_left(now=before + later * DAY) == pytest.approx(days - later, abs=0.01)
    assert certificates.days_left() == pytest.approx(days, abs=0.01)


def test_by_default_for_a_year_by_an_authority_of_ten(certificates: Certificates) -> None:
    assert certificates.days_left() == pytest.approx(365, abs=0.01)
    authority = loaded(certificates.authority)
    assert (authority.not_valid_after_utc - datetime.datetime.now(datetime.UTC)) / DAY == pytest.approx(3650, abs=0.01)


def test_at_its_last_second_it_is_valid_no_more(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    for left, words in ((0.0, "expired 0.0 days ago"), (-2.5, "expired 2.5 days ago")):
        monkeypatch.setattr(Certificates, "days_left", lambda self, left=left: left)
        with pytest.raises(StorageError, match=words) as caught:
            certificates.require_valid()
        assert (caught.value.where, caught.value.do) == (str(certificates.server), "fedfuse server renew")
    monkeypatch.setattr(Certificates, "days_left", lambda self: 1e-6)
    certificates.require_valid()


def test_there_is_one_authority(certificates: Certificates) -> None:
    before = certificates.authority.read_bytes()
    key = certificates.authority_key.read_bytes()
    for gone in (None, certificates.authority_key, certificates.authority):
        if gone is not None:
            gone.unlink()
        with pytest.raises(InputError, match="an authority is there already"):
            certificates.make_authority("spring")
        certificates.authority.write_bytes(before)
        certificates.authority_key.write_bytes(key)
    certificates.authority.unlink()
    certificates.authority_key.unlink()
    certificates.make_authority("spring")


@pytest.mark.parametrize("host", ["h", "fed.example.org", "a-b.c", "a" * 63, ".".join(["a" * 63] * 3 + ["b" * 61]), "1.example"])
def test_what_is_a_name(host: str) -> None:
    assert certificate_name(host) == x509.DNSName(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "2001:db8::1"])
def test_what_is_an_address(host: str) -> None:
    assert certificate_name(host) == x509.IPAddress(ip_address(host))


@pytest.mark.parametrize(
    "host", ["", "-a", "a-", "a..b", ".a", "a.", "a_b", "a b", "a" * 64, ".".join(["a" * 63] * 3 + ["b" * 62]), "[::1]", "h:8000"]
)
def test_what_is_neither(host: str) -> None:
    with pytest.raises(InputError, match="neither a name nor an address"):
        certificate_name(host)


def test_a_long_name_is_cut_where_a_certificate_holds_no_more(certificates: Certificates, tmp_path: Path) -> None:
    host = ".".join(["a" * 40, "b" * 40])
    certificates.issue(host)
    assert common(loaded(certificates.server).subject) == host[:64]
    other = Certificates.of(tmp_path / "other")
    other.make_authority("s" * 60)
    assert common(loaded(other.authority).subject) == f"fedfuse federation {'s' * 45}"


def test_what_cannot_be_read_is_said(certificates: Certificates) -> None:
    for content, found in ((None, "cannot be read: No such file"), (b"x", "is no certificate")):
        if content is None:
            certificates.server.unlink()
        else:
            certificates.server.write_bytes(content)
        with pytest.raises(StorageError, match=found) as caught:
            certificates.days_left()
        assert caught.value.where == str(certificates.server)
