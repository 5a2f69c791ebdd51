"""Keeping Flower's list of SuperNodes abreast of the coordinator's list of platforms."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from server.deployment.flower_control import Control, Node, Unreachable
from server.deployment.folder import CoordinatorFolder
from shared.base.errors import FedfuseError
from shared.protocol.invitation import Application
from shared.protocol.keys import node_key_from_line

log = logging.getLogger("fedfuse.server")


class FlowerNodes(Protocol):
    """What is asked of Flower's Control interface here."""

    def nodes(self) -> list[Node]:
        """Every SuperNode that is registered."""

    def register(self, key: bytes, name: str) -> int:
        """Flower's id for a SuperNode with that public key (PEM)."""


@dataclass(frozen=True, kw_only=True)
class Enlisted:
    """What was done, a line for each platform.

    Args:
        failed: Platforms that could not be registered, and why.
    """

    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def enlist(control: FlowerNodes, platforms: Platforms) -> Enlisted:
    """Register the SuperNodes of approved platforms that Flower does not know; one that fails keeps no other from it.

    SuperNodes of revoked platforms stay registered, for Flower never takes a key again that was unregistered. The gate lets
    nothing of theirs through, and runs do not ask them.

    Raises:
        Unreachable: the server does not answer.
    """
    known = {node.node for node in control.nodes()}
    done, failed = [], []
    for one in platforms.approved():
        if one.node in known:
            continue
        try:
            platforms.registered(one.node_key, _registered(control, one))
        except Unreachable:
            raise
        except FedfuseError as error:
            failed.append(f"{one.name} cannot be registered: {error.brief}; {error.do}")
        else:
            done.append(f"{one.name} is registered")
    return Enlisted(done=tuple(done), failed=tuple(failed))


def admit(
    coordinator: CoordinatorFolder,
    application: Application,
    *,
    replace_with: str = "",
    record: Callable[[ApprovedPlatform, ApprovedPlatform | None], object] | None = None,
) -> ApprovedPlatform:
    """Let a platform in, at Flower first where the server runs; where it does not, it registers the platform as it starts.

    Args:
        replace_with, record: As for `Platforms.approve`.

    Returns:
        The platform; its `node` is 0 where it is still to be registered.

    Raises:
        FedfuseError: as `Platforms.approve`, or Flower refuses its key; nothing is written then.
    """
    platforms = Platforms(coordinator.platforms)

    def register(one: ApprovedPlatform) -> int:
        try:
            with Control(coordinator) as control:
                return one.node if one.node in {node.node for node in control.nodes()} else _registered(control, one)
        except Unreachable:
            return one.node

    return platforms.approve(application, replace_with=replace_with, register=register, record=record)


def _registered(control: FlowerNodes, platform: ApprovedPlatform) -> int:
    try:
        return control.register(_pem(platform), platform.name)
    except Unreachable:
        raise
    except FedfuseError as error:
        raise FedfuseError(
            f"{error.found} (key {platform.fingerprint})",
            where=platform.name,
            do="Flower never takes a key again that was unregistered: invite the platform into a new folder, which makes new "
            "keys, and approve that application with --replace",
        ) from None


def enlist_at_start(coordinator: CoordinatorFolder, *, seconds: float = 60.0) -> threading.Thread:
    """`enlist` as soon as the server that is being started in this process answers."""

    def wait() -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                with Control(coordinator) as control:
                    found = enlist(control, Platforms(coordinator.platforms))
                for line in found.done:
                    log.info("%s", line)
                for line in found.failed:
                    log.error("%s", line)
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
