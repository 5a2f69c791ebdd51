"""What a platform remembers of a run between messages, on its own disk: a message may find a new process.

One safetensors file per run, written whole or not at all: the released prior, the platform-local parameters, the
optimizer's moments, and the answer to the last finished round, so that a repeated question gets the same
answer and no second charge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shared.base.atomic_files import write_whole
from shared.base.errors import StorageError

_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A platform's state in one run.

    Args:
        settings: Digest of the settings that the run began with.
        finished: Last round that was answered; 0 before the first.
        facts: Scalars of the last answer.
        tensors: Tensors by group: "prior", "local", "moments", "change", "clip", "bank".
    """

    settings: str
    finished: int = 0
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def save_memory(path: Path, memory: Memory) -> None:
    """Write the state atomically, readable by its owner alone.

    Raises:
        StorageError: it cannot be written; the previous state stays.
    """
    # Copied: safetensors refuses tensors that share their memory.
    flat = {
        f"{group}/{name}": value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for group, tensors in memory.tensors.items()
        for name, value in tensors.items()
    }
    header = {
        "version": _VERSION,
        "settings": memory.settings,
        "finished": str(memory.finished),
        "facts": json.dumps(dict(memory.facts)),
    }
    header["sha256"] = _digest(header, flat)
    write_whole(path, save(flat, metadata=header), mode=0o600)


def load_memory(path: Path) -> Memory | None:
    """The state in a file, or None where there is none.

    Raises:
        StorageError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']}")
        if header["sha256"] != _digest(header, flat):
            raise ValueError("its checksum differs")
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in flat.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        return Memory(
            settings=header["settings"], finished=int(header["finished"]), facts=json.loads(header["facts"]), tensors=groups
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the platform's run state is damaged ({error})",
            where=str(path),
            do="remove the file; the run's charges stay in the ledger",
        ) from None


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that the file says; safetensors has no checksum of its own."""
    sha = hashlib.sha256(json.dumps({key: header[key] for key in sorted(header) if key != "sha256"}).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    return sha.hexdigest()
