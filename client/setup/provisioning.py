"""`fedfuse init client`: a platform's folder with keys, what the invitation says, and a first platform file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.config.confirmed_changes import IdentityChange, require_agreed
from client.config.deployment_folder import Deployment
from client.config.platform_file import load
from client.config.table_location import DELIMITED, SUFFIXES, Reading
from client.setup.headerless import seems_headerless
from client.setup.platform_file_draft import draft
from client.setup.schema_inference import Guess
from client.setup.table_preview import Sample, sample_database, sample_file
from client.sources.readers.file_bytes import bytes_of, is_part
from client.sources.readers.foreign_bytes import is_sqlite
from client.sources.readers.table_scan import reading
from shared.base.atomic_files import new_folder, require_empty, write_whole
from shared.base.errors import InputError
from shared.base.version import VERSION
from shared.protocol.authorities import certificates_in, read_authorities
from shared.protocol.invitation import Application, Invitation
from shared.protocol.keys import ed25519_from_line, make_ed25519, make_node_key
from shared.protocol.run_authorization import federation_of


@dataclass(frozen=True, kw_only=True)
class Made:
    """What `create_platform_folder` made.

    Args:
        guesses: What each table was taken for; None where it was left out.
    """

    deployment: Deployment
    application: Application
    guesses: list[tuple[Sample, Guess | None]]


def create_platform_folder(
    folder: Path,
    invitation: Invitation,
    *,
    data: Iterable[Path] = (),
    urls: Iterable[str] = (),
    tables: Iterable[str] = (),
    users: int,
    epsilon: float,
    delta: float,
) -> Made:
    """Make a platform's folder (0700).

    Args:
        data: Files, or folders of files, that hold the platform's tables.
        urls: Databases; `tables` chooses among their tables.

    Raises:
        InputError: the folder is not empty, a table cannot be read, or none has interactions.
        StorageError: it cannot be written.
    """
    require_empty(folder)
    samples = samples_of(data)
    for url in urls:
        samples += sample_database(url, list(tables))
    # All is looked at before anything is made.
    text, guesses = draft(
        invitation.platform,
        samples,
        coordinator=invitation.coordinator,
        folder=folder,
        check=folder,
        users=users,
        epsilon=epsilon,
        delta=delta,
    )
    made = Deployment(folder.absolute())
    with new_folder(folder):
        for place in (made.folder, made.worker, made.node, made.socket.parent, made.log):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.chmod(0o700)
        application = Application.make(
            identity=make_ed25519(made.identity),
            federation=invitation.federation,
            platform=invitation.platform,
            node_key=make_node_key(made.node_key),
            version=VERSION,
        )
        write_whole(made.application, application.text().encode())
        _take(made, invitation)
        write_whole(made.folder / ".gitignore", b"worker/\nnode/\nlog/\nsocket/\n")
        write_whole(made.file, text.encode(), mode=0o600)
        try:
            load(made.file)
        except InputError as error:
            raise InputError(error.found, where="the options", do="correct what is named above; nothing was made") from None
    return Made(deployment=made, application=application, guesses=guesses)


def invitation_changes(deployment: Deployment, invitation: Invitation) -> list[IdentityChange]:
    """What of the invitation that was taken earlier this one would replace, besides the least version and the members.

    Raises:
        InputError: it is for another platform than this one, or another federation's.
    """
    known = deployment.invited()
    for what, ours, theirs in (
        ("platform", known.platform, invitation.platform),
        ("federation", known.federation, invitation.federation),
    ):
        if ours != theirs:
            raise InputError(
                f"the invitation is for {what} {theirs!r}, this is {ours!r}",
                where=str(deployment.folder),
                do="take the invitation in a folder of its own: fedfuse init client",
            )
    # The authority may be newer than the invitation that was taken: the messenger follows what the coordinator's key signs.
    now = read_authorities(deployment.authority) or known.authority
    before, after = known.model_copy(update={"authority": now}).fingerprints(), invitation.fingerprints()
    if set(certificates_in(invitation.authority)) <= set(certificates_in(now)):
        # Each of them is believed already. After a change of authorities the messenger knows both for up to a minute longer.
        after["authority"] = before["authority"]
    return [IdentityChange(name=name, old=before[name], new=after[name]) for name in before if before[name] != after[name]]


def accept_invitation(deployment: Deployment, invitation: Invitation, *, replace: Mapping[str, str] | None = None) -> None:
    """Take a newer invitation: the address, the authority, who may sign bundles, who signs models.

    Args:
        replace: By name (`Invitation.fingerprints`), what may take the place of what is known.

    Raises:
        InputError: it is for another platform or federation, or changes something that `replace` does not name.
    """
    require_agreed(invitation_changes(deployment, invitation), replace or {}, where=str(deployment.invitation))
    _take(deployment, invitation)


def _take(deployment: Deployment, invitation: Invitation) -> None:
    key = ed25519_from_line(invitation.coordinator).public_bytes_raw()
    # JSON is YAML, which Flower reads.
    trusted = {f"fpk_{federation_of(key)}": invitation.coordinator}
    models = ed25519_from_line(invitation.models).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_whole(deployment.authority, invitation.authority.encode())
    write_whole(deployment.trusted, json.dumps(trusted).encode())
    write_whole(deployment.model_key, models)
    write_whole(deployment.invitation, invitation.text().encode())


def samples_of(data: Iterable[Path]) -> list[Sample]:
    """The beginning of every table in some files and folders.

    Raises:
        InputError: one cannot be read, or a folder has none.
    """
    samples: list[Sample] = []
    for path, parts in _tables(data):
        if is_sqlite(path):
            samples += sample_database(f"sqlite:///{path.absolute()}")
        else:
            samples.append(_sampled(path.absolute(), [part.absolute() for part in parts]))
    return samples


def _sampled(path: Path, parts: Sequence[Path]) -> Sample:
    sample = sample_file(path, parts)
    delimited = Reading(path=(path,)).format_of(path) == "csv"
    return sample_file(path, parts, header=False) if delimited and seems_headerless(sample) else sample


def _tables(data: Iterable[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Each table's first file and its further parts.

    Files of a folder whose names differ in a number alone, and that begin with the same line, are parts of one table.
    """
    for path in data:
        if not path.is_dir():
            yield path, []
            continue
        # Below, where nothing lies loose: the folders of partitions (year=2024).
        inside = sorted(
            [one for one in path.iterdir() if is_part(one, path)] or [one for one in path.rglob("*") if is_part(one, path)]
        )
        full = [one for one in inside if one.stat().st_size]
        if not full:
            expected = f"expected files of {', '.join(sorted({*DELIMITED, *SUFFIXES} - {'.npy'}))}"
            found = "the tables in this folder are all empty" if inside else "no tables in this folder"
            raise InputError(found, where=str(path), do=expected)
        groups: dict[tuple[str, bytes], list[Path]] = {}
        for one in full:
            groups.setdefault((re.sub(r"[-_.]?\d+", "", one.name), _first_line(one)), []).append(one)
        yield from ((parts[0], parts[1:]) for parts in groups.values())


def _first_line(path: Path) -> bytes:
    """What parts of one table have in common: the header; nothing where a format has none."""
    if Reading(path=(path,)).format_of(path) != "csv":
        return b""
    with reading(str(path)):
        return re.split(rb"[\r\n]", bytes_of(path, 1 << 16), maxsplit=1)[0]
