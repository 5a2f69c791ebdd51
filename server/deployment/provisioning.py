"""`fedfuse init server`: a folder with authority, certificate, keys, configuration and a start script."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import trusted_bundle
from server.deployment.certificates import Certificates, certificate_name
from server.deployment.folder import NAME, CoordinatorFolder, ServerFile, open_coordinator
from server.operators.log_writer import FIRST, begin_log
from shared.base.atomic_files import new_folder, write_whole
from shared.base.errors import InputError, shell_word
from shared.base.settings import explain
from shared.protocol.invitation import Invitation
from shared.protocol.keys import ed25519_line, load_ed25519, make_ed25519
from shared.protocol.messages import NAME as MEMBER
from shared.registry.signing import load_trusted, make_key_pair

_SERVER_TOML = """\
# The coordinator of the federation '{name}'. Made by `fedfuse init server`.

name = "{name}"
host = "{host}"                 # platforms connect to this name; the TLS certificate is made for it
port = {port}                     # and to this port: the only one that must be reachable from outside
listen = "{listen}"
control_port = {control_port}             # Flower's own interfaces: on 127.0.0.1 alone, and never to be opened
minimum_version = "{version}"       # platforms with an older Fedfuse are asked to install this one
registry = ""                   # finished models are published here: a folder, s3://bucket/path, gs://...
metrics_port = 0                # Prometheus metrics on 127.0.0.1; 0: none
"""

_START = """\
#!/bin/sh
# Starts the coordinator of the federation '{name}'; stops with Ctrl-C or SIGTERM.
cd "$(dirname "$0")" || exit 1
exec {python} -m fedfuse server start . "$@"
"""

_IGNORE = """\
# Secrets and state do not belong into a repository.
ca/*.key
keys/*.key
tls/server.key
state/
runs/
receipts/
queue/
"""


def create_coordinator_folder(
    folder: Path, *, host: str, name: str, port: int, control_port: int, listen: str, operator: str = FIRST
) -> CoordinatorFolder:
    """Make a coordinator's folder (0700).

    Args:
        operator: Name of the first operator, whose key is made in the folder.

    Raises:
        InputError: the folder is not empty, or a name, an address or a port cannot be.
        StorageError: it cannot be written.
    """
    # IPv6 addresses may be given in brackets, as in URLs.
    host = host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host
    if port == control_port:
        raise InputError("--port and --control-port are the same", where=str(port), do="give the second another number")
    try:
        file = ServerFile(name=name, host=host, port=port, control_port=control_port, listen=listen)
    except ValidationError as error:
        raise InputError(explain(error), where="the options", do="correct what is named above") from None
    certificate_name(host)
    if not MEMBER.fullmatch(operator):
        raise InputError(f"{operator!r} is no operator's name", where="--operator", do="names are like 'alice' or 'night-shift'")
    with new_folder(folder):
        certificates, coordinator = Certificates.of(folder), CoordinatorFolder(folder=folder.absolute(), file=file)
        for key in (certificates.authority_key, certificates.server_key, coordinator.federation_key):
            # Whatever the umask: who can write a folder can replace the keys in it.
            key.parent.mkdir(exist_ok=True, mode=0o700)
        certificates.make_authority(name)
        certificates.issue(host)
        make_ed25519(coordinator.federation_key)
        make_key_pair(coordinator.model_key, coordinator.model_key.with_suffix(".pub"))
        begin_log(coordinator.operators, make_ed25519(coordinator.operator_key), federation=name, name=operator)
        text = _SERVER_TOML.format(**file.model_dump(), version=file.minimum_version)
        write_whole(folder / ".gitignore", _IGNORE.encode())
        write_whole(folder / "start.sh", _START.format(name=name, python=shell_word(sys.executable)).encode(), mode=0o755)
        # Written last: a folder without it is no coordinator's.
        write_whole(folder / NAME, text.encode())
    return open_coordinator(folder)


def make_invitation(coordinator: CoordinatorFolder, platform: str) -> Invitation:
    """What `platform` needs to take part; there is no secret in it.

    Raises:
        InputError: the name cannot be a platform's.
        StorageError: the coordinator's keys cannot be read.
    """
    key = load_ed25519(coordinator.federation_key).public_key()
    models = Ed25519PublicKey.from_public_bytes(load_trusted(coordinator.model_key.with_suffix(".pub")).raw)
    approved = Platforms(coordinator.platforms).approved()
    try:
        return Invitation(
            federation=coordinator.file.name,
            platform=platform,
            address=coordinator.address,
            minimum_version=coordinator.file.minimum_version,
            coordinator=ed25519_line(key),
            models=ed25519_line(models),
            authority=trusted_bundle(coordinator.certificates),
            members={one.name: one.identity for one in approved if one.name != platform},
        )
    except ValidationError as error:
        raise InputError(explain(error), where="the invitation", do="platform names are like 'shop' or 'video-2'") from None
