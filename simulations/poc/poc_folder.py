"""A proof of concept's folder: whether it is one, how far it came, and who works on it at the moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, InputError, shell_word
from shared.base.file_lock import lock_within, try_lock

RECORD, LOCK = "poc.json", ".lock"
FORMAT = 1
USUAL = Path("poc")


@dataclass(frozen=True)
class PocFolder:
    """A folder that `fedfuse poc` makes.

    Args:
        root: Absolute.
        shown: As a person named it, for commands to be copied.
    """

    root: Path
    shown: Path

    @classmethod
    def at(cls, folder: Path) -> PocFolder:
        """The one that a person names."""
        return cls(root=folder.absolute(), shown=folder)

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    @property
    def model(self) -> Path:
        """The model that was pulled."""
        return self.root / "model"

    @property
    def option(self) -> str:
        """The option that names it to a command of `fedfuse poc`, with a space before; nothing where it is the usual folder."""
        return "" if self.shown == USUAL else f" --dir {shell_word(self.shown)}"

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return (self.root / RECORD).is_file()

    @property
    def complete(self) -> bool:
        """Whether its federation was made and run to the end.

        Raises:
            InputError: its record is damaged.
        """
        return bool(self.record()["complete"])

    def record(self) -> dict[str, object]:
        """What is written down of it: complete, root, user.

        Raises:
            InputError: the folder is no proof of concept's, or its record is damaged.
        """
        try:
            values = json.loads((self.root / RECORD).read_text(encoding="utf-8"))
            if values["format"] != FORMAT or not isinstance(values["complete"], bool):
                raise ValueError
            return dict(values)
        except FileNotFoundError:
            raise InputError("no federation was started here", where=str(self.shown), do="start one: fedfuse poc") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError("its record is damaged", where=str(self.root / RECORD), do="remove the folder") from None

    def require_unmoved(self) -> None:
        """Check that the folder lies where its federation was made.

        Raises:
            InputError: it was moved or renamed, and the files in it name tables, keys and the registry by where they were.
        """
        made = self.record().get("root")
        if isinstance(made, str) and made != str(self.root.resolve()):
            raise InputError(
                f"was made as {made}, and its files name tables, keys and the registry there",
                where=str(self.shown),
                do=f"move it back: mv {shell_word(self.root)} {shell_word(made)}; or start another one with --dir",
            )

    def write(self, *, complete: bool, **facts: object) -> None:
        """Write the record."""
        values = {"format": FORMAT, "complete": complete, "root": str(self.root.resolve()), **facts}
        write_whole(self.root / RECORD, (json.dumps(values, indent=1) + "\n").encode(), mode=0o600)

    def begin(self) -> None:
        """Make the folder (0700), or empty one whose start was interrupted.

        Raises:
            InputError: it holds other things.
        """
        if self.root.exists() and not self.exists and any(entry.name != LOCK for entry in self.root.iterdir()):
            raise InputError(
                "is not empty, and no proof of concept's", where=str(self.shown), do="name another folder with --dir"
            )
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)
        if self.exists:
            self.write(complete=False)  # should the removal be interrupted, it is continued
            for entry in self.root.iterdir():
                if entry.name not in (LOCK, RECORD):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.write(complete=False)

    @contextmanager
    def alone(self, *, wait: float = 0.0) -> Iterator[None]:
        """Hold the folder, so that no other `fedfuse poc` works on it; the lock goes with the process.

        Raises:
            InputError: another one does.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not lock_within(handle, wait):
                raise InputError(
                    f"process {_holder(handle)} is working on this federation",
                    where=str(self.shown),
                    do=f"wait until it is done, or: fedfuse poc stop{self.option}",
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def holder(self) -> int | None:
        """The process that works on the folder at the moment."""
        try:
            handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return None if try_lock(handle) else _holder(handle)
        finally:
            os.close(handle)


def _holder(handle: int) -> int:
    try:
        return int(os.pread(handle, 20, 0))
    except ValueError:
        raise FedfuseError("another process has just begun to work on this federation", do="try again") from None
