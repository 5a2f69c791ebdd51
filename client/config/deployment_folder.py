"""A platform's folder: its file, its keys, its worker's state and its messenger's files.

Two processes, two folders that only they need: `worker/` (ledger, caches, identity) and `node/` (SuperNode key, Flower's
files). So each may belong to a user of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import InputError, StorageError
from shared.protocol.invitation import Invitation, parse_invitation, read_whole

PLATFORM_TOML = "platform.toml"


@dataclass(frozen=True)
class Deployment:
    """A platform's folder, as `fedfuse init client` makes it.

    Args:
        folder: Absolute.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """The platform file."""
        return self.folder / PLATFORM_TOML

    @property
    def invitation(self) -> Path:
        """What the coordinator sent."""
        return self.folder / "invitation.toml"

    @property
    def application(self) -> Path:
        """What goes to the coordinator; no secret is in it."""
        return self.folder / "application.toml"

    @property
    def model_key(self) -> Path:
        """Public key that signs published models (PEM)."""
        return self.folder / "models.pub"

    @property
    def worker(self) -> Path:
        """The worker's own folder; `state` of the platform file names it."""
        return self.folder / "worker"

    @property
    def identity(self) -> Path:
        """Ed25519 key of this platform in the secure sum."""
        return self.worker / "identity.key"

    @property
    def node(self) -> Path:
        """The messenger's own folder."""
        return self.folder / "node"

    @property
    def node_key(self) -> Path:
        """Key of this platform's SuperNode."""
        return self.node / "node.key"

    @property
    def authority(self) -> Path:
        """Certificate that the coordinator's server is checked against."""
        return self.node / "ca.crt"

    @property
    def trusted(self) -> Path:
        """Who may sign bundles, in Flower's form."""
        return self.node / "trusted.yaml"

    @property
    def socket(self) -> Path:
        """Where the worker listens by default."""
        return self.folder / "socket" / "worker.sock"

    @property
    def log(self) -> Path:
        """Folder of both processes' logs."""
        return self.folder / "log"

    def invited(self) -> Invitation:
        """The invitation.

        Raises:
            InputError: there is none, or it is damaged.
        """
        return parse_invitation(read_whole(self.invitation, do="run fedfuse init client"), where=str(self.invitation))


def platform_file_in(place: Path) -> Path:
    """The platform file, where it or its folder was named."""
    return place / PLATFORM_TOML if place.is_dir() else place


def platform_files_in(place: Path) -> list[Path]:
    """The platform files that a path means: itself, a platform's folder's one, or all of a world, in the order of their names.

    Raises:
        InputError: a folder has none.
    """
    if not place.is_dir() or (place / PLATFORM_TOML).exists():
        return [platform_file_in(place)]
    found = sorted(place.glob("*.toml"))
    if not found:
        raise InputError("no platform file is in this folder", where=str(place), do="name a *.toml, or a folder with some")
    return found


def open_deployment(folder: Path) -> Deployment:
    """The platform whose folder that is.

    Raises:
        InputError: it is none.
        StorageError: it cannot be looked at.
    """
    found = Deployment(folder.absolute())
    try:
        if not found.file.is_file():
            raise InputError("is no platform's folder", where=str(folder), do="name the one that `fedfuse init client DIR` made")
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(folder), do="check its rights") from None
    return found
