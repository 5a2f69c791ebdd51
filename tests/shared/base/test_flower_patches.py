"""Changes to Flower's modules: each finds what it replaces, and another Flower is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from shared.base import flower_patches
from shared.base.flower_patches import OtherFlower

MARK = object()
PATCHES: dict[str, tuple[Callable[[], None], str, str]] = {
    "clock": (lambda: flower_patches.supernode_clock(MARK), "flwr.supernode.start_client_internal", "time"),
    "processes": (lambda: flower_patches.supernode_processes(MARK), "flwr.supernode.start_client_internal", "subprocess"),
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
