"""The bank: the vectors of all of a platform's items, which every user's loss is a softmax over.

Catalogues are public and no gradient passes here, so how often the bank is encoded is a matter of time alone. Platforms that
share a process, a catalogue and an adapter (a simulation's) share the bank, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

import numpy as np
from torch import Tensor

from client.fusion.projector import weight_of
from client.towers import Rows, Towers
from client.trunk import Ids
from client.vectors import VectorRows

_KNOWN: WeakValueDictionary[bytes, Tensor] = WeakValueDictionary()


class Bank:
    """Encodes the items of one platform.

    Args:
        towers: The model.
        items: One row per item.
        sequences, vectors: What the rows were made of, to know equal ones by.
    """

    def __init__(self, towers: Towers, items: Rows, sequences: Sequence[Ids], vectors: VectorRows) -> None:
        self._towers, self._items = towers, items
        # A source that no item has is zero whatever its projector, which may be trained, and differ, by platform.
        self._unused = {weight_of(name) for name, present in vectors.present.items() if not present.any()}
        encoder = towers.encoder
        facts = (encoder.backbone.sha256, encoder.cut, encoder.scale, encoder.dtype, encoder.device, type(towers.fusion).__name__)
        sha = hashlib.sha256("|".join(map(str, facts)).encode())
        for ids in sequences:
            sha.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        for name in sorted(vectors.values):
            for array in (vectors.values[name], vectors.present[name]):
                sha.update(f"|{name}|{array.shape}|".encode() + np.ascontiguousarray(array).tobytes())
        self._digest = sha.digest()

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Unit vectors, float32 (items, width); not to be changed, since others may hold the same."""
        sha = hashlib.sha256(self._digest)
        for name in sorted(parameters):
            if name not in self._unused:
                value = parameters[name].detach().cpu().contiguous()
                sha.update(f"|{name}|{tuple(value.shape)}|".encode() + value.numpy().tobytes())
        key = sha.digest()
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = self._towers.encode(self._items, parameters)
        return found
