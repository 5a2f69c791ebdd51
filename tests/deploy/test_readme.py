"""README's "Deploying it", typed as it is written there, beside two platforms that others have made; real processes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ledger.reading import read_ledger
from simulations.local_deployment import fedfuse_words
from tests.deploy.stage import ROOT, Stage, until
from tests.support.papers import commands, shell_lines

OTHERS = ("video", "news")
STAYS = {"server start": "server", "client start": "shop", "server ui": "ui"}
"""Commands that stay, and the keys of their processes here."""


def changed(line: str, stage: Stage) -> str:
    """The line as it is typed on one machine, by nobody at a terminal, with fewer rounds."""
    ports = f"--port {stage.port} --control-port {stage.control} --listen 127.0.0.1"
    for old, new in (
        ("--host fed.example.org", f"--host 127.0.0.1 {ports}"),
        ("--rounds 20", "--rounds 2"),
        ("approve shop", "approve --yes shop"),
        ("client trust", "client trust --yes"),
        ("server ui coordinator", "server ui coordinator --port 0"),
    ):
        line = line.replace(old, new)
    return line


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(3000)
def test_it_is_deployed_line_by_line(stage: Stage, small_shop: Callable[..., Path]) -> None:
    shutil.copytree(small_shop("shop"), stage.root / "exports")

    def others() -> None:
        """What the other platforms' people and the coordinator do meanwhile."""
        shutil.copy(stage.root / "shop" / "application.toml", stage.root / "application.toml")
        for name in OTHERS:
            stage.add(name, "--data", small_shop(name), users=20000)
            shutil.copy(stage.root / name / "application.toml", stage.root / f"{name}.toml")

    def join() -> None:
        for name in OTHERS:
            stage.trust(name, ("shop", *OTHERS))
            stage.join(name)
        stage.await_online("shop", *OTHERS)

    typed = []
    for line in shell_lines(ROOT / "README.md", under="Deploying it"):
        words = next(commands(changed(line, stage)))[1:]
        kind = " ".join(words[:2])
        if kind in STAYS:
            stage.spawn(STAYS[kind], *words)
            if kind == "server start":
                stage.wait(stage.answers, "the coordinator's server answers", of=["server"])
            elif kind == "client start":
                join()
            else:
                until(lambda: "http://127.0.0.1:" in (stage.root / "ui.log").read_text(), "the page is served", stage.logs)
        else:
            done = subprocess.run(
                fedfuse_words(*words), cwd=stage.root, env=stage.environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{stage.logs()}"
            if words[0] == "invite":
                (stage.root / "shop.invitation").write_text(done.stdout)
            elif kind == "init client":
                others()
        typed.append(kind)
    assert len(typed) >= 13 and set(STAYS) <= set(typed)
    assert 0 < read_ledger(stage.root / "shop" / "worker" / "ledger" / "shop.jsonl").epsilon <= 2
