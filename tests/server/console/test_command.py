"""`fedfuse server ui` as a process: on this machine alone, with a token of its own, until it is stopped."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx

from server.deployment.provisioning import create_coordinator_folder

ROOT = Path(__file__).parents[3]


def test_it_listens_on_this_machine_until_it_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    create_coordinator_folder(folder, host="h", name="spring", port=8000, control_port=1, listen="127.0.0.1")
    words = [sys.executable, "-m", "fedfuse", "server", "ui", str(folder), "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address, path = said.split(" at ")[1].split(";")[0], folder / "state" / "ui.token"
        token = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and token not in said and address.startswith("http://127.0.0.1:")
        shown = httpx.get(f"{address}/overview", headers={"authorization": f"Bearer {token}"}, timeout=120).json()
        assert (shown["federation"], shown["server"], shown["platforms"], shown["problems"]) == ("spring", False, [], [])
        assert shown["log"]["actions"][0]["verb"] == "begin" and shown["models"]["registry"] == ""
        assert httpx.get(f"{address}/overview", timeout=60).status_code == 401
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and out.strip() == "stopped"
    finally:
        process.kill()
        process.wait()
