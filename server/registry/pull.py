"""Pulling a model: signature, hashes and backbone are checked before it takes its place, and a roll-back is noticed.

What lies in the target folder is the memory of the puller: its manifest says which version was seen last. Pulling into that
folder again takes a newer version only if the registry's history leads from the one here to it. A puller who has seen nothing
yet cannot know that there is something newer than what it is shown: it sees the date and the number, and may ask.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from server.registry.registry import Registry
from server.registry.run_facts import FACTS, facts_in, unpromised
from server.registry.store import NotThere, Store, blocks, open_store, read_bounded, shown_address
from shared.base.atomic_files import exchange, sync_folder, write_whole
from shared.base.errors import FedfuseError, InputError, StorageError
from shared.base.safetensors_checks import read_tensors
from shared.model.backbone import weights_sha256
from shared.model.peft_export import load_published
from shared.registry.manifest import MANIFEST, MAX_MANIFEST, Manifest, ManifestEntry, describe, parse_manifest
from shared.registry.signing import PublicKey, Untrusted

MAX_TOTAL = 1 << 33
"""Bytes of the largest model that `pull_model` fetches by default."""
_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class PulledModel:
    """A model that was pulled and checked.

    Args:
        folder: Where it lies now.
        source: Where it came from, without secrets.
        manifest: What it consists of; every file was checked against it.
        signer: Fingerprint of the key that signed it; '' where the puller asked for no signature.
        fresh: False if this very version was there already, and whole.
        backbone: Whether the backbone is on this machine, with the hash that the model names; False if it is not here, or
            is a hub name, which is checked when it is loaded.
        unpromised: Why the run behind it promises nothing to its users, as its own facts say; empty if it does.
    """

    folder: Path
    source: str
    manifest: Manifest
    signer: str
    fresh: bool
    backbone: bool
    unpromised: tuple[str, ...]


def pull_model(
    source: str,
    out: Path,
    *,
    trusted: Iterable[PublicKey] = (),
    unsigned: bool = False,
    model: str = "",
    max_bytes: int = MAX_TOTAL,
) -> PulledModel:
    """Fetch a published model to `out`, which appears whole and checked, or stays as it was.

    Args:
        source: A registry, or one model's folder (of a run, or a copy): a folder or any URL that fsspec opens.
        out: A new or empty folder, or one that holds an earlier pull, which is then brought up to date.
        trusted: Public keys, of which one must have signed.
        unsigned: Take it whoever published it: only damage is noticed then, no forgery. Either this or `trusted`.
        model: Number of a version, or name of a model; '' for the newest.
        max_bytes: Most that is fetched.

    Returns:
        Where it lies, its manifest, who signed it, and whether it is `fresh`: another version than lay there.

    Guarantees:
        What lies in `out` afterwards is, byte for byte, what a trusted key signed (or vouched for, as the version before one that
        it signed); it is never an older version than what lay there before nor, from a registry, one of another history. A
        model's own folder has no history to be looked at.

    Raises:
        InputError: `out` is in use, there is no such model, or its backbone here is another.
        Untrusted: it is not signed by a trusted key, or the source shows less than it has shown before.
        StorageError: a file is missing, a link, or not what the manifest says; or the disk is full.

    | given | result |
    |---|---|
    | neither a key nor `unsigned`, or both | `InputError` |
    | a `source` without a model | `InputError` |
    | more than `max_bytes` | `InputError`, before anything is fetched |
    | an `out` that holds something else | `InputError` |
    | the version that is there already | `fresh` is False |
    """
    keys = tuple(trusted)
    if bool(keys) == unsigned:
        raise InputError(
            "whose signature is to be trusted?" if not keys else "--unsigned trusts nobody's signature, --trust somebody's",
            where=shown_address(source),
            do="name the coordinator's public key with --trust key.pub; --unsigned takes a model that anyone may have forged",
        )
    here = _present(out)
    store = open_store(source)
    folder, manifest = _find(store, keys, model, here)
    if manifest.size > max_bytes:
        raise InputError(
            f"the model has {manifest.size} bytes, the limit is {max_bytes}",
            where=store.where,
            do="raise the limit if you trust it",
        )
    backbone = _backbone_here(manifest, store.where)
    fresh = here is None or here != manifest or not _whole(out, manifest)
    if fresh:
        _take(store, folder, manifest, out, backbone=backbone)
    return PulledModel(
        folder=out,
        source=store.where,
        manifest=manifest,
        signer=manifest.signer if keys else "",
        fresh=fresh,
        backbone=backbone,
        unpromised=_unpromised(out, manifest),
    )


def _unpromised(out: Path, manifest: Manifest) -> tuple[str, ...]:
    """What the facts beside the model say; a model without facts claims nothing either."""
    if FACTS not in {entry.name for entry in manifest.files}:
        return ("it has no facts of the run that trained it",)
    try:
        return tuple(unpromised(facts_in((out / FACTS).read_bytes(), str(out))))
    except InputError:  # of another version of Fedfuse, or not of Fedfuse at all
        return ("its facts cannot be read by this version of Fedfuse",)


def _find(store: Store, keys: tuple[PublicKey, ...], model: str, here: Manifest | None) -> tuple[str, Manifest]:
    """Folder in the store and manifest of the model that is asked for, once it is proven to be one that may be taken."""
    registry = Registry(store, keys)
    newest = registry.newest()
    if newest is not None:
        chosen = registry.named(model) if model else newest
        if here is not None:
            _require_onward(registry, chosen, newest, here)
        return chosen.folder, chosen
    if model:
        raise InputError("this is no registry, so there are no names in it", where=store.where, do="leave --model out")
    for folder in ("", _MODEL):
        name = f"{folder}/{MANIFEST}" if folder else MANIFEST
        try:
            data = read_bounded(store, name, MAX_MANIFEST)
        except NotThere:
            continue
        manifest = parse_manifest(data, f"{store.where}/{name}")
        if keys:
            manifest.require_signed(keys, where=store.where)
        if here is not None:
            _require_not_older(manifest, here, store.where)
        return folder, manifest
    raise InputError(
        f"there is no {MANIFEST} and no index.json",
        where=store.where,
        do="name a registry, or a published model: the `model` folder of a finished run",
    )


def _require_onward(registry: Registry, chosen: Manifest, newest: Manifest, here: Manifest) -> None:
    """The chosen version is the one here, or the registry's history leads from the one here to it."""
    where = registry.store.where
    if here.version and newest.version < here.version:
        raise Untrusted(
            f"the registry's newest version is {newest.version}, but version {here.version} was pulled from it before",
            where=where,
            do="it was rolled back, or this is another registry: ask the coordinator; an empty folder takes what is there now",
        )
    _require_not_older(chosen, here, where)
    at = next((one for one in registry.back(chosen) if one.version <= here.version), None)
    if at != here:
        raise Untrusted(
            f"version {chosen.version} does not follow the version {here.version} that lies here",
            where=where,
            do="the history was rewritten, or this is another registry: ask the coordinator which one is right",
        )


def _require_not_older(chosen: Manifest, here: Manifest, where: str) -> None:
    if here.version == 0 and chosen != here:
        raise InputError("another model lies here, of no registry", where=where, do="name another folder")
    if chosen.version < here.version:
        raise Untrusted(
            f"version {chosen.version} is older than version {here.version}, which lies here",
            where=where,
            do="name another folder to have an old version beside it",
        )
    if chosen.version == here.version and chosen != here:
        raise Untrusted(
            f"version {chosen.version} is not the version {here.version} that lies here, though it has its number",
            where=where,
            do="ask the coordinator which one is right; one number must mean one model",
        )


def _present(out: Path) -> Manifest | None:
    """What was pulled here before, None for a folder that is new or empty.

    Raises:
        InputError: the folder is in use for something else.
    """
    if not out.exists() and not out.is_symlink():
        return None
    if out.is_symlink() or not out.is_dir():
        raise InputError("is there already and no folder", where=str(out), do="name another folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    if not found:
        return None
    if MANIFEST not in found or (out / MANIFEST).is_symlink():
        raise InputError("is there already and not empty", where=str(out), do="name another folder, or remove this one first")
    with (out / MANIFEST).open("rb") as file:
        here = parse_manifest(file.read(MAX_MANIFEST + 1), str(out))
    more = sorted(found - {entry.name for entry in here.files} - {MANIFEST})
    if more:
        raise InputError(
            f"holds a model and {more[0][:200]!r}, which is not of it", where=str(out), do="move it away, or name another folder"
        )
    return here


def _backbone_here(manifest: Manifest, where: str) -> bool:
    """Whether the backbone lies on this machine; one of the same name with other weights is refused."""
    origin = manifest.origin
    try:
        found = weights_sha256(origin.backbone)
    except InputError:
        found = None
    if not found or not origin.backbone_sha256:
        return False
    if found != origin.backbone_sha256:
        raise InputError(
            f"the backbone {origin.backbone!r} has SHA-256 {found} here, the model was trained on {origin.backbone_sha256}",
            where=where,
            do="get the backbone that the model names: on another one the adapter means nothing",
        )
    return True


def _whole(out: Path, manifest: Manifest) -> bool:
    try:
        return describe(out, manifest.origin).files == manifest.files
    except FedfuseError:
        return False


def _take(store: Store, folder: str, manifest: Manifest, out: Path, *, backbone: bool) -> None:
    """Fetch, check, and only then put in place."""
    draft = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        fresh = draft / "fresh"
        fresh.mkdir(mode=0o755)
        for entry in manifest.files:
            _fetch(store, f"{folder}/{entry.name}" if folder else entry.name, entry, fresh / entry.name)
        write_whole(fresh / MANIFEST, manifest.content)
        _require_model(fresh, manifest, store.where, backbone=backbone)
        if out.exists() and any(out.iterdir()):
            exchange(fresh, out)
        else:
            fresh.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise StorageError(
            f"cannot be copied: {error.strerror or error}", where=f"{store.where} -> {out}", do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _fetch(store: Store, name: str, entry: ManifestEntry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        source = store.open(name)
    except NotThere:
        raise _differs(entry, "is missing", store.where) from None
    with source, target.open("wb") as file:
        for block in blocks(source, entry.size, where=f"{store.where}/{name}"):
            digest.update(block)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if size != entry.size:
        raise _differs(entry, f"has {'more' if size > entry.size else size} bytes, not {entry.size}", store.where)
    if digest.hexdigest() != entry.sha256:
        raise _differs(entry, "has another SHA-256", store.where)


def _require_model(folder: Path, manifest: Manifest, where: str, *, backbone: bool) -> None:
    """The files are a model: tensors that can be read and, where the backbone is here, that fit it."""
    try:
        for entry in manifest.files:
            if entry.name.endswith(".safetensors"):
                read_tensors(folder / entry.name)
    except InputError as error:
        raise InputError(f"{entry.name} {error.found}", where=where, do="publish it again") from None
    if not (backbone and manifest.origin.adapter_sha256):
        return
    try:
        model = load_published(folder)
    except InputError as error:
        raise InputError(error.found, where=where, do="publish it again") from None
    if (model.model.backbone, model.backbone_sha256) != (manifest.origin.backbone, manifest.origin.backbone_sha256):
        raise InputError("its settings name another backbone than its manifest", where=where, do="publish it again")


def _differs(entry: ManifestEntry, how: str, where: str) -> StorageError:
    return StorageError(
        f"{entry.name} {how}", where=where, do="the copy is damaged or was changed: publish it again, or pull from elsewhere"
    )
