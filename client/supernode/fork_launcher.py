"""Starts the ClientApps of Flower's SuperNode by forking a process that has imported already what each of them needs.

    python fork_launcher.py --runtime-api-address 127.0.0.1:9094 ...        the arguments of `flower-superexec`

Flower starts `flwr-clientapp` anew for every message, and each first imports for more than a second. Here two processes
replace `flower-superexec`: Flower's own loop, with another way to launch; and the *nursery*, which has imported Flower's runtime
and nothing of a bundle, and forks one child for every message. A child is as fresh as a new process: what a message left behind
reaches no other. Where the nursery cannot be used, Flower's own way is.

This file is run by its path and imports no package of Fedfuse: `client` and `shared` have to come from the bundle.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

COMMAND = "flower-superexec"
"""The name under which Flower's SuperNode starts us."""
PASSED = "FEDFUSE_BROKER"
"""Environment variable with a descriptor that every ClientApp inherits, as `client.messenger.unix_socket` names it."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The arguments of a ClientApp's process; the names are those of Flower's `run_clientapp`.

    Args:
        token: Flower's leave for one message. It is passed through a pipe, since every account can read a command line.
        parent_pid: Whose end ends the ClientApp.
    """

    runtime_api_address: str
    token: str
    parent_pid: int | None


class Passing:
    """Stands in for the `subprocess` module: what is started inherits one descriptor more than its standard ones."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def Popen(self, *words: Any, **options: Any) -> Any:
        """Start a process."""
        return subprocess.Popen(*words, pass_fds=(self._descriptor,), **options)  # noqa: S603 - Flower's own commands

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real module's."""
        return getattr(subprocess, name)


class Stock(Protocol):
    """What is used of Flower's own executor."""

    def launch(self, spec: Any) -> Any:
        """Start a process, in Flower's own way."""


class Nursery:
    """A process that forks a child for every order; it ends when this one does.

    Args:
        grow: Called in the child, with the order; must not return before its work is done.
    """

    def __init__(self, grow: Callable[[Order], None]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(writer)
            with os.fdopen(reader, "rb") as orders:
                _nurse(orders, grow)
            os._exit(0)
        os.close(reader)
        self._orders = os.fdopen(writer, "wb", buffering=0)

    def send(self, order: Order) -> None:
        """Have a child made.

        Raises:
            OSError: the nursery has ended.
        """
        # One write of less than PIPE_BUF, so a line arrives whole.
        self._orders.write(json.dumps(asdict(order)).encode() + b"\n")

    def close(self) -> None:
        """Let it end; its children go on."""
        self._orders.close()


def _nurse(orders: IO[bytes], grow: Callable[[Order], None]) -> None:
    # Nobody waits for the children, so the kernel buries them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in iter(orders.readline, b""):
        order = Order(**json.loads(line))
        if os.fork() != 0:
            continue
        code = 1
        try:
            orders.close()
            # A ClientApp may start processes of its own, and wait for them.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            grow(order)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class ForkingExecutor:
    """Flower's subprocess executor, which forks where it can.

    Args:
        stock: Flower's own; all that is not said here is its.
        client_app: Flower's type of the tasks that are forked.
    """

    def __init__(self, stock: Stock, nursery: Nursery, *, client_app: str, accepted: Callable[[], Any]) -> None:
        self._stock, self._nursery, self._client_app, self._accepted = stock, nursery, client_app, accepted

    def launch(self, spec: Any) -> Any:
        """Start the process of a task."""
        if spec.task_type == self._client_app and spec.insecure and not spec.runtime_dependency_install:
            order = Order(runtime_api_address=spec.runtime_api_address, token=spec.token, parent_pid=spec.parent_pid)
            try:
                self._nursery.send(order)
                return self._accepted()
            except OSError:
                print("the nursery has ended; ClientApps are started in Flower's own way", file=sys.stderr)
        return self._stock.launch(spec)

    def __getattr__(self, name: str) -> Any:
        """Capacity and upkeep are the stock executor's."""
        return getattr(self._stock, name)


def install_fork_launcher(folder: Path) -> Path:
    """Write a `flower-superexec` that runs this file into a folder, which then goes before others on the PATH."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / COMMAND
    # Replaced, not written over: what is there may be a link, which must not lead this write elsewhere.
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{Path(__file__).resolve()}" "$@"\n', encoding="utf-8")
    path.chmod(0o700)
    return path


def main() -> None:
    """Be `flower-superexec`."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor.types import LaunchResult
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    def grow(order: Order) -> None:
        sys.argv = ["flwr-clientapp"]
        run_clientapp(
            runtime_api_address=order.runtime_api_address,
            token=order.token,
            insecure=True,  # 127.0.0.1, as Flower's own
            parent_pid=order.parent_pid,
            runtime_dependency_install=False,
        )

    # Before Flower's loop has threads and handlers, which a fork would take along.
    nursery = Nursery(grow)
    from flwr.supercore.cli import flower_superexec

    patches = _flower_patches()
    if PASSED in os.environ:
        patches.superexec_processes(Passing(int(os.environ[PASSED])))
    patches.superexec_executor(
        lambda stock: ForkingExecutor(stock, nursery, client_app=TaskType.CLIENT_APP, accepted=LaunchResult.accepted)
    )
    sys.argv[0] = COMMAND
    flower_superexec()


def _flower_patches() -> Any:
    """`shared/flower/flower_patches.py` of this installation, without a `shared` in `sys.modules`."""
    path = Path(__file__).resolve().parents[2] / "shared" / "flower" / "flower_patches.py"
    spec = importlib.util.spec_from_file_location("flower_patches", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
