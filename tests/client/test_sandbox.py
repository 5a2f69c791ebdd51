"""The messenger's cage: what is outside cannot be opened, looked into or signalled, not even by a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.sandbox import available, confine

ROOT = Path(__file__).parents[2]
needs_landlock = pytest.mark.skipif(available() == 0, reason="this kernel has no Landlock")

ATTACK = """
import json, os, socket, subprocess, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from client.sandbox import confine, devices, of_python
outside, inside, victim = {outside!r}, {inside!r}, {victim}
found = {{"version": confine(read=of_python(), write=[Path(inside), *devices()])}}

def attempt(name, action):
    try:
        found[name] = repr(action())[:200]
    except BaseException as error:
        found[name] = type(error).__name__

attempt("read", lambda: open(outside + "/rows.csv").read())
attempt("list", lambda: os.listdir(outside))
attempt("write", lambda: open(outside + "/rows.csv", "w"))
attempt("truncate", lambda: os.truncate(outside + "/rows.csv", 0))
attempt("remove", lambda: os.remove(outside + "/rows.csv"))
attempt("link", lambda: os.link(outside + "/rows.csv", inside + "/rows.csv"))
os.symlink(outside + "/rows.csv", inside + "/alias")
attempt("symlink", lambda: open(inside + "/alias").read())
attempt("child", lambda: subprocess.run(["cat", outside + "/rows.csv"], capture_output=True, check=True))
attempt("environment", lambda: open(f"/proc/{{victim}}/environ").read())
attempt("memory", lambda: open(f"/proc/{{victim}}/mem", "rb"))
attempt("maps", lambda: open(f"/proc/{{victim}}/maps").read())
attempt("root", lambda: open(f"/proc/{{victim}}/root" + outside + "/rows.csv").read())
attempt("folder", lambda: os.listdir(f"/proc/{{victim}}/cwd"))
attempt("kill", lambda: os.kill(victim, 15))
attempt("mount", lambda: subprocess.run(["mount", "-t", "tmpfs", "none", inside], capture_output=True, check=True))
attempt("own file", lambda: open(inside + "/mine", "w").write("x"))
attempt("import", lambda: __import__("client.link").__name__)
print(json.dumps(found))
"""


@needs_landlock
def test_nothing_outside_is_within_reach(tmp_path: Path) -> None:
    outside, inside = tmp_path / "platform", tmp_path / "messenger"
    outside.mkdir()
    inside.mkdir()
    (outside / "rows.csv").write_text("zebrafinch")
    environment = {**os.environ, "SHOP_DATABASE_PASSWORD": "zebrafinch"}
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment, cwd=outside)
    try:
        script = ATTACK.format(root=str(ROOT), outside=str(outside), inside=str(inside), victim=victim.pid)
        done = subprocess.run([sys.executable, "-c", script], cwd=inside, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else pytest.fail(done.stderr)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    print(found)
    assert "zebrafinch" not in done.stdout
    denied = {"PermissionError", "CalledProcessError", "OSError"}
    allowed = {"version", "own file", "import"}
    if found["version"] < 6:  # older kernels do not confine signals
        allowed.add("kill")
    assert {name for name, result in found.items() if result not in denied} == allowed
    assert (outside / "rows.csv").read_text() == "zebrafinch"


def test_a_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.sandbox.available", lambda: 0)
    assert confine(read=[], write=[]) == 0
    assert Path(__file__).read_text()  # nothing was confined
