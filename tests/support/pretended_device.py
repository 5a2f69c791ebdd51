"""A device that is none: tensors on it refuse company as those of a GPU do, and are computed on the processor.

What a GPU would refuse, such as a mask left on the processor, is refused here too, and the code for other devices than a
processor runs. What this cannot show is a GPU's own arithmetic, its speed, and what compiled code does on it.

torch takes a new device only before the first backward pass of a process, so whoever uses it has a process of their own
(`tests/on_a_device.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Self

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_ATEN = torch.ops.aten
_ACROSS = {
    # A GPU, too, copies from anywhere and takes indices from the processor.
    _ATEN.copy_.default,
    _ATEN._to_copy.default,
    _ATEN.index.Tensor,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}


@cache
def device() -> torch.device:
    """The device, which torch knows from the first call on."""
    _setup_privateuseone_for_python_backend(rename=NAME)
    library = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    library.fallback(_fallback, "PrivateUse1")  # type: ignore[no-untyped-call]
    # torch makes these by growing an empty tensor, which a wrapper would not notice.
    makers = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for maker in (_ATEN.arange.default, _ATEN.arange.start, _ATEN.arange.start_step):
        makers.impl(maker, partial(_fallback, maker), "PrivateUse1")  # type: ignore[no-untyped-call]
    _kept.extend([library, makers])
    return torch.device(NAME, 0)


FORBIDDEN: set[torch.dtype] = set()
"""Dtypes that the device does not have from now on."""
_kept: list[object] = []
"""A library's kernels go with it."""


class PretendedTensor(torch.Tensor):
    """A tensor on the device; `held` is where its values really are."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=device()
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held!r} on {self.device}"

    def tolist(self) -> Any:
        """As the tensor of a device gives it; of a subclass torch refuses it."""
        return self.held.tolist()


def _fallback(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(operation, args, kwargs)


def _run(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [isinstance(tensor, PretendedTensor) for tensor in tensors]
    # A number may come from the processor.
    strangers = [tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, PretendedTensor)]
    if any(there) and strangers and operation not in _ACROSS:
        raise RuntimeError(f"Expected all tensors to be on the same device: {operation} got some of the processor's")
    stays = any(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held_args, held_kwargs = tree_map_only(PretendedTensor, lambda tensor: tensor.held, (args, kwargs))
    found = operation(*held_args, **held_kwargs)
    if stays and FORBIDDEN & {leaf.dtype for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)}:
        raise TypeError(f"the device does not have that dtype: {operation}")
    if stays:
        found = tree_map_only(torch.Tensor, PretendedTensor, found)
    if not any(there):
        return found
    return return_and_correct_aliasing(operation, args, kwargs, found)  # type: ignore[no-untyped-call]
