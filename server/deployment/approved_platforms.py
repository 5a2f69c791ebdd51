"""Which platforms may take part: the coordinator's own list, one JSON file, changed by `approve` and `revoke` alone.

The server looks at it at every request, so a revocation holds at once. Revoked keys stay on the list, so that their owners
learn what happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, StorageError
from shared.protocol.fingerprint_words import is_fingerprint
from shared.protocol.invitation import Application, fingerprint_of
from shared.protocol.keys import fingerprint

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ApprovedPlatform:
    """One platform that was approved once.

    Args:
        node_key: The SuperNode's public key (OpenSSH).
        identity: Ed25519 identity in the secure sum (base64).
        node: Flower's id of its SuperNode; 0 before it is registered. A revoked one keeps it: Flower takes no key a second time.
        approved: Seconds since 1970.
        revoked: Seconds since 1970, or None.
    """

    name: str
    node_key: str
    identity: str
    node: int = 0
    approved: float = 0.0
    revoked: float | None = None

    @property
    def fingerprint(self) -> str:
        """Of the SuperNode's key."""
        return fingerprint(self.node_key)


def _changed(one: ApprovedPlatform, application: Application) -> list[str]:
    """Which keys of a platform that is approved, or of a SuperNode that was, an application would replace."""
    same_node = one.node_key == application.node_key
    if one.name != application.platform or (one.revoked is not None and not same_node):
        return []
    pairs = {
        "key": (one.fingerprint, fingerprint(application.node_key), same_node),
        "identity": (fingerprint_of(one.identity), fingerprint_of(application.identity), one.identity == application.identity),
    }
    return [f"{what} (CHANGED: old {old}, new {new})" for what, (old, new, same) in pairs.items() if not same]


class Platforms:
    """The list in a file. Reading it again costs a look at its date."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serial = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._known: dict[str, ApprovedPlatform] = {}

    def all(self) -> list[ApprovedPlatform]:
        """Every platform, revoked ones too, by key: a platform that changed its key is there twice.

        Raises:
            StorageError: the list is damaged.
        """
        with self._serial:
            self._read()
            return sorted(self._known.values(), key=lambda one: (one.name, one.approved))

    def approved(self) -> list[ApprovedPlatform]:
        """Those that may take part."""
        return [one for one in self.all() if one.revoked is None]

    def by_key(self, node_key: str) -> ApprovedPlatform | None:
        """The platform with that SuperNode key (OpenSSH, without a comment)."""
        with self._serial:
            self._read()
            return self._known.get(node_key)

    def approve(
        self,
        application: Application,
        *,
        replace_with: str = "",
        register: Callable[[ApprovedPlatform], int] | None = None,
        record: Callable[[ApprovedPlatform, ApprovedPlatform | None], object] | None = None,
    ) -> ApprovedPlatform:
        """Let a platform in.

        Args:
            record: Called last before the list is written, with the platform and the one whose key it replaces.
            register: Gives Flower's id of its SuperNode, called when everything is checked and nothing is written.
            replace_with: Fingerprint of this very application, if it may have other keys than it was approved with; the old ones
                are revoked. A SuperNode's key is public: an application with it and another identity may be anybody's.

        Raises:
            InputError: the name or a key belongs to another, or keys would change that `replace_with` does not name.
            FedfuseError: as `register` and `record`; the list is as it was.
        """
        with self._change() as known:
            same = known.get(application.node_key)
            if same is not None and same.name != application.platform:
                raise InputError(
                    f"this key belongs to platform {same.name!r}",
                    where=application.platform,
                    do="let every platform make its own",
                )
            old = None
            for one in list(known.values()):
                if one.identity == application.identity and one.name != application.platform:
                    raise InputError(
                        f"this identity belongs to platform {one.name!r}",
                        where=application.platform,
                        do="let every platform make its own",
                    )
                changed = _changed(one, application)
                if not changed:
                    continue
                if not is_fingerprint(replace_with, application.fingerprint):
                    raise InputError(
                        f"platform {one.name!r} is approved with another {' and another '.join(changed)}",
                        where=application.platform,
                        do="compare the application's fingerprint with its people; if they confirm that they have new keys: "
                        f"--replace {application.fingerprint}",
                    )
                known[one.node_key] = replace(one, revoked=time.time())
                old = one if one.node_key != application.node_key else old
            made = ApprovedPlatform(
                name=application.platform,
                node_key=application.node_key,
                identity=application.identity,
                node=0 if same is None else same.node,
                approved=time.time(),
            )
            if register is not None:
                made = replace(made, node=register(made))
            if record is not None:
                record(made, old)
            known[made.node_key] = made
        return made

    def revoke(self, name: str, *, record: Callable[[ApprovedPlatform], object] | None = None) -> ApprovedPlatform:
        """Shut a platform out, from now on.

        Args:
            record: Called before the list is written.

        Raises:
            InputError: no such platform is approved.
            FedfuseError: as `record`; the list is as it was.
        """
        with self._change() as known:
            found = next((one for one in known.values() if one.name == name and one.revoked is None), None)
            if found is None:
                names = ", ".join(sorted(one.name for one in known.values() if one.revoked is None)) or "none"
                raise InputError(f"no platform {name!r} is approved", where=str(self._path), do=f"approved are: {names}")
            if record is not None:
                record(found)
            known[found.node_key] = replace(found, revoked=time.time())
        return known[found.node_key]

    def registered(self, node_key: str, node: int) -> None:
        """Note Flower's id of a platform's SuperNode; 0 forgets it."""
        with self._change() as known:
            if node_key in known:
                known[node_key] = replace(known[node_key], node=node)

    @contextlib.contextmanager
    def _change(self) -> Iterator[dict[str, ApprovedPlatform]]:
        """The list, to be changed; written back whole, and by one process at a time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with self._serial:
                self._read()
                known = dict(self._known)
                yield known
                values = {"format": FORMAT, "platforms": [asdict(one) for one in known.values()]}
                write_whole(self._path, (json.dumps(values, indent=1) + "\n").encode(), mode=0o600)
                self._seen = None
        finally:
            os.close(handle)

    def _read(self) -> None:
        try:
            state = self._path.stat()
        except FileNotFoundError:
            self._known, self._seen = {}, None
            return
        seen = (state.st_ino, state.st_mtime_ns, state.st_size)
        if seen == self._seen:
            return
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
            self._known = {one["node_key"]: ApprovedPlatform(**one) for one in values["platforms"]}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"the list of platforms cannot be read: {error}", where=str(self._path), do="restore it") from None
        self._seen = seen
