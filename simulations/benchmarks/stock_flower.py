"""Flower as it comes, over TLS with authenticated SuperNodes on this machine: seconds of a phase in which nothing is computed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tomli_w

from server.deployment.certificates import Certificates
from shared.protocol.keys import make_node_key
from simulations.local_deployment import LocalDeployment, connects, free_ports, run_words

_SERVER = """
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["platforms"]:
        time.sleep(0.2)
    random, seconds = np.random.default_rng(0), []
    for _ in range(config["rounds"]):
        arrays = ArrayRecord({"x": Array(random.standard_normal(config["values"], dtype=np.float32))})
        began = time.perf_counter()
        messages = [Message(RecordDict({"x": arrays}), node, MessageType.TRAIN) for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages, timeout=120.0))
        assert len(replies) == config["platforms"] and not any(reply.has_error() for reply in replies)
        seconds.append(time.perf_counter() - began)
    with open(config["out"] + ".part", "w") as file:
        json.dump(seconds, file)
    os.rename(config["out"] + ".part", config["out"])
"""
_CLIENT = """
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    arrays = message.content["x"]
    return Message(RecordDict({"x": ArrayRecord({"x": type(arrays["x"])(arrays["x"].numpy() + 1)})}), reply_to=message)
"""


def stock_seconds(root: Path, *, rounds: int, platforms: int, values: int) -> list[float]:
    """Seconds of each phase after the first, with Flower's own commands, defaults, and `Grid.send_and_receive`.

    Args:
        root: A new folder.
        values: float32 numbers that travel each way.
    """
    root.mkdir(parents=True)
    out, app = root / "seconds.json", root / "app"
    (app / "stock").mkdir(parents=True)
    for name, text in (("__init__", ""), ("server", _SERVER), ("client", _CLIENT)):
        (app / "stock" / f"{name}.py").write_text(text, encoding="utf-8")
    (app / "pyproject.toml").write_text(tomli_w.dumps(_project(rounds, platforms, values, out)), encoding="utf-8")
    certificates = Certificates.of(root)
    certificates.make_authority("stock")
    certificates.issue("127.0.0.1")
    bin_ = Path(sys.executable).parent
    with LocalDeployment(root) as local:
        local.environment["PATH"] = f"{bin_}{os.pathsep}{local.environment['PATH']}"
        local.environment["FLWR_HOME"] = str(root / "flwr")
        (root / "flwr").mkdir()
        connection = {"address": f"127.0.0.1:{local.port}", "root-certificates": str(certificates.authority)}
        (root / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"stock": connection}}), encoding="utf-8")
        local.start(
            "superlink",
            [
                bin_ / "flower-superlink",
                "--ssl-ca-certfile",
                certificates.authority,
                "--ssl-certfile",
                certificates.server,
                "--ssl-keyfile",
                certificates.server_key,
                "--enable-supernode-auth",
                "--database",
                root / "state.db",
                "--host",
                "127.0.0.1",
                "--port",
                str(local.port),
                "--health-server-address",
                f"127.0.0.1:{free_ports(1)[0]}",
                "--disable-runtime-dependency-installation",
            ],
        )
        local.wait(lambda: connects(local.port), "the SuperLink listens")
        for number in range(platforms):
            key = root / f"node-{number}"
            (root / f"node-{number}.pub").write_text(make_node_key(key) + "\n", encoding="utf-8")
            run_words([str(bin_ / "flwr"), "supernode", "register", f"{key}.pub", "stock"], cwd=root, env=local.environment)
            home = root / f"home-{number}"
            home.mkdir()
            local.start(
                f"node-{number}",
                [
                    bin_ / "flower-supernode",
                    "--root-certificates",
                    certificates.authority,
                    "--superlink",
                    f"127.0.0.1:{local.port}",
                    "--auth-supernode-private-key",
                    key,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(free_ports(1)[0]),
                ],
                FLWR_HOME=str(home),
            )
        run_words([str(bin_ / "flwr"), "run", str(app), "stock"], cwd=root, env=local.environment)
        local.wait(out.exists, "stock Flower has run")
    seconds: list[float] = json.loads(out.read_text(encoding="utf-8"))
    return seconds[1:]


def _project(rounds: int, platforms: int, values: int, out: Path) -> dict[str, object]:
    config = {"rounds": rounds, "platforms": platforms, "values": values, "out": str(out)}
    app = {
        "publisher": "stock",
        "components": {"serverapp": "stock.server:app", "clientapp": "stock.client:app"},
        "config": config,
    }
    return {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {"name": "stock", "version": "1.0.0", "description": "echo", "license": "Apache-2.0", "dependencies": []},
        "tool": {"flwr": {"app": app}},
    }
