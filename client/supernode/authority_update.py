"""A platform takes over the coordinator's new certificate authority by itself, if the pinned federation key signs it.

The messenger asks once a minute, so it knows a new authority long before the server shows a certificate of it. A platform that
was away meanwhile finds that the server is not of the authority that it knows, asks that very server, and goes on if the answer
is signed.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import secrets
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from client.supernode.gate_client import Away, Greeting, UnprovenServer, get_unverified, greet
from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, ProtocolError
from shared.protocol.authorities import proven_authorities, read_authorities
from shared.protocol.gate_protocol import AUTHORITY_PATH
from shared.protocol.keys import ed25519_from_line
from shared.protocol.log_witness import HEADER, LONGEST, proven_witness

log = logging.getLogger("fedfuse.client")

KEPT = "log-head"
"""File beside that of the authorities with what the coordinator gave to keep."""
EVERY = 60.0
"""Seconds between two questions."""
_SEALED = re.compile(rb"[A-Za-z0-9+/=]{1,%d}" % LONGEST)


def ask_authorities(address: str, *, coordinator: bytes, kept: Path | None = None, seconds: float = 10.0) -> str:
    """The authorities that the coordinator names now, in PEM. Nothing of this platform is sent.

    Args:
        coordinator: Its pinned Ed25519 key, 32 bytes.
        kept: File of what the coordinator gave to keep the last time: it is shown, and replaced by what comes back
            (`shared/protocol/log_witness.py`).

    Raises:
        Away: nobody answers.
        ProtocolError: whoever answers does not have that key, or is of an earlier version.
        StorageError: what is to be kept cannot be written.
    """
    nonce, shown = secrets.token_hex(32), _kept(kept)
    try:
        headers = {HEADER: shown} if shown else None
        status, body = get_unverified(address, f"{AUTHORITY_PATH}?{nonce}", headers=headers, seconds=seconds)
    except (OSError, http.client.HTTPException) as error:
        raise Away(f"the coordinator's server does not answer ({error or type(error).__name__})", where=address) from None
    if status != http.client.OK:
        raise ProtocolError("what answers does not say which authorities the coordinator has", where=address)
    found = proven_authorities(body, nonce=nonce, coordinator=coordinator)
    sealed = proven_witness(body, nonce=nonce, coordinator=coordinator)
    if kept is not None and sealed and sealed != shown:
        write_whole(kept, sealed.encode("ascii"), mode=0o600)
    return found


def _kept(path: Path | None) -> str:
    """What is kept in that file, if it can be a sealed head; '' where nothing is.

    The folder is the messenger's, which runs the coordinator's code: a link that it laid there must not have a file of the
    platform's sent to the coordinator by a process outside the cage.
    """
    if path is None:
        return ""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        text = file.read(LONGEST + 1) if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 else b""
    return text.decode("ascii") if _SEALED.fullmatch(text) else ""


def renew_authorities(address: str, *, authority: Path, coordinator: str, seconds: float = 10.0) -> bool:
    """Take what the coordinator names now into the file of authorities; whether that changed it.

    Args:
        coordinator: The line of its key, as the invitation has it.

    Raises:
        Away, ProtocolError: as `ask_authorities`; the file is as it was.
        StorageError: it cannot be written.
    """
    pinned = ed25519_from_line(coordinator).public_bytes_raw()
    found = ask_authorities(address, coordinator=pinned, kept=authority.with_name(KEPT), seconds=seconds)
    if read_authorities(authority) == found:
        return False
    write_whole(authority, found.encode("ascii"))
    log.warning("the coordinator names other certificate authorities than before; they are in %s", authority)
    return True


def greet_or_renew(address: str, *, authority: Path, key: ec.EllipticCurvePrivateKey, coordinator: str) -> Greeting:
    """Greet; where the server is of another authority than the known ones, ask whether the coordinator says so, and greet again.

    What the coordinator gave to keep is shown with the greeting, so that it is known before this platform can take part in a run.

    Raises:
        FedfuseError: as `greet`.
    """
    kept = authority.with_name(KEPT)
    try:
        return greet(address, authority=authority, key=key, shown=_kept(kept))
    except UnprovenServer:
        try:
            changed = renew_authorities(address, authority=authority, coordinator=coordinator)
        except (Away, ProtocolError):
            changed = False
        if not changed:
            raise
        return greet(address, authority=authority, key=key, shown=_kept(kept))


class LiveAuthorities:
    """Stands in for the `ssl` module where Flower's client makes its context: new authorities are added to it while it is in use.

    Adding never takes away: an authority that the coordinator gave up is no longer believed once the messenger is started again.
    """

    def __init__(self) -> None:
        self._contexts: list[ssl.SSLContext] = []

    def SSLContext(self, protocol: int) -> ssl.SSLContext:
        """A context of Python's, which is remembered."""
        made = ssl.SSLContext(protocol)
        self._contexts.append(made)
        return made

    def add(self, bundle: str) -> None:
        """Have every context believe these, too, at its next connection."""
        for context in self._contexts:
            context.load_verify_locations(cadata=bundle)

    def __getattr__(self, name: str) -> object:
        """Everything else is the real module's."""
        return getattr(ssl, name)


def watch_authorities(
    address: str,
    *,
    authority: Path,
    coordinator: str,
    changed: Callable[[str], object],
    every: float = EVERY,
    stop: threading.Event | None = None,
) -> threading.Thread:
    """Ask again and again, in a thread of its own; `changed` gets the authorities whenever they are others."""
    ended = stop or threading.Event()

    def ask() -> None:
        while not ended.wait(every):
            try:
                if renew_authorities(address, authority=authority, coordinator=coordinator):
                    changed(read_authorities(authority))
            except FedfuseError:
                continue  # away, or of an earlier version: it is asked again

    thread = threading.Thread(target=ask, name="authorities", daemon=True)
    thread.start()
    return thread
