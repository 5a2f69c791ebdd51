"""Keys and signatures: only the holder signs, only a trusted key is believed, and no key is shown or lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.registry.signing import PublicKey, Signer, Untrusted, load_signer, load_trusted, make_key_pair, require_signature


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "model-signing.key", tmp_path / "model-signing.pub"
    make_key_pair(private, public)
    return private, public


def test_the_private_key_is_its_owners_alone(pair: tuple[Path, Path]) -> None:
    private, public = pair
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert load_signer(private).public == load_trusted(public)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_a_private_key_that_others_may_read_is_refused(pair: tuple[Path, Path], mode: int) -> None:
    pair[0].chmod(mode)
    with pytest.raises(StorageError, match="chmod 600"):
        load_signer(pair[0])


def test_a_key_is_never_written_over(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in pair]
    for private, public in [pair, (tmp_path / "new.key", pair[1]), (pair[0], tmp_path / "new.pub")]:
        with pytest.raises(InputError, match="already"):
            make_key_pair(private, public)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="already"):
        make_key_pair(tmp_path / "dangling", tmp_path / "new.pub")
    assert [path.read_bytes() for path in pair] == before
    assert not (tmp_path / "new.key").exists() and not (tmp_path / "new.pub").exists()


def test_two_pairs_differ(tmp_path: Path) -> None:
    keys = {make_key_pair(tmp_path / f"{n}.key", tmp_path / f"{n}.pub").fingerprint for n in range(3)}
    assert len(keys) == 3


def test_no_key_in_a_repr(pair: tuple[Path, Path]) -> None:
    signer = load_signer(pair[0])
    raw = signer._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert repr(signer) == "Signer()" and raw.hex() not in str(signer.__dict__)


class TestSignature:
    def test_of_its_content_alone(self, pair: tuple[Path, Path]) -> None:
        signer = load_signer(pair[0])
        signature = signer.sign(b"content")
        key = signer.public
        assert require_signature(b"content", signature, key.fingerprint, [key], where="x") == key
        for content in (b"content ", b"", b"Content", b"content\n"):
            with pytest.raises(Untrusted, match="changed after it was signed"):
                require_signature(content, signature, key.fingerprint, [key], where="x")

    def test_every_bit_counts(self, pair: tuple[Path, Path]) -> None:
        import base64

        signer = load_signer(pair[0])
        raw = base64.b64decode(signer.sign(b"content"))
        for bit in range(len(raw) * 8):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Untrusted):
                require_signature(b"content", base64.b64encode(changed).decode(), "", [signer.public], where="x")

    def test_is_bound_to_its_purpose(self) -> None:
        """A signature of the same key over the bare bytes, made for anything else, is not one of a manifest."""
        import base64

        key = Ed25519PrivateKey.generate()
        signer = Signer(key)
        bare = base64.b64encode(key.sign(b"content")).decode()
        with pytest.raises(Untrusted):
            require_signature(b"content", bare, signer.public.fingerprint, [signer.public], where="x")

    @pytest.mark.parametrize("signature", ["", "!", "AAAA", "A" * 88, "====", "\u00e4" * 88])
    def test_that_is_none(self, pair: tuple[Path, Path], signature: str) -> None:
        key = load_trusted(pair[1])
        with pytest.raises(Untrusted):
            require_signature(b"content", signature, key.fingerprint, [key], where="x")

    def test_by_any_of_several(self, pair: tuple[Path, Path]) -> None:
        signer, others = load_signer(pair[0]), [Signer(Ed25519PrivateKey.generate()).public for _ in range(3)]
        signature = signer.sign(b"content")
        assert require_signature(b"content", signature, "", [*others, signer.public], where="x") == signer.public
        with pytest.raises(Untrusted, match="not by"):
            require_signature(b"content", signature, signer.public.fingerprint, others, where="x")
        with pytest.raises(Untrusted):
            require_signature(b"content", signature, signer.public.fingerprint, [], where="x")

    def test_a_key_of_small_order_signs_nothing(self) -> None:
        """The all-zero point once let anyone 'sign' under sloppy verifiers; here it verifies nothing that we trust."""
        import base64

        for raw in (bytes(32), b"\x01" + bytes(31)):
            key = PublicKey(raw)
            signer = Signer(Ed25519PrivateKey.generate())
            with pytest.raises(FedfuseError):
                require_signature(b"content", signer.sign(b"content"), "", [key], where="x")
            with pytest.raises(FedfuseError):
                require_signature(b"content", base64.b64encode(bytes(64)).decode(), "", [signer.public], where="x")


class TestFiles:
    @pytest.fixture
    def contents(self) -> dict[str, bytes]:
        ec, ed = generate_ec(SECP256R1()), Ed25519PrivateKey.generate()
        return {
            "empty": b"",
            "text": b"not a key",
            "truncated": ed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())[:60],
            "another kind": ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "another kind, public": ec.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "locked": ed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
            "huge": b"-----BEGIN PRIVATE KEY-----\n" + b"A" * (1 << 20),
        }

    def test_that_are_no_key(self, contents: dict[str, bytes], tmp_path: Path) -> None:
        path = tmp_path / "key"
        for content in contents.values():
            path.write_bytes(content)
            path.chmod(0o600)
            for load in (load_signer, load_trusted):
                with pytest.raises(InputError) as caught:
                    load(path)
                assert str(path) in caught.value.where and "A" * 50 not in str(caught.value)

    def test_the_two_kinds_are_told_apart(self, pair: tuple[Path, Path]) -> None:
        with pytest.raises(InputError, match="is a private key") as caught:
            load_trusted(pair[0])
        assert "stays with the coordinator" in caught.value.do
        pair[1].chmod(0o600)
        with pytest.raises(InputError, match="no private key"):
            load_signer(pair[1])

    def test_as_an_invitation_names_it(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        from shared.protocol.keys import ed25519_line, load_ed25519

        (tmp_path / "line.pub").write_text(ed25519_line(load_ed25519(pair[0]).public_key()) + " models@fedfuse\n")
        assert load_trusted(tmp_path / "line.pub") == load_trusted(pair[1])

    def test_that_are_no_files(self, tmp_path: Path) -> None:
        import os

        os.mkfifo(tmp_path / "pipe", 0o600)
        for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
            for load in (load_signer, load_trusted):
                with pytest.raises(FedfuseError):
                    load(path)
