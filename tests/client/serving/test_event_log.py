"""Events on the disk: bounded, of one server, whole after a power cut, and of nobody else's eyes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from client.serving import event_log
from client.serving.event_log import LOCK, NEWER, OLDER, EventLog, LoggedEvent
from shared.base.errors import StorageError


def events(first: int, count: int) -> list[LoggedEvent]:
    return [
        LoggedEvent(user=f"ü{number}", item="i1", liked=bool(number % 2), time=number) for number in range(first, first + count)
    ]


def kept(log: EventLog) -> list[LoggedEvent]:
    return [*log.older, *log.newer]


def test_what_was_told_is_read_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "serving")
    log.append(events(0, 3))
    log.append(events(3, 1))
    log.close()
    assert kept(EventLog(tmp_path / "serving")) == events(0, 4)
    assert stat.S_IMODE((tmp_path / "serving").stat().st_mode) == 0o700
    for name in (NEWER, LOCK):
        assert stat.S_IMODE((tmp_path / "serving" / name).stat().st_mode) == 0o600


def test_it_is_bounded_and_a_restart_has_what_the_server_had(tmp_path: Path) -> None:
    log = EventLog(tmp_path, most=10)
    forgot = [log.append(events(number, 1)) for number in range(27)]
    assert len(kept(log)) <= 10 and kept(log)[-1] == events(26, 1)[0] and sum(forgot) == 4
    before = kept(log)
    log.close()
    again = EventLog(tmp_path, most=10)
    assert kept(again) == before
    lines = sum(len((tmp_path / name).read_text().splitlines()) for name in (NEWER, OLDER))
    assert lines == len(before)


def test_of_two_servers_one_has_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(StorageError, match="another server"):
        EventLog(tmp_path)
    log.close()
    log.close()
    EventLog(tmp_path).close()


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_power_cut_takes_the_last_event_alone(tmp_path: Path, cut: int) -> None:
    log = EventLog(tmp_path)
    log.append(events(0, 3))
    log.close()
    data = (tmp_path / NEWER).read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    (tmp_path / NEWER).write_bytes(data[: len(data) - min(cut, last - 1)])
    again = EventLog(tmp_path)
    assert kept(again) == events(0, 2) and again.skipped == 1
    again.append(events(7, 1))
    again.close()
    assert kept(EventLog(tmp_path)) == [*events(0, 2), *events(7, 1)]


def test_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    good = '["u", "i", true, 1]\n'
    bad = ["{}\n", "nonsense\n", '["u", "i", 1, 1]\n', '["u", "i", true]\n', "\n", "[" * 5000 + "\n", "\ufffe\n"]
    (tmp_path / NEWER).write_text(good + "".join(bad) + good)
    log = EventLog(tmp_path)
    assert len(kept(log)) == 2 and log.skipped == len(bad)


@pytest.mark.parametrize("trouble", ["short", "full", "unsynced"])
def test_what_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    log = EventLog(tmp_path)
    log.append(events(0, 2))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write = os.write
    with monkeypatch.context() as patch:
        if trouble == "unsynced":
            patch.setattr(event_log.os, "fsync", full)
        else:
            patch.setattr(event_log.os, "write", full if trouble == "full" else lambda handle, data: write(handle, data[:5]))
        with pytest.raises(StorageError):
            log.append(events(2, 1))
    assert kept(log) == events(0, 2)
    log.append(events(9, 1))
    log.close()
    assert kept(EventLog(tmp_path)) == [*events(0, 2), *events(9, 1)]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / NEWER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        EventLog(tmp_path)
