"""The coordinator's server: Flower's SuperLink with TLS, SuperNode authentication and its database on disk, behind the gate.

One process, one application, two sockets: the public one passes the gate, the other is bound to 127.0.0.1.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn
from flwr.supercore.fab import Fab
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import tell_authorities, trusted_bundle
from server.deployment.bundle import deposit
from server.deployment.checkup import bound_socket
from server.deployment.folder import ENVIRONMENT, CoordinatorFolder
from server.deployment.gate import HTTP, Gate, Sparing
from server.deployment.gate_verdicts import Judge
from server.deployment.server_metrics import server_registry
from server.deployment.supernode_sync import enlist_at_start
from server.operators.acting import log_of
from server.operators.log_witness import LogWitness
from server.operators.log_writer import note_seen
from server.operators.restored_state import list_differences, require_current, seen_note
from server.run.last_receipts import LastReceipts
from shared.base.errors import InputError, StorageError
from shared.base.folder_owner import require_owner
from shared.base.prometheus import serve_metrics
from shared.flower import flower_patches
from shared.flower.kept_process import Keeping
from shared.protocol.authorities import authorities_answer
from shared.protocol.keys import load_ed25519

log = logging.getLogger("fedfuse.server")

SOON = 30
"""Days before the certificate expires from which every start says so."""
PATIENCE = 60_000
"""Milliseconds that a request waits for others to have written to Flower's database. A SuperNode whose answer is refused with
500 does not send it again: of fifty at once some were lost."""


def serve_superlink(coordinator: CoordinatorFolder) -> None:
    """Run the server until it is stopped.

    Raises:
        StorageError: its certificate has expired, or its folder cannot be written.
        AlteredLog: the operators' log was altered, or is an older copy, or the list of platforms lets in whom it does not.
        InputError: a port is taken; or this is root, and the folder another user's.
    """
    require_owner(coordinator.folder)
    certificates, file = coordinator.certificates, coordinator.file
    certificates.require_valid()
    tell_authorities(certificates)
    left = certificates.days_left()
    if left < SOON:
        log.warning("the server's certificate expires in %.0f days: fedfuse server renew", left)
    coordinator.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_believed(coordinator)
    _prepare_environment(coordinator)
    platforms = Platforms(coordinator.platforms)
    flower_patches.database_patience(PATIENCE)
    flower_patches.superlink_processes(
        Keeping(lambda how: log.error("Flower's process that starts runs ended (%s): it is started again", how))
    )
    public, private = _bind(file.listen, file.port), _bind("127.0.0.1", file.control_port)
    inside = create_app(_flower_config(coordinator), SuperLinkLifespan)
    receipts = LastReceipts(coordinator.receipts)
    receipts.gather(coordinator.folder / "runs")
    judge = Judge(platforms, minimum=file.minimum_version, receipts=receipts.get)

    def take(content: bytes) -> dict[str, Any]:
        values = json.loads(content)
        fab = Fab(values["digest"], base64.b64decode(values["content"]), values["verifications"])
        return {"app": deposit(inside.state.linkstate_factory.state(), fab)}

    def revive(node: int) -> None:
        inside.state.linkstate_factory.state().deactivate_node(node)

    key = load_ed25519(coordinator.federation_key)

    def authorities(nonce: str) -> dict[str, str]:
        return authorities_answer(trusted_bundle(certificates), nonce=nonce, key=key)

    witness = LogWitness(coordinator, key)
    gate = Gate(
        inside,
        judge,
        private=file.control_port,
        bundles=take,
        revive=revive,
        authorities=authorities,
        witness=witness.answer,
        notice=witness.notice,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app=gate,
            ssl_keyfile=str(certificates.server_key),
            ssl_certfile=str(certificates.server),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            ws="none",
            **HTTP,
        )
    )
    logging.getLogger("uvicorn.error").addFilter(Sparing())
    log.info(
        "federation %s: platforms connect to %s, Flower's own interfaces are on %s",
        file.name,
        coordinator.address,
        coordinator.control,
    )
    enlist_at_start(coordinator)
    with contextlib.ExitStack() as stack:
        if file.metrics_port:
            stack.enter_context(serve_metrics(server_registry(coordinator, seen=judge.seen), port=file.metrics_port))
        server.run(sockets=[public, private])


def require_believed(coordinator: CoordinatorFolder) -> None:
    """Return only if the list of platforms lets in nobody whom the operators' log does not, and no older log was put back.

    Who is merely missing is said, and keeps nobody else waiting.

    Raises:
        AlteredLog: what differs, and what mends it.
        StorageError: list or log cannot be read.
    """
    found = log_of(coordinator)
    require_current(coordinator, found, admitted=True)
    for one in list_differences(coordinator, found):
        log.error("%s; %s", one.found, one.do)
    note_seen(seen_note(coordinator), found, found.actions[-1])


def _flower_config(coordinator: CoordinatorFolder) -> SuperLinkLifespanConfig:
    certificates = coordinator.certificates
    files = (certificates.trusted, certificates.server, certificates.server_key)
    try:
        contents = tuple(path.read_bytes() for path in files)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(error.filename), do="fedfuse server renew") from None
    return SuperLinkLifespanConfig(
        # Where Flower's own processes find this server.
        host="127.0.0.1",
        port=coordinator.file.control_port,
        insecure=False,
        certificates=contents,  # type: ignore[arg-type]
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        simulation=False,
        ssl_ca_certfile=str(certificates.trusted),
        ssl_certfile=str(certificates.server),
        ssl_keyfile=str(certificates.server_key),
        database=str(coordinator.database),
        isolation="subprocess",
        runtime_dependency_install=False,
        **_retired(),
    )


def _retired() -> dict[str, Any]:
    """Addresses of the gRPC interfaces, which are said and never bound here; releases after 1.42 have neither."""
    said = {
        "control_address": "127.0.0.1:0",
        "health_server_address": None,
        "fleet_api_type": "grpc-rere",
        "fleet_api_address": "127.0.0.1:0",
    }
    known = {field.name for field in fields(SuperLinkLifespanConfig)}
    return {name: value for name, value in said.items() if name in known}


def _prepare_environment(coordinator: CoordinatorFolder) -> None:
    """For this process and those that Flower starts from it."""
    os.environ[ENVIRONMENT] = str(coordinator.folder)
    os.environ["FLWR_HOME"] = str(coordinator.state / "flwr")
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.5")
    # Flower finds its own commands by the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # A folder of its own: where it is started from may hold packages of the bundle's names.
    os.chdir(coordinator.state)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bound_socket(host, port)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}", where="server.toml", do="stop what uses it, or change the port"
        ) from None
