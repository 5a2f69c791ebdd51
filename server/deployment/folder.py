"""A coordinator's folder: its configuration, and the paths of everything else in it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from server.deployment.certificates import Certificates
from shared.base.errors import InputError
from shared.base.settings import explain
from shared.base.version import VERSION, release
from shared.protocol.invitation import PlatformName

NAME = "server.toml"
ENVIRONMENT = "FEDFUSE_SERVER"
"""Environment variable that names the coordinator's folder; the ServerApp, which Flower starts, finds it there."""

Port = Annotated[int, Field(ge=1, le=65535)]


def _version(text: str) -> str:
    if release(text) is None:
        raise ValueError("expected a version such as 1.2.3")
    return text


class ServerFile(BaseModel):
    """What `server.toml` says.

    Args:
        name: Of the federation.
        host: Name or address under which platforms reach the server.
        port: Where they connect.
        listen: Address that the server listens on for them.
        control_port: Flower's own interfaces, on 127.0.0.1 alone: whoever reaches them runs code here.
        minimum_version: Least version of Fedfuse that platforms must have.
        registry: Address that finished models are published to; '' for none.
        metrics_port: Prometheus metrics on 127.0.0.1; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: PlatformName
    host: str = Field(min_length=1, max_length=253)
    port: Port = 8000
    listen: str = "0.0.0.0"  # noqa: S104 - platforms are elsewhere; only Flower's Fleet interface is served there
    control_port: Port = 8001
    minimum_version: Annotated[str, AfterValidator(_version)] = VERSION
    registry: str = ""
    metrics_port: int = Field(0, ge=0, le=65535)


@dataclass(frozen=True)
class CoordinatorFolder:
    """A coordinator's folder.

    Args:
        folder: Absolute.
        file: Its configuration.
    """

    folder: Path
    file: ServerFile

    @property
    def certificates(self) -> Certificates:
        """The authority, and the server's certificate."""
        return Certificates.of(self.folder)

    @property
    def federation_key(self) -> Path:
        """Ed25519 key that signs bundles and warrants."""
        return self.folder / "keys" / "federation.key"

    @property
    def model_key(self) -> Path:
        """Ed25519 key that signs models; its public half is beside it, as `.pub`."""
        return self.folder / "keys" / "models.key"

    @property
    def operator_key(self) -> Path:
        """Ed25519 key of the first operator, unless they took it away."""
        return self.folder / "keys" / "operator.key"

    @property
    def operators(self) -> Path:
        """Folder of the log of operators' actions."""
        return self.folder / "operators"

    @property
    def platforms(self) -> Path:
        """The list of platforms."""
        return self.folder / "platforms.json"

    @property
    def state(self) -> Path:
        """What the running server writes: database, logs."""
        return self.folder / "state"

    @property
    def database(self) -> Path:
        """Flower's database."""
        return self.state / "superlink.db"

    @property
    def receipts(self) -> Path:
        """Each platform's last receipt over all runs."""
        return self.folder / "receipts"

    @property
    def queue(self) -> Path:
        """Folder of the places in line of runs that somebody watches."""
        return self.folder / "queue"

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / name

    def dry_run(self, name: str) -> Path:
        """Folder of a dry run, for as long as it takes."""
        return self.folder / "dry-runs" / name

    @property
    def control(self) -> str:
        """Address of Flower's own interfaces."""
        return f"127.0.0.1:{self.file.control_port}"

    @property
    def address(self) -> str:
        """Address that platforms connect to."""
        host = f"[{self.file.host}]" if ":" in self.file.host else self.file.host
        return f"{host}:{self.file.port}"


def open_coordinator(folder: Path) -> CoordinatorFolder:
    """The coordinator whose folder that is.

    Raises:
        InputError: it is none, or its configuration has a mistake.
    """
    path = folder / NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return CoordinatorFolder(folder=folder.absolute(), file=ServerFile.model_validate(values))
    except FileNotFoundError:
        raise InputError(
            "is no coordinator's folder", where=str(folder), do="name the one that `fedfuse init server DIR --host NAME` made"
        ) from None
    except ValidationError as error:
        raise InputError(explain(error), where=str(path), do="correct the keys named above") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), do="mend the file") from None


def here() -> CoordinatorFolder | None:
    """The coordinator that started this process, or None in a simulation."""
    folder = os.environ.get(ENVIRONMENT)
    return open_coordinator(Path(folder)) if folder else None
