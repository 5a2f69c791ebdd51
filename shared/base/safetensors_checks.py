"""Safetensors from elsewhere: the table of contents is bounded before it is parsed.

The format allows 100 MB of it, which become objects many times that size; a model's has a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from shared.base.errors import InputError

MAX_CONTENTS = 1 << 22
"""Bytes of a table of contents."""
MAX_BYTES = 1 << 30
"""Bytes of a file of tensors."""


class Hash(Protocol):
    """A running digest, as `hashlib` makes it."""

    def update(self, data: Any, /) -> None:
        """Take bytes in."""


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors in a file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        InputError: it holds no tensors, or more than this reads.
    """
    with path.open("rb") as file:
        # The beginning first: a file of another kind is not read whole.
        head = file.read(8)
        require_contents(head, where=str(path))
        data = head + file.read(MAX_BYTES + 1 - len(head))
    if len(data) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES} bytes", where=str(path), do="this is no model")
    return parse_tensors(data, where=str(path))


def parse_tensors(data: bytes, *, where: str) -> dict[str, NDArray[Any]]:
    """The tensors in bytes.

    Raises:
        InputError: they hold none, or a table of contents of more than `MAX_CONTENTS`.
    """
    require_contents(data[:8], where=where)
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"holds no tensors ({type(error).__name__})", where=where, do="get the file again") from None


def feed(sha: Hash, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put named arrays into a digest: safetensors has no checksum, and a flipped bit of a weight is still a number."""
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        sha.update(f"|{name}|{value.dtype}|{arrays[name].shape}|".encode())
        sha.update(value.data)


def require_contents(head: bytes, *, where: str) -> None:
    """Check the first eight bytes: the size of the table of contents.

    Raises:
        InputError: it is too large, or there are fewer than eight.
    """
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > MAX_CONTENTS:
        found = f"a table of contents of {size} bytes" if len(head) == 8 else f"{len(head)} bytes"
        raise InputError(f"holds no tensors ({found})", where=where, do="get the file again")
