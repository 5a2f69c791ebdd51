"""A vision or audio encoder that transformers loads, from a folder or by its hub name, as a function from a file to a vector.

Weights are read from safetensors alone, and no code of a model's repository is run. Whether an encoder sees or hears is what
its preprocessor says. A vector is, of the first that there is:

1. what the model itself calls a picture's or a sound's features (`get_image_features`, `get_audio_features`: CLIP, SigLIP, CLAP);
2. its pooled output, if the weights of its pooler were in the files: else that would be the output of random numbers;
3. the mean of its last hidden states.

Each is scaled to length 1, as cosines want it. Files are prepared one by one and only those of equal shape share a batch, so that
no padding enters a mean and a vector does not depend on which files are beside it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.embedding.media_decoding import BrokenMedia, read_image, read_sound, require_decoders
from shared.base.errors import InputError
from shared.model.encoder import default_device

IMAGE, AUDIO = "image", "audio"
Inputs = Mapping[str, Tensor]


class MediaEncoder:
    """An encoder.

    Args:
        name: A folder, or the name of a model of the hub, which is then downloaded unless it is there already.
        seconds: Of a sound that are heard; the rest is left.
        device: By default the first GPU, else the processor.

    Raises:
        InputError: it cannot be loaded, is of no kind that sees or hears, or lacks weights.
    """

    def __init__(self, name: str, *, seconds: float = 30.0, device: torch.device | None = None) -> None:
        if not seconds > 0:
            raise InputError(f"--seconds is {seconds:g}", do="give a number above 0")
        folder = Path(name)
        if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~"))):
            raise InputError(
                "there is no folder of a model", where=name, do="name a folder with config.json, or a model of the hub"
            )
        self._device, self._seconds = device or default_device(), seconds
        self._local = folder.is_dir()
        self.kind, self._prepare = _preprocessor(name, local=self._local)
        require_decoders(self.kind)
        self._model, missing = _model(name, local=self._local)
        self._model.to(self._device)
        pooler = {key for key in missing if "pooler" in key.split(".")}
        if missing - pooler:
            raise InputError(
                f"{len(missing - pooler)} weights are not in its files, such as {sorted(missing - pooler)[0]}",
                where=name,
                do="name an encoder whose weights are whole",
            )
        self._pools = not pooler
        self.digest = self._digest(name)

    def _digest(self, name: str) -> str:
        """What vectors depend on besides the file, in hexadecimal."""
        about: list[Any] = [self.kind, self._seconds if self.kind == AUDIO else 0, self._model.config.to_json_string()]
        if self._local:
            for path in sorted(Path(name).iterdir()):
                if path.suffix in (".json", ".safetensors"):
                    stat = path.stat()
                    about.append([path.name, stat.st_size, stat.st_mtime_ns])
        else:
            about += [name, getattr(self._model.config, "_commit_hash", None)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def prepared(self, path: Path) -> Inputs:
        """What the model reads of a file: tensors with a first dimension of 1.

        Raises:
            BrokenMedia: the file cannot be read.
        """
        try:
            if self.kind == IMAGE:
                made = self._prepare(images=read_image(path), return_tensors="pt")
            else:
                rate = int(self._prepare.sampling_rate)
                sound = read_sound(path, rate=rate, seconds=self._seconds)
                made = self._prepare(sound, sampling_rate=rate, return_tensors="pt")
        except BrokenMedia:
            raise
        except Exception as error:  # noqa: BLE001 - a picture of one pixel, a sound of one sample: preprocessors differ
            raise BrokenMedia(f"it cannot be prepared for the encoder: {error}") from None
        return {key: value for key, value in made.items() if isinstance(value, Tensor)}

    @torch.inference_mode()
    def vectors(self, batch: Sequence[Inputs]) -> NDArray[np.float32]:
        """Vectors of length 1, float32 (files, width).

        Args:
            batch: Of equal shapes.

        Raises:
            BrokenMedia: the encoder cannot take what they hold, as a sound that is too short.
        """
        inputs = {key: torch.cat([one[key] for one in batch]).to(self._device) for key in batch[0]}
        try:
            found = self._features(inputs).float()
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise BrokenMedia(f"the encoder cannot take it: {str(error).splitlines()[0]}") from None
        found = found.flatten(1)
        if not torch.isfinite(found).all():
            raise BrokenMedia("the encoder gives what is no number")
        unit: NDArray[np.float32] = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return unit

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        named = getattr(self._model, f"get_{self.kind}_features", None)
        if named is not None:
            given = named(**inputs)
            return given if isinstance(given, Tensor) else _pooled(given)
        given = self._model(**inputs)
        if self._pools and getattr(given, "pooler_output", None) is not None:
            return _pooled(given)
        hidden: Tensor = given.last_hidden_state
        # (files, tokens, width), or the (files, channels, height, width) of a convolutional network.
        return hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(2)


def _pooled(given: Any) -> Tensor:
    pooled: Tensor = given.pooler_output
    return pooled


def _preprocessor(name: str, *, local: bool) -> tuple[str, Any]:
    """Whether an encoder sees or hears, and what prepares a file for it."""
    from transformers.models.auto import AutoFeatureExtractor, AutoImageProcessor

    why = ""
    both: tuple[tuple[str, Any], ...] = ((IMAGE, AutoImageProcessor), (AUDIO, AutoFeatureExtractor))
    for kind, auto in both:
        try:
            made = auto.from_pretrained(name, local_files_only=local, trust_remote_code=False)
        except (OSError, ValueError, ImportError, KeyError) as error:
            why = why or " ".join(str(error).split())[:300]
            continue
        if kind == AUDIO and not hasattr(made, "sampling_rate"):
            continue
        return kind, made
    raise InputError(
        f"it has no preprocessor of pictures or sounds ({why})",
        where=name,
        do="name a vision or audio encoder: a folder with config.json, preprocessor_config.json and model.safetensors",
    )


def _model(name: str, *, local: bool) -> tuple[Any, set[str]]:
    """The model, and the names of weights that its files lack."""
    from transformers.models.auto import AutoModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, about = AutoModel.from_pretrained(
                name, local_files_only=local, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(
            f"the encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
            where=name,
            do="its weights must be safetensors of a model that transformers knows",
        ) from None
    if about["mismatched_keys"]:
        raise InputError("its weights are of other shapes than its configuration says", where=name, do="mend config.json")
    return model.eval(), set(about["missing_keys"])
