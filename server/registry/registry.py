"""The registry of global models: numbered versions under one address, each there whole or not at all.

    manifests/000004.json                    a signed manifest: created once, last of all, and never changed
    models/000004-<digest of files>/...      its files; two publishers never write the same folder with different bytes
    index.json                               the newest number, for those who cannot list; a hint, and never ahead

A version exists when its manifest does, and its manifest is created after its files are there: so a reader never meets half a
version, whatever dies. Of two publishers that want one number, the store lets one create it and the other takes the next. The
index is written afterwards; if it is old (a publisher died, two raced), readers look one number further until there is none.
Each manifest names the hash of the one before it, so the newest vouches for all.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.registry.model_card import Lineage, model_card_files
from server.registry.publication import MODEL
from server.registry.run_facts import FACTS, Facts, facts_in, origin_of, unpromised
from server.registry.store import NotThere, Store, read_bounded
from shared.base.errors import InputError, StorageError
from shared.base.settings import explain
from shared.registry.manifest import MANIFEST, MAX_MANIFEST, MAX_VERSION, Manifest, describe, parse_manifest, read_json
from shared.registry.signing import PublicKey, Signer, Untrusted

INDEX = "index.json"
_MAX_INDEX = 1 << 12
FURTHER = 1000
"""How many versions a reader finds beyond an old index, and how many it follows back where no signature proves that they are."""
_TRIES = 100


class _Index(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Annotated[int, Field(ge=1, le=1)]
    newest: Annotated[int, Field(ge=1, le=MAX_VERSION)]


class Registry:
    """The versions in a store.

    Args:
        trusted: Keys that may sign. Empty: signatures are not looked at, and nothing is known of who published.

    Guarantees: with `trusted`, every manifest that a public method returns is signed by one of them, or is named by its hash
    in a chain that begins at one that is. So versions of a key that was retired stay good under the key that followed it.
    No manifest leads to the next one to be read before it is proven in one of these ways, so whoever can write to the store but
    not sign costs a reader one manifest. Without `trusted`, a reader follows at most `FURTHER` manifests.
    """

    def __init__(self, store: Store, trusted: Iterable[PublicKey] = ()) -> None:
        self.store, self._trusted = store, tuple(trusted)

    def newest(self) -> Manifest | None:
        """The newest version; None if there is none.

        Raises:
            StorageError: the index names a version that is not there, or the store cannot be read.
            InputError: what is there is no manifest.
            Untrusted: it is not signed by a trusted key, or does not follow the one before it.
        """
        hint = self._hint()
        found = self._signed(self._read(hint)) if hint else None
        for number in range(hint + 1, hint + FURTHER):
            try:
                after = self._signed(self._read(number))
            except NotThere:
                return found
            if found is not None:
                self._require_link(found, after)
            found = after
        raise StorageError(
            f"{FURTHER} versions beyond the index", where=self.store.where, do=f"write the newest number into {INDEX}"
        )

    def versions(self) -> Iterator[Manifest]:
        """All versions, newest first; errors as `newest` and `before`."""
        newest = self.newest()
        if newest is not None:
            yield from self.back(newest)

    def back(self, manifest: Manifest) -> Iterator[Manifest]:
        """A version that a method of this registry gave, and those before it, one by one; errors as `before`.

        Raises:
            Untrusted: no key is trusted, and there are more than `FURTHER`: whoever serves them could go on for ever.
        """
        at: Manifest | None = manifest
        for number in itertools.count():
            if at is None:
                return
            if number == FURTHER and not self._trusted:
                raise Untrusted(
                    f"{FURTHER} versions, and nobody's signature is asked for",
                    where=self.store.where,
                    do="name a key with --trust",
                )
            yield at
            at = self.before(at)

    def before(self, manifest: Manifest) -> Manifest | None:
        """The version before, None for the first.

        Raises:
            StorageError: it cannot be read.
            InputError: it is no manifest.
            Untrusted: it is not the one that `manifest` names.
        """
        if manifest.version <= 1:
            return None
        before = self._read(manifest.version - 1)
        self._require_link(before, manifest)
        return before

    def named(self, name: str) -> Manifest:
        """A version by its number, or the newest of a model's name.

        Raises:
            InputError: there is none.
            StorageError, Untrusted: as `versions`.
        """
        number = int(name) if name.isdecimal() and name.isascii() and len(name) < 10 else None
        for manifest in self.versions():
            if name == manifest.origin.name or number == manifest.version:
                return manifest
        raise InputError(
            f"there is no model {name[:63]!r}",
            where=self.store.where,
            do="list them with `fedfuse models`, and name one of those",
        )

    def publish(
        self,
        run: Path,
        signer: Signer,
        *,
        name: str = "",
        as_simulation: bool = False,
        record: Callable[[str], object] | None = None,
    ) -> Manifest:
        """Publish the model of a finished run as the next version, signed.

        Args:
            run: The run's folder, or its `model` folder.
            name: What the model is called; the run's name where it is ''.
            as_simulation: The run promises nothing (`server.registry.run_facts.unpromised`), and is to be published as such: the
                first line of its card says so.
            record: Called with the run's name when it is known that its model may be published, before it is.

        Guarantees: when this returns, the version is there for every reader; when it does not, no reader meets a part of it.
        The same model under the same name is published once, however often it is asked for.

        Raises:
            InputError: this is no model of a finished run, or one that promises nothing, and `as_simulation` does not say so.
            StorageError: its files are not those that the run wrote, or the store cannot be read or written.
            Untrusted: the newest version is not signed by a key that this registry trusts.
        """
        source = run / MODEL if (run / MODEL / MANIFEST).is_file() else run
        facts = facts_in(_file(source / FACTS), str(source))
        _require_said(facts, str(source), as_simulation=as_simulation)
        if record is not None:
            record(facts.run)
        origin = origin_of(facts, name)
        for _ in range(_TRIES):
            versions = list(self.versions())
            newest = versions[0] if versions else None
            twin = next((v for v in versions if v.origin == origin), None)
            if twin is not None:
                self._point(versions[0].version)
                return twin
            lineage = Lineage(
                version=newest.version + 1 if newest else 1,
                previous=newest.sha256 if newest else "",
                start=next(
                    (v.version for v in versions if facts.start_sha256 and v.origin.adapter_sha256 == facts.start_sha256), None
                ),
            )
            with tempfile.TemporaryDirectory(prefix="fedfuse-publish-") as folder:
                draft = Path(folder)
                _copy(source, draft)
                for file, content in model_card_files(facts, lineage).items():
                    (draft / file).write_bytes(content)
                plain = describe(draft, origin)
                manifest = plain.numbered(lineage.version, lineage.previous).signed(signer)
                for entry in manifest.files:
                    self.store.put(f"{manifest.folder}/{entry.name}", draft / entry.name)
            if self.store.create(_manifest(manifest.version), manifest.content):
                self._point(manifest.version)
                return manifest
        raise StorageError("other publishers were always first", where=self.store.where, do="try again when they are done")

    def _hint(self) -> int:
        where = f"{self.store.where}/{INDEX}"
        try:
            values = read_json(read_bounded(self.store, INDEX, _MAX_INDEX), INDEX, where)
        except NotThere:
            return 0
        try:
            return _Index.model_validate(values).newest
        except ValidationError as error:
            raise InputError(
                explain(error)[:500], where=where, do="this is no registry of models, or its index is damaged"
            ) from None

    def _read(self, number: int) -> Manifest:
        name = _manifest(number)
        where = f"{self.store.where}/{name}"
        manifest = parse_manifest(read_bounded(self.store, name, MAX_MANIFEST), where)
        if manifest.version != number:
            raise InputError(
                f"is the manifest of version {manifest.version}",
                where=where,
                do="tell who runs the registry: it was copied there",
            )
        return manifest

    def _signed(self, manifest: Manifest) -> Manifest:
        if self._trusted:
            manifest.require_signed(self._trusted, where=f"{self.store.where}/{_manifest(manifest.version)}")
        return manifest

    def _require_link(self, before: Manifest, after: Manifest) -> None:
        if before.sha256 != after.previous:
            raise Untrusted(
                f"version {after.version} was not published after the version {before.version} that is here",
                where=self.store.where,
                do="the history was rewritten: ask the coordinator which one is right",
            )

    def _point(self, number: int) -> None:
        # Not if it points further already: of two publishers the slower one must not point back.
        if self._hint() < number:
            self.store.replace(INDEX, json.dumps({"format": 1, "newest": number}).encode("ascii") + b"\n")


def _require_said(facts: Facts, where: str, *, as_simulation: bool) -> None:
    # The signature is the coordinator's word for the card, and the card speaks of epsilon.
    reasons = unpromised(facts)
    if reasons and not as_simulation:
        raise InputError(
            f"this run promises nothing to the users behind it: {'; '.join(reasons)}",
            where=where,
            do="publish the model of a deployed run; to publish this one nevertheless, with a card that says so: --as-simulation",
        )
    if as_simulation and not reasons:
        raise InputError("this is the model of a deployed run", where=where, do="leave --as-simulation out")


def _manifest(number: int) -> str:
    return f"manifests/{number:06d}.json"


def _copy(source: Path, draft: Path) -> None:
    """Copy a run's model, and check the copy against the run's own manifest."""
    manifest = parse_manifest(_file(source / MANIFEST), str(source))
    for entry in manifest.files:
        target = draft / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / entry.name, target, follow_symlinks=False)
        except OSError as error:
            raise StorageError(
                f"{entry.name} cannot be copied ({error.strerror})", where=str(source), do="let the run publish its model again"
            ) from None
    if describe(draft, manifest.origin).files != manifest.files:
        raise StorageError(
            "the model is not what the run wrote: a file has another SHA-256",
            where=str(source),
            do="restore it, or let the run publish its model again (--resume)",
        )


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise InputError(
            f"there is no {path.name} ({error.strerror})", where=str(path.parent), do="name the folder of a finished run"
        ) from None
