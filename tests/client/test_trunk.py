"""The trunk cache gives what the encoder gives, survives restarts, and notices what is damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from client.trunk import Ids, TrunkCache
from shared.backbone import load_backbone
from shared.encoder import Encoder
from shared.errors import StorageError
from shared.settings import ModelSettings


def encoder_of(backbone: str, *, layers: int = 2, dtype: torch.dtype = torch.float32) -> Encoder:
    model = ModelSettings(backbone=backbone, layers=layers)
    return Encoder(load_backbone(backbone), model, device=torch.device("cpu"), dtype=dtype)


def sequences(count: int, *, seed: int = 0) -> list[Ids]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 80, random.integers(1, 20)).astype(np.int32) for _ in range(count)]


def expected(encoder: Encoder, ids: Ids) -> torch.Tensor:
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    return encoder.trunk(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]


def assert_right(cache: TrunkCache, encoder: Encoder, texts: list[Ids]) -> None:
    rows = cache.rows(texts)
    hidden, mask = cache.gather(rows)
    for at, ids in enumerate(texts):
        assert mask[at].sum() == len(ids)
        torch.testing.assert_close(hidden[at, : len(ids)], expected(encoder, ids), atol=1e-4, rtol=1e-4)
        assert not hidden[at, len(ids) :].any()


class Counting:
    """An encoder that counts the sequences it was asked for."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self.asked = encoder, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def trunk(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.asked += len(ids)
        return self._encoder.trunk(ids, mask)


def test_gives_the_encoders_features(tiny_bert: str, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_bert)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(30))


def test_survives_a_restart_and_computes_nothing_twice(tiny_bert: str, tmp_path: Path) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    counting = Counting(encoder)
    again = TrunkCache(tmp_path, counting)  # type: ignore[arg-type]
    assert_right(again, encoder, sequences(20))
    assert counting.asked == 0
    again.rows(sequences(20) + sequences(5, seed=9))
    assert counting.asked == 5
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20) + sequences(5, seed=9))


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_damaged_byte_is_noticed_and_mended(tiny_bert: str, tmp_path: Path, suffix: str, place: float) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    path = next(tmp_path.glob(f"*.{suffix}"))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(content)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20))


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_file_that_ends_early_is_mended(tiny_bert: str, tmp_path: Path, suffix: str) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(20))
    path = next(tmp_path.glob(f"*.{suffix}"))
    os.truncate(path, path.stat().st_size // 2 + 3)
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(20))


def test_what_another_cut_or_type_made_is_not_used(tiny_bert: str, tmp_path: Path) -> None:
    for encoder in (encoder_of(tiny_bert, layers=1), encoder_of(tiny_bert, layers=2)):
        assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(6))
    half = encoder_of(tiny_bert, dtype=torch.bfloat16)
    cache = TrunkCache(tmp_path, half)
    assert cache.gather(cache.rows(sequences(6)))[0].dtype == torch.bfloat16
    assert len({path.stem for path in tmp_path.iterdir()}) == 3


def test_is_private(tiny_bert: str, tmp_path: Path) -> None:
    TrunkCache(tmp_path / "state", encoder_of(tiny_bert)).rows(sequences(3))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_nothing_is_nothing(tiny_bert: str, tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, encoder_of(tiny_bert))
    assert len(cache.rows([])) == 0
    hidden, mask = cache.gather(np.zeros(0, np.int64))
    assert hidden.shape == (0, 1, 32)
    assert mask.shape == (0, 1)


def test_a_full_disk_leaves_what_was_there(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(tiny_bert)
    TrunkCache(tmp_path, encoder).rows(sequences(8))
    cache = TrunkCache(tmp_path, encoder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            cache.rows(sequences(4, seed=5))
    assert_right(cache, encoder, sequences(8))
    assert_right(cache, encoder, sequences(8) + sequences(4, seed=5))
    assert_right(TrunkCache(tmp_path, encoder), encoder, sequences(8) + sequences(4, seed=5))
