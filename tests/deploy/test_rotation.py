"""The certificate authority is changed under a running federation: no messenger is started again, and the next run has all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.stage import Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_platforms_stay_connected(stage: Stage, small_shop: Callable[[str], Path]) -> None:
    names = ["ant", "bee"]
    stage.found({name: small_shop(name) for name in names})
    messengers = {process.pid for process in stage.find("client.supernode.process")}
    assert len(messengers) >= 2

    def authority(step: str, *, check: bool = True) -> str:
        done = stage.fedfuse("server", "authority", step, stage.coordinator, check=check)
        return done.stdout + done.stderr

    assert "not yet known to: ant, bee" in authority("begin")
    assert "have not said that they know" in authority("switch", check=False)
    until(lambda: "all approved platforms know both" in authority("status"), "platforms know both", stage.logs, every=5.0)
    assert "start the server again" in authority("switch")
    assert "old authority" in authority("finish", check=False)
    stage.processes["server"].terminate()
    stage.processes["server"].wait(60)
    stage.serve()
    stage.await_online(*names)
    authority("finish")
    stage.run("after", "--rounds", "1", "--platforms", "2", "--noise", "local")
    assert stage.state("after")["state"] == "finished"
    assert messengers <= {process.pid for process in stage.find("client.supernode.process")}
    # The invitation that they were made with is older than what they believe; a newer one changes nothing for people to confirm.
    stage.command("client", "accept", stage.root / "ant", stage.invite("ant"))
