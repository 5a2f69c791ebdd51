"""The bundle (FAB) that a run ships to the platforms: made from the installed code, the same bytes every time, and signed.

It holds the coordinator's side and the messenger, and nothing of the worker: what opens a platform's rows is the platform's
own installation. The signature is in Flower's form, so that Flower's own SuperNode checks it (`--trusted-entities`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import NOOP_FLWR_AID
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

from shared.base.settings import Settings, flatten
from shared.base.version import VERSION
from shared.protocol.run_authorization import federation_of

PUBLISHER, NAME = "fedfuse", "fedfuse"
MESSENGER = ("client/__init__.py", "client/app.py")
"""Files that a bundle holds beside the folders."""
FOLDERS = ("client/messenger", "server", "shared", "strategies")
RUN_KEYS: dict[str, Any] = {
    "run": "",
    "warrant": "",
    "nodes": 0,
    "wait": 300.0,
    "round_patience": 600.0,
    "only": "",
    "dry_run": False,
    "publish": True,
    "start": "",
}
"""What a deployed run gets besides its settings."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A built bundle.

    Args:
        content: A zip file, as Flower makes it.
    """

    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    def signed_by(self, key: Ed25519PrivateKey, *, now: float | None = None) -> Fab:
        """The bundle with the coordinator's signature, as Flower hands it to SuperNodes."""
        at = int(time.time() if now is None else now)
        signature = key.sign(create_message_to_sign(hashlib.sha256(self.content).digest(), at))
        entry = {"signature": base64.urlsafe_b64encode(signature).decode("ascii"), "signed_at": at}
        # Flower's SuperNode looks at signatures only where the SuperLink claims a licence for them; the word proves nothing.
        verifications = {key_id(key.public_key().public_bytes_raw()): json.dumps(entry), "valid_license": "fedfuse"}
        return Fab(hash_str=self.digest, content=self.content, verifications=verifications)


def build_bundle(root: Path | None = None) -> Bundle:
    """The bundle of the code at `root`; by default of the code that is running."""
    root = root or Path(__file__).resolve().parents[2]
    files: dict[str, bytes | Path] = {"pyproject.toml": tomli_w.dumps(_project()).encode()}
    files |= {name: root / name for name in MESSENGER}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            files[path.relative_to(root).as_posix()] = path
    content, _ = build_fab_from_files(files)
    return Bundle(content=content)


def deposit(linkstate: Any, fab: Fab) -> str:
    """Put a signed bundle where the SuperLink finds it, and its signature; returns the name to start it by.

    Args:
        linkstate: Flower's state of the running SuperLink.
    """
    app = f"@{PUBLISHER}/{NAME}"
    linkstate.store_app(
        fab=fab, federation_id=NOOP_FEDERATION_ID, app_id=app, app_type=TaskType.SERVER_APP, added_by=NOOP_FLWR_AID
    )
    return app


def key_id(public: bytes) -> str:
    """How a trusted-entities file names the federation's key."""
    return f"fpk_{federation_of(public)}"


def _project() -> dict[str, Any]:
    app = {
        "publisher": PUBLISHER,
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": {"world": "", "out": "", **RUN_KEYS, **flatten(Settings())},
    }
    return {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": NAME,
            "version": VERSION,
            "description": "Fedfuse: the coordinator and the messenger",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {"flwr": {"app": app}},
    }
