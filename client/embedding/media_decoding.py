"""Pictures and sounds as arrays. A file comes from outside: it may be broken, or a bomb."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError

MOST_PIXELS = 100_000_000
MOST_FRAMES = 1 << 28
"""Of a sound before it is resampled."""


class BrokenMedia(Exception):
    """A file that cannot be read; its text says why."""


def require_decoders(kind: str) -> None:
    """Check that what reads files of a kind ("image" or "audio") is installed.

    Raises:
        InputError: it is not.
    """
    try:
        if kind == "image":
            import PIL.Image  # noqa: F401
        else:
            import soundfile  # type: ignore[import-untyped] # noqa: F401
    except (ImportError, OSError):  # soundfile looks for a shared library
        what = "Pillow, which reads pictures" if kind == "image" else "soundfile, which reads sounds"
        raise InputError(f"{what}, is not installed", where="fedfuse embed", do="pip install 'fedfuse[media]'") from None


def read_image(path: Path) -> Any:
    """A `PIL.Image` in RGB, turned as the camera was held.

    Raises:
        BrokenMedia: it cannot be read, or is larger than `MOST_PIXELS`.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BrokenMedia(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BrokenMedia(str(error)) from None
    except BrokenMedia:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they meet in a broken file
        raise BrokenMedia(_why(error)) from None


def read_sound(path: Path, *, rate: int, seconds: float) -> NDArray[np.float32]:
    """The beginning of a sound as one channel, float32 (samples,).

    Args:
        rate: Samples a second that are wanted.
        seconds: Of the beginning.

    Raises:
        BrokenMedia: it cannot be read, is empty, or has a value that is no number.
    """
    import soundfile
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    try:
        with soundfile.SoundFile(path) as sound:
            frames = min(math.ceil(seconds * sound.samplerate), MOST_FRAMES // max(sound.channels, 1))
            samples, found = sound.read(frames, dtype="float32", always_2d=True), int(sound.samplerate)
    except Exception as error:  # noqa: BLE001 - as in `read_image`
        raise BrokenMedia(_why(error)) from None
    if not samples.size:
        raise BrokenMedia("it holds no sound")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise BrokenMedia("it holds values that are no numbers")
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    return np.asarray(mono, np.float32)


def _why(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:197]}..."
