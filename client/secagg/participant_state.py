"""The file of a platform's part in one secure sum: its phase, with the keys of the rounds to come; 0600."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from client.secagg.enrolment import Dealing, Enrolled
from client.secagg.participant import Active
from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import ProtocolError, StorageError
from shared.secagg.codec import VERSION, decode, encode, version_of

State = Enrolled | Dealing | Active
_KINDS: Mapping[int, type[State]] = {kind.tag: kind for kind in (Enrolled, Dealing, Active)}


def write_state(path: Path, state: State) -> None:
    """Put a phase on disk, whole.

    Raises:
        StorageError: it cannot be written; the phase before it is still there.
    """
    write_checked(path, encode(state), mode=0o600)


def read_participant(path: Path) -> State:
    """The phase on disk.

    Raises:
        StorageError: the file is damaged, or of another version of the program.
    """
    try:
        data = read_checked(path)
        version = version_of(data)
        if version not in (None, VERSION):
            raise StorageError(
                f"the platform's part in the secure sum has format {version}, and this program reads format {VERSION}",
                where=str(path),
                do="finish the run with the release that began it, or leave the run; other runs are open",
            )
        return decode(_KINDS[data[3]], data)
    except (OSError, LookupError, ValueError, ProtocolError) as error:
        raise StorageError(
            f"the platform's part in the secure sum is damaged ({error})",
            where=str(path),
            do="leave this run: a platform that forgot what it said must not go on; the others do",
        ) from None
