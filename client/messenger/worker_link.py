"""How the messenger reaches the platform's worker: through its socket, or, in a simulation, inside one process."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Protocol

from flwr.app import Context

from client.messenger.unix_socket import BROKER, connect_through, connect_to
from client.messenger.wire import WIRE, Frame, Hangup, pack_record, receive, send, unpack_record
from shared.base.engine_folders import engine_folders
from shared.base.errors import ProtocolError
from shared.base.version import VERSION
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import PROTOCOL, Answer, Reason, Refusal, Request

log = logging.getLogger(__name__)


class Link(Protocol):
    """One platform's worker, as the messenger sees it."""

    def ask(self, request: Request, receipt: str = "") -> Answer:
        """The worker's answer, already through the platform's outgoing check.

        Args:
            receipt: The coordinator's receipt of the answer before, for the platform to keep.
        """


class Handler(Protocol):
    """Whatever answers requests; `client.worker.request_handler.Worker` does."""

    def handle(self, request: Request) -> Answer:
        """Answer one request."""


@dataclass(frozen=True)
class Direct:
    """A link to a worker in this same process: a call."""

    worker: Handler

    def ask(self, request: Request, receipt: str = "") -> Answer:
        """The worker's answer. Here is no coordinator whose receipts were worth keeping."""
        return self.worker.handle(request)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A link to the worker behind the socket at `path`.

    Args:
        warrant: What the coordinator signed for this run; the worker may ask for it.
        patience: Seconds that a worker which is not there, or which went away while it was asked, is waited for. A worker
            remembers what it answered, so that asking again costs no second charge.
    """

    path: Path
    warrant: str = field(default="", repr=False)
    patience: float = 120.0

    def ask(self, request: Request, receipt: str = "") -> Answer:
        """The worker's answer.

        Raises:
            ProtocolError: no worker came in time, or it said something that is no answer.
        """
        question = pack_record("request", to_record(request))
        end = time.monotonic() + self.patience
        while True:
            try:
                return self._ask(question, request, receipt)
            except (OSError, Hangup) as error:
                if time.monotonic() >= end:
                    raise ProtocolError(
                        f"the worker cannot be reached ({error})",
                        where=str(self.path),
                        do="see whether `fedfuse client worker` runs",
                    ) from None
                log.warning("the worker cannot be reached (%s); trying again", error)
                time.sleep(0.5)

    def _connect(self) -> socket.socket:
        broker = os.environ.get(BROKER)
        return connect_to(self.path, seconds=10.0) if broker is None else connect_through(int(broker), seconds=30.0)

    def _ask(self, question: Frame, request: Request, receipt: str) -> Answer:
        with self._connect() as connection:
            header = {"type": "hello", "wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "warrant": self.warrant}
            header |= {"receipt": receipt} if receipt else {}
            send(connection, Frame(header=header), seconds=10.0)
            welcome = receive(connection, body=0, seconds=30.0)
            if welcome.type == "turned-away":
                log.error(
                    "this platform has fedfuse %s, the run needs %s: install that version",
                    str(welcome.header.get("version"))[:40],
                    VERSION,
                )
                return Refusal(run=request.run, platform=_name_in(welcome), round=0, reason=Reason.VERSION)
            send(connection, question)
            return answer_from(unpack_record(receive(connection)))


def _name_in(welcome: Frame) -> str:
    return str(welcome.header.get("platform", "unknown"))


_links: dict[str, Link] = {}
_opening = Lock()


def register(key: str, link: Link) -> None:
    """Let nodes whose node_config says `link = key` reach `link`.

    Raises:
        ValueError: the key is taken; two platforms would answer as one.
    """
    if _links.setdefault(key, link) is not link:
        raise ValueError(f"the link {key!r} is taken")


def forget(key: str) -> None:
    """Undo `register`; a key that is not registered is no fault."""
    _links.pop(key, None)


def connect(context: Context) -> Link:
    """The link of the node that `context` belongs to.

    Raises:
        ProtocolError: nothing says where this node's worker is.
    """
    node, run = context.node_config, context.run_config
    if "socket" in node:
        return Remote(path=Path(str(node["socket"])), warrant=str(run.get("warrant", "")))
    if "link" in node:
        try:
            return _links[str(node["link"])]
        except KeyError:
            raise ProtocolError(
                f"no worker is registered as {node['link']!r}",
                where=f"node_config of node {context.node_id}",
                do="call client.messenger.worker_link.register(key, link) before the federation starts",
            ) from None
    if "partition-id" in node:
        world, out = engine_folders(run, context.run_id)
        with _opening:  # two threads must not open the same platform twice
            return _partition(str(world), int(node["partition-id"]), str(out))
    raise ProtocolError(
        "this node does not say where its platform's worker is",
        where=f"node_config of node {context.node_id}",
        do="start it with `fedfuse client start`",
    )


@cache
def _partition(world: str, index: int, state: str) -> Link:
    # Imported by name, when a simulation asks for it: the messenger must import neither torch nor the sources, and the
    # import contract in pyproject.toml holds it to that. Only in a simulation do messenger and worker share a process.
    return Direct(importlib.import_module("client.worker.request_handler").open_partition(world=world, index=index, state=state))
