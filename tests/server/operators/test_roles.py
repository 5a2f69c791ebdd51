"""Named operators through the command line: one person needs no word of them, several are held to what each may do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import begin_rotation, finish_rotation, switch_authority
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.operators.acting import log_of
from server.operators.operator_log import LOG
from server.operators.restored_state import list_differences
from server.operators.rights import Verb
from shared.base.errors import StorageError
from shared.protocol.invitation import fingerprint_of_authorities
from tests.server.deployment.test_provisioning import application
from tests.support.called_command import called


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    made = called("init", "server", tmp_path / "coordinator", "--host", "h", "--name", "spring")
    assert made.returncode == 0, made.stderr
    return open_coordinator(tmp_path / "coordinator")


@pytest.fixture
def alice(coordinator: CoordinatorFolder, tmp_path: Path) -> Path:
    """Key file of an operator who may invite and run."""
    key = tmp_path / "alice.key"
    said = called("server", "operator", "key", key).stdout
    found = next(line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("fingerprint"))
    words = ["--key", f"{key}.pub", "--may", "run,invite", "--fingerprint", found, "--server", coordinator.folder]
    added = called("server", "operator", "add", "alice", *words)
    assert added.returncode == 0, added.stderr
    return key


def applied(folder: Path, name: str) -> Path:
    asked = application(folder, name)
    path = folder / f"{name}.toml"
    path.write_text(asked.text())
    return path


def did(coordinator: CoordinatorFolder) -> list[tuple[str, str, str]]:
    shown = json.loads(called("log", "--server", coordinator.folder, "--last", 0, "--json").stdout)
    return [(one["operator"], one["verb"], one["of"]) for one in shown["actions"]]


def test_one_person_says_nothing_of_operators(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    at = ("--server", coordinator.folder)
    assert called("invite", "shop", *at).returncode == 0
    assert called("approve", "shop", applied(tmp_path, "shop"), "--yes", *at).returncode == 0
    assert called("revoke", "shop", *at).returncode == 0
    assert did(coordinator) == [
        ("owner", "begin", "spring"),
        ("owner", "invite", "shop"),
        ("owner", "approve", "shop"),
        ("owner", "revoke", "shop"),
    ]
    shown = called("log", "--verify", *at)
    assert shown.returncode == 0 and "it holds: 4 actions" in shown.stdout


def test_each_does_what_they_may_and_the_log_says_who(coordinator: CoordinatorFolder, alice: Path, tmp_path: Path) -> None:
    at = ("--server", coordinator.folder)
    assert called("invite", "shop", "--as", alice, *at).returncode == 0
    for words in (
        ["approve", "shop", applied(tmp_path, "shop"), "--yes"],
        ["revoke", "shop"],
        ["server", "operator", "add", "bob", "--key", f"{alice}.pub", "--may", "all", "--yes"],
        ["server", "operator", "remove", "owner"],
    ):
        refused = called(*words, "--as", alice, *at)
        assert refused.returncode == 6 and "alice has no right to" in refused.stderr, refused.stderr
    assert Platforms(coordinator.platforms).all() == []
    assert did(coordinator)[1:] == [("owner", "add-operator", "alice"), ("alice", "invite", "shop")]
    listed = json.loads(called("server", "operator", "list", "--json", *at).stdout)
    assert {one["name"]: one["may"] for one in listed}["alice"] == ["invite", "run"]


def test_a_strangers_key_and_no_key(coordinator: CoordinatorFolder, alice: Path, tmp_path: Path) -> None:
    at = ("--server", coordinator.folder)
    called("server", "operator", "key", tmp_path / "mallory.key")
    refused = called("invite", "shop", "--as", tmp_path / "mallory.key", *at)
    assert refused.returncode == 6 and "no operator's" in refused.stderr
    alice.chmod(0o644)
    open_ = called("invite", "shop", "--as", alice, *at)
    assert open_.returncode == 5 and "others may read" in open_.stderr
    alice.chmod(0o600)
    coordinator.operator_key.rename(tmp_path / "owner.key")  # the owner takes their key home
    nobody = called("invite", "shop", *at)
    assert nobody.returncode == 6 and "--as" in nobody.stderr
    assert called("invite", "shop", "--as", tmp_path / "owner.key", *at).returncode == 0


def test_a_key_on_standard_input(
    coordinator: CoordinatorFolder, alice: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `sudo -u fedfuse fedfuse ... --as - < alice.key` does: the shell opens what the coordinator's user cannot."""
    import fedfuse

    monkeypatch.setattr("sys.argv", ["fedfuse", "invite", "shop", "--as", "-", "--server", str(coordinator.folder)])
    with alice.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        fedfuse.main()
    assert did(coordinator)[-1] == ("alice", "invite", "shop")
    closed = called("invite", "shop", "--as", "-", "--server", coordinator.folder)
    assert closed.returncode == 3 and "redirect it" in closed.stderr


def test_a_cut_log_stops_every_command(coordinator: CoordinatorFolder, alice: Path) -> None:
    at = ("--server", coordinator.folder)
    path = coordinator.operators / LOG
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    for words in (["invite", "shop"], ["log"], ["run", "--dry-run"], ["revoke", "shop"]):
        refused = called(*words, *at)
        assert refused.returncode == 5 and "was written" in refused.stderr, refused.stderr


def test_a_head_that_was_written_down(coordinator: CoordinatorFolder, alice: Path) -> None:
    at = ("--server", coordinator.folder)
    head = json.loads(called("log", "--json", *at).stdout)["head"]
    called("invite", "shop", *at)
    assert called("log", "--verify", "--head", head, *at).returncode == 0
    lost = called("log", "--verify", "--head", "ab" * 32, *at)
    assert lost.returncode == 5 and "another history" in lost.stderr


def test_a_platform_that_nobody_let_in_stops_a_run(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    at = ("--server", coordinator.folder)
    Platforms(coordinator.platforms).approve(application(tmp_path, "stranger"))
    for words in (["log", "--verify"], ["run"]):
        refused = called(*words, *at)
        assert refused.returncode == 5 and "stranger is approved in the list" in refused.stderr, refused.stderr
    assert "error" in called("doctor", coordinator.folder).stdout


def test_new_keys_of_a_platform_revoke_the_old_ones_in_the_log(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    at = ("--server", coordinator.folder)
    called("approve", "shop", applied(tmp_path / "a", "shop"), "--yes", *at)
    again = applied(tmp_path / "b", "shop")
    mine = next(line.split('"')[1] for line in again.read_text().splitlines() if line.startswith("identity"))
    from shared.protocol.invitation import fingerprint_of

    done = called("approve", "shop", again, "--replace", fingerprint_of(mine), *at)
    assert done.returncode == 0, done.stderr
    assert list(list_differences(coordinator, log_of(coordinator))) == []


def test_a_folder_of_the_last_version_gets_its_log(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    shutil.rmtree(coordinator.operators)
    coordinator.operator_key.unlink()
    for name in ("shop", "news"):
        Platforms(coordinator.platforms).approve(application(tmp_path, name))
    Platforms(coordinator.platforms).revoke("news")
    assert "earlier version" in called("doctor", coordinator.folder).stdout
    assert did(coordinator) == [("owner", "begin", "spring"), ("owner", "adopt", "shop")]
    assert called("log", "--verify", "--server", coordinator.folder).returncode == 0
    Platforms(coordinator.platforms).revoke("shop")  # by another way than the command
    changed = called("log", "--verify", "--server", coordinator.folder)
    assert changed.returncode == 5 and "shop is revoked in the list" in changed.stderr


def test_publishing_from_a_coordinators_folder_takes_the_right(
    coordinator: CoordinatorFolder, alice: Path, tmp_path: Path, make_run: object
) -> None:
    run = make_run("spring")  # type: ignore[operator]
    moved = coordinator.run("spring")
    moved.parent.mkdir()
    shutil.move(run, moved)
    words = ["publish", moved, tmp_path / "registry", "--key", coordinator.model_key]
    refused = called(*words, "--as", alice)
    assert refused.returncode == 6 and "no right to publish" in refused.stderr
    assert not (tmp_path / "registry").exists()
    done = called(*words)
    assert done.returncode == 0, done.stderr
    assert did(coordinator)[-1] == ("owner", "publish", "spring")
    assert json.loads((moved / "published.json").read_text())["version"] == 1


def test_certificates_take_the_right(coordinator: CoordinatorFolder, alice: Path, tmp_path: Path) -> None:
    """A step of somebody without it changes no file; each step that is taken is in the log with what it was taken with."""
    ca, folder = coordinator.folder / "ca", coordinator.folder

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for place in ("ca", "tls") for path in sorted((folder / place).iterdir())}

    at_first = files()
    for words in (["renew"], ["authority", "begin"], ["authority", "switch", "--anyway"], ["authority", "finish"]):
        refused = called("server", *words, folder, "--as", alice)
        assert refused.returncode == 6 and "alice has no right to certificates" in refused.stderr, refused.stderr
    assert files() == at_first
    assert called("server", "authority", "status", folder).returncode == 0

    added = called(
        *("server", "operator", "add", "alice", "--key", f"{alice}.pub", "--may", "certificates", "--yes", "--server", folder)
    )
    assert added.returncode == 0, added.stderr
    before = len(did(coordinator))
    assert called("server", "renew", folder, "--days", 30, "--as", alice).returncode == 0
    shown = fingerprint_of_authorities(coordinator.certificates.server.read_text())
    assert called("server", "authority", "begin", folder, "--as", alice).returncode == 0
    begun = fingerprint_of_authorities((ca / "next.crt").read_text())
    assert called("server", "authority", "switch", folder, "--days", 60, "--anyway", "--as", alice).returncode == 0
    assert called("server", "authority", "finish", folder, "--as", alice).returncode == 0
    actions = log_of(coordinator).actions[before:]
    assert [(one.operator, one.verb, one.of) for one in actions] == [
        ("alice", Verb.RENEW, "spring"),
        ("alice", Verb.AUTHORITY_BEGIN, "spring"),
        ("alice", Verb.AUTHORITY_SWITCH, "spring"),
        ("alice", Verb.AUTHORITY_FINISH, "spring"),
    ]
    assert dict(actions[0].details) == {"certificate": shown, "host": "h", "days": "30"}
    assert [one.details["authority"] for one in actions[1:]] == [begun] * 3
    assert actions[2].details["anyway"] == "yes"
    assert called("log", "--verify", "--server", folder).returncode == 0
    refused = called("invite", "shop", "--as", alice, "--server", folder)
    assert refused.returncode == 6


def test_a_certificate_that_cannot_be_written_down_is_not_made(coordinator: CoordinatorFolder) -> None:
    def fail(certificate: str) -> None:
        raise StorageError("the action could not be written down", where="log")

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for place in ("ca", "tls") for path in (coordinator.folder / place).iterdir()}

    def each_step_fails(*steps: Callable[[], object]) -> None:
        before = files()
        for step in steps:
            with pytest.raises(StorageError, match="written down"):
                step()
        assert files() == before

    each_step_fails(lambda: coordinator.certificates.issue("h", record=fail), lambda: begin_rotation(coordinator, record=fail))
    begin_rotation(coordinator)
    each_step_fails(lambda: begin_rotation(coordinator, record=fail), lambda: switch_authority(coordinator, days=1, record=fail))
    switch_authority(coordinator, days=1)
    each_step_fails(lambda: finish_rotation(coordinator, record=fail))


def test_what_cannot_be_written_down_is_not_done(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    called("approve", "shop", applied(tmp_path, "shop"), "--yes", "--server", coordinator.folder)

    def fail(one: object) -> None:
        raise StorageError("the action could not be written down", where="log")

    with pytest.raises(StorageError):
        Platforms(coordinator.platforms).revoke("shop", record=fail)
    assert [one.name for one in Platforms(coordinator.platforms).approved()] == ["shop"]
