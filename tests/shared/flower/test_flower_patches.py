"""Changes to Flower's modules: each finds what it replaces, and another Flower is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from shared.flower import flower_patches
from shared.flower.flower_patches import OtherFlower

MARK = object()
PATCHES: dict[str, tuple[Callable[[], None], str, str]] = {
    "clock": (lambda: flower_patches.supernode_clock(MARK), "flwr.supernode.start_client_internal", "time"),
    "processes": (lambda: flower_patches.supernode_processes(MARK), "flwr.supernode.start_client_internal", "subprocess"),
    "server's processes": (
        lambda: flower_patches.superlink_processes(MARK),
        "flwr.superlink.cli.flower_superlink",
        "subprocess",
    ),
    "ended runs": (
        flower_patches.supernode_ended_runs,
        "flwr.supernode.start_client_internal",
        "_pull_and_store_message",
    ),
    "executor's processes": (
        lambda: flower_patches.superexec_processes(MARK),
        "flwr.supercore.superexec.executor.subprocess_executor",
        "subprocess",
    ),
    "executor": (
        lambda: flower_patches.superexec_executor(lambda stock: (MARK, stock)),
        "flwr.supercore.superexec.run_superexec",
        "get_executor",
    ),
    "database": (lambda: flower_patches.database_patience(7), "flwr.supercore.sql_mixin", "SQLITE_PRAGMAS"),
}
STOCK: dict[str, Any] = {"time": time, "subprocess": subprocess}


@pytest.fixture(params=PATCHES)
def patch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], None], dict[str, Any], str]:
    """A patch, the namespace that it changes, and the name there; undone afterwards."""
    apply, module, name = PATCHES[request.param]
    names = vars(importlib.import_module(module))
    monkeypatch.setitem(names, name, names[name])
    return apply, names, name


def test_it_replaces_what_flower_uses(patch: Any) -> None:
    apply, names, name = patch
    before = names[name]
    assert before is STOCK.get(name, before)
    if name == "get_executor":
        assert callable(before)
        names[name] = lambda isolation: f"stock, {isolation}"
    apply()
    found = names[name]
    if name == "SQLITE_PRAGMAS":
        assert found == (*before, ("busy_timeout", "7"))
    elif name == "get_executor":
        assert found is not before and found("subprocess") == (MARK, "stock, subprocess")
    elif name == "_pull_and_store_message":
        assert callable(found) and found is not before
    else:
        assert found is MARK


@pytest.mark.parametrize("other", ["1.41.0", "1.43.0", "1.420.0", "2.0.0"])
def test_another_flower_is_refused(patch: Any, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    apply, names, name = patch
    before = names[name]
    monkeypatch.setattr(flower_patches, "version", lambda _: other)
    with pytest.raises(OtherFlower, match=other):
        apply()
    assert names[name] is before


def test_a_flower_without_the_name_is_refused(patch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, names, name = patch
    monkeypatch.delitem(names, name)
    with pytest.raises(OtherFlower, match=name):
        apply()
    assert name not in names


def test_it_imports_nothing_of_fedfuse() -> None:
    """The fork launcher loads it where `client` and `shared` must come from a bundle."""
    code = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('p', {flower_patches.__file__!r}); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "print(sorted(set(sys.modules) & {'shared', 'client', 'server', 'flwr'}))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("fails", ["pull_object", "confirm_message_received"])
def test_a_message_of_a_run_that_is_stopped_meanwhile_is_dropped_whole(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """With Flower's own loop it stays, and its answer is then taken for that of the next message."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run, RunNotRunningException
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode import start_client_internal as flower
    from flwr.supernode.nodestate import NodeStateFactory

    monkeypatch.setattr(flower, "_pull_and_store_message", flower._pull_and_store_message)
    for name, value in {"_task_id": 1, "_run_id": 5, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    message = Message(RecordDict({"asked": ConfigRecord({"n": 1})}), dst_node_id=7, message_type="query")
    message.metadata.__dict__["_message_id"] = message.object_id
    contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}

    def pulled() -> tuple[int | None, list[Any]]:
        objects = ObjectStoreFactory()
        state, store = NodeStateFactory(objectstore_factory=objects).state(), objects.store()
        state.store_run(Run.create_empty(5))

        def stopped(*args: Any) -> None:
            raise RunNotRunningException

        asks = {"pull_object": lambda run, key: contents[key], "confirm_message_received": lambda run, key: None}
        answer = flower._pull_and_store_message(
            state=state,
            object_store=store,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=lambda run: None,
            get_fab=lambda digest, run: None,
            trusted_entities=None,
            **{**asks, fails: stopped},
        )
        return answer, list(state.get_messages_legacy(is_reply=False))

    answer, kept = pulled()
    assert answer is None and len(kept) == 1, "Flower has mended it: the patch can go"
    flower_patches.supernode_ended_runs()
    assert pulled() == (None, [])
