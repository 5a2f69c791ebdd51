"""Whether a model's folder still holds what was published: its files against the manifest that lies with them.

A pull checks every byte once; what happens to the folder afterwards, only whoever opens it can notice. Hashes show damage and
careless changes. Whoever changes a file on purpose can change its hash in the manifest as well: that shows by the signature,
for which the opener has to say whose it trusts, since no key that lies in the same folder would prove anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from shared.base.errors import StorageError
from shared.registry.manifest import MANIFEST, MAX_MANIFEST, Manifest, manifest_entry, parse_manifest
from shared.registry.signing import PublicKey, Untrusted

_DO = "it was damaged or changed after it was pulled: pull the model again"


def require_unaltered(folder: Path, *, opened: Collection[str], trusted: Iterable[PublicKey] = ()) -> Manifest | None:
    """The manifest of a model's folder, once its files are what it says; None where there is no manifest.

    Args:
        folder: Of a run, or what a pull gave.
        opened: Names of files that are opened where they are there, so that none of them may be there but in the manifest.
        trusted: Public keys, of which one must have signed; without any, the signature is not looked at.

    Guarantees: each file that the manifest lists, and each of `opened` that is there, has the listed size and SHA-256; with
        `trusted`, these are the ones that one of the keys signed.

    Raises:
        StorageError: a file is missing, not listed, a link, or not what the manifest says.
        Untrusted: none of `trusted` signed, or there is no manifest to be signed.
        InputError: the manifest is none.
    """
    keys, path = tuple(trusted), folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        if keys:
            raise Untrusted(
                f"there is no {MANIFEST}, so nobody has signed this model", where=str(folder), do="pull it by `fedfuse pull`"
            )
        return None
    try:
        with path.open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST + 1), str(path))
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=str(path), do="check the disk and its rights") from None
    if keys:
        manifest.require_signed(keys, where=str(folder))
    listed = {entry.name for entry in manifest.files}
    for name in sorted(opened):
        if name not in listed and (folder / name).exists():
            raise StorageError(f"{name} is not among the files of its {MANIFEST}", where=str(folder), do=_DO)
    for entry in manifest.files:
        file_path = folder / entry.name
        if file_path.is_symlink() or not file_path.is_file():
            raise StorageError(f"{entry.name} is missing, or a link", where=str(folder), do=_DO)
        # The size first: it is known without reading.
        if file_path.stat().st_size != entry.size or manifest_entry(folder, file_path) != entry:
            raise StorageError(f"{entry.name} is not what its {MANIFEST} says", where=str(folder), do=_DO)
    return manifest
