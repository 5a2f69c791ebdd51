"""What left, as one digest that the platform and the coordinator compute alike: the platform before, the coordinator after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.protocol.messages import Metrics, Personalised, Preferred, Released, Summed, Update


def is_release(answer: Released) -> bool:
    """Whether the answer is a release; exact metrics of a simulation are none."""
    return not (isinstance(answer, Metrics) and answer.exact)


def release_digest(answer: Released) -> str:
    """SHA-256, in hex, of what an answer releases: its kind, run and round, and all in it that was made from rows.

    What the platform says of itself (users, epsilon, ledger, timing) is not in it: the ledger's own line is named after it.
    """
    if isinstance(answer, Update):
        content = _arrays(answer.change)
    elif isinstance(answer, Preferred):
        content = _arrays(answer.sums)
    elif isinstance(answer, Summed):
        content = answer.body
    elif isinstance(answer, Metrics):
        content = json.dumps([str(answer.label), answer.quality.means], sort_keys=True).encode()
    elif isinstance(answer, Personalised):
        content = b"\1" if answer.chosen else b"\0"
    else:
        raise TypeError(f"{type(answer).__name__} is no release")
    return content_digest(answer.kind, answer.run, answer.round, content)


def content_digest(kind: str, run: str, round_: int, content: bytes) -> str:
    """SHA-256, in hex, of a release by its parts, each with its length."""
    sha = hashlib.sha256(b"fedfuse release 1")
    for part in (kind.encode(), run.encode(), str(round_).encode(), content):
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()


def _arrays(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], dtype="<f4")
        head = json.dumps([name, list(array.shape)]).encode()
        sha.update(len(head).to_bytes(8, "little") + head + array.tobytes())
    return sha.digest()
