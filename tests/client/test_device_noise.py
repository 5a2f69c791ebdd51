"""The stream in tensor operations is ChaCha20, and its normals are normal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from client import device_noise
from client.device_noise import DeviceNoise, keystream
from client.mechanism import Mechanism

CPU = torch.device("cpu")


@pytest.mark.parametrize("blocks", [1, 2, 7, 1000])
def test_it_is_the_chacha20_of_another_library(blocks: int) -> None:
    key, nonce = bytes(range(200, 232)), 0x0102030405060708090A
    found = keystream(device_noise._state(key, nonce, CPU), blocks).numpy().tobytes()
    # cryptography takes the counter (4 bytes) and the nonce (12 bytes) together.
    theirs = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce.to_bytes(12, "little")), None).encryptor()
    assert found == theirs.update(bytes(64 * blocks))


def test_the_vector_of_the_rfc() -> None:
    # RFC 8439, section 2.3.2, first words of the state after the rounds; its counter is 1, so its block is our second.
    key = bytes(range(32))
    nonce = int.from_bytes(bytes.fromhex("000000090000004a00000000"), "little")
    second = keystream(device_noise._state(key, nonce, CPU), 2)[1].numpy().view(np.uint32)
    assert [f"{word:08x}" for word in second[:4]] == ["e4e7f110", "15593bd1", "1fdd0f50", "c47120a3"]


def test_the_normals_are_standard_normal_and_independent() -> None:
    draws = DeviceNoise(CPU).normal((200_000,)).double().numpy()
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(draws[:100_000], draws[100_000:])[0, 1]) < 0.02


def test_two_calls_and_two_instances_never_repeat() -> None:
    one, other = DeviceNoise(CPU), DeviceNoise(CPU)
    draws = [one.normal((50,)), one.normal((50,)), other.normal((50,))]
    assert not any(torch.equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_long_draw_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_noise, "_MOST_BLOCKS", 64)
    draws = DeviceNoise(CPU).normal((10, 101))
    assert draws.shape == (10, 101) and draws.dtype == torch.float32
    assert len(draws.unique()) > 1000


def test_a_mechanism_takes_it() -> None:
    mechanism = Mechanism(users=100, sample_rate=0.5, clip=2.0, noise_multiplier=1.5)
    noised = mechanism.privatise({"a": torch.zeros(300, 200), "b": torch.zeros(4)}, DeviceNoise(CPU))
    assert float(noised["a"].std()) == pytest.approx(1.5 * 2.0 / 50, rel=0.02)
    assert noised["b"].shape == (4,)
