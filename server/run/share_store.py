"""Sealed shares on their way, in files: a coordinator that comes back still has them, and its memory holds none."""

from __future__ import annotations

import struct
from pathlib import Path

from shared.base.errors import StorageError
from shared.secagg.messages import Parcel

_HEAD = struct.Struct("<II")


class MailFolder:
    """`strategies.secure_sum.protocol.Mail` in a folder, one file per receiver.

    Shares are dealt once, before anything depends on them, so a coordinator that stops meanwhile empties the folder and asks
    again. What is torn or lost is as if it had never been dealt.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def empty(self) -> None:
        """Drop everything."""
        for path in self._folder.glob("*.mail"):
            path.unlink(missing_ok=True)

    def put(self, parcel: Parcel, *, receiver: int) -> None:
        """Keep one.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path(receiver).open("ab") as file:
                file.write(_HEAD.pack(parcel.sender, len(parcel.sealed)) + parcel.sealed)
        except OSError as error:
            raise StorageError(
                f"sealed shares cannot be written: {error.strerror or error}",
                where=str(self._folder),
                do="check space and rights",
            ) from error

    def parcels(self, receiver: int) -> tuple[Parcel, ...]:
        """All that are kept for a platform, by sender."""
        try:
            data = self._path(receiver).read_bytes()
        except OSError:
            return ()
        found: dict[int, Parcel] = {}
        at = 0
        while at + _HEAD.size <= len(data):
            sender, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size + size
            if at <= len(data):
                found[sender] = Parcel(sender=sender, sealed=data[at - size : at])
        return tuple(found[sender] for sender in sorted(found))

    def discard(self, receiver: int) -> None:
        """Drop a platform's: they have arrived."""
        self._path(receiver).unlink(missing_ok=True)

    def _path(self, receiver: int) -> Path:
        return self._folder / f"{receiver:05d}.mail"
