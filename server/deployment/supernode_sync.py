"""Keeping Flower's list of SuperNodes equal to the coordinator's list of platforms."""

from __future__ import annotations

import logging
import threading
import time

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from server.deployment.flower_control import Control, Unreachable
from server.deployment.folder import CoordinatorFolder
from shared.base.errors import FedfuseError
from shared.protocol.keys import node_key_from_line

log = logging.getLogger("fedfuse.server")


def enlist(control: Control, platforms: Platforms) -> list[str]:
    """Register the SuperNodes of approved platforms that Flower does not know, and forget those of revoked ones.

    Returns:
        What was done, a line each.
    """
    known = {node.node for node in control.nodes()}
    done = []
    for one in platforms.all():
        if one.revoked is None and one.node not in known:
            platforms.registered(one.node_key, control.register(_pem(one), one.name))
            done.append(f"{one.name} is registered")
        elif one.revoked is not None and one.node:
            if one.node in known:
                control.unregister(one.node)
                done.append(f"{one.name} is struck off")
            platforms.registered(one.node_key, 0)
    return done


def enlist_if_running(coordinator: CoordinatorFolder) -> bool:
    """`enlist`, where the server runs; False where it does not: it enlists by itself when it starts."""
    try:
        with Control(coordinator) as control:
            enlist(control, Platforms(coordinator.platforms))
    except Unreachable:
        return False
    return True


def enlist_at_start(coordinator: CoordinatorFolder, *, seconds: float = 60.0) -> threading.Thread:
    """`enlist` as soon as the server that is being started in this process answers."""

    def wait() -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                with Control(coordinator) as control:
                    for line in enlist(control, Platforms(coordinator.platforms)):
                        log.info("%s", line)
                return
            except Unreachable:
                if time.monotonic() > end:
                    log.exception("the server does not answer itself")
                    return
                time.sleep(0.2)
            except FedfuseError:
                log.exception("platforms could not be registered")
                return

    thread = threading.Thread(target=wait, name="enlist", daemon=True)
    thread.start()
    return thread


def _pem(platform: ApprovedPlatform) -> bytes:
    return node_key_from_line(platform.node_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
