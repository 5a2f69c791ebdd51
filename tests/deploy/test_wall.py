"""A coordinator whose bundle tries everything on the platform, through real processes: it gets charged releases, no more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.supernode.sandbox import wall
from server.deployment.bundle import FOLDERS, MESSENGER, Bundle, build_bundle
from server.deployment.flower_control import Control
from server.deployment.folder import open_coordinator
from shared.base.settings import Settings, build, flatten, settings_digest
from shared.ledger.reading import read_ledger
from shared.protocol.keys import load_ed25519
from shared.protocol.run_authorization import Warrant, federation_of
from tests.deploy.stage import ROOT, Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CANARY = "zebrafinch"


def hostile_bundle(folder: Path) -> Bundle:
    """The coordinator's bundle with other apps in it."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in MESSENGER:
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests" / "deploy" / "hostile_client.py", folder / "client" / "app.py")
    shutil.copy(ROOT / "tests" / "deploy" / "hostile_server.py", folder / "server" / "app.py")
    return build_bundle(folder)


def send(stage: Stage, bundle: Bundle, settings: Settings, run: str, *, signer: Ed25519PrivateKey | None = None) -> Any:
    """Run a bundle on the coordinator's server; what came home."""
    coordinator = open_coordinator(stage.coordinator)
    key = load_ed25519(coordinator.federation_key)
    warrant = Warrant(
        federation=federation_of(key.public_key().public_bytes_raw()),
        run=run,
        settings=settings_digest(settings),
        expires=int(time.time()) + 3600,
    ).signed(key)
    with Control(coordinator) as control:
        flower = control.start(bundle.signed_by(signer or key), {**flatten(settings), "run": run, "warrant": warrant.text()})
        until(lambda: control.run(flower).finished, "the bundle has run", stage.logs, seconds=600)
        assert control.run(flower).result == "completed", control.log(flower)
    return json.loads((stage.coordinator / f"loot-{run}.json").read_text())


@pytest.fixture
def helpers(tmp_path: Path) -> Iterator[dict[str, str | list[str | int]]]:
    """Processes of the same user that read a file for whoever asks: at a path, at an abstract address, at a port."""
    made = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()]
    for listener, address in zip(made, (str(tmp_path / "helper"), f"\0wall-{os.getpid()}", ("127.0.0.1", 0)), strict=True):
        listener.bind(address)
        listener.listen()

        def answer(listener: socket.socket = listener) -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].sendall(CANARY.encode())

        threading.Thread(target=answer, daemon=True).start()
    yield {"path": str(tmp_path / "helper"), "abstract": f"\0wall-{os.getpid()}", "port": list(made[2].getsockname())}
    for listener in made:
        listener.close()


@pytest.mark.skipif(not wall().sockets or wall().landlock < 4, reason="this kernel does not close sockets")
def test_a_hostile_bundle(
    stage: Stage, small_shop: Callable[[str], Path], tmp_path: Path, helpers: dict[str, str | list[str | int]]
) -> None:
    data = small_shop("ant")
    events = data / "events.csv"
    events.write_text(events.read_text().replace("u7,", f"{CANARY},"))
    stage.make()
    stage.serve()
    folder = stage.make_platform("ant", "--data", data, users=40, epsilon=20.0)
    stage.join("ant", SHOP_PASSWORD=CANARY)
    stage.await_online("ant")
    files = [folder / "platform.toml", folder / "worker" / "identity.key", folder / "worker" / "ledger" / "ant.jsonl", events]
    (worker,) = stage.below("ant", "client worker")
    orders = {"folder": str(folder), "data": str(data), "files": list(map(str, files)), "times": 30}
    orders |= {"workers": [worker.pid], "helpers": helpers}
    (stage.coordinator / "orders.json").write_text(json.dumps(orders))
    settings = build(
        {
            "rounds": 2,
            "model": {"backbone": stage.backbone, "layers": 1, "rank": 2, "item_tokens": 12, "user_tokens": 16},
            "training": {"local_steps": 1, "sample_rate": 0.5, "views": 2},
        },
        where="test",
    )
    before = {path: path.read_bytes() for path in files if path.name != "ant.jsonl"}
    (loot,) = send(stage, hostile_bundle(tmp_path / "hostile"), settings, "robbery")
    print(json.dumps(loot, indent=1))

    assert CANARY not in json.dumps(loot)
    said = loot.pop("asked")
    environment = loot.pop("own environment")
    assert "SHOP_PASSWORD" not in environment
    denied = {"PermissionError", "FileNotFoundError", "CalledProcessError", "OSError"}
    assert {name: what for name, what in loot.items() if what not in denied} == {}
    assert {path: path.read_bytes() for path in before} == before

    asked = json.loads(said)
    # Two rounds were paid for, so two updates came, however often it asked; the other run's name had no warrant.
    ledger = read_ledger(files[2])
    trained = [entry.round for entry in ledger.entries if str(entry.kind) == "train"]
    assert trained == [1, 2] and asked["updates"] == 2
    assert {entry.run for entry in ledger.entries} == {"robbery"} and ledger.epsilon <= 20.0
    assert [str(entry.kind) for entry in ledger.entries].count("evaluate") == 1
    # Of each of its 30 turns: joining is free, round 2 and its metrics are answered word for word as before; what is past (round
    # 1, twice a turn but for its very first time) or was never planned (round 99) is refused.
    assert asked["said"] == {"joined": 30, "update": 31, "metrics": 30, "round": 89, "warrant": 30}
    assert stage.fedfuse("client", "health", folder).returncode == 0  # the worker is as it was

    # And a bundle that another key signed does not even start: Flower answers for the platform with its error 7.
    (refused,) = send(stage, hostile_bundle(tmp_path / "foreign"), settings, "foreign", signer=Ed25519PrivateKey.generate())
    assert "error" in refused
    assert {entry.run for entry in read_ledger(files[2]).entries} == {"robbery"}
