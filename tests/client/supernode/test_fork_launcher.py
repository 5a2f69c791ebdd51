"""ClientApps by fork: each process is fresh, none is left as a zombie, and Flower's own way is taken where ours cannot be."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from client.supernode.fork_launcher import COMMAND, ForkingExecutor, Nursery, Order, install_fork_launcher
from tests.support.waiting import until

LAUNCHER = Path(__file__).parents[3] / "client" / "supernode" / "fork_launcher.py"
touched: list[str] = []
wait_for = partial(until, seconds=20)


def order(token: str) -> Order:
    return Order(runtime_api_address="127.0.0.1:1", token=token, parent_pid=os.getpid())


def write_down(folder: Path) -> Callable[[Order], None]:
    """What a child does here: says who it is, and what it found of the children before it."""

    def grow(asked: Order) -> None:
        touched.append(asked.token)
        waited = subprocess.run(["true"], check=False).returncode
        (folder / f"{asked.token}.part").write_text(json.dumps({"pid": os.getpid(), "touched": touched, "waited": waited}))
        (folder / f"{asked.token}.part").rename(folder / asked.token)
        if asked.token == "bad":
            raise RuntimeError("a ClientApp that fails")

    return grow


def test_every_order_gets_a_fresh_process(tmp_path: Path) -> None:
    nursery = Nursery(write_down(tmp_path))
    for token in ("one", "bad", "two"):
        nursery.send(order(token))
    wait_for(lambda: all((tmp_path / token).exists() for token in ("one", "bad", "two")))
    found = {token: json.loads((tmp_path / token).read_text()) for token in ("one", "bad", "two")}
    assert len({line["pid"] for line in found.values()} | {os.getpid(), nursery.pid}) == 5
    assert {token: line["touched"] for token, line in found.items()} == {token: [token] for token in found}
    assert {line["waited"] for line in found.values()} == {0}  # a ClientApp may start processes, and hears how they end
    wait_for(lambda: not psutil.Process(nursery.pid).children())  # none stays behind, not even as a zombie
    nursery.close()
    assert os.waitpid(nursery.pid, 0)[1] == 0


class Stock:
    """Flower's executor, as far as it is asked."""

    def __init__(self) -> None:
        self.launched: list[Any] = []

    def launch(self, spec: Any) -> str:
        self.launched.append(spec)
        return "stock"

    def reconcile(self) -> str:
        return "reconciled"


def spec(**over: Any) -> Any:
    plain = {"task_type": "client", "runtime_api_address": "127.0.0.1:1", "token": "t", "insecure": True, "parent_pid": 1}
    return SimpleNamespace(**{**plain, "runtime_dependency_install": False, **over})


def test_what_cannot_be_forked_is_launched_by_flower(tmp_path: Path) -> None:
    stock, nursery = Stock(), Nursery(write_down(tmp_path))
    executor = ForkingExecutor(stock, nursery, client_app="client", accepted=lambda: "forked")
    assert executor.launch(spec()) == "forked" and not stock.launched
    for other in (spec(task_type="agent"), spec(insecure=False), spec(runtime_dependency_install=True)):
        assert executor.launch(other) == "stock" and stock.launched[-1] is other
    assert executor.reconcile() == "reconciled"
    wait_for((tmp_path / "t").exists)
    psutil.Process(nursery.pid).kill()
    os.waitpid(nursery.pid, 0)
    assert executor.launch(spec()) == "stock"


def test_flower_is_as_the_launcher_takes_it_to_be() -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.superexec.executor.types import ExecutionSpec
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    assert TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP] == "flwr-clientapp"
    assert callable(run_superexec.get_executor)
    wanted = {"runtime_api_address", "token", "insecure", "parent_pid", "runtime_dependency_install"}
    assert wanted <= set(inspect.signature(run_clientapp).parameters)
    assert wanted | {"task_type"} <= set(ExecutionSpec.__dataclass_fields__)


def test_nothing_of_fedfuse_is_there_before_the_bundle() -> None:
    code = f"""
import runpy, sys
runpy.run_path({str(LAUNCHER)!r})
import flwr.supernode.runtime.run_clientapp
print(sorted({{name.split('.')[0] for name in sys.modules}} & {{'client', 'server', 'shared', 'strategies', 'fedfuse'}}))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_runs_flowers_superexec(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / COMMAND).symlink_to(elsewhere)
    path = install_fork_launcher(tmp_path / "bin")
    assert elsewhere.read_text() == "mine" and not path.is_symlink()
    done = subprocess.run([COMMAND, "--help"], env={**os.environ, "PATH": f"{path.parent}:/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 0 and b"--runtime-api-address" in done.stdout


@pytest.mark.parametrize("token", ["t" * 64])
def test_an_order_is_one_write(token: str) -> None:
    from select import PIPE_BUF

    assert len(json.dumps(vars(order(token)))) < PIPE_BUF
