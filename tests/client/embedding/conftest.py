"""Tiny encoders with random weights, pictures and sounds."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")


@pytest.fixture(scope="session")
def sees(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a vision transformer of two layers."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("sees")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def hears(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a wav2vec 2.0 of two layers."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("hears")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    config = Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures i0 to i11 of different colours and sizes."""
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for item in range(12):
        size = (20 + item, 30, 3)
        colours = (random.integers(0, 256, 3) + random.integers(-20, 20, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(colours).save((folder / "more" if item % 2 else folder) / f"i{item}.png")
    return folder


def write_tone(path: Path, *, hertz: float, seconds: float = 0.3, rate: int = 16000, channels: int = 1) -> None:
    time = np.arange(int(rate * seconds)) / rate
    tone = (0.5 * np.sin(2 * np.pi * hertz * time) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.repeat(tone, channels).tobytes())


@pytest.fixture
def tone() -> Callable[..., None]:
    """Writes a WAV file."""
    return write_tone
