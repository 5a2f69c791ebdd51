"""Words on the wire, and masks that cancel."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import ProtocolError
from shared.secagg.bit_packing import add_packed, pack_words, packed_size, unpack_words
from shared.secagg.masks import MaskFrame, add_masks, agree, derive, small_order


@given(length=st.integers(0, 200), bits=st.integers(1, 32), seed=st.integers(0, 9))
def test_words_come_back(length: int, bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << 32, length, dtype=np.uint32)
    data = pack_words(values, bits)
    assert len(data) == packed_size(length, bits)
    np.testing.assert_array_equal(unpack_words(data, length=length, bits=bits), values & np.uint32((1 << bits) - 1))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=70), st.integers(1, 32))
def test_the_format_is_planes_of_powers_of_two(values: list[int], bits: int) -> None:
    """Against Python's whole numbers: each plane is one long number, lowest words first."""
    wanted, shift = b"", 0
    for width in (32, 16, 8, 4, 2, 1):
        if bits & width:
            number = sum((value >> shift) % (1 << width) << width * at for at, value in enumerate(values))
            wanted += number.to_bytes(-(-len(values) * width // 8), "little")
            shift += width
    assert pack_words(np.array(values, np.uint32), bits) == wanted


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 17, 18, 32])
@pytest.mark.parametrize("length", [16_383, 16_384, 16_385, 40_001])
def test_long_vectors_come_back_and_add_up(length: int, bits: int) -> None:
    random = np.random.default_rng(length)
    one, other = (random.integers(0, 1 << 32, length, dtype=np.uint32) for _ in range(2))
    total = np.full(length, 5, np.uint32)
    for values in (one, other):
        add_packed(total, pack_words(values, bits), bits)
    mask = np.uint32((1 << bits) - 1)
    np.testing.assert_array_equal(total, (one & mask) + (other & mask) + np.uint32(5))


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_refused(change: int) -> None:
    data = pack_words(np.arange(10, dtype=np.uint32), 7)
    with pytest.raises(ProtocolError):
        unpack_words(data[:change] if change < 0 else data + b"\0", length=10, bits=7)


@pytest.mark.parametrize(("length", "bits"), [(3, 5), (7, 18), (5, 4), (1, 1)])
def test_bits_beyond_the_last_word_are_refused(length: int, bits: int) -> None:
    data = bytearray(pack_words(np.arange(length, dtype=np.uint32), bits))
    data[-1] |= 0x80
    total = np.zeros(length, np.uint32)
    with pytest.raises(ProtocolError, match="beyond"):
        add_packed(total, bytes(data), bits)
    assert not total.any()


def test_the_uplink_at_fifty_platforms() -> None:
    """18 bits and what goes with them against 16 bits; the masks add nothing."""
    assert (packed_size(300_000, 18) + 64 + 50 * 36 + 64) / 600_000 < 1.15


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 150_001])
def test_a_mask_is_the_counter_mode_of_its_key(length: int) -> None:
    key = os.urandom(32)
    total = np.full(length, 7, np.uint32)
    add_masks(total, [(key, False)])
    wanted = np.frombuffer(
        Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * length)), "<u4"
    ) + np.uint32(7)
    np.testing.assert_array_equal(total, wanted)
    add_masks(total, [(key, True)])
    assert (total == 7).all()


def test_two_ends_agree_and_nobody_else() -> None:
    a, b, c = (X25519PrivateKey.generate() for _ in range(3))
    frame = MaskFrame(round=1, length=5, bits=8, question=bytes(32))

    def key(own: X25519PrivateKey, other: X25519PrivateKey, *, salt: bytes = b"s", info: bytes = frame.pair(0, 1)) -> bytes:
        return agree(own, other.public_key().public_bytes_raw(), salt=salt, info=info)

    assert key(a, b) == key(b, a)
    others = [
        key(a, c),
        key(c, b),
        key(a, b, salt=b"t"),
        key(a, b, info=frame.pair(0, 2)),
        *(
            key(a, b, info=replace(frame, **change).pair(0, 1))
            for change in ({"round": 2}, {"length": 6}, {"bits": 9}, {"question": bytes(31) + b"\1"})
        ),
        derive(bytes(32), salt=b"s", info=frame.pair(0, 1)),
    ]
    assert len({key(a, b), *others}) == len(others) + 1
    assert frame.pair(0, 1) == frame.pair(1, 0)
    other = replace(frame, question=bytes(31) + b"\1")
    assert len({frame.self(0), frame.self(1), frame.pair(0, 1), other.self(0), other.pair(0, 1)}) == 5


def test_a_frame_names_a_question() -> None:
    with pytest.raises(ProtocolError, match="question"):
        MaskFrame(round=1, length=5, bits=8, question=b"")


# Points of small order on Curve25519: with them the common secret would be zero, whoever the other is.
SMALL = [
    number.to_bytes(32, "little")
    for low in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
    )
    for number in (low, low | 1 << 255)
]


@pytest.mark.parametrize("public", [*SMALL, bytes(31)])
def test_keys_that_give_everybody_the_same_secret_are_refused(public: bytes) -> None:
    with pytest.raises(ProtocolError):
        agree(X25519PrivateKey.generate(), public, salt=b"", info=b"")


def test_they_are_found_among_others_without_a_trial() -> None:
    random = np.random.default_rng(0)
    good = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(50)]
    # One bit or one unit away they are keys like any other.
    near = [(int.from_bytes(key, "little") ^ 1 << at).to_bytes(32, "little") for key in SMALL for at in (3, 100, 254)]
    near += [(2 + at).to_bytes(32, "little") for at in range(9)] + [
        (2**255 - 19 + 2 + at).to_bytes(32, "little") for at in range(17)
    ]
    for key in (*good, *near):
        agree(X25519PrivateKey.generate(), key, salt=b"", info=b"")
    keys = [*good, *near, *SMALL]
    order = random.permutation(len(keys))
    found = small_order(b"".join(keys[at] for at in order))
    assert {int(order[at]) for at in found} == set(range(len(good) + len(near), len(keys)))
    assert small_order(b"") == []
