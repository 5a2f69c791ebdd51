"""The manifest of a model: what it is, where it comes from, and the size and SHA-256 of every file.

One canonical JSON text: the same manifest always has the same bytes, and no other bytes are read as it. So its SHA-256
names one version for ever, and a signature over it can be checked by anyone who renders the same fields.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from shared.base.errors import InputError, StorageError
from shared.base.settings import explain
from shared.registry.signing import PublicKey, Signer, require_signature

MANIFEST = "manifest.json"
FORMAT = 2
MAX_FILE = 1 << 32
"""Bytes of the largest file that a model may have."""
MAX_FILES = 1000
MAX_MANIFEST = 1 << 20
MAX_VERSION = 1 << 31
KINDS = (".safetensors", ".json", ".md", ".txt")
"""What a model consists of. Nothing that a library would unpickle or run (.bin, .pt, .pkl, .py)."""
_BLOCK = 1 << 20
_NAME = "^[a-z0-9][a-z0-9_-]{0,62}$"
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Perhaps256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
Name = Annotated[str, Field(pattern=_NAME)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ManifestEntry(_Frozen):
    """One file of a model.

    Args:
        name: Path inside the model's folder, with `/`.
        size: Bytes.
        sha256: Of the bytes, in hex.
    """

    name: str
    size: Annotated[int, Field(ge=0, le=MAX_FILE)]
    sha256: Sha256

    @model_validator(mode="after")
    def _inside(self) -> ManifestEntry:
        require_inside(self.name)
        return self


class Origin(_Frozen):
    """Where a model comes from; all of it is public.

    Args:
        name: What the model is called; versions of one line of models share it.
        run: The run that trained it.
        created: When the run ended, UTC by the coordinator's clock. Informative.
        strategy, rounds, platforms: How it was trained, over whom (public names).
        settings_sha256: `shared.base.settings.settings_digest` of the run's settings.
        backbone: Name of the frozen model that the adapter belongs to.
        backbone_sha256: Of its weights; '' where the coordinator had none at hand.
        adapter_sha256: Of the trained tensors (`shared.model.adapter.adapter_digest`); '' where nothing was trained.
        start_sha256: Of the tensors that training began from; '' if they were fresh ones, drawn from the run's seed.
    """

    name: Name
    run: Name
    created: Annotated[str, Field(pattern=_TIME)]
    strategy: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_+ -]{0,99}$")]
    rounds: Annotated[int, Field(ge=0, le=MAX_VERSION)]
    platforms: Annotated[tuple[Name, ...], FailFast(), Field(max_length=10_000, strict=False)]
    settings_sha256: Sha256
    backbone: Annotated[str, Field(pattern=r"^[^\p{C}]+$", max_length=300)]
    backbone_sha256: Perhaps256
    adapter_sha256: Perhaps256
    start_sha256: Perhaps256


class Manifest(_Frozen):
    """A whole model.

    Args:
        version: Its number in a registry, from 1; 0 for a model in a run's own folder, which is in no registry.
        previous: SHA-256 of the manifest of the version before, so that the newest one vouches for all; '' for the first.
        files: Sorted by name.
        signer: Fingerprint of the key that signed; '' if none did.
        signature: Of everything else, base64.
    """

    format: int
    origin: Origin
    version: Annotated[int, Field(ge=0, le=MAX_VERSION)] = 0
    previous: Perhaps256 = ""
    # At the first mistake: half a million of them would be described, each with its place.
    files: Annotated[tuple[ManifestEntry, ...], FailFast(), Field(min_length=1, max_length=MAX_FILES, strict=False)]
    signer: Perhaps256 = ""
    signature: Annotated[str, Field(max_length=100)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, this version reads {FORMAT}")
        names = [entry.name for entry in self.files]
        if names != sorted(set(names)):
            raise ValueError("the files are not sorted by name, each once")
        if len({name.casefold() for name in names}) < len(names):
            # On a disk that ignores case, one of them would take the other's place after its check.
            raise ValueError("two files differ only in the case of their names")
        if (self.version > 1) != bool(self.previous):
            raise ValueError("a version names the one before it, the first names none")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)

    @property
    def content(self) -> bytes:
        """The canonical text, UTF-8: what is stored."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode("ascii")

    @property
    def sha256(self) -> str:
        """Of the stored bytes: the name of this very version."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def folder(self) -> str:
        """Where a registry keeps the files: named by what they are, so two publishers never write over each other."""
        listing = json.dumps([entry.model_dump(mode="json") for entry in self.files], sort_keys=True)
        return f"models/{self.version:06d}-{hashlib.sha256(listing.encode('ascii')).hexdigest()[:32]}"

    def numbered(self, version: int, previous: str) -> Manifest:
        """The same model as a version of a registry, unsigned."""
        return Manifest.model_validate({**dict(self), "version": version, "previous": previous, "signer": "", "signature": ""})

    def signed(self, signer: Signer) -> Manifest:
        """The same manifest, signed."""
        named = self.model_copy(update={"signer": signer.public.fingerprint, "signature": ""})
        return named.model_copy(update={"signature": signer.sign(named.content)})

    def require_signed(self, trusted: Iterable[PublicKey], *, where: str) -> PublicKey:
        """The trusted key that signed it.

        Raises:
            Untrusted: none did.
        """
        unsigned = self.model_copy(update={"signature": ""}).content
        return require_signature(unsigned, self.signature, self.signer, trusted, where=where)


def require_inside(name: str) -> None:
    """Check that a name can only mean a file inside the model's folder, on any system, and of a kind that holds no code.

    Raises:
        ValueError: it is absolute, climbs out, or holds something that a path of a model has no use for.
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part) <= 200 and part.isascii() and part.isprintable() for part in parts)
    # Hidden names are drafts; a trailing dot or space is dropped by some systems, so that two names would be one file.
    plain = plain and not any(part[0] in ".~" or part[-1] in ". " for part in parts)
    if not plain or set(name) & set('\\:*?"<>|%') or len(parts) > 8 or name == MANIFEST:
        raise ValueError(f"{name!r:.300} is not a path inside the model")
    if not name.endswith(KINDS):
        raise ValueError(f"{name!r:.300} is not of a kind that a model consists of ({', '.join(KINDS)})")


def describe(folder: Path, origin: Origin) -> Manifest:
    """The manifest, unsigned and without a version, of the files in `folder`; hidden files are left out.

    Raises:
        InputError: the folder has no file, or something in it is a link or of a kind that a model has no use for.
        StorageError: a file cannot be read.
    """
    entries = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *files]:
            if (Path(root) / name).is_symlink():
                raise InputError("is a symbolic link", where=str(Path(root) / name), do="put the file itself there")
        entries += [manifest_entry(folder, Path(root) / name) for name in files if not name.startswith(".") and name != MANIFEST]
    if not entries:
        raise InputError("there is no model to publish", where=str(folder), do="name the folder that holds the model's files")
    ordered = sorted(entries, key=lambda entry: entry.name)
    try:
        return Manifest(format=FORMAT, origin=origin, files=tuple(ordered))
    except ValidationError as error:
        raise InputError(explain(error), where=str(folder), do="rename the files") from None


def manifest_entry(folder: Path, path: Path) -> ManifestEntry:
    """The entry of a file that is there.

    Raises:
        InputError: it cannot be published under this name, or is too large.
        StorageError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=str(path), do="check the disk and its rights") from None
    try:
        return ManifestEntry(name=str(PurePosixPath(path.relative_to(folder))), size=size, sha256=digest.hexdigest())
    except ValidationError as error:
        raise InputError(explain(error), where=str(path), do="rename the file, or leave it out") from None


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, which is somebody's and not yet checked by any signature.

    Guarantees: what is returned renders to exactly `data`, so nothing in the bytes escapes the checks or the signature.

    Raises:
        InputError: it is not one, of this format.
    """
    if len(data) > MAX_MANIFEST:
        raise InputError(f"{MANIFEST} is larger than {MAX_MANIFEST} bytes", where=where, do="this is not a published model")
    values = read_json(data, MANIFEST, where)
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise InputError(
            f"{MANIFEST} has format {values.get('format')!r:.40}, this version reads {FORMAT}",
            where=where,
            do="use the version of Fedfuse that published the model, or publish it again",
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)[:2000], where=where, do="publish the model again") from None
    if manifest.content != data:
        # Doubled keys, other spellings of one number: two programs could read two things in it.
        raise InputError(f"{MANIFEST} is not in canonical form", where=where, do="publish the model again")
    return manifest


def read_json(data: bytes, what: str, where: str) -> Any:
    """The JSON value in foreign bytes; their length is bounded by the caller.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise InputError(f"{what} is not JSON ({type(error).__name__})", where=where, do="publish the model again") from None
