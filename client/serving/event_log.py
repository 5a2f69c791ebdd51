"""Events that came since the model was fitted: an append-only file, so that a server that is started again has them.

What is kept, in the platform's state folder (mode 0600, deleted with it): user id, item id, whether it is liked, and when it
came, a line of JSON each. Every line is on the disk before the event is answered for. Two files hold `most` events together: when
the newer one has half of them it takes the place of the older one, whose events are forgotten, on the disk and in memory. They
belong into the platform's own sources by then; an event that is in both counts once.

Of several processes of one server each writes in its turn, and reads what the others wrote before it answers.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.base.atomic_files import sync_folder
from shared.base.errors import StorageError
from shared.base.file_lock import locked, try_lock

NEWER, OLDER, LOCK, TURN = "events.jsonl", "events.before.jsonl", "events.lock", "events.turn"
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


@dataclass(frozen=True, kw_only=True)
class News:
    """Events that had not been read.

    Args:
        events: Oldest first.
        anew: Whether these are all that there are, since older ones were forgotten.
    """

    events: Sequence[LoggedEvent] = ()
    anew: bool = False


class EventLog:
    """The files of one platform. Its methods are for one thread at a time.

    Args:
        folder: Of the files; made with mode 0700 if it is not there.
        most: Events that both files hold at most.
        joined: Whether this process belongs to a server of which another one has opened the log. Of two servers only one has it.

    Raises:
        StorageError: another server has it, or it cannot be read or written.
    """

    def __init__(self, folder: Path, *, most: int = MOST_EVENTS, joined: bool = False) -> None:
        self.folder, self._half = folder, max(1, most // 2)
        self.skipped = 0
        self._lock = self._turn = self._file = -1
        # The file that was read, how far, and how many lines.
        self._inode = self._end = self._lines = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not joined:
                self._lock = self._opened(LOCK)
                if not try_lock(self._lock):
                    raise StorageError("another server has these events", where=str(folder), do="stop it; a platform has one")
            self._turn = self._opened(TURN)
            self._file = self._opened(NEWER)
        except OSError as error:
            self.close()
            raise self._trouble(error) from error
        except StorageError:
            self.close()
            raise

    def news(self) -> News:
        """What was not read yet: at the first call, all that there is.

        Raises:
            StorageError: the files cannot be read.
        """
        try:
            if self._goes_on():
                return News(events=list(self._read_on()))
            with locked(self._turn):
                return News(events=self._read_all(), anew=True)
        except OSError as error:
            raise self._trouble(error) from error

    def append(self, events: Sequence[LoggedEvent]) -> News:
        """Write events to the disk.

        Returns:
            What was not read yet, these events at its end.

        Raises:
            StorageError: they cannot be written; none of them counts.
        """
        lines = [json.dumps([one.user, one.item, one.liked, one.time], ensure_ascii=True) + "\n" for one in events]
        try:
            with locked(self._turn):
                anew = not self._goes_on()
                before = self._read_all() if anew else list(self._read_on())
                self._write("".join(lines).encode("ascii"))
                if self._lines + len(lines) < self._half:
                    return News(events=[*before, *self._read_on()], anew=anew)
                (self.folder / NEWER).replace(self.folder / OLDER)
                sync_folder(self.folder)
                return News(events=self._read_all(), anew=True)
        except OSError as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Let another server have it."""
        for file in (self._lock, self._turn, self._file):
            if file >= 0:
                os.close(file)
        self._lock = self._turn = self._file = -1

    def _opened(self, name: str) -> int:
        path = self.folder / name
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        os.fchmod(file, _MODE)
        return file

    def _goes_on(self) -> bool:
        """Whether the newer file is the one that was read.

        Another process may have put it in the place of the older one, or taken back what it could not keep.
        """
        try:
            now = (self.folder / NEWER).stat()
        except FileNotFoundError:
            return False
        return now.st_ino == self._inode and now.st_size >= self._end

    def _read_on(self) -> Iterator[LoggedEvent]:
        """The events behind those that were read. A line that another process is writing waits until it is whole."""
        if os.fstat(self._file).st_size == self._end:
            return
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._end += len(line)
                self._lines += 1
                yield from self._events_of(line)

    def _read_all(self) -> list[LoggedEvent]:
        """The events of both files, in a turn of this process."""
        os.close(self._file)
        self._file = self._opened(NEWER)
        self._inode, self._end, self._lines = os.fstat(self._file).st_ino, 0, 0
        self.skipped = 0
        found: deque[LoggedEvent] = deque(maxlen=2 * self._half)
        if (self.folder / OLDER).exists():
            with (self.folder / OLDER).open("rb") as file:
                for line in file:
                    found.extend(self._events_of(line))
        found.extend(self._read_on())
        if os.fstat(self._file).st_size > self._end:
            # Nobody is writing: a power cut has cut the last line short, and the next one must begin anew.
            self.skipped += 1
            os.ftruncate(self._file, self._end)
        return list(found)

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            # Half a line would take the next one with it.
            os.ftruncate(self._file, size)
            raise

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
            f"events cannot be kept: {error.strerror or error}", where=str(self.folder), do="check space and rights"
        )
