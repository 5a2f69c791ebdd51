"""The trunk cache: frozen features of token sequences, computed once and memory-mapped.

A cache is keyed by everything that its features depend on (backbone hash, layer cut, dtype); a sequence in it by
the SHA-256 of its token ids. Features are stored without padding, so a short text costs little. The data file is
synced before its index, each index row carries a checksum, and a row that does not verify is computed again.

A trunk cache is a derivative of user rows: it lives in the platform's state folder with mode 0600.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.encoder import Encoder
from shared.errors import StorageError

Ids = NDArray[np.int32]
"""Token ids of one sequence, without padding, int32 (t,)."""

_ROW = np.dtype([("key", "V32"), ("length", "<i4"), ("crc", "<u4")])
_TOKENS_PER_BATCH = 4096


class TrunkCache:
    """Features of sequences under one encoder's frozen layers.

    Args:
        folder: Where the two files live; made if missing.
        encoder: Gives the features of what is not yet cached.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._encoder = encoder
        self._itemsize = torch.empty((), dtype=encoder.dtype).element_size()
        self._width = encoder.hidden
        key = f"{encoder.backbone.sha256}|{encoder.cut}|{encoder.dtype}|{self._width}"
        name = "trunk-" + hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._data_path, self._index_path = folder / f"{name}.bin", folder / f"{name}.idx"
        self._rows: dict[bytes, int] = {}
        self._offsets: list[int] = [0]
        self._flat: Tensor | None = None
        self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, sequences: Sequence[Ids], progress: Callable[[int], None] | None = None) -> NDArray[np.int64]:
        """Row numbers of the sequences, after computing those that are not there yet.

        Args:
            progress: Called with the number of sequences just done.

        Raises:
            StorageError: the cache cannot be written (disk full); what was there before stays whole.
        """
        keys = [hashlib.sha256(ids.tobytes()).digest() for ids in sequences]
        missing: dict[bytes, Ids] = {k: ids for k, ids in zip(keys, sequences, strict=True) if k not in self._rows}
        if progress:
            progress(len(sequences) - len(missing))
        self._compute(missing, progress)
        return np.fromiter((self._rows[k] for k in keys), np.int64, len(keys))

    def gather(self, rows: NDArray[np.int64], *, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Features and mask of rows, padded to the longest of them (or to `length`).

        Returns:
            (n, t, hidden) on the encoder's device, bool (n, t).
        """
        device = self._encoder.device
        if self._flat is None or len(rows) == 0:
            t = length or 1
            return torch.zeros(0, t, self._width, dtype=self._encoder.dtype, device=device), torch.zeros(
                0, t, dtype=torch.bool, device=device
            )
        offsets = np.asarray(self._offsets)
        start, lengths = torch.from_numpy(offsets[rows]), torch.from_numpy(offsets[rows + 1] - offsets[rows])
        span = torch.arange(length or int(lengths.max()))
        mask = span < lengths[:, None]
        where = (start[:, None] + span).clamp(max=self._flat.shape[0] - 1)
        hidden = self._flat[where] * mask.unsqueeze(-1)
        return hidden.to(device), mask.to(device)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row, int64 (n,)."""
        offsets = np.asarray(self._offsets, np.int64)
        return offsets[rows + 1] - offsets[rows]

    def _open(self) -> None:
        if not (self._data_path.exists() and self._index_path.exists()):
            return
        raw = self._index_path.read_bytes()
        index = np.frombuffer(raw[: len(raw) // _ROW.itemsize * _ROW.itemsize], _ROW)
        data = np.memmap(self._data_path, np.uint8, "r") if self._data_path.stat().st_size else np.empty(0, np.uint8)
        for number, row in enumerate(index):
            begin = self._offsets[-1] * self._width * self._itemsize
            end = begin + int(row["length"]) * self._width * self._itemsize
            if row["length"] <= 0 or end > len(data) or zlib.crc32(data[begin:end].data) != row["crc"]:
                break  # stale or damaged from here on: forget it, it is computed again
            self._rows[bytes(row["key"])] = number
            self._offsets.append(self._offsets[-1] + int(row["length"]))
        del data
        self._trim()
        self._map()

    def _trim(self) -> None:
        """Cut both files to what this object knows."""
        os.truncate(self._index_path, len(self._rows) * _ROW.itemsize)
        os.truncate(self._data_path, self._offsets[-1] * self._width * self._itemsize)

    def _map(self) -> None:
        if self._offsets[-1]:
            # Copy-on-write mode: torch wants a writable array, and nothing ever writes through it.
            kind = np.int16 if self._itemsize == 2 else np.int32
            flat = np.memmap(self._data_path, kind, "c", shape=(self._offsets[-1], self._width))
            self._flat = torch.from_numpy(flat).view(self._encoder.dtype)

    def _compute(self, missing: dict[bytes, Ids], progress: Callable[[int], None] | None) -> None:
        order = sorted(missing, key=lambda k: len(missing[k]))
        at = 0
        try:
            with _private(self._data_path) as data, _private(self._index_path) as index:
                while at < len(order):
                    # Sorted by length, so the first sequence of a batch is its shortest and padding stays small.
                    count = max(1, _TOKENS_PER_BATCH // len(missing[order[min(at + 63, len(order) - 1)]]))
                    keys = order[at : at + count]
                    rows = np.empty(len(keys), _ROW)
                    for slot, (key, features) in enumerate(zip(keys, self._features([missing[k] for k in keys]), strict=True)):
                        data.write(features)
                        rows[slot] = (key, len(missing[key]), zlib.crc32(features))
                    data.flush()
                    index.write(rows.tobytes())
                    at += len(keys)
                    if progress:
                        progress(len(keys))
                data.flush()
                os.fsync(data.fileno())
                index.flush()
                os.fsync(index.fileno())
        except OSError as error:
            self._trim()  # what was half written would shift everything after it
            raise StorageError(
                f"the trunk cache cannot be written ({error.strerror})", where=str(self._data_path), do="free disk space"
            ) from None
        for key in order:
            self._rows[key] = len(self._offsets) - 1
            self._offsets.append(self._offsets[-1] + len(missing[key]))
        self._map()

    def _features(self, sequences: Sequence[Ids]) -> list[bytes]:
        longest = max(len(ids) for ids in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
        mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            mask[row, : len(sequence)] = True
        device = self._encoder.device
        hidden = self._encoder.trunk(ids.to(device), mask.to(device)).cpu()
        raw = hidden.view(torch.int16 if self._itemsize == 2 else torch.int32).numpy()
        return [raw[row, : len(sequence)].tobytes() for row, sequence in enumerate(sequences)]


def _private(path: Path):  # type: ignore[no-untyped-def]
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
