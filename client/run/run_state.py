"""What a platform remembers of a run between messages, on its own disk: a message may find a new process.

One safetensors file per run, written whole or not at all: the released prior, the platform-local parameters, the
optimizer's moments, and what was answered, so that a repeated question gets the same answer and no second charge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from client.evaluation.answered_evaluations import Evaluated
from client.privacy.answer_stamp import AnswerStamp
from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, StorageError
from shared.preferences.sum_kind import SumKind
from shared.protocol.quality import Quality

_VERSION = "4"
_GROUPS = ("local", "moments", "change", "bank", "personal", "preferred")
_PRIOR = "prior/log"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PersonalChoice:
    """How personalising ended.

    Args:
        own: Whether the platform goes on with a model of its own.
    """

    own: bool
    stamp: AnswerStamp


@dataclass(frozen=True, kw_only=True)
class PreferenceAnswer:
    """The last sum of preferences that was answered.

    Args:
        question: Digest of what was asked (`client/privacy/charged_question.py`).
        of: What was summed.
    """

    question: str
    of: SumKind
    stamp: AnswerStamp


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A platform's state in one run.

    Args:
        settings: Digest of the settings that the run began with.
        finished: Last round that was answered; 0 before the first.
        answered: The stamp of that round's answer.
        clip: Clipping bound of the next step; None before the first.
        prior: Released log popularity, float32 (items,); None before it was released.
        local: Parameters that stay on the platform.
        moments: The optimizer's.
        change: What the last round's answer said; empty under the secure sum, which keeps its own.
        bank: What the items' vectors were encoded with (`client/model/item_bank.py`).
        evaluations: Noised evaluations, by `evaluation_key`.
        personal: The platform's own adapter, flattened; empty before it was trained.
        choice: Whether that is used; None before it was decided.
        preferences: The last sum of preferences that was answered; None before the first.
        preferred: What it said, until the first round of training; empty under the secure sum, which keeps its own.
    """

    settings: str
    finished: int = 0
    answered: AnswerStamp | None = None
    clip: float | None = None
    prior: Tensor | None = None
    local: Tensors = field(default_factory=dict)
    moments: Tensors = field(default_factory=dict)
    change: Tensors = field(default_factory=dict)
    bank: Tensors = field(default_factory=dict)
    evaluations: Mapping[str, Evaluated] = field(default_factory=dict)
    personal: Tensors = field(default_factory=dict)
    choice: PersonalChoice | None = None
    preferences: PreferenceAnswer | None = None
    preferred: Tensors = field(default_factory=dict)


def save_run_state(path: Path, state: RunState) -> None:
    """Write the state atomically, readable by its owner alone.

    Raises:
        StorageError: it cannot be written; the previous state stays.
    """
    flat = {} if state.prior is None else {_PRIOR: state.prior}
    flat |= {f"{group}/{name}": value for group in _GROUPS for name, value in getattr(state, group).items()}
    # Copied: safetensors refuses tensors that share their memory.
    flat = {name: value.detach().to("cpu", torch.float32, copy=True).contiguous() for name, value in flat.items()}
    header = {"version": _VERSION, "state": json.dumps(_scalars(state), sort_keys=True)}
    header["sha256"] = _digest(header, flat)
    write_whole(path, save(flat, metadata=header), mode=0o600)


def load_run_state(path: Path) -> RunState | None:
    """The state in a file, or None where there is none.

    Raises:
        StorageError: the file is damaged, or of another version.
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
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
        prior = flat.pop(_PRIOR, None)
        for key, value in flat.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        return _restored(json.loads(header["state"]), prior, groups)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, FedfuseError) as error:
        raise StorageError(
            f"the platform's run state is damaged ({error})",
            where=str(path),
            do="remove the file; the run's charges stay in the ledger",
        ) from None


def _scalars(state: RunState) -> dict[str, Any]:
    return {
        "settings": state.settings,
        "finished": state.finished,
        "answered": None if state.answered is None else asdict(state.answered),
        "clip": state.clip,
        "choice": None if state.choice is None else asdict(state.choice),
        "preferences": None if state.preferences is None else asdict(state.preferences),
        "evaluations": {
            key: {"model": one.model, "quality": one.quality.means, "stamp": asdict(one.stamp)}
            for key, one in state.evaluations.items()
        },
    }


def _restored(scalars: dict[str, Any], prior: Tensor | None, groups: Mapping[str, Tensors]) -> RunState:
    answered, choice, preferences = (scalars.pop(name) for name in ("answered", "choice", "preferences"))
    return RunState(
        settings=scalars["settings"],
        finished=scalars["finished"],
        clip=scalars["clip"],
        answered=None if answered is None else AnswerStamp(**answered),
        choice=None if choice is None else PersonalChoice(own=choice["own"], stamp=AnswerStamp(**choice["stamp"])),
        preferences=None if preferences is None else _preferences(preferences),
        evaluations={
            key: Evaluated(model=one["model"], quality=Quality(one["quality"]), stamp=AnswerStamp(**one["stamp"]))
            for key, one in scalars["evaluations"].items()
        },
        prior=prior,
        **groups,
    )


def _preferences(values: dict[str, Any]) -> PreferenceAnswer:
    return PreferenceAnswer(question=values["question"], of=SumKind(values["of"]), stamp=AnswerStamp(**values["stamp"]))


def _digest(header: Mapping[str, str], tensors: Tensors) -> str:
    """SHA-256 of all that the file says; safetensors has no checksum of its own."""
    sha = hashlib.sha256(json.dumps({key: header[key] for key in sorted(header) if key != "sha256"}).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
    return sha.hexdigest()
