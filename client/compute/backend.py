"""What a platform's layers run through: torch.compile, the native kernels, or torch's operations one by one."""

from __future__ import annotations

import logging
from functools import cache

import torch

from shared.base.errors import InputError
from shared.base.settings import ModelSettings, Settings
from shared.layers.native import build as native
from shared.layers.torch_compile import compile_obstacle
from shared.model.backbone import Backbone, BackboneShape
from shared.model.encoder import Encoder, compute_dtype

log = logging.getLogger("fedfuse.compile")


def training_encoder(backbone: Backbone, settings: Settings, device: torch.device) -> Encoder:
    """An encoder for a run's length: what makes it faster is built or compiled first, which takes up to half a minute.

    Raises:
        InputError: the settings ask for torch.compile, and it does not work here.
    """
    compiled = compiles(settings, device)
    kernels = not compiled and uses_kernels(settings, device, backbone.shape)
    dtype = exact_dtype(device, kernels=kernels)
    return Encoder(backbone, settings.model, device=device, dtype=dtype, compiled=compiled, kernels=kernels)


def ready_encoder(backbone: Backbone, model: ModelSettings, device: torch.device) -> Encoder:
    """An encoder for a moment's work: kernels where training has built them here, since building takes longer than that."""
    kernels = _serve(device, backbone.shape) and native.ready()
    return Encoder(backbone, model, device=device, dtype=exact_dtype(device, kernels=kernels), kernels=kernels)


def exact_dtype(device: torch.device, *, kernels: bool) -> torch.dtype:
    """The dtype in which a user's gradient does not depend on who else is in the batch.

    torch's operations in bfloat16 on a processor round a row by the shape of its batch, and an adapter that a coordinator chooses
    makes that large: one user moved a sum by four times their bound. Kernels that work row by row, and float32, do not.
    """
    return compute_dtype(device) if kernels or device.type != "cpu" else torch.float32


def require_compiler(settings: Settings, device: torch.device) -> None:
    """Find out before the slow work whether torch.compile, where the settings ask for it, works here.

    Raises:
        InputError: it does not.
    """
    if settings.training.compile == "on":
        compiles(settings, device)


def compiles(settings: Settings, device: torch.device) -> bool:
    """Whether training uses torch.compile.

    Raises:
        InputError: the settings ask for it, and it does not work here.
    """
    wish = settings.training.compile
    # On a CPU the native kernels are faster, and torch's code is as fast without half a minute of compiling.
    if wish == "off" or (wish == "auto" and device.type != "cuda"):
        return False
    found = compile_obstacle(device)
    if found and wish == "on":
        raise InputError(
            f"torch.compile does not work here: {found}",
            where="training.compile",
            do="install a C++ compiler and give it a folder to write to (TORCHINDUCTOR_CACHE_DIR), or choose 'auto'",
        )
    if found:
        log.warning("training goes without torch.compile and takes longer, for it does not work here: %s", found)
    return not found


def uses_kernels(settings: Settings, device: torch.device, shape: BackboneShape) -> bool:
    """Whether the layers run in the native CPU kernels, which are built on first use."""
    if settings.training.compile == "off" or not _serve(device, shape):
        return False
    found = native.kernel_obstacle()
    if found:
        _say_slower(found)
    return not found


@cache
def _say_slower(obstacle: str) -> None:
    """Once a process: every platform of a simulation and every session would say the same."""
    log.warning("training runs without the native kernels and takes longer: %s", obstacle)


def _serve(device: torch.device, shape: BackboneShape) -> bool:
    return device.type == "cpu" and compute_dtype(device) == torch.bfloat16 and native.serves(shape)
