"""Whom a platform's people trust to be whom: the other platforms' identities in the secure sum, in one small file.

They come from the other platforms, or from the coordinator's invitation, and are written down by a person who has compared
their fingerprints. The coordinator alone must not be able to say who is who: it could put itself in everybody's place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import tomli_w

from client.config.confirmed_changes import IdentityChange, require_agreed
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError
from shared.protocol.invitation import LARGEST, Application, fingerprint_of, parse_application, parse_invitation, read_whole

_HEAD = "# Identities of other platforms, as their people confirmed them: kept by `fedfuse client trust`.\n"


def read_peers(path: Path) -> dict[str, str]:
    """Names and identities (base64) in a file of peers; none where there is no file.

    Raises:
        InputError: it is no such file.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), do="check its rights") from None
    try:
        values = tomllib.loads(text.decode("utf-8"))
    except ValueError:
        raise InputError("is no TOML", where=str(path), do="make it with: fedfuse client trust") from None
    if not all(isinstance(value, str) for value in values.values()):
        raise InputError("holds more than names and identities", where=str(path), do="make it with: fedfuse client trust")
    return values


def identities_in(path: Path, *, federation: str) -> dict[str, str]:
    """Identities that another platform's application, or an invitation, speaks of.

    Raises:
        InputError: it is neither, or of another federation.
    """
    text = read_whole(path, do="name the other platform's application.toml")
    if len(text) <= LARGEST and b"\nmodels" in text:
        invitation = parse_invitation(text, where=str(path))
        of, found = invitation.federation, dict(invitation.members)
    else:
        application = parse_application(text, where=str(path))
        of, found = application.federation, {application.platform: application.identity}
    if of != federation:
        raise InputError(
            f"is of federation {of!r}, this platform is in {federation!r}", where=str(path), do="name a file of this federation"
        )
    return found


def require_own(found: Mapping[str, str], own: Application) -> None:
    """Check that what speaks of this platform itself means it.

    Raises:
        InputError: it has another identity under this platform's name.
    """
    if (there := found.get(own.platform, own.identity)) != own.identity:
        raise InputError(
            f"{own.platform!r} has fingerprint {fingerprint_of(there)} there, and this platform's is {own.fingerprint}",
            where="client trust",
            do="nothing was written; ask the coordinator's people which application they approved",
        )


def identities_of(paths: Iterable[Path], *, federation: str) -> dict[str, str]:
    """Identities that several files speak of.

    Raises:
        InputError: one is no such file or of another federation, or two of them disagree.
    """
    found: dict[str, str] = {}
    for path in paths:
        for name, key in identities_in(path, federation=federation).items():
            if found.setdefault(name, key) != key:
                raise InputError(
                    f"{name!r} has fingerprint {fingerprint_of(key)} here, and {fingerprint_of(found[name])} in another file",
                    where=str(path),
                    do="ask its people which one is theirs",
                )
    return found


def identity_changes(path: Path, found: Mapping[str, str]) -> list[IdentityChange]:
    """Which identities in the file of peers these would replace."""
    known = read_peers(path)
    return [
        IdentityChange(name=name, old=fingerprint_of(known[name]), new=fingerprint_of(key))
        for name, key in sorted(found.items())
        if known.get(name, key) != key
    ]


def trust_identities(path: Path, found: Mapping[str, str], *, replace: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write these identities into the file of peers; returns those that were new or are others than before.

    Args:
        replace: Fingerprint by name, of each identity that may take the place of a known one.

    Raises:
        InputError: a known identity would be replaced, and `replace` does not name it.
    """
    require_agreed(identity_changes(path, found), replace or {}, where=str(path))
    known = read_peers(path)
    changed = {name: key for name, key in found.items() if known.get(name) != key}
    if changed:
        _write(path, {**known, **changed})
    return changed


def forget_identities(path: Path, names: Iterable[str]) -> None:
    """Take these platforms out of the file of peers: no secure sum is with them any more.

    Raises:
        InputError: one is not in it; nothing was written.
    """
    known, forgotten = read_peers(path), set(names)
    if unknown := sorted(forgotten - set(known)):
        raise InputError(
            f"not trusted: {', '.join(unknown)}", where=str(path), do=f"trusted are: {', '.join(sorted(known)) or 'none'}"
        )
    _write(path, {name: key for name, key in known.items() if name not in forgotten})


def _write(path: Path, peers: Mapping[str, str]) -> None:
    # For all to read: there is no secret in it, and an administrator writes it for the worker, which is another user.
    write_whole(path, (_HEAD + tomli_w.dumps(dict(sorted(peers.items())))).encode())
