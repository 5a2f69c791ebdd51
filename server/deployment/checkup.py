"""`fedfuse doctor` in a coordinator's folder: certificate, keys, ports, platforms, and runs that were killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import RotationStage, rotation_stage
from server.deployment.flower_control import Unreachable, require_server
from server.deployment.folder import CoordinatorFolder, ServerFile, open_coordinator
from server.deployment.launch import is_alive
from server.monitoring.journal import read_state
from server.operators.operator_log import LOG, AlteredLog, read_operator_log
from server.operators.restored_registry import check_registry
from server.operators.restored_state import list_differences, require_latest
from shared.base.errors import FedfuseError, shell_word
from shared.base.version import VERSION, release
from shared.doctor.findings import Finding, fault, fault_of, fine, warning
from shared.doctor.places import check_certificate, check_secrets

_NETWORKED = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs")
_ROTATE = "fedfuse server authority begin: docs/operating.md"
_RENEW = "fedfuse server renew, then restart the server"


def check_coordinator(folder: Path) -> Iterator[Finding]:
    """Everything that can be looked at from the coordinator's machine."""
    try:
        coordinator = open_coordinator(folder)
    except FedfuseError as error:
        yield fault_of("server.toml", error)
        return
    file, certificates = coordinator.file, coordinator.certificates
    stage = rotation_stage(certificates)
    yield fine("server.toml", f"federation {file.name}, platforms connect to {coordinator.address}")
    yield from check_secrets(
        {
            "the authority's key": certificates.authority_key,
            "the server's key": certificates.server_key,
            "the federation's key": coordinator.federation_key,
            "the model-signing key": coordinator.model_key,
            **(
                {"the next authority's key": certificates.authority.with_name("next.key")} if stage is RotationStage.BEGUN else {}
            ),
        },
        folders=[coordinator.folder, coordinator.state],
        away=["the authority's key"],
    )
    yield check_certificate("the server's certificate", certificates.server, cure=_RENEW)
    yield check_certificate("the authority's certificate", certificates.authority, cure=_ROTATE)
    if stage is not RotationStage.NONE:
        yield warning("certificate", f"a change of the authority is {stage}", "fedfuse server authority status says what is next")
    yield from _ports(coordinator)
    yield _name(file.host)
    yield _file_system(coordinator.folder)
    if (release(file.minimum_version) or (0, 0, 0)) > (release(VERSION) or (0, 0, 0)):
        yield fault("version", f"platforms need {file.minimum_version}, and this is {VERSION}", "correct minimum_version")
    try:
        approved = [one.name for one in Platforms(coordinator.platforms).approved()]
    except FedfuseError as error:
        yield fault_of("platforms", error)
    else:
        said = f"{len(approved)} approved{': ' if approved else ''}{', '.join(approved[:20])}"
        yield fine("platforms", said) if approved else warning("platforms", said, "fedfuse invite NAME, then fedfuse approve")
    yield _operators(coordinator)
    yield from _registry(coordinator)
    yield from _killed_runs(coordinator)


def _operators(coordinator: CoordinatorFolder) -> Finding:
    if not (coordinator.operators / LOG).exists() and not coordinator.operator_key.exists():
        return warning("operators", "an earlier version made this folder", "it gets its log with the next command: fedfuse log")
    try:
        log = read_operator_log(coordinator.operators)
        require_latest(coordinator, log)
        strange = list(list_differences(coordinator, log))
    except FedfuseError as error:
        return fault_of("operators", error)
    if strange:
        found, do = (list(dict.fromkeys(words))[:5] for words in zip(*((one.found, one.do) for one in strange), strict=True))
        return fault("operators", "; ".join(found), "; ".join(do))
    names = ", ".join(one.name for one in log.operators.values() if not one.removed)
    return fine("operators", f"{names}; {len(log.actions)} signed actions, and the list of platforms is of them")


def _registry(coordinator: CoordinatorFolder) -> Iterator[Finding]:
    try:
        yield from check_registry(coordinator, read_operator_log(coordinator.operators))
    except AlteredLog:
        return  # which was said
    except FedfuseError as error:
        yield fault_of("registry", error)


def _ports(coordinator: CoordinatorFolder) -> Iterator[Finding]:
    file = coordinator.file
    try:
        require_server(coordinator)
        yield fine("ports", f"the server answers at {coordinator.control}")
        return
    except Unreachable:
        pass
    except FedfuseError as error:
        yield fault("ports", f"something else answers at {coordinator.control}: {error.found}", "stop it, or change control_port")
        return
    wanted = {"port": (file.listen, file.port), "control_port": ("127.0.0.1", file.control_port)}
    if file.metrics_port:
        wanted["metrics_port"] = ("127.0.0.1", file.metrics_port)
    taken = {name: place for name, place in wanted.items() if not port_is_free(*place)}
    for name, (host, port) in taken.items():
        yield fault("ports", f"another program listens on {host}:{port}", f"stop it, or change {name} in server.toml")
    if not taken:
        shown = ", ".join(str(port) for _, port in wanted.values())
        yield warning(
            "ports", f"free: {shown}; the server does not run", f"fedfuse server start {shell_word(coordinator.folder)}"
        )


def check_default_ports() -> Iterator[Finding]:
    """Whether a new coordinator could take the ports that it is given by default."""
    defaults = ServerFile.model_fields
    places = {"--port": ("0.0.0.0", defaults["port"].default), "--control-port": ("127.0.0.1", defaults["control_port"].default)}  # noqa: S104
    taken = {option: port for option, (host, port) in places.items() if not port_is_free(host, port)}
    for option, port in taken.items():
        yield warning(
            "ports", f"{port} is taken, which a new coordinator has by default", f"give fedfuse init server another {option}"
        )
    if not taken:
        yield fine("ports", f"free: {', '.join(str(port) for _, port in places.values())}")


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        bound_socket(host, port).close()
    except OSError:
        return False
    return True


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that is bound there and does not listen yet.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _name(host: str) -> Finding:
    try:
        found = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, None)})
    except OSError as error:
        return warning("name", f"{host} is not known to this machine ({error.strerror})", "see that platforms' machines know it")
    return fine("name", f"{host} is {', '.join(found)}")


def _file_system(folder: Path) -> Finding:
    kind = _kind_of(folder)
    if kind in _NETWORKED:
        return warning("file system", f"{folder} is on {kind}, where Flower's SQLite may lose locks", "take a local disk")
    return fine("file system", kind or "unknown")


def _kind_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    try:
        lines = [line.split(" ") for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    above = [(Path(words[1]), words[2]) for words in lines if len(words) > 2 and folder.is_relative_to(words[1])]
    return max(above, key=lambda pair: len(pair[0].parts), default=(Path(), ""))[1]


def _killed_runs(coordinator: CoordinatorFolder) -> Iterator[Finding]:
    """Runs that say that they go on, and whose process is gone."""
    for folder in sorted((coordinator.folder / "runs").glob("*")):
        state = read_state(folder) or {}
        process = state.get("process")
        if state.get("state") == "running" and isinstance(process, int) and not is_alive(process):
            found = f"{folder.name} was killed in round {state.get('round', 0)} (its process {process} is gone)"
            yield warning("runs", found, f"fedfuse run --server {shell_word(coordinator.folder)} --resume {folder.name}")
