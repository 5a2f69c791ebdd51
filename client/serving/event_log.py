"""Events that came since the model was fitted: an append-only file, so that a server that is started again has them.

What is kept, in the platform's state folder (mode 0600, deleted with it): user id, item id, whether it is liked, and when it
came, a line of JSON each. Every line is on the disk before the event is answered for. Two files hold `most` events together: when
the newer one has half of them it takes the place of the older one, whose events are forgotten, on the disk and in memory. They
belong into the platform's own sources by then; an event that is in both counts once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.base.atomic_files import sync_folder
from shared.base.errors import StorageError
from shared.base.file_lock import try_lock

NEWER, OLDER, LOCK = "events.jsonl", "events.before.jsonl", "events.lock"
MOST_EVENTS = 200_000
_LONGEST_LINE = 4096
_MODE = 0o600


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """Somebody met an item.

    Args:
        user, item: Ids, as the platform spells them.
        time: Seconds since 1970 at which it was received.
    """

    user: str
    item: str
    liked: bool
    time: int


class EventLog:
    """The file of one platform; of two servers only one has it. Its methods are for one thread at a time.

    Args:
        folder: Of the files; made with mode 0700 if it is not there.
        most: Events that both files hold at most.

    Raises:
        StorageError: another server has it, or it cannot be read or written.
    """

    def __init__(self, folder: Path, *, most: int = MOST_EVENTS) -> None:
        self._folder, self._half = folder, max(1, most // 2)
        self.skipped = 0
        self._open = True
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
            if not try_lock(self._lock):
                os.close(self._lock)
                raise StorageError("another server has these events", where=str(folder), do="stop it; a platform has one")
            self.older = self._read(folder / OLDER)
            self.newer = self._read(folder / NEWER, mend=True)
            self._file = self._opened()
        except OSError as error:
            raise self._trouble(error) from error

    def append(self, events: Sequence[LoggedEvent]) -> bool:
        """Write events to the disk, and remember them.

        Returns:
            Whether older events were forgotten.

        Raises:
            StorageError: they cannot be written; none of them counts.
        """
        lines = [json.dumps([one.user, one.item, one.liked, one.time], ensure_ascii=True) + "\n" for one in events]
        data = "".join(lines).encode("ascii")
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(28, os.strerror(28))
            os.fsync(self._file)
        except OSError as error:
            # Half a line would take the next one with it.
            os.ftruncate(self._file, size)
            raise self._trouble(error) from error
        self.newer += events
        if len(self.newer) < self._half:
            return False
        try:
            (self._folder / NEWER).replace(self._folder / OLDER)
            sync_folder(self._folder)
            os.close(self._file)
            self._file = self._opened()
        except OSError as error:
            raise self._trouble(error) from error
        forgets = bool(self.older)
        self.older, self.newer = self.newer, []
        return forgets

    def close(self) -> None:
        """Let another server have it."""
        if self._open:
            self._open = False
            os.close(self._file)
            os.close(self._lock)

    def _opened(self) -> int:
        path = self._folder / NEWER
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        os.fchmod(file, _MODE)
        return file

    def _read(self, path: Path, *, mend: bool = False) -> list[LoggedEvent]:
        """The events of a file; lines that are none are counted and left out.

        Args:
            mend: Whether a last line that a power cut has cut short is taken off, so that the next one begins anew.
        """
        found: list[LoggedEvent] = []
        if not path.exists():
            return found
        end = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self.skipped += 1
                    break
                end += len(line)
                found += self._events_of(line)
        if mend and end < path.stat().st_size:
            os.truncate(path, end)
        return found[-2 * self._half :]

    def _events_of(self, line: bytes) -> Iterator[LoggedEvent]:
        try:
            if len(line) > _LONGEST_LINE:
                raise ValueError("longer than any that was written")
            user, item, liked, time = json.loads(line)
            if not (isinstance(user, str) and isinstance(item, str) and isinstance(liked, bool) and isinstance(time, int)):
                raise ValueError(line)
        except (ValueError, TypeError, RecursionError):
            self.skipped += 1
            return
        yield LoggedEvent(user=user, item=item, liked=liked, time=time)

    def _trouble(self, error: OSError) -> StorageError:
        return StorageError(
            f"events cannot be kept: {error.strerror or error}", where=str(self._folder), do="check space and rights"
        )
