"""How the messenger reaches the platform's worker: the way it knows in a simulation, inside one process."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Protocol

from flwr.app import Context

from shared.errors import ProtocolError
from shared.messages import Answer, Request


class Link(Protocol):
    """One platform's worker, as the messenger sees it."""

    def ask(self, request: Request) -> Answer:
        """The worker's answer, already through the platform's outgoing check."""


class Handler(Protocol):
    """Whatever answers requests; `client.worker.Worker` does."""

    def handle(self, request: Request) -> Answer:
        """Answer one request."""


@dataclass(frozen=True)
class Direct:
    """A link to a worker in this same process: a call."""

    worker: Handler

    def ask(self, request: Request) -> Answer:
        """The worker's answer."""
        return self.worker.handle(request)


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
    if "link" in node:
        try:
            return _links[str(node["link"])]
        except KeyError:
            raise ProtocolError(
                f"no worker is registered as {node['link']!r}",
                where=f"node_config of node {context.node_id}",
                do="call client.link.register(key, link) before the federation starts",
            ) from None
    world, out = str(run.get("world", "")), str(run.get("out", ""))
    if "partition-id" in node and world and out:
        with _opening:  # two threads must not open the same platform twice
            return _partition(world, int(node["partition-id"]), out)
    raise ProtocolError(
        "this node does not say where its platform's worker is",
        where=f"node_config of node {context.node_id}",
        do="in a simulation, give `world` and `out` in the run's configuration",
    )


@cache
def _partition(world: str, index: int, state: str) -> Link:
    # Imported by name, when a simulation asks for it: the messenger must import neither torch nor the sources, and the
    # import contract in pyproject.toml holds it to that. Only in a simulation do messenger and worker share a process.
    return Direct(importlib.import_module("client.worker").open_partition(world=world, index=index, state=state))
