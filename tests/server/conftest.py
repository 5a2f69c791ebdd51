"""Finished runs without any training, keys, and the kinds of store that a registry may lie in."""

from __future__ import annotations

import functools
import http.server
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import app
from client.messenger import worker_link as link
from server.monitoring.run_events import Outcome, Tally
from server.registry.publication import publish_adapter
from server.run.federation import run_federation
from shared.base.settings import Settings, build
from shared.model.adapter import layout_of
from shared.model.backbone import shape_of
from shared.protocol.messages import Joined, Label, Metrics
from shared.protocol.quality import Quality
from shared.registry.signing import Signer, load_signer, make_key_pair
from simulations.in_process_grid import InProcessGrid
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import open_world
from tests.support.qualities import quality_of
from tests.support.small_platform import small_platform

Make = Callable[..., Settings]


def tally_of(name: str, *, exact: bool = False, epsilon: float = 3.5, **over: Any) -> Tally:
    """What the coordinator knows of a platform after ten rounds."""
    joined = Joined(
        run="run",
        platform=name,
        users=40,
        items=12,
        budget=float("inf") if epsilon == float("inf") else 8.0,
        delta=1e-5,
        planned_epsilon=7.0,
        noise_multiplier=1.25,
        signal_to_noise=2.0,
    )
    metrics = Metrics(
        run="run",
        platform=name,
        round=0,
        label=Label.BEFORE,
        users=40,
        quality=quality_of({"ndcg@10": 0.125, "hr@10": 0.25}),
        exact=exact,
        epsilon=1.0,
        ledger="",
        seconds=0.1,
    )
    after = replace(metrics, round=10, quality=Quality({**metrics.quality, "ndcg@10": 0.375}))
    values: dict[str, Any] = {"rounds": 10, "epsilon": epsilon, "ledger": "ab" * 32, "before": metrics, "federated": after}
    return Tally(joined=joined, **{**values, **over})


@pytest.fixture
def make_run(tiny_settings: Make, tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a finished run: its model is random, everything around it is real."""

    def make(name: str = "spring", *, seed: int = 1, start: Any = None, tallies: Any = None, **over: Any) -> Path:
        # As a deployed run has them; a simulation's model is not published unless one says so.
        settings = tiny_settings(**{"simulation": False, "privacy": {"generator": "secure"}, **over})
        random = np.random.default_rng(seed)
        layout = layout_of(shape_of(settings.model.backbone), settings.model)
        adapter = {key: random.normal(0, 0.2, shape).astype(np.float32) for key, shape in layout.items()}
        out = tmp_path / "runs" / name
        out.mkdir(parents=True, exist_ok=True)
        parts = {part: tally_of(part) for part in ("shop", "video")} if tallies is None else tallies
        publish_adapter(adapter, settings, out, run=name, rounds=10, tallies=parts, start=start)
        return out

    return make


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Signer, Path]]:
    """Signer and public key file of a name."""
    folder = tmp_path_factory.mktemp("keys")

    @functools.cache
    def key(name: str) -> tuple[Signer, Path]:
        make_key_pair(folder / f"{name}.key", folder / f"{name}.pub")
        return load_signer(folder / f"{name}.key"), folder / f"{name}.pub"

    return key


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a folder over HTTP and returns its URL."""
    servers = []

    def start(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler] = _Quiet) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 service on this machine."""
    import logging

    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of a new bucket."""
    import uuid

    import s3fs

    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-of-s3",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"b-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    request.addfinalizer(s3fs.S3FileSystem.clear_instance_cache)
    return f"s3://{bucket}/models"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a registry in what looks like Google's object store, on this machine, for anybody."""
    core = pytest.importorskip("gcsfs.core")
    import fsspec
    import google.auth
    import google.auth.compute_engine._metadata as metadata

    from tests.support.object_services import GoogleStore

    looked: list[object] = []

    def forbidden(*args: Any, **kwargs: Any) -> None:
        looked.append(args)
        raise AssertionError("a test looks for somebody's credentials")

    # gcsfs' own default asks a service outside what kind of bucket this is, and looks for credentials to do so.
    for owner, name in ((google.auth, "default"), (metadata, "ping"), (metadata, "get")):
        monkeypatch.setattr(owner, name, forbidden)
    for protocol in ("gs", "gcs"):
        # `fsspec.registry` is also the name of a read-only view, which hides the module.
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, protocol, core.GCSFileSystem)
        monkeypatch.setitem(fsspec.config.conf, protocol, {"token": "anon"})
    server = GoogleStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    core.GCSFileSystem.clear_instance_cache()
    yield "gs://bucket/models"
    core.GCSFileSystem.clear_instance_cache()
    server.close()
    assert looked == []  # even if a library has kept quiet about it


@pytest.fixture
def run_linked(tmp_path: Path) -> Iterator[Callable[..., Outcome]]:
    """Runs a federation of platforms in this process, each behind Flower's ClientApp; `out` is a folder of the test's own."""
    keys: list[str] = []

    def run(platforms: Sequence[Any], settings: Settings, *, out: str = "run", **more: Any) -> Outcome:
        nodes = {}
        for number, platform in enumerate(platforms, start=2):
            key = f"{len(keys)}-{platform.name}"
            keys.append(key)
            link.register(key, link.Direct(platform))
            nodes[number] = {"link": key}
        with InProcessGrid(app=app, nodes=nodes) as grid:
            return run_federation(
                grid=grid,
                settings=settings,
                run="run",
                out=tmp_path / out,
                nodes=len(nodes),
                export=lambda adapter, settings, folder: (folder / "model.txt").write_text("x") and None,
                **more,
            )

    yield run
    for key in keys:
        link.forget(key)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str) -> Path:
    """Folder of a simulation of two platforms over three rounds; not to be written to."""
    at = tmp_path_factory.mktemp("reported")
    for seed, (name, users) in enumerate((("shop", 30), ("video", 24))):
        small_platform(at / "world", name, users=users, declared=users + 10, seed=seed)
    values = {
        "rounds": 3,
        "simulation": True,
        "strategy": "fedavg",
        "model": {"backbone": tiny_bert, "layers": 2, "rank": 2, "item_tokens": 12, "user_tokens": 24},
        "training": {"local_steps": 2, "sample_rate": 0.5, "views": 2, "targets": 2},
        "privacy": {"generator": "seeded", "epsilon": 50.0},
    }
    settings = build(values, where="test")
    run_simulation(Simulation(world=open_world(at / "world"), settings=settings, out=at / "run"))
    return at / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "spring", ignore=shutil.ignore_patterns("state", "tensorboard")))
