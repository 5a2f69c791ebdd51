"""To a device without waiting for it.

A plain copy to a GPU returns when the GPU has done all that it was given before, so that it idles while the next step is
prepared. From ordinary memory CUDA has taken the bytes away by the time the call returns, either way, so nothing that happens
to them later can matter (CUDA Runtime API, "API synchronization behavior"). Apple's GPUs may still read them, and are waited for.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The values on a device, or the tensor itself if it is there."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and device.type != "mps")
