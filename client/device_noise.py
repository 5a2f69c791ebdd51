"""The cryptographic generator on a GPU: ChaCha20 written in tensor operations.

Drawn on the processor and copied, the noise of one step takes longer than the step itself on a fast GPU. The stream is ChaCha20's
(RFC 8439, section 2.3) under a key from the operating system; the Gaussians are made from it as `SecureNoise` makes them.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from client.noise import SecureNoise, gaussian
from client.sending import sent

_CONSTANTS = b"expand 32-byte k"
_BLOCK_WORDS = 16
_MOST_BLOCKS = 1 << 22
"""Blocks of one nonce; RFC 8439's counter has 32 bits, and half of them keeps the int32 arithmetic plain."""


class DeviceNoise(SecureNoise):
    """Normals on a device; coins and integers, of which there are few, on the processor.

    Args:
        device: Where `normal` gives its tensors.
        compiled: Whether the stream runs through torch.compile; hundreds of small kernels become one.
    """

    def __init__(self, device: torch.device, *, compiled: bool = False) -> None:
        super().__init__()
        self._device = device
        self._key = os.urandom(32)
        self._nonce = 0
        self._keystream = torch.compile(keystream) if compiled else keystream

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal on the device, by the sum of four Box-Muller draws over two."""
        size = math.prod(shape)
        words = 8 * size  # four uniforms of 64 bits each
        blocks = -(-words // _BLOCK_WORDS)
        if blocks > _MOST_BLOCKS:
            half = size // 2
            return torch.cat([self.normal((half,)), self.normal((size - half,))]).reshape(shape)
        # A fresh nonce for every call: no part of a stream is ever used twice.
        self._nonce += 1
        stream = self._keystream(_state(self._key, self._nonce, self._device), blocks).reshape(-1)[:words]
        low, high = stream.to(torch.int64).bitwise_and_(0xFFFFFFFF).reshape(2, 4 * size)
        # 53 bits, as the processor's generator uses: 32 low ones and 21 high ones.
        uniform = (low + ((high >> 11) << 32)).to(torch.float64) * 2.0**-53
        return gaussian(uniform).view(shape)


def keystream(state: Tensor, blocks: int) -> Tensor:
    """ChaCha20 blocks with counters 0, 1, ...: int32 (blocks, 16), each word as its bits are.

    Args:
        state: int32 (16,). Constants, key, counter 0, nonce (RFC 8439, section 2.3).
    """
    start = state[:, None].expand(_BLOCK_WORDS, blocks).clone()
    start[12] = torch.arange(blocks, device=state.device, dtype=torch.int32)
    # One row of four words each, so that a quarter round works on all columns, and all diagonals, at once.
    a, b, c, d = start.view(4, 4, blocks).unbind(0)
    for _ in range(10):
        a, b, c, d = _quarter(a, b, c, d)
        a, b, c, d = _quarter(a, b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0))
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return (torch.stack([a, b, c, d]).view(_BLOCK_WORDS, blocks) + start).T.contiguous()


def _quarter(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = a + b
    d = _turned(d ^ a, 16)
    c = c + d
    b = _turned(b ^ c, 12)
    a = a + b
    d = _turned(d ^ a, 8)
    c = c + d
    return a, _turned(b ^ c, 7), c, d


def _turned(x: Tensor, left: int) -> Tensor:
    # int32 shifts keep the sign, so what it drags in from above is masked away.
    return (x << left) | ((x >> (32 - left)) & ((1 << left) - 1))


def _state(key: bytes, nonce: int, device: torch.device) -> Tensor:
    raw = _CONSTANTS + key + bytes(4) + nonce.to_bytes(12, "little")
    return sent(torch.frombuffer(bytearray(raw), dtype=torch.int32), device)
