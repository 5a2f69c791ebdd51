"""Sharing: any t shares give the secrets back, fewer say nothing, and another library agrees on what that means."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.secagg.shamir import NONE, PRIME, SECRET, WORDS, combine, split_secret, valid, weights_at_zero


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SECRET), dtype=np.uint8)


@given(data=st.data(), holders=st.integers(1, 12), seed=st.integers(0, 99))
def test_any_threshold_of_shares_gives_the_secrets_back(data: st.DataObject, holders: int, seed: int) -> None:
    threshold = data.draw(st.integers(1, holders))
    secrets = drawn(3, seed)
    shares = split_secret(secrets, threshold=threshold, holders=holders, entropy=os.urandom)
    assert shares.shape == (holders, 3, WORDS) and shares.dtype == np.uint32 and valid(shares).all()
    some = data.draw(st.permutations(range(holders)))[:threshold]
    found = combine(shares[some], weights_at_zero([at + 1 for at in some]))
    np.testing.assert_array_equal(found, secrets)


@pytest.mark.parametrize("byte", [0, 255])
def test_the_smallest_and_the_largest_secret(byte: int) -> None:
    secrets = np.full((1, SECRET), byte, np.uint8)
    shares = split_secret(secrets, threshold=3, holders=5, entropy=os.urandom)
    np.testing.assert_array_equal(combine(shares[[4, 0, 2]], weights_at_zero([5, 1, 3])), secrets)


def test_shares_lie_on_the_polynomials_that_the_entropy_says() -> None:
    """Against Python's own whole numbers, coefficient by coefficient."""
    taken: list[bytes] = []

    def entropy(count: int) -> bytes:
        taken.append(os.urandom(count))
        return taken[-1]

    secrets = drawn(2)
    shares = split_secret(secrets, threshold=4, holders=9, entropy=entropy)
    coefficients = (np.frombuffer(taken[0], "<u4") >> 1).astype(object).reshape(3, 2, WORDS)
    number = [int.from_bytes(row.tobytes(), "little") for row in secrets]
    for holder in range(1, 10):
        for which in range(2):
            for word in range(WORDS):
                wanted = number[which] >> 30 * word & (1 << 30) - 1
                wanted += sum(int(coefficients[power, which, word]) * holder ** (power + 1) for power in range(3))
                assert int(shares[holder - 1, which, word]) == wanted % PRIME


@given(st.sets(st.integers(1, 10_000), min_size=1, max_size=40))
def test_weights_are_lagranges(holders: set[int]) -> None:
    ordered = sorted(holders)
    for own, weight in zip(ordered, weights_at_zero(ordered).tolist(), strict=True):
        exact = Fraction(1)
        for other in ordered:
            if other != own:
                exact *= Fraction(other, other - own)
        assert weight == exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


def test_fewer_shares_are_uniform_whatever_the_secret() -> None:
    """Chi-square over the highest three bits of the shares of two very different secrets, two of three holders' view."""
    count = 4000
    for byte in (0, 255):
        secrets = np.full((count, SECRET), byte, np.uint8)
        shares = split_secret(secrets, threshold=3, holders=3, entropy=os.urandom)
        seen = (shares[:2] >> 28).reshape(2, -1)  # 31-bit words: 8 classes
        joint = np.bincount(seen[0] * 8 + seen[1], minlength=64)
        expected = joint.sum() / 64
        assert ((joint - expected) ** 2 / expected).sum() < 63 + 6 * np.sqrt(2 * 63)


def test_fewer_shares_fit_every_secret() -> None:
    """For two shares of a threshold of three and *any* candidate there is a polynomial: the shares exclude nothing."""
    secrets = drawn(1)
    shares = split_secret(secrets, threshold=3, holders=5, entropy=os.urandom)
    guess = drawn(1, seed=5)
    words = int.from_bytes(guess.tobytes(), "little")
    # Lagrange's basis over the points 0 (the guess), 1 and 2, at 3: f(3) = f(0) - 3 f(1) + 3 f(2).
    third = [
        ((words >> 30 * word & (1 << 30) - 1) - 3 * int(shares[0, 0, word]) + 3 * int(shares[1, 0, word])) % PRIME
        for word in range(WORDS)
    ]
    made = np.concatenate([shares[:2], np.array(third, np.uint32).reshape(1, 1, WORDS)])
    np.testing.assert_array_equal(combine(made, weights_at_zero([1, 2, 3])), guess)


def test_coefficients_are_drawn_anew_where_they_are_the_prime() -> None:
    answers = [b"\xff\xff\xff\xff" * WORDS, b"\x06\0\0\0" * WORDS]
    shares = split_secret(np.zeros((1, SECRET), np.uint8), threshold=2, holders=2, entropy=lambda _: answers.pop(0))
    assert (shares[0] == 3).all() and (shares[1] == 6).all()
    assert not answers


def test_it_keeps_what_pycryptodome_keeps() -> None:
    """The same secrets through both, by the same thresholds: both give them back, and neither with one share less."""
    from Crypto.Protocol.SecretSharing import Shamir

    secrets = drawn(4, seed=3)
    for threshold, holders in ((2, 3), (5, 5), (4, 9)):
        ours = split_secret(secrets, threshold=threshold, holders=holders, entropy=os.urandom)
        for at, secret in enumerate(secrets):
            halves = [secret.tobytes()[:16], secret.tobytes()[16:]]
            theirs = [Shamir.split(threshold, holders, half) for half in halves]
            for enough in (True, False):
                some = list(range(holders))[-threshold if enough else -(threshold - 1) :]
                found = combine(ours[some][:, at : at + 1], weights_at_zero([which + 1 for which in some])).tobytes()
                known = b"".join(Shamir.combine([shares[which] for which in some]) for shares in theirs)
                assert (found == secret.tobytes()) is (known == secret.tobytes()) is enough


def test_no_share_is_valid_that_is_none() -> None:
    assert not valid(np.full((2, WORDS), NONE)).any()
    assert not valid(np.full((1, WORDS), PRIME, np.uint32)).any()


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (1, 2**16 + 1)])
def test_impossible_thresholds(threshold: int, holders: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split_secret(drawn(1), threshold=threshold, holders=holders, entropy=os.urandom)
