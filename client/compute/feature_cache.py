"""The trunk cache: frozen features of token sequences, computed once and memory-mapped.

A cache is keyed by everything that its features depend on (backbone hash, layer cut, dtype); a sequence in it by
the SHA-256 of its token ids. Features are stored without padding, in 16 bits, so a short text costs little. The data file is
synced before its index, each index row carries a checksum, and a row that does not verify is computed again. A lock
keeps processes of one platform apart (`fedfuse recommend` beside a worker): what another one added is read, never
overwritten.

The folder keeps so many bytes from one run to the next. What a run reads now and again is given in memory, and is kept only up
to twice as many: users of a step are drawn by chance, so whatever is kept serves as well as anything else.

A trunk cache is a derivative of user rows: it is in the platform's state folder with mode 0600.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.batching import LENGTH_STEP, Passes, fixed_shapes, length_step
from client.compute.cache_eviction import MOST_BYTES, InUse, drop_oldest, drop_others
from client.compute.resident_features import Features
from shared.base.errors import StorageError
from shared.model.encoder import Encoder

log = logging.getLogger("fedfuse.memory")
Ids = NDArray[np.int32]
"""Token ids of one sequence, without padding, int32 (t,)."""

_ROW = np.dtype([("key", "V32"), ("length", "<i4"), ("crc", "<u4")])


class TrunkCache:
    """Features of sequences under one encoder's frozen layers.

    Args:
        folder: Of the two files; made if missing.
        encoder: Gives the features of what is not yet cached.
        most: Bytes that the folder's caches may keep from one run to the next (`client/compute/cache_eviction.py`); `read` keeps
            nothing more where there are twice as many.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: Path, encoder: Encoder, *, most: int = MOST_BYTES) -> None:
        self._encoder, self._most = encoder, most
        # A processor computes a token's products alike in passes of any number of rows, a GPU need not.
        self._passes = Passes(encoder.device.type, apart=fixed_shapes(encoder.device.type))
        # An encoder in float32 keeps float16: 11 bits of a feature where bfloat16 has 8.
        self._stored = torch.bfloat16 if encoder.dtype == torch.bfloat16 else torch.float16
        self._itemsize = self._stored.itemsize
        self._width = encoder.hidden
        backbone = encoder.backbone
        # The same weights under another number of heads or another epsilon, or through other kernels, give other features.
        parts = (
            backbone.sha256,
            encoder.cut,
            encoder.dtype,
            encoder.kernels,
            encoder.compiled,
            backbone.shape,
            backbone.layer_norm_eps,
        )
        name = "trunk-" + hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
        self._data_path, self._index_path = folder / f"{name}.bin", folder / f"{name}.idx"
        self._rows: dict[bytes, int] = {}
        self._offsets: list[int] = [0]
        self._features = self._mapped()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            drop_others(folder, name, most=most)
            self._use = InUse(folder / f"{name}.use")
            with self._alone():
                if self._use.alone():
                    drop_oldest(self._data_path, self._index_path, _ROW, self._bytes_of, most=most)
            with self._alone():
                self._read()
        except OSError as error:
            raise self._refused(error) from None

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
        if missing:
            try:
                with self._alone():
                    self._catch_up()
                    missing = {k: ids for k, ids in missing.items() if k not in self._rows}
                    if progress:
                        progress(len(sequences) - len(missing))
                    self._compute(missing, progress)
            except OSError as error:
                raise self._refused(error) from None
        elif progress:
            progress(len(sequences))
        return np.fromiter((self._rows[k] for k in keys), np.int64, len(keys))

    def read(self, sequences: Sequence[Ids]) -> Features:
        """Features of the sequences in memory, one row each.

        Those that are not there yet are computed, and kept where there is room. A disk that is full or broken is told to the
        operator and changes nothing else: whose texts were kept must not decide who takes part.
        """
        keys = [hashlib.sha256(ids.tobytes()).digest() for ids in sequences]
        missing = {key: ids for key, ids in zip(keys, sequences, strict=True) if key not in self._rows}
        computed = dict(pair for found in self._encodings(missing) for pair in found)
        lengths = np.fromiter((len(ids) for ids in sequences), np.int64, len(sequences))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = np.empty((int(ends[-1]), self._width), np.int16)
        for at, key in enumerate(keys):
            features = computed.get(key)
            part = flat[ends[at] : ends[at + 1]]
            part[:] = self._kept(self._rows[key]) if features is None else np.frombuffer(features, np.int16).reshape(part.shape)
        self._release()
        self._keep(computed, missing)
        return Features(torch.from_numpy(flat).view(self._stored), ends, self._encoder.device, self._encoder.dtype)

    def gather(self, rows: NDArray[np.int64], *, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Features and mask of rows, padded to the longest of them (or to `length`).

        Returns:
            (n, t, hidden) on the encoder's device, bool (n, t).
        """
        return self._features.gather(rows, length=length or max(1, int(self.lengths(rows).max(initial=0))))

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row, int64, of the shape of `rows`."""
        return self._features.lengths(rows)

    def _read(self) -> None:
        raw = self._index_path.read_bytes() if self._index_path.exists() else b""
        index = np.frombuffer(raw[: len(raw) // _ROW.itemsize * _ROW.itemsize], _ROW)
        # Through a buffer, not a map: pages of the whole file would count as this process's memory.
        with self._data_path.open("rb", buffering=1 << 20) as data:
            for number, row in enumerate(index):
                size = self._bytes_of(max(0, int(row["length"])))
                features = data.read(size)
                if not size or len(features) < size or zlib.crc32(features) != row["crc"]:
                    break  # stale or damaged from here on: forget it, it is computed again
                self._rows[bytes(row["key"])] = number
                self._offsets.append(self._offsets[-1] + int(row["length"]))
        self._trim()
        self._features = self._mapped()

    def _catch_up(self) -> None:
        """Read what another process added since; rows that were handed out keep their numbers."""
        found = tuple(path.stat().st_size if path.exists() else 0 for path in (self._data_path, self._index_path))
        if self._sizes() == found:
            return
        before = self._rows, self._offsets, self._features
        self._rows, self._offsets = {}, [0]
        self._read()
        if any(self._rows.get(key) != row for key, row in before[0].items()):
            self._rows, self._offsets, self._features = before
            raise OSError(errno.ESTALE, "another process removed or replaced it")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out; the lock dies with its process."""
        descriptor = os.open(self._data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _bytes_of(self, tokens: int) -> int:
        return tokens * self._width * self._itemsize

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the data and of the index that this object knows."""
        return self._bytes_of(self._offsets[-1]), (len(self._offsets) - 1) * _ROW.itemsize

    def _trim(self) -> None:
        """Cut both files to what this object knows."""
        for path, size in zip((self._data_path, self._index_path), self._sizes(), strict=True):
            with _private(path) as file:
                file.truncate(size)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"the trunk cache cannot be used ({error.strerror or error})",
            where=str(self._data_path),
            do="free disk space and check rights; the cache may be deleted, it is computed again",
        )

    def _mapped(self) -> Features:
        tokens = self._offsets[-1]
        # Copy-on-write mode: torch wants a writable array, and nothing ever writes through it.
        shape = (tokens, self._width)
        flat = np.memmap(self._data_path, np.int16, "c", shape=shape) if tokens else np.empty(shape, np.int16)
        self._flat, ends = flat, np.asarray(self._offsets, np.int64)
        return Features(torch.from_numpy(flat).view(self._stored), ends, self._encoder.device, self._encoder.dtype)

    def _kept(self, row: int) -> NDArray[np.int16]:
        """A row as it lies in the file, int16 (tokens, width)."""
        return self._flat[self._offsets[row] : self._offsets[row + 1]]

    def _release(self) -> None:
        """Let the system take back the pages that were read; they are read again where they are asked for again."""
        pages = getattr(self._flat, "_mmap", None)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def _encodings(self, missing: dict[bytes, Ids]) -> Iterator[list[tuple[bytes, bytes]]]:
        """Keys and features of sequences, a pass at a time."""
        order = sorted(missing, key=lambda k: len(missing[k]))
        # Never so few tokens that what is computed depends on how many (`client.compute.batching.LENGTH_STEP`).
        lengths = np.maximum(np.asarray([len(missing[key]) for key in order], np.int64), LENGTH_STEP)
        if fixed_shapes(self._encoder.device.type):
            step = length_step(self._encoder.device.type)
            lengths = -(-lengths // step) * step

        def computed(part: slice, size: int) -> list[tuple[bytes, bytes]]:
            keys = order[part]
            longest = int(lengths[part.stop - 1])
            return list(zip(keys, self._encoded([missing[key] for key in keys], size, longest), strict=True))

        return self._passes.run(lengths, computed)

    def _compute(self, missing: dict[bytes, Ids], progress: Callable[[int], None] | None) -> None:
        self._append(self._encodings(missing), missing, progress)

    def _keep(self, computed: dict[bytes, bytes], sequences: dict[bytes, Ids]) -> None:
        """Add what was computed to the files, up to twice `most`."""
        room = 2 * self._most - self._bytes_of(self._offsets[-1])
        if not computed or sum(map(len, computed.values())) > room:
            return
        try:
            with self._alone():
                self._catch_up()
                self._append([[pair for pair in computed.items() if pair[0] not in self._rows]], sequences)
        except OSError as error:
            log.warning("%s; training goes on, and computes again what it cannot keep", self._refused(error))

    def _append(
        self,
        encodings: Iterable[list[tuple[bytes, bytes]]],
        sequences: dict[bytes, Ids],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        added: list[bytes] = []
        try:
            with _private(self._data_path) as data, _private(self._index_path) as index:
                for found in encodings:
                    rows = np.empty(len(found), _ROW)
                    for slot, (key, features) in enumerate(found):
                        data.write(features)
                        rows[slot] = (key, len(sequences[key]), zlib.crc32(features))
                        added.append(key)
                    data.flush()
                    index.write(rows.tobytes())
                    if progress:
                        progress(len(found))
                os.fsync(data.fileno())
                index.flush()
                os.fsync(index.fileno())
        except BaseException:
            # Not only a full disk: an interrupt or a GPU without memory, too, would leave half a batch here, and what this
            # object appended next would be found in the wrong place.
            self._trim()
            raise
        for key in added:
            self._rows[key] = len(self._offsets) - 1
            self._offsets.append(self._offsets[-1] + len(sequences[key]))
        self._features = self._mapped()

    def _encoded(self, sequences: Sequence[Ids], size: int, longest: int) -> list[bytes]:
        ids = torch.zeros(size, longest, dtype=torch.int64)
        mask = torch.zeros(size, longest, dtype=torch.bool)
        mask[len(sequences) :, 0] = True  # what fills the pass up attends to something
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            mask[row, : len(sequence)] = True
        device = self._encoder.device
        hidden = self._encoder.trunk(ids.to(device), mask.to(device)).cpu()
        reach = torch.finfo(self._stored).max
        raw = hidden.clamp(-reach, reach).to(self._stored).view(torch.int16).numpy()
        return [raw[row, : len(sequence)].tobytes() for row, sequence in enumerate(sequences)]


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
