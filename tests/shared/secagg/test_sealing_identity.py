"""Sealed shares open for one receiver, from one sender, in one run; signatures hold for one purpose."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import ProtocolError
from shared.secagg.identity import Identity, digest_of, signed_by
from shared.secagg.sealing import OVERHEAD, seal, unseal

A, B, C = (X25519PrivateKey.from_private_bytes(bytes([value]) * 32) for value in (1, 2, 3))
TEXT = b"shares of all rounds"


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


SEALED = seal(A, public(B), TEXT, roster=b"r" * 32, sender=0, receiver=1)


def test_the_receiver_opens_it() -> None:
    assert unseal(B, public(A), SEALED, roster=b"r" * 32, sender=0, receiver=1) == TEXT
    assert len(SEALED) == len(TEXT) + OVERHEAD


@pytest.mark.parametrize(
    "over",
    [
        {"own": C},
        {"other": public(C)},
        {"roster": b"s" * 32},
        {"sender": 2},
        {"receiver": 2},
        {"own": A, "other": public(B), "sender": 1, "receiver": 0},
    ],
    ids=["another receiver", "another sender", "another run", "a false sender", "a false receiver", "sent back"],
)
def test_nobody_else_does(over: dict[str, object]) -> None:
    values = {"own": B, "other": public(A), "roster": b"r" * 32, "sender": 0, "receiver": 1, **over}
    own, other = values.pop("own"), values.pop("other")
    with pytest.raises(ProtocolError):
        unseal(own, other, SEALED, **values)  # type: ignore[arg-type]


def test_the_two_directions_have_keys_of_their_own() -> None:
    """One key and one nonce for both would give the difference of the two texts away."""
    back = seal(B, public(A), TEXT, roster=b"r" * 32, sender=1, receiver=0)
    assert back[: len(TEXT)] != SEALED[: len(TEXT)]


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, flip: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= flip
    with pytest.raises(ProtocolError):
        unseal(B, public(A), bytes(changed), roster=b"r" * 32, sender=0, receiver=1)


def test_a_signature_is_of_one_key_and_one_digest() -> None:
    one, other = Identity(b"\1" * 32), Identity(b"\2" * 32)
    digest = digest_of("consent", b"session")
    signature = one.sign(digest)
    assert signed_by(one.public, signature, digest)
    assert one.sign(digest) == signature
    assert not signed_by(other.public, signature, digest)
    assert not signed_by(one.public, signature, digest_of("survivors", b"session"))
    assert not signed_by(one.public, bytes(64), digest)
    assert not signed_by(bytes(5), signature, digest)
    assert one.public.hex()[:16] in repr(one) and "0101" not in repr(one)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_no_two_lists_have_one_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (digest_of("x", *one) == digest_of("x", *other)) is (one == other)
