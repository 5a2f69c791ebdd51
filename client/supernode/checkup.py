"""`fedfuse doctor` in a platform's folder: file, keys, the cage, the worker, and the coordinator as it is seen from here."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from client.config.deployment_folder import PLATFORM_TOML, Deployment, open_deployment
from client.config.platform_file import PlatformFile, load
from client.config.trusted_peers import read_peers
from client.messenger.unix_socket import connect_to
from client.privacy.receipt_file import last_receipt, require_whole_ledger
from client.supernode.gate_client import Away, Heard, Refused, hear
from client.supernode.sandbox import wall
from client.supernode.supervisor import greets
from shared.base.errors import FedfuseError, ProtocolError, shell_word
from shared.doctor.findings import Finding, Level, fault, fault_of, fine, warning
from shared.doctor.places import certificate_days, check_certificate, check_secrets
from shared.ledger.reading import parse_ledger
from shared.ledger.receipts import RECEIPTS
from shared.protocol.gate_protocol import Standing
from shared.protocol.invitation import Invitation
from shared.protocol.keys import load_node_key

_SKEW = 30.0
"""Seconds between two clocks from which it is a warning; from 5 minutes on the coordinator refuses."""
_GONE = "put the newest copy back; docs/operating.md, 'A ledger that went back'"
_RENEW = "ask the coordinator, who runs: fedfuse server renew"


def check_cage() -> Finding:
    """What this kernel closes to the coordinator's code."""
    found = wall()
    if not found:
        return warning(
            "cage",
            "this kernel has no Landlock, so `fedfuse client start` refuses",
            "Linux 5.13, or --worker-user and --messenger-user",
        )
    if found.open:
        return warning("cage", str(found), "a newer kernel, or --worker-user and --messenger-user")
    return fine("cage", str(found))


def written_folder(folder: Path) -> Path | None:
    """The folder in a platform's that is written to: the worker's, or the messenger's where that half alone is here, as in its
    container; None where it is no platform's folder."""
    place = Deployment(folder)
    if place.file.is_file():
        return place.worker if place.worker.is_dir() else folder
    return place.node if place.invitation.is_file() and place.node.is_dir() else None


def check_platform(folder: Path, *, at: Path | None = None) -> Iterator[Finding]:
    """Everything that can be looked at from a platform's machine; in a container of worker or messenger, of that half.

    Args:
        at: The worker's socket, if it is not in its own place.
    """
    if not (folder / PLATFORM_TOML).is_file() and not (folder / "worker").is_dir():
        yield fine("worker", "its half is elsewhere, and is looked at there")
        yield from _messenger(Deployment(folder.absolute()), None)
        return
    try:
        place = open_deployment(folder)
    except FedfuseError as error:
        yield fault_of("platform.toml", error)
        return
    file = None
    try:
        file = load(place.file)
    except FedfuseError as error:
        yield fault_of("platform.toml", error)
    else:
        yield fine(
            "platform.toml",
            f"platform {file.name}, {len(file.sources)} sources; read it all with: fedfuse check {shell_word(folder)}",
        )
        for text in file.warnings:
            yield warning("platform.toml", text, f"read {place.file}")
        yield from _sources(file)
    both = place.node.is_dir() and os.access(place.node, os.X_OK)
    # Two users may share the folder: each passes through it to their own.
    shared = [place.folder] if both else []
    yield from check_secrets({"the identity": place.identity}, folders=[place.worker], passed=shared)
    yield from _worker(place, file, at or place.socket)
    yield _peers(place)
    if file is not None:
        yield from _ledger(file, last_receipt(file.state / RECEIPTS))
    if both:
        yield from _messenger(place, file)
    else:
        yield fine("messenger", "its half is elsewhere; the coordinator is looked at from there")


def _sources(file: PlatformFile) -> Iterator[Finding]:
    """Whether the files that it names are there, as after a folder was renamed; none is opened."""
    from client.sources.readers.file_bytes import part_files

    named = {name: source.path or () for name, source in file.sources.items()}
    if not isinstance(file.catalogue, str | None):
        named["catalogue"] = file.catalogue.path or ()
    count = 0
    for name, paths in named.items():
        for path in paths:
            try:
                files = part_files(path)
            except FedfuseError as error:
                yield fault("sources", f"{name}: {error.found}: {path}", error.do)
                continue
            except OSError as error:
                yield fault("sources", f"{name}: cannot be looked at ({error.strerror}): {path}", "work as the worker's user")
                continue
            closed = [one for one in files if not os.access(one, os.R_OK)]
            for one in closed:
                yield fault("sources", f"{name}: may not be read: {one}", "let the worker's user read it")
            count += len(files) - len(closed)
    if count:
        yield fine("sources", f"{count} {'files are' if count > 1 else 'file is'} there")


def _messenger(place: Deployment, file: PlatformFile | None) -> Iterator[Finding]:
    """The messenger's half: its key, its cage, and the coordinator as it is seen from here."""
    yield from check_secrets({"the SuperNode's key": place.node_key}, folders=[place.node])
    yield check_cage()
    try:
        invitation = place.invited()
    except FedfuseError as error:
        yield fault_of("invitation", error)
        return
    yield check_certificate(
        "the coordinator's authority", place.authority, cure="ask for a new invitation, then: fedfuse client accept"
    )
    yield from _coordinator(place, invitation, file)


def _worker(place: Deployment, file: PlatformFile | None, at: Path) -> Iterator[Finding]:
    if greets(at):
        yield fine("worker", f"it answers at {at}")
        return
    held, listens = file is not None and _held(file.ledger), _listens(at)
    if held and listens:
        yield fine("worker", f"it runs, and answers its own users alone at {at}")
        return
    yield warning(
        "worker", f"it does not answer at {at}", f"fedfuse client start {shell_word(place.folder)}, or name its socket: --socket"
    )
    if at.is_socket() and not listens:
        yield fine("socket", "an earlier worker has left it; the next one replaces it")
    if held and file is not None:
        cure = "name its socket (--socket) if it is this platform's worker; else end it: a platform has one"
        yield fault("ledger", f"another process holds {file.ledger}", cure)


def _listens(path: Path) -> bool:
    """Whether a process listens at that socket, or may, for another user."""
    try:
        connect_to(path, seconds=1.0).close()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _held(path: Path) -> bool:
    """Whether a process has locked the file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _peers(place: Deployment) -> Finding:
    try:
        known = read_peers(place.folder / "peers.toml")
    except FedfuseError as error:
        return fault_of("peers", error)
    if not known:
        cure = f"compare fingerprints, then: fedfuse client trust {shell_word(place.folder)} OTHER-application.toml"
        return warning("peers", "no other platform is trusted: no secure sum", cure)
    return fine("peers", f"trusted: {', '.join(sorted(known))}")


def _ledger(file: PlatformFile, receipt: str) -> Iterator[Finding]:
    """Whether the ledger holds, and has the line that a receipt names; nothing where neither is there."""
    try:
        content = file.ledger.read_bytes()
    except OSError:
        content = b""
    # The worker may be writing a line, and a crash may have torn one.
    content = content[: content.rfind(b"\n") + 1]
    if not content:
        if receipt:
            yield fault("ledger", f"it is gone, and answers of this platform were acknowledged: {file.ledger}", _GONE)
        return
    try:
        ledger = parse_ledger(content, where=str(file.ledger))
        require_whole_ledger(receipt, ledger, path=file.ledger)
    except FedfuseError as error:
        yield fault_of("ledger", error)
    else:
        yield fine("ledger", f"whole: {len(ledger.lines)} lines, epsilon {ledger.epsilon:.4g} of {ledger.header.budget:g}")


def _coordinator(place: Deployment, invitation: Invitation, file: PlatformFile | None) -> Iterator[Finding]:
    address = invitation.address
    try:
        heard = hear(address, authority=place.authority, key=load_node_key(place.node_key))
    except Refused as error:
        yield fault("tls", error.found, error.do)
        return
    except Away as error:
        yield fault("coordinator", f"{error.found}: {address}", error.do)
        return
    except ProtocolError as error:
        yield fault_of("coordinator", error)
        return
    except FedfuseError as error:
        yield fault_of("keys", error)
        return
    days = _server_days(address, place.authority)
    if days is None:
        yield fine("tls", f"{address} proves itself with the authority of the invitation")
    else:
        yield certificate_days("the coordinator's certificate", days, cure=_RENEW)
    yield _clock(heard)
    yield _standing(heard, invitation)
    if file is not None and heard.receipt:
        for found in _ledger(file, heard.receipt):
            good = fine("ledger", "it has the last answer that the coordinator acknowledged")
            yield found if found.level is Level.ERROR else good


def _clock(heard: Heard) -> Finding:
    ahead = "ahead of" if heard.offset > 0 else "behind"
    found = f"{abs(heard.offset):.1f} s {ahead} the coordinator's"
    if heard.standing is Standing.CLOCK:
        return fault("clock", found, "set this machine's clock: the coordinator refuses 5 minutes")
    return (
        fine("clock", found) if abs(heard.offset) < _SKEW else warning("clock", found, "set this machine's clock, or the other")
    )


def _standing(heard: Heard, invitation: Invitation) -> Finding:
    standing = heard.standing
    if standing is Standing.PRESENT:
        return fine("coordinator", "this platform is connected, or was a moment ago")
    if standing is Standing.WELCOME and heard.platform == invitation.platform:
        return fine("coordinator", f"it knows this platform, as {heard.platform}")
    if standing is Standing.WELCOME:
        return fault("coordinator", f"it knows this key as platform {heard.platform!r}", "ask the coordinator")
    cure = {
        Standing.UNKNOWN: "send application.toml to the coordinator, who runs: fedfuse approve",
        Standing.OUTDATED: f"pip install 'fedfuse>={heard.minimum}'",
        Standing.CLOCK: "set the clock",
    }.get(standing, "ask the coordinator")
    return fault("coordinator", standing.explained(minimum=heard.minimum), cure)


def _server_days(address: str, authority: Path) -> float | None:
    """Days that the certificate holds which the server shows; None where that cannot be seen."""
    host, _, port = address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as shut,
        ):
            shown = shut.getpeercert() or {}
        return (ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / 86400
    except (OSError, KeyError, ValueError):
        return None
