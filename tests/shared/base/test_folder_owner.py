"""Root is refused in a folder of a service's user, whose files it would make unreadable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.base.errors import InputError
from shared.base.folder_owner import require_owner
from tests.support.called_command import called

STRANGER = 54_321
"""A user of no name."""


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def given_away(folder: Path) -> str:
    """The folder becomes another user's than root; whose it is, as `sudo` takes it."""
    if os.getuid() == 0:
        os.chown(folder, STRANGER, -1)
        return f"sudo -u '#{STRANGER}'"
    return "sudo -u "


def test_a_folder_of_a_service_is_refused_to_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = given_away(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    require_owner(tmp_path)  # whether they may is the system's to say
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InputError, match="belongs to") as caught:
        require_owner(tmp_path)
    assert words in caught.value.do
    require_owner(tmp_path / "new")


@pytest.mark.usefixtures("as_root")
def test_a_coordinators_commands_write_nothing_into_it(tmp_path: Path) -> None:
    """`fedfuse approve` by root left a log that the server, fedfuse-server's, could not read: it did not start any more."""
    folder = tmp_path / "coordinator"
    assert called("init", "server", folder, "--host", "h", "--name", "spring").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = given_away(folder)
    for command in (
        ("invite", "shop", "--server", folder),
        ("revoke", "shop", "--server", folder),
        ("run", "--server", folder),
        ("server", "renew", folder),
        ("server", "start", folder),
    ):
        done = called(*command)
        assert done.returncode == 3 and words in " ".join(done.stderr.split()), (command, done.stderr)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert called("log", "--server", folder).returncode == 0  # looking is free
