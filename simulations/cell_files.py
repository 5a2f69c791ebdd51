"""Files of what a benchmark measured at once: the facts of a cell, and arrays in two levels; each file is written whole."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base.atomic_files import write_whole

_FACTS = "cell"


def write_cell(path: Path, facts: Mapping[str, Any], parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Write it, whole or not at all.

    Args:
        facts: What was measured, as JSON has it.
        parts: Part -> name -> array; the name of a part holds no slash.
    """
    arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{_FACTS: np.array(json.dumps(facts))}, **arrays)
    write_whole(path, content.getvalue())


def read_cell(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[Any]]]]:
    """Facts and parts, as `write_cell` takes them."""
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    with np.load(path) as data:
        for key in data.files:
            part, slash, name = key.partition("/")
            if slash:
                parts.setdefault(part, {})[name] = data[key]
        return json.loads(str(data[_FACTS])), parts
