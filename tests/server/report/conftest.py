"""A small run that reports are made of: it is run once a session, and copied for whoever damages it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.report.collect import ReportMaterial, collect_report
from server.report.report_model import RunReport
from server.report.subject import open_subject, read_subject
from shared.base.settings import build
from shared.ledger.evidence import folder_evidence
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import open_world

SETTINGS = {
    "rounds": 3,
    "simulation": True,
    "strategy": "fedavg",
    "training": {"local_steps": 2, "sample_rate": 0.5, "views": 2, "targets": 2},
    "privacy": {"generator": "seeded", "epsilon": 50.0},
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str) -> Path:
    """Folder of a simulation of two platforms over three rounds; not to be written to."""
    at = tmp_path_factory.mktemp("reported")
    (at / "world").mkdir()
    for name, users in (("shop", 30), ("video", 24)):
        rows = [
            f"u{user},i{(5 * user + 3 * step + user * step) % 12},{1_700_000_000 + 100 * user + step}"
            for user in range(users)
            for step in range(4)
        ]
        (at / "world" / f"{name}-events.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
        titles = [f"i{item},jazz novel {item}" for item in range(12)]
        (at / "world" / f"{name}-items.csv").write_text("\n".join(["item,title", *titles]) + "\n")
        (at / "world" / f"{name}.toml").write_text(
            f'name = "{name}"\nusers = {users + 10}\n[privacy]\nepsilon = 50.0\ndelta = 1e-3\n'
            f'[sources.events]\nkind = "interactions"\npath = "{name}-events.csv"\n'
            f'[sources.items]\nkind = "items"\npath = "{name}-items.csv"\n'
        )
    model = {"backbone": tiny_bert, "layers": 2, "rank": 2, "item_tokens": 12, "user_tokens": 24}
    settings = build({**SETTINGS, "model": model}, where="test")
    run_simulation(Simulation(world=open_world(at / "world"), settings=settings, out=at / "run"))
    return at / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "spring", ignore=shutil.ignore_patterns("state", "tensorboard")))


@pytest.fixture
def report_of() -> Callable[[Path], RunReport]:
    """The report of a simulation's folder."""

    def make(folder: Path) -> RunReport:
        subject = open_subject(folder)
        ledgers = sorted((folder / "ledger").glob("*.jsonl"))
        material = ReportMaterial(subject=subject, files=read_subject(subject), ledgers=ledgers, evidence=folder_evidence(folder))
        return collect_report(material)

    return make
