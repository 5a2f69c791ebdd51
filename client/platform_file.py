"""The platform file: one TOML that names a platform, its privacy budget and its sources.

It stays on the platform. Everything is checked when it is loaded; a mistake is answered with file, key, what was
found and what is expected. Whether the sources themselves can be read is known only when `client/sources` reads them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainValidator, ValidationError, model_validator

from client.peers import read_peers
from client.reading import FilePath, Frozen
from client.source_file import AnySource, InteractionsSource, source_of
from client.terms import Terms
from shared.errors import InputError
from shared.settings import explain

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Budget(Frozen):
    """What the platform may spend on each of its users, over everything that it ever releases.

    Args:
        epsilon: Above 0, or inf: privacy off.
    """

    epsilon: float = Field(gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)


class PlatformFile(Frozen):
    """One platform, as its file says.

    Args:
        name: Public.
        users: Declared number of users; public, and never replaced by the counted one.
        rank: Largest LoRA rank that the platform trains; public. Without it, whatever a run's is.
        privacy: The budget.
        federation: On what terms the platform takes part; without the table, on any, but for the backbone.
        sources: The source's name -> source, in the order of the file; at least one has interactions.
        state: Folder of the ledger, the caches and the keys; `.fedfuse/<name>` beside the file by default.
        path: Where the file stands.
    """

    name: str = Field(pattern=NAME)
    users: int = Field(ge=1, lt=1 << 53)
    rank: int | None = Field(None, ge=1, le=256)
    privacy: Budget
    federation: Terms = Terms()
    sources: dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[AnySource, PlainValidator(source_of)]]
    state: FilePath
    path: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _interactions(self) -> PlatformFile:
        if not any(isinstance(source, InteractionsSource) for source in self.sources.values()):
            raise ValueError("sources: expected at least one source of kind 'interactions'")
        return self


def load(path: str | Path) -> PlatformFile:
    """The platform file at `path`, checked.

    Raises:
        InputError: the file is missing, is no TOML, or says something that is not expected; an environment variable
            in a path is not set.
    """
    file = Path(path).absolute()
    try:
        values = tomllib.loads(file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8", where=str(file), do="save the platform file as UTF-8 text") from None
    except OSError as error:
        raise InputError(f"the platform file cannot be opened: {error.strerror}", where=str(file), do="check the path") from None
    except (ValueError, RecursionError) as error:
        # tomllib names line and column; a path with a NUL byte ends here too.
        raise InputError(f"not valid TOML: {error}", where=str(file), do="mend the line that is named") from None
    if "path" in values:
        raise InputError("unknown key 'path'", where=str(file), do="a source's path stands in its own table, [sources.NAME]")
    values.setdefault("state", f".fedfuse/{values.get('name')}")
    if isinstance(federation := values.get("federation"), dict) and "peers" in federation:
        own = federation.get("identities", {})
        values["federation"] = {**federation, "identities": {**read_peers(file.parent / str(federation["peers"])), **own}}
    try:
        return PlatformFile.model_validate({**values, "path": file}, context={"folder": file.parent})
    except ValidationError as error:
        raise InputError(explain(error), where=str(file), do="correct the keys named above") from None
