"""Many platforms on one machine: how long they take to join, a secure sum among all of them, and rounds of training.

    python -m simulations.benchmarks.crowd [--platforms 50] [--sums 3] [--rounds 20] [--json]

First come `sums` runs of the default strategy: preferences, added up under the secure sum among all platforms. Then one run of
`rounds` rounds of training with local noise: does the coordinator's memory stay flat, and is every round whole?

Each platform has a folder, keys, a ledger, a worker behind its own socket, and a SuperNode that is a process of its own, over TLS
with authentication. Only the workers share a process: fifty copies of torch would measure the machine. The model is a tiny random
BERT, the tables are small. Twice a second the resident memory of the coordinator's processes is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from client.config.deployment_folder import Deployment
from client.config.trusted_peers import trust_identities
from client.setup.provisioning import create_platform_folder
from client.supernode.gate_client import Away, Refused, greet
from client.supernode.process import Messenger
from client.supernode.process import supernode_environment as node_environment
from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.gate_verdicts import QUESTIONS
from server.deployment.provisioning import create_coordinator_folder, make_invitation
from server.deployment.status import status_of
from server.operators.acting import acting_operator
from server.operators.rights import Right, Verb
from shared.base.errors import FedfuseError
from shared.base.logs import configure
from shared.model.backbone import BackboneShape
from shared.protocol.invitation import Application
from shared.protocol.keys import load_node_key
from shared.protocol.messages import Answer, Request
from simulations.benchmarks.gpu.random_bert import write_random_bert
from simulations.benchmarks.operations.resident_memory import resident
from simulations.local_deployment import LocalDeployment, fedfuse_words

if TYPE_CHECKING:
    from client.worker.request_handler import Worker

RUN = "crowd"
AT_ONCE = 4
"""SuperNodes that are being started at a time."""
WORDS = ("jazz", "rock", "space", "garden", "cooking", "film", "novel", "old", "new", "red", "blue", "river", "city", "likes")
BERT = BackboneShape(hidden=32, layers=1, heads=4, intermediate=48, vocabulary=0, positions=64)


def write_tables(folder: Path, *, seed: int, users: int = 20, items: int = 12) -> Path:
    """A small shop's events and items."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    events = [
        f"u{user},i{item},{1_700_000_000 + 1000 * user + when}"
        for user in range(users)
        for when, item in enumerate(random.permutation(items)[:5])
    ]
    titles = [f"i{item},{WORDS[item % len(WORDS)]} {WORDS[3 * item % len(WORDS)]} {item}" for item in range(items)]
    (folder / "events.csv").write_text("\n".join(["user,item,time", *events]) + "\n", encoding="utf-8")
    (folder / "items.csv").write_text("\n".join(["item,title", *titles]) + "\n", encoding="utf-8")
    return folder


class OneAtATime:
    """A worker among others in one process: a worker expects to have its process, and torch, to itself."""

    _turn = threading.Lock()

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def name(self) -> str:
        """The platform's name."""
        return self._worker.name

    def handle(self, request: Request, warrant: str = "", receipt: str = "") -> Answer:
        """The worker's answer, when it is its turn."""
        with self._turn:
            return self._worker.handle(request, warrant, receipt)


def serve_workers(root: Path, names: list[str]) -> None:
    """The process of all workers: a socket each, and a thread that serves it."""
    import torch

    from client.config.platform_file import load
    from client.messenger.unix_socket import listen
    from client.worker.request_handler import Worker
    from client.worker.socket_server import Door

    configure("worker", level="warning")
    torch.set_num_threads(1)
    for name in names:
        place = Deployment(root / name)
        file = load(place.file)
        worker = Worker(file, state=file.state, ledger=file.ledger, device=torch.device("cpu"))
        worker.hold()
        threading.Thread(target=Door(OneAtATime(worker), listen(place.socket)).serve, daemon=True).start()
    (root / "ready").touch()
    while True:
        time.sleep(60.0)


def measure_crowd(root: Path, *, platforms: int, sums: int, rounds: int) -> dict[str, Any]:
    """Run it: seconds to join, of each secure sum and its phases, and memory in MiB after every round of training."""
    names = [f"p{number:03d}" for number in range(platforms)]
    with LocalDeployment(root, patience=3600.0) as local:
        backbone = write_random_bert(
            root / "bert", BERT, words=WORDS, characters="abcdefghijklmnopqrstuvwxyz0123456789.,:-'", seed=0, spread=0.02
        )
        create_coordinator_folder(
            local.coordinator, host="127.0.0.1", name="crowd", port=local.port, control_port=local.control, listen="127.0.0.1"
        )
        coordinator = open_coordinator(local.coordinator)
        _make_platforms(coordinator, root, names, backbone)
        local.start("server", fedfuse_words("server", "start", local.coordinator))
        local.start("workers", [sys.executable, "-m", "simulations.benchmarks.crowd", "--serve", str(root), *names])
        # A SuperNode that is not yet known ends; a platform's supervisor would start it again.
        local.wait(lambda: all(one.node for one in Platforms(coordinator.platforms).approved()), "every platform is registered")
        local.wait((root / "ready").exists, "the workers are ready")
        began = time.monotonic()
        restarts = _join(local, coordinator, names)
        found: dict[str, Any] = {"platforms": platforms, "cores": os.cpu_count()}
        found |= {"join_seconds": round(time.monotonic() - began, 1), "restarted": restarts}
        found["sums"] = [_sum(local, f"sum-{number}", platforms=platforms) for number in range(1, sums + 1)]
        if rounds:
            began = time.monotonic()
            memory = _train(local, backbone, platforms=platforms, rounds=rounds)
            seconds = time.monotonic() - began
            found |= crowd_summary(local.events(RUN), memory, platforms=platforms, rounds=rounds, seconds=seconds)
        return found


def _make_platforms(coordinator: CoordinatorFolder, root: Path, names: list[str], backbone: str) -> None:
    """Make every platform's folder, let it in, and have all trust each other."""
    owner = acting_operator(coordinator, None, Right.APPROVE)
    applications: list[Application] = []

    def record(new: ApprovedPlatform, old: ApprovedPlatform | None) -> None:
        owner.record(Verb.APPROVE, new.name, {"node": new.fingerprint})

    for number, name in enumerate(names):
        made = create_platform_folder(
            root / name,
            make_invitation(coordinator, name),
            data=[write_tables(root / "data" / name, seed=number)],
            users=100,
            epsilon=1000.0,
            delta=1e-3,
        )
        file = made.deployment.file
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace('# backbones = ["minilm"]', f"backbones = [{json.dumps(backbone)}]"), encoding="utf-8")
        Platforms(coordinator.platforms).approve(made.application, record=record)
        applications.append(made.application)
    for name in names:
        others = {one.platform: one.identity for one in applications if one.platform != name}
        trust_identities(root / name / "peers.toml", others)


def _join(local: LocalDeployment, coordinator: CoordinatorFolder, names: list[str]) -> int:
    """Start every SuperNode, a few at a time, for each start takes seconds of a processor; start again what has ended.

    Returns:
        How often one was started again: as a platform's supervisor does, when the coordinator's gate lets it.
    """
    waiting, restarted, pace = list(names), 0, len(names) / QUESTIONS
    until = time.monotonic() + local.patience
    while True:
        online = {one.name for one in status_of(coordinator).platforms if one.connection == "online"}
        if online >= set(names):
            return restarted
        started = [name for name in names if name not in waiting]
        for name in started:
            place = Deployment(local.root / name)
            if local.processes[f"node-{name}"].poll() is not None and _is_let_in(local, place):
                restarted += 1
                _start_node(local, place, local.port, pace=pace)
        for name in waiting[: max(0, AT_ONCE - len(set(started) - online))]:
            _start_node(local, Deployment(local.root / name), local.port, pace=pace)
            waiting.remove(name)
        if time.monotonic() > until:
            raise FedfuseError(f"not online: {sorted(set(names) - online)}", where=str(local.root), do="see the logs there")
        time.sleep(1.0)


def _is_let_in(local: LocalDeployment, place: Deployment) -> bool:
    try:
        greet(f"127.0.0.1:{local.port}", authority=place.authority, key=load_node_key(place.node_key))
    except (Refused, Away):
        return False
    return True


def _start_node(local: LocalDeployment, place: Deployment, port: int, *, pace: float) -> None:
    messenger = replace(Messenger.of(place, place.invited()), address=f"127.0.0.1:{port}")
    words = [sys.executable, "-m", "client.supernode.process", messenger.paced(pace).text(), "caged"]
    # As one machine runs all of them, they look for new tasks less often than they would on machines of their own.
    given = {**local.environment, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.5"}
    local.start(f"node-{place.folder.name}", words, **node_environment(place.node, given=given))


def _sum(local: LocalDeployment, run: str, *, platforms: int) -> dict[str, Any]:
    """One run of preferences under the secure sum of all."""
    began = time.time()
    # A small share each: every sum has the same budget, whatever came before.
    memory = _federate(local, run, {"privacy.epsilon": 4.0}, platforms=platforms)
    seconds = time.time() - began
    peaks = {f"{key}_peak": round(max(one[key] for one in memory)) for key in ("superlink", "serverapp")}
    return {**sum_summary(local.events(run), began=began), "seconds": round(seconds, 1), **peaks}


def _train(local: LocalDeployment, backbone: str, *, platforms: int, rounds: int) -> list[dict[str, float]]:
    """Rounds of training with local noise; memory after each."""
    settings = {
        "rounds": rounds,
        "privacy.noise": "local",
        "privacy.share": 1.0,
        "model.backbone": backbone,
        "model.layers": 1,
        "model.rank": 2,
        "model.item_tokens": 12,
        "model.user_tokens": 16,
        "training.local_steps": 1,
        "training.sample_rate": 0.5,
        "training.views": 1,
    }
    return [one for one in _federate(local, RUN, settings, platforms=platforms) if one["round"]]


def _federate(local: LocalDeployment, run: str, settings: dict[str, Any], *, platforms: int) -> list[dict[str, float]]:
    """Run it to its end; memory at the beginning (round 0), at its peak before the first round, and after every round."""
    settings = {**settings, "reply_timeout": 900.0, "server.minimum_platforms": platforms}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words += ["--platforms", str(platforms), "--wait", "1800", "--restarts", "0"]
    local.start(run, fedfuse_words("run", "--server", local.coordinator, "--name", run, *words))
    found: list[dict[str, float]] = []
    process = local.processes.pop(run)
    journal = local.coordinator / "runs" / run / "events.jsonl"
    while process.poll() is None:
        done = sum('"kind": "round"' in line for line in journal.read_text().splitlines()) if journal.exists() else 0
        now = {"round": float(done), **resident(local.processes["server"].pid)}
        if not found or done > found[-1]["round"]:
            found.append(now)
        elif not done:
            found[-1] = {key: max(value, now[key]) for key, value in found[-1].items()}
        time.sleep(0.5)
    if process.returncode:
        raise FedfuseError(
            f"the run failed: {(local.root / f'{run}.log').read_text()[-2000:]}", where=str(local.root), do="see the logs there"
        )
    return found


def sum_summary(events: list[dict[str, Any]], *, began: float) -> dict[str, Any]:
    """Seconds from the command to where each step of a secure sum of preferences ended, and how many took part in it.

    Args:
        began: When the command was given, seconds since 1970.
    """
    when: dict[str, float] = {}
    for event in events:
        when[event["kind"]] = event["time"] - began
    joined = {event["platform"] for event in events if event["kind"] == "joined"}
    lost = {event["platform"] for event in events if event["kind"] in ("silent", "failed", "refused", "dropped", "left")}
    steps = {kind: round(when[kind], 1) for kind in ("joined", "secured", "preferred", "published") if kind in when}
    return {"joined": len(joined), "lost": sorted(lost), "until": steps}


def crowd_summary(
    events: list[dict[str, Any]], memory: list[dict[str, float]], *, platforms: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """What came of it. Growth is the last quarter's mean over the second quarter's: the first still fills caches."""
    answers = dict.fromkeys(range(1, rounds + 1), 0)
    ended: list[float] = []
    for event in events:
        if event["kind"] == "answered" and event["round"] in answers and len(ended) == event["round"] - 1:
            answers[event["round"]] += 1
        elif event["kind"] == "round":
            ended.append(event["time"])
    quarter = max(1, len(memory) // 4)
    growth = {
        key: round(
            float(
                np.mean([one[key] for one in memory[-quarter:]]) / np.mean([one[key] for one in memory[quarter : 2 * quarter]])
            ),
            3,
        )
        for key in ("superlink", "serverapp")
    }
    return {
        "rounds": len(ended),
        "whole_rounds": sum(count == platforms for count in answers.values()),
        "answers": answers,
        "seconds": round(seconds, 1),
        "seconds_a_round": round(float(np.median(np.diff(ended))), 2) if len(ended) > 1 else 0.0,
        "memory": [{key: round(value) for key, value in one.items()} for one in memory],
        "growth": growth,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Many SuperNodes on one machine: joining, secure sums, memory, lost rounds.")
    parser.add_argument("--platforms", type=int, default=50)
    parser.add_argument("--sums", type=int, default=3, help="runs of preferences under the secure sum")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of training; 0: none")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_workers(Path(options.serve[0]), options.serve[1:])
        return
    if options.platforms < 3 or 0 < options.rounds < 4:
        parser.error("needs three platforms, and no rounds or at least 4")
    with tempfile.TemporaryDirectory(prefix="fedfuse-crowd-") as folder:
        result = measure_crowd(Path(folder) / "all", platforms=options.platforms, sums=options.sums, rounds=options.rounds)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    show(result, Console())


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `measure_crowd` found."""
    joined = f"all are connected after {result['join_seconds']} s, {result['restarted']} starts were repeated"
    console.print(f"{result['platforms']} platforms, {result['cores']} cores: {joined}")
    if result["sums"]:
        table = Table(title="preferences under the secure sum: seconds from the command until...")
        for column in (
            "joined",
            "keys and shares",
            "summed",
            "published",
            "the end",
            "platforms",
            "SuperLink MiB",
            "ServerApp MiB",
        ):
            table.add_column(column, justify="right")
        for one in result["sums"]:
            steps = [str(one["until"].get(kind, "-")) for kind in ("joined", "secured", "preferred", "published")]
            rest = (one["seconds"], one["joined"], one["superlink_peak"], one["serverapp_peak"])
            table.add_row(*steps, *map(str, rest))
        console.print(table)
    if "memory" not in result:
        return
    table = Table(title=f"training with local noise, {result['rounds']} rounds")
    for column in ("round", "answers", "SuperLink MiB", "ServerApp MiB"):
        table.add_column(column, justify="right")
    for one in result["memory"]:
        answers = result["answers"][int(one["round"])]
        table.add_row(str(int(one["round"])), str(answers), str(one["superlink"]), str(one["serverapp"]))
    console.print(table)
    growth = result["growth"]
    console.print(
        f"{result['whole_rounds']} of {result['rounds']} rounds whole; {result['seconds_a_round']:.1f} s a round; memory of the "
        f"last quarter over the second: SuperLink {growth['superlink']:.3f}, ServerApp {growth['serverapp']:.3f}"
    )


if __name__ == "__main__":
    main()
