"""Where models are kept: a folder, or any address that fsspec opens (S3, GCS, HTTP for reading).

A store holds objects by name. What the registry needs of it is little: read, put a whole object, and *create* one, which
succeeds for one of several writers. What each kind of store guarantees:

| store | `put` | `create` |
|---|---|---|
| folder | a reader meets the old bytes or the new ones, after a power cut too | atomic: a hard link of a synced file |
| S3, GCS | whole objects only, as these services promise | atomic: `If-None-Match: *`, `ifGenerationMatch=0` |
| other fsspec addresses | as the service does | looked up before and after; two writers at one moment may both succeed |
| HTTP | refused | refused |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import fsspec

from shared.base.atomic_files import copy_whole, create_whole, write_whole
from shared.base.errors import FedfuseError, InputError, StorageError

_BLOCK = 1 << 20
_ATTEMPTS = 8
"""Readings of one small object that others replace at the same time."""
_GONE = (403, 404, 410)
_EXTRA = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


class NotThere(StorageError):
    """The store has no object of this name."""


class Store(Protocol):
    """Objects by name; names are relative, with `/`, and were checked by the caller."""

    @property
    def where(self) -> str:
        """Its address, without secrets."""

    def open(self, name: str) -> IO[bytes]:
        """The object, to be read once from its beginning.

        Raises:
            NotThere: there is none.
            StorageError: it cannot be read.
        """

    def put(self, name: str, source: Path) -> None:
        """Store the content of a file, in place of what was there.

        Raises:
            StorageError: it cannot be written.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Store `data`, in place of what was there; errors as `put`."""

    def create(self, name: str, data: bytes) -> bool:
        """Store `data` if there is nothing of this name; False if there is, and it is not this very data. Errors as `put`."""


def open_store(address: str) -> Store:
    """The store at a folder or URL.

    Raises:
        InputError: the address cannot be used, or a package for it is missing.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and (parts.query or parts.fragment):
        raise InputError(
            "the address has a query", where=shown_address(address), do="give the address of a folder, to which names are added"
        )
    try:
        system, root = fsspec.core.url_to_fs(address)
    except ImportError:
        extra = _EXTRA.get(parts.scheme, "")
        raise InputError(
            f"no reader for {parts.scheme}:// is installed",
            where=shown_address(address),
            do=f"pip install 'fedfuse[{extra}]'" if extra else "install the fsspec package for it",
        ) from None
    except Exception as error:
        # Each of fsspec's systems has its own; all mean that this address is none.
        raise InputError(
            f"cannot be opened: {type(error).__name__}", where=shown_address(address), do="name a folder or a URL"
        ) from error
    protocols = (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
    if "file" in protocols:
        return FolderStore(Path(root))
    return ObjectStore(system, root, address, writable="http" not in protocols)


def shown_address(address: str) -> str:
    """The address as it may be shown and logged: without user, password and query.

    >>> shown_address("https://ann:secret@models.example/x?token=1")
    'https://models.example/x'
    """
    parts = urlsplit(address)
    if not parts.netloc:
        return address
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_bounded(store: Store, name: str, limit: int) -> bytes:
    """An object of at most `limit` bytes.

    Raises:
        NotThere: there is none.
        StorageError: it is larger, or cannot be read.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with store.open(name) as file:
                data = b"".join(blocks(file, limit, where=f"{store.where}/{name}"))
            break
        except StorageError as error:
            # Somebody replaced the object between its opening and its reading (s3fs says so): the new one is as good.
            if type(error.__cause__).__name__ != "FileExpired" or attempt == _ATTEMPTS - 1:
                raise
    if len(data) > limit:
        raise StorageError(f"is larger than {limit} bytes", where=f"{store.where}/{name}", do="this is no registry of models")
    return data


def blocks(file: IO[bytes], limit: int, *, where: str) -> Iterator[bytes]:
    """The content in blocks, at most `limit` bytes and one: enough to know that there is more, never enough to fill a disk.

    Raises:
        StorageError: the source fails on the way.
    """
    left = limit + 1
    while left > 0:
        try:
            block = file.read(min(_BLOCK, left))
        except Exception as error:
            raise _unreadable(error, where) from error
        if not block:
            return
        yield block[:left]
        left -= len(block)


class FolderStore:
    """A folder of this machine. No step below it may be a link: it could show a file that is not the registry's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._root)

    def open(self, name: str) -> IO[bytes]:
        """As the protocol says."""
        path = self._path(name)
        try:
            if not path.is_file():  # a fifo would keep us waiting
                raise FileNotFoundError(name)
            return path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere("there is no such file", where=str(path)) from None
        except OSError as error:
            raise _unreadable(error, str(path)) from None

    def put(self, name: str, source: Path) -> None:
        """As the protocol says."""
        copy_whole(source, self._path(name))

    def replace(self, name: str, data: bytes) -> None:
        """As the protocol says."""
        write_whole(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """As the protocol says."""
        return create_whole(self._path(name), data) or _holds(self, name, data)

    def _path(self, name: str) -> Path:
        path = self._root
        for part in name.split("/"):
            path = path / part
            if path.is_symlink():
                raise StorageError("is a symbolic link", where=str(path), do="put the file itself there")
        return path


class ObjectStore:
    """A service behind fsspec. Nothing is cached: what was not there a moment ago may be there now."""

    def __init__(self, system: Any, root: str, address: str, *, writable: bool) -> None:
        self._system, self._root, self._address, self._writable = system, root.rstrip("/"), address.rstrip("/"), writable

    @property
    def where(self) -> str:
        """The address, without secrets."""
        return shown_address(self._address)

    def open(self, name: str) -> IO[bytes]:
        """As the protocol says."""
        place = f"{self.where}/{name}"
        # HTTP is streamed: a server need not know ranges, and one that ignores them would send everything at once.
        how: dict[str, Any] = {"block_size": 0} if not self._writable else {"cache_type": "readahead", "block_size": 5 * _BLOCK}
        try:
            self._system.invalidate_cache()
            file: IO[bytes] = self._system.open(f"{self._root}/{name}", "rb", **how)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            status = getattr(error.__cause__, "status", None)
            if error.__cause__ is not None and status not in _GONE and not isinstance(error.__cause__, FileNotFoundError):
                raise _unreadable(error.__cause__, place) from None  # fsspec says so of a server that cannot be reached, too
            raise NotThere("there is no such object", where=place) from None
        except PermissionError:
            # A store that may not be listed answers so for what is not there; the two cannot be told apart.
            raise NotThere("there is no such object, or it may not be read", where=place, do="check the credentials") from None
        except Exception as error:
            if getattr(error, "status", None) in _GONE:
                raise NotThere("there is no such object, or it may not be read", where=place) from None
            raise _unreadable(error, place) from error
        return file

    def put(self, name: str, source: Path) -> None:
        """As the protocol says."""
        self._writing(name, lambda: self._system.put_file(str(source), f"{self._root}/{name}"))

    def replace(self, name: str, data: bytes) -> None:
        """As the protocol says."""
        self._writing(name, lambda: self._system.pipe_file(f"{self._root}/{name}", data))

    def create(self, name: str, data: bytes) -> bool:
        """As the protocol says."""

        def create() -> None:
            with suppress(FileExistsError):  # perhaps our own: a client library repeats a request whose answer was lost
                self._system.pipe_file(f"{self._root}/{name}", data, mode="create")

        self._writing(name, create)
        # Also for services that know no condition: whoever was written over learns of it here.
        return _holds(self, name, data)

    def _writing(self, name: str, write: Callable[[], object]) -> None:
        place = f"{self.where}/{name}"
        if not self._writable:
            raise InputError("HTTP is for reading only", where=place, do="publish to a folder, s3:// or gs://")
        try:
            write()
            self._system.invalidate_cache()
        except FedfuseError:
            raise
        except Exception as error:
            raise _unwritable(error, place) from error


def _holds(store: Store, name: str, data: bytes) -> bool:
    with store.open(name) as file:
        return b"".join(blocks(file, len(data), where=f"{store.where}/{name}")) == data


def _unreadable(error: BaseException, where: str) -> StorageError:
    return StorageError(f"cannot be read ({_word(error)})", where=where, do="check the address, the credentials and the network")


def _unwritable(error: Exception, where: str) -> StorageError:
    return StorageError(f"cannot be written ({_word(error)})", where=where, do="check space, rights and credentials")


def _word(error: BaseException) -> str:
    # A service's own text may quote the address with its credentials.
    reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}: {reason}"[:200] if reason and "://" not in reason else type(error).__name__
