"""A restore from a backup: what went back contradicts what did not, and whoever was shut out since is not let in unnoticed."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.superlink import require_believed
from server.operators.acting import log_of
from server.operators.operator_log import AlteredLog, NotedHead
from server.operators.restored_state import list_differences, require_latest, seen_note
from server.operators.rights import Verb
from tests.server.deployment.test_provisioning import application
from tests.server.operators.test_roles import applied
from tests.support.called_command import called

BOTH = ("platforms.json", "operators")


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    """With `shop` and `news` approved, and a server that has run."""
    made = called("init", "server", tmp_path / "coordinator", "--host", "h", "--name", "spring")
    assert made.returncode == 0, made.stderr
    found = open_coordinator(tmp_path / "coordinator")
    for name in ("shop", "news"):
        done = called("approve", name, applied(tmp_path, name), "--yes", "--server", found.folder)
        assert done.returncode == 0, done.stderr
    found.state.mkdir(exist_ok=True)
    require_believed(found)
    return found


@pytest.fixture
def backup(coordinator: CoordinatorFolder, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Takes a backup of list and log now; called with names, puts these back."""
    kept = tmp_path / "backup"

    def copy(source: Path, target: Path) -> None:
        for name in BOTH:
            if (source / name).is_dir():
                shutil.rmtree(target / name, ignore_errors=True)
                shutil.copytree(source / name, target / name)
            elif (source / name).exists():
                shutil.copy2(source / name, target / name)

    kept.mkdir()
    copy(coordinator.folder, kept)

    def restore(*names: str) -> None:
        for name in set(BOTH) - set(names):
            shutil.rmtree(kept / name) if (kept / name).is_dir() else (kept / name).unlink()
        copy(kept, coordinator.folder)

    yield restore


def starts(coordinator: CoordinatorFolder) -> str:
    """What `fedfuse server start` says against starting; '' where it goes on to listen."""
    try:
        require_believed(coordinator)
    except AlteredLog as error:
        return str(error)
    return ""


def everywhere(coordinator: CoordinatorFolder) -> list[str]:
    """What those say who look: the start, a run, the log, doctor."""
    at = ("--server", coordinator.folder)
    run, log, start = called("run", *at), called("log", "--verify", *at), called("server", "start", coordinator.folder)
    assert (run.returncode, log.returncode, start.returncode) == (5, 5, 5), (run.stderr, log.stderr, start.stderr)
    return [run.stderr, log.stderr, start.stderr, called("doctor", coordinator.folder).stdout]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_a_platform_that_was_revoked_since_is_not_let_in_by_an_older_list(
    coordinator: CoordinatorFolder, backup: Callable[..., None]
) -> None:
    at = ("--server", coordinator.folder)
    assert called("revoke", "shop", *at).returncode == 0
    assert starts(coordinator) == ""
    backup("platforms.json")
    assert [one.name for one in Platforms(coordinator.platforms).approved()] == ["news", "shop"]
    for said in everywhere(coordinator):
        assert "shop is approved in the list of platforms, and owner revoked it on" in squeezed(said), said
        assert "fedfuse revoke shop" in squeezed(said), said
    # What is said to do mends it.
    assert called("revoke", "shop", *at).returncode == 0
    assert starts(coordinator) == "" and called("log", "--verify", *at).returncode == 0


def test_keys_that_were_replaced_since_are_not_let_in_by_an_older_list(
    coordinator: CoordinatorFolder, backup: Callable[..., None], tmp_path: Path
) -> None:
    at = ("--server", coordinator.folder)
    again = application(tmp_path / "again", "shop")
    path = tmp_path / "again.toml"
    path.write_text(again.text())
    assert called("approve", "shop", path, "--replace", again.fingerprint, *at).returncode == 0
    backup("platforms.json")
    assert "owner replaced its key on" in starts(coordinator)
    assert called("revoke", "shop", *at).returncode == 0
    assert starts(coordinator) == ""  # the new key is missing, which lets nobody in, and is said
    (left,) = list_differences(coordinator, log_of(coordinator))
    assert "shop is not in the list" in left.found and "fedfuse approve shop" in left.do
    assert called("approve", "shop", path, "--yes", *at).returncode == 0
    assert list(list_differences(coordinator, log_of(coordinator))) == []


def test_who_was_approved_since_is_missed(
    coordinator: CoordinatorFolder,
    backup: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It lets nobody in, so the server starts, and says it; a run would quietly be without them, and does not begin."""
    at = ("--server", coordinator.folder)
    path = applied(tmp_path, "video")
    assert called("approve", "video", path, "--yes", *at).returncode == 0
    backup("platforms.json")
    assert starts(coordinator) == ""
    assert "video is not in the list of platforms, and owner approved it" in caplog.text
    refused = called("run", *at)
    assert refused.returncode == 5 and "video is not in the list" in squeezed(refused.stderr)
    assert called("approve", "video", path, "--yes", *at).returncode == 0
    assert called("log", "--verify", *at).returncode == 0


def test_an_older_log_beside_the_newest_list(coordinator: CoordinatorFolder, backup: Callable[..., None]) -> None:
    at = ("--server", coordinator.folder)
    assert called("revoke", "shop", *at).returncode == 0
    backup("operators")
    for said in everywhere(coordinator):
        assert "was seen" in squeezed(said), said
    seen_note(coordinator).unlink()  # even without the note: the list is ahead
    (found,) = list_differences(coordinator, log_of(coordinator))
    assert "shop is revoked in the list of platforms, and owner approved it" in found.found and not found.admits


def test_list_and_log_of_one_earlier_day(coordinator: CoordinatorFolder, backup: Callable[..., None]) -> None:
    """They agree; what was noted beside the server's database does not."""
    at = ("--server", coordinator.folder)
    assert called("revoke", "shop", *at).returncode == 0
    noted = seen_note(coordinator).read_bytes()
    backup(*BOTH)
    assert list(list_differences(coordinator, log_of(coordinator))) == []
    for said in everywhere(coordinator):
        assert "was seen" in squeezed(said) and "revoke first" in squeezed(said), said
    # Doing it again does not remove what shows that there was more: that is an operator's word. (Not the same first: within
    # one second it would be the same line once more.)
    for name in ("news", "shop"):
        assert called("revoke", name, *at).returncode == 0
    assert seen_note(coordinator).read_bytes() == noted and "was seen" in starts(coordinator)
    done = called("server", "restored", coordinator.folder)
    assert done.returncode == 0 and "counts as lost" in done.stdout, done.stderr
    assert starts(coordinator) == ""
    last = log_of(coordinator).actions[-1]
    assert (last.verb, last.details["lost"]) == (Verb.RESTORED, "3")
    again = called("server", "restored", coordinator.folder)
    assert again.returncode == 3 and "nothing shows" in again.stderr
    assert called("invite", "shop", *at).returncode == 0
    require_latest(coordinator, log_of(coordinator))
    assert seen_note(coordinator).read_bytes() != noted


def test_what_is_lost_later_is_not_accounted_for(coordinator: CoordinatorFolder, backup: Callable[..., None]) -> None:
    """An operator's word holds for what was done before it, and not for a second restore."""
    at = ("--server", coordinator.folder)
    assert called("revoke", "shop", *at).returncode == 0
    backup(*BOTH)
    assert called("server", "restored", coordinator.folder).returncode == 0
    assert starts(coordinator) == ""
    log = log_of(coordinator)
    word = datetime.datetime.fromisoformat(log.actions[-1].time)
    for seconds, accounted in ((-1, True), (0, True), (1, False)):
        when = (word + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert log.accounts_for(NotedHead(seq=40, hash="ab" * 32, time=when)) is accounted


def test_the_note_follows_the_log(coordinator: CoordinatorFolder) -> None:
    before = seen_note(coordinator).read_bytes()
    assert called("invite", "shop", "--server", coordinator.folder).returncode == 0
    assert seen_note(coordinator).read_bytes() != before
    assert starts(coordinator) == ""
    assert seen_note(coordinator).stat().st_mode & 0o077 == 0
    seen_note(coordinator).write_text("{}")
    assert "does not say which action was the last" in starts(coordinator)


def test_a_platform_that_nobody_let_in_keeps_the_server_from_starting(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    Platforms(coordinator.platforms).approve(application(tmp_path, "stranger"))
    assert "stranger is approved in the list of platforms, and no operator's line says so" in starts(coordinator)
    assert called("revoke", "stranger", "--server", coordinator.folder).returncode == 0
    assert starts(coordinator) == ""
