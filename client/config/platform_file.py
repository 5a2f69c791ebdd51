"""The platform file: one TOML that names a platform, its privacy budget and its sources.

It stays on the platform. Everything is checked when it is loaded; a mistake is answered with file, key, what was
found and what is expected. Whether the sources themselves can be read is known only when `client/sources` reads them.
"""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, model_validator

from client.config.id_rules import USUAL_IDS, IdRules
from client.config.participation_policy import ParticipationPolicy
from client.config.source_schema import (
    AnySource,
    CatalogueFile,
    InteractionsSource,
    ItemsSource,
    ReviewsSource,
    catalogue_of,
    source_of,
)
from client.config.table_location import FilePath, Frozen
from client.config.trusted_peers import read_peers
from shared.base.errors import InputError, PrivacyError
from shared.base.settings import explain

MOST_EPSILON = 20.0
"""A larger budget promises nothing that a person would recognise."""
NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


UNDECLARED_CATALOGUE = (
    "the catalogue is made of users' rows: which items there are, and how many, tells of single users, and a deployed platform "
    "refuses to run with it. Add a source of kind 'items', or name a public list of item ids: "
    '[catalogue] path = "items.csv", column = "id"'
)
"""Why a platform without a declared catalogue is for simulations alone, and what to do."""


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError("expected lower-case letters, digits, '-' and '_', 63 at most, the first a letter or a digit")
    return value


class Budget(Frozen):
    """What the platform may spend on each of its users, over everything that it ever releases.

    Args:
        epsilon: Above 0, or inf: privacy off.
        delta: The part of the guarantee that may fail. From 1/users on it allows to publish one user's rows whole.
        accept_delta: Whether a deployed platform takes part with a delta of 1/users and more.
    """

    epsilon: float = Field(gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    accept_delta: bool = False


class PlatformFile(Frozen):
    """One platform, as its file says.

    Args:
        name: Public.
        users: Declared number of users; public, and never replaced by the counted one.
        rank: Largest LoRA rank that the platform trains; public. Without it, whatever a run's is.
        privacy: The budget.
        federation: On what terms the platform takes part; without the table, on any, but for the backbone.
        ids: How ids are made alike, in all sources the same.
        catalogue: The items that there are: a public list of their ids, or "from-interactions"; without the key, and without a
            source of kind `items`, which is a catalogue itself, the same as "from-interactions".
        sources: The source's name -> source, in the order of the file; at least one has interactions.
        state: Folder of the ledger, the caches and the keys; `.fedfuse/<name>` beside the file by default.
        path: Path of the file.
    """

    name: Annotated[str, AfterValidator(_name)]
    users: int = Field(ge=1, lt=1 << 53)
    rank: int | None = Field(None, ge=1, le=256)
    privacy: Budget
    federation: ParticipationPolicy = ParticipationPolicy()
    ids: IdRules = USUAL_IDS
    catalogue: Annotated[CatalogueFile | Literal["from-interactions"] | None, PlainValidator(catalogue_of)] = None
    sources: dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[AnySource, PlainValidator(source_of)]]
    state: FilePath
    path: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _interactions(self) -> PlatformFile:
        if not any(isinstance(source, InteractionsSource) for source in self.sources.values()):
            raise ValueError("sources: expected at least one source of kind 'interactions'")
        if self.catalogue is not None and self._items:
            raise ValueError("catalogue: a source of kind 'items' is the catalogue; name one of the two")
        return self

    @property
    def ledger(self) -> Path:
        """The file of the ledger; there is none before the first charge."""
        return self.state / "ledger" / f"{self.name}.jsonl"

    @property
    def _items(self) -> bool:
        return any(isinstance(source, ItemsSource) for source in self.sources.values())

    def require_catalogue(self) -> None:
        """Check that which items there are does not come from users' rows.

        Raises:
            PrivacyError: it does, which is for simulations alone.
        """
        if not self.catalogue_declared:
            raise PrivacyError(UNDECLARED_CATALOGUE, where=str(self.path))

    def require_delta(self) -> None:
        """Check that delta is below 1/users, or that the platform's people have accepted it.

        Raises:
            PrivacyError: it is not.
        """
        if self._delta_too_large and not self.privacy.accept_delta:
            do = "lower delta, or set accept_delta = true in [privacy]"
            raise PrivacyError(self._delta_words, where=str(self.path), do=do)

    @property
    def _delta_too_large(self) -> bool:
        return math.isfinite(self.privacy.epsilon) and self.privacy.delta * self.users >= 1

    @property
    def _delta_words(self) -> str:
        return (
            f"delta = {self.privacy.delta:g} is not below 1/users = {1 / self.users:.2g}: such a guarantee allows to publish the "
            "rows of one user in full"
        )

    @property
    def privacy_warnings(self) -> tuple[str, ...]:
        """Why the budget promises little, for every output that speaks of it."""
        found = []
        if self._delta_too_large:
            found.append(f"{self._delta_words}; a deployed platform refuses it unless [privacy] says accept_delta = true")
        if MOST_EPSILON < self.privacy.epsilon < math.inf:
            found.append(
                f"epsilon = {self.privacy.epsilon:g} is above {MOST_EPSILON:g}: what is released may make a user "
                f"exp({self.privacy.epsilon:g}) times as easy to tell, which protects nobody"
            )
        return tuple(found)

    @property
    def catalogue_declared(self) -> bool:
        """Whether the items that there are come from a public table, and from no user's rows."""
        return self._items or isinstance(self.catalogue, CatalogueFile)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of this file before a run; no error."""
        found = [*self.privacy_warnings, *([] if self.catalogue_declared else [UNDECLARED_CATALOGUE])]
        found += [
            f"source '{name}' is declared public: its texts enter the texts of items unchanged and without noise, and the "
            "privacy guarantee does not cover them"
            for name, source in self.sources.items()
            if isinstance(source, ReviewsSource) and source.public
        ]
        return tuple(found)


def load(path: str | Path) -> PlatformFile:
    """The platform file at `path`, checked.

    Returns:
        What the file says, with its paths made absolute; nothing that it names is opened.

    Raises:
        InputError: the file is missing, is no TOML, or says something that is not expected; an environment variable
            in a path is not set.

    | given | result |
    |---|---|
    | no such file, or an empty one | `InputError` |
    | 0 users, a delta of 0 or 1, an epsilon of NaN | `InputError`, with the key |
    | a byte order mark, CRLF at the ends of lines | read as without them |
    | a source whose file is not there | taken: `read_tables` refuses it |
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
        raise InputError("unknown key 'path'", where=str(file), do="a source's path belongs in its own table, [sources.NAME]")
    values.setdefault("state", f".fedfuse/{values.get('name')}")
    if isinstance(federation := values.get("federation"), dict) and "peers" in federation:
        own = federation.get("identities", {})
        values["federation"] = {**federation, "identities": {**read_peers(file.parent / str(federation["peers"])), **own}}
    try:
        return PlatformFile.model_validate({**values, "path": file}, context={"folder": file.parent})
    except ValidationError as error:
        raise InputError(explain(error, whole="the file"), where=str(file), do="correct the keys named above") from None
