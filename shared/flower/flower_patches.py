"""Every change that Fedfuse makes to Flower's own modules while they run, with its reason, behind a guard on the version.

This file imports nothing of Fedfuse: `client/supernode/fork_launcher.py` loads it by its path, in a process whose `shared` is to
come from a bundle.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

TESTED = "1.42"
"""The release of Flower that these changes were written for and are tested with."""


class OtherFlower(RuntimeError):
    """The installed Flower is not the one that the patches were written for."""


def supernode_clock(clock: Any) -> None:
    """Flower's SuperNode looks for work every 3 s; with another `time` it looks as often as the operator says."""
    _replaced("flwr.supernode.start_client_internal", "time", lambda _: clock)


def supernode_processes(subprocess: Any) -> None:
    """What the SuperNode starts is kept going, and inherits the broker's channel, which Flower's own call would close."""
    _replaced("flwr.supernode.start_client_internal", "subprocess", lambda _: subprocess)


def superlink_processes(subprocess: Any) -> None:
    """What the server starts is kept going (`shared/flower/kept_process.py`)."""
    _replaced("flwr.superlink.cli.flower_superlink", "subprocess", lambda _: subprocess)


def supernode_certificates(ssl: Any) -> None:
    """The SuperNode's client reads certificate authorities once; the contexts that it makes take others while it runs."""
    _replaced("flwr.supercore.protobuf.client", "ssl", lambda _: ssl)


def supernode_ended_runs() -> None:
    """A message whose run is stopped while the SuperNode receives it is dropped whole.

    Flower says so by an exception that is no `Exception`, which passes its own handler by: the message stays, is answered, and
    that answer is taken for the next message's. From then on each message is answered when the one after it comes.
    """
    module = "flwr.supernode.start_client_internal"
    ended = getattr(importlib.import_module(module), "RunNotRunningException", None)
    if ended is None:
        raise OtherFlower(f"flwr {version('flwr')} has no {module}.RunNotRunningException, which Fedfuse replaces")

    def ordinary(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any) -> Any:
            try:
                return ask(*args)
            except ended as error:
                raise RuntimeError("the run is no longer running") from error

        return asked

    def whole(stock: Callable[..., Any]) -> Callable[..., Any]:
        def pull(*, pull_object: Any, confirm_message_received: Any, **rest: Any) -> Any:
            return stock(pull_object=ordinary(pull_object), confirm_message_received=ordinary(confirm_message_received), **rest)

        return pull

    _replaced(module, "_pull_and_store_message", whole)


def superexec_processes(subprocess: Any) -> None:
    """ClientApps that Flower's executor starts inherit the broker's channel, too."""
    _replaced("flwr.supercore.superexec.executor.subprocess_executor", "subprocess", lambda _: subprocess)


def superexec_executor(wrapped: Callable[[Any], Any]) -> None:
    """ClientApps are forked where that works: Flower starts a Python for each message, which takes a second.

    Args:
        wrapped: Flower's executor -> the one that takes its place.
    """
    # The module took it in by name, so it is replaced there.
    module = "flwr.supercore.superexec.run_superexec"
    _replaced(module, "get_executor", lambda stock: lambda *args, **options: wrapped(stock(*args, **options)))


def database_patience(milliseconds: int) -> None:
    """A request waits so long for others to have written to Flower's database. Flower waits 5 s, then answers 500."""
    added = ("busy_timeout", str(milliseconds))
    _replaced("flwr.supercore.sql_mixin", "SQLITE_PRAGMAS", lambda stock: (*stock, added))


def _replaced(module: str, name: str, new: Callable[[Any], Any]) -> None:
    found = version("flwr")
    if not found.startswith(f"{TESTED}."):
        raise OtherFlower(f"flwr {found} is installed, and Fedfuse works with {TESTED}: pip install 'flwr=={TESTED}.*'")
    names = vars(importlib.import_module(module))
    if name not in names:
        raise OtherFlower(f"flwr {found} has no {module}.{name}, which Fedfuse replaces")
    names[name] = new(names[name])
