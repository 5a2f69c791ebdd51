"""Events on the disk: bounded, of one server, whole after a power cut, and of nobody else's eyes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import stat
from pathlib import Path

import pytest

from client.serving import event_log
from client.serving.event_log import LOCK, NEWER, OLDER, TURN, EventLog, LoggedEvent, News
from shared.base.errors import StorageError


def events(first: int, count: int) -> list[LoggedEvent]:
    return [
        LoggedEvent(user=f"ü{number}", item="i1", liked=bool(number % 2), time=number) for number in range(first, first + count)
    ]


class Reader:
    """What somebody has who reads a log as `LivePeople` does."""

    def __init__(self, folder: Path, *, most: int = 1000, joined: bool = False) -> None:
        self.log = EventLog(folder, most=most, joined=joined)
        self.has: list[LoggedEvent] = []
        self.take(self.log.news())

    def take(self, news: News) -> None:
        self.has = [*([] if news.anew else self.has), *news.events]

    def append(self, added: list[LoggedEvent]) -> None:
        self.take(self.log.append(added))

    def look(self) -> list[LoggedEvent]:
        self.take(self.log.news())
        return self.has


def kept(folder: Path, *, most: int = 1000) -> list[LoggedEvent]:
    """What a server that is started now has."""
    reader = Reader(folder, most=most)
    reader.log.close()
    return reader.has


def test_what_was_told_is_read_again(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "serving")
    reader.append(events(0, 3))
    reader.append(events(3, 1))
    assert reader.has == reader.look() == events(0, 4)
    reader.log.close()
    assert kept(tmp_path / "serving") == events(0, 4)
    assert stat.S_IMODE((tmp_path / "serving").stat().st_mode) == 0o700
    for name in (NEWER, LOCK, TURN):
        assert stat.S_IMODE((tmp_path / "serving" / name).stat().st_mode) == 0o600


def test_it_is_bounded_and_a_restart_has_what_the_server_had(tmp_path: Path) -> None:
    reader = Reader(tmp_path, most=10)
    for number in range(27):
        reader.append(events(number, 1))
        assert len(reader.has) <= 10 and reader.has == events(number + 1 - len(reader.has), len(reader.has))
    reader.log.close()
    assert kept(tmp_path, most=10) == reader.has
    lines = sum(len((tmp_path / name).read_text().splitlines()) for name in (NEWER, OLDER))
    assert lines == len(reader.has)


def test_of_two_servers_one_has_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(StorageError, match="another server"):
        EventLog(tmp_path)
    log.close()
    log.close()
    EventLog(tmp_path).close()


@pytest.mark.parametrize("seed", range(8))
def test_each_process_of_a_server_has_what_the_others_were_told(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    readers = [Reader(tmp_path, most=12, joined=place > 0) for place in range(3)]
    told = 0
    for _ in range(60):
        reader = chance.choice(readers)
        if chance.random() < 0.6:
            count = chance.randint(1, 3)
            reader.append(events(told, count))
            told += count
        has = reader.look()
        assert has == events(told - len(has), len(has)) and len(has) >= min(told, 6)
    assert readers[0].look() == readers[1].look() == readers[2].look()
    for reader in readers:
        reader.log.close()
    assert kept(tmp_path, most=12) == readers[0].has


def _tell(folder: Path, first: int) -> None:
    reader = Reader(folder, most=100, joined=True)
    for number in range(first, first + 150):
        reader.append(events(number, 1))
        assert reader.has[-1] == events(number, 1)[0]


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    reader = Reader(tmp_path, most=100)
    others = [context.Process(target=_tell, args=(tmp_path, 1000 * place)) for place in range(1, 4)]
    for one in others:
        one.start()
    seen: set[int] = set()
    while any(one.is_alive() for one in others):
        seen.update(event.time for event in reader.look())
    for one in others:
        one.join()
    assert [one.exitcode for one in others] == [0, 0, 0]
    assert reader.log.skipped == 0 and len(reader.look()) >= 50
    for first in (1000, 2000, 3000):
        # Of each process in its order.
        times = [event.time for event in reader.has if first <= event.time < first + 1000]
        assert times == list(range(first + 150 - len(times), first + 150))


def test_half_a_line_of_another_process_is_not_read_yet(tmp_path: Path) -> None:
    first, second = Reader(tmp_path), Reader(tmp_path, joined=True)
    first.append(events(0, 1))
    with (tmp_path / NEWER).open("ab") as file:
        file.write(b'["u", "i",')
        file.flush()
        assert second.look() == events(0, 1) and second.log.skipped == 0
        file.write(b" true, 7]\n")
    assert [event.time for event in second.look()] == [0, 7] and second.log.skipped == 0
    # What could not be kept is taken back.
    with (tmp_path / NEWER).open("ab") as file:
        size = file.tell()
        file.write(b'["u", "i", true, 8]\n')
    assert second.look()[-1].time == 8
    os.truncate(tmp_path / NEWER, size)
    assert second.look()[-1].time == 7


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_power_cut_takes_the_last_event_alone(tmp_path: Path, cut: int) -> None:
    reader = Reader(tmp_path)
    reader.append(events(0, 3))
    reader.log.close()
    data = (tmp_path / NEWER).read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    (tmp_path / NEWER).write_bytes(data[: len(data) - min(cut, last - 1)])
    again = Reader(tmp_path)
    assert again.has == events(0, 2) and again.log.skipped == 1
    again.append(events(7, 1))
    again.log.close()
    assert kept(tmp_path) == [*events(0, 2), *events(7, 1)]


def test_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    good = '["u", "i", true, 1]\n'
    bad = ["{}\n", "nonsense\n", '["u", "i", 1, 1]\n', '["u", "i", true]\n', "\n", "[" * 5000 + "\n", "\ufffe\n"]
    (tmp_path / NEWER).write_text(good + "".join(bad) + good)
    reader = Reader(tmp_path)
    assert len(reader.has) == 2 and reader.log.skipped == len(bad)


@pytest.mark.parametrize("trouble", ["short", "full", "unsynced"])
def test_what_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    reader = Reader(tmp_path)
    reader.append(events(0, 2))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write = os.write
    with monkeypatch.context() as patch:
        if trouble == "unsynced":
            patch.setattr(event_log.os, "fsync", full)
        else:
            patch.setattr(event_log.os, "write", full if trouble == "full" else lambda handle, data: write(handle, data[:5]))
        with pytest.raises(StorageError):
            reader.append(events(2, 1))
    assert reader.look() == events(0, 2)
    reader.append(events(9, 1))
    reader.log.close()
    assert kept(tmp_path) == [*events(0, 2), *events(9, 1)]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / NEWER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        EventLog(tmp_path)
