"""The ledger's writer: charge, then release; no crash loses a charge and no failure damages one."""

from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.privacy import ledger_writer as module
from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import BudgetExceeded, InputError, PrivacyError, StorageError
from shared.ledger import reading
from shared.ledger.reading import read_ledger
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method, Spent
from shared.secagg.identity import Identity

IDENTITY = Identity(b"i" * 32)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=10)
PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=8.0)


@contextmanager
def opened(path: Path, **changes: Any) -> Iterator[LedgerWriter]:
    values: dict[str, Any] = {
        "platform": "movies",
        "budget": 8.0,
        "delta": 1e-5,
        "identity": IDENTITY,
        "accountant": DP_ACCOUNTING,
        **changes,
    }
    with LedgerWriter.open(path, **values) as writer:
        yield writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "movies.jsonl"


@pytest.fixture
def charged(path: Path) -> Path:
    """A ledger of three charges."""
    with opened(path) as writer:
        writer.charge(PRIOR, run="spring", round=0, question="5" * 64)
        writer.charge(TRAIN, run="spring", round=1, question="5" * 64)
        writer.charge(TRAIN, run="spring", round=2, question="5" * 64)
    return path


def test_a_charge_is_on_disk_with_all_that_was_spent_so_far(path: Path) -> None:
    with opened(path) as writer:
        assert writer.epsilon == 0
        for number, release in enumerate([PRIOR, TRAIN, TRAIN], start=1):
            entry = writer.charge(release, run="spring", round=number, question="5" * 64)
            on_disk = read_ledger(path)
            assert on_disk.entries[-1] == entry and on_disk.head == writer.head == entry.hash
            everything = [PRIOR, TRAIN, TRAIN][:number]
            assert entry.epsilon == DP_ACCOUNTING.epsilon(everything, 1e-5).epsilon == writer.epsilon
            assert entry.release == release
    assert [entry.seq for entry in read_ledger(path).entries] == [1, 2, 3]


def test_integers_of_a_secure_sum_are_charged_and_read_back(charged: Path) -> None:
    part = Integers(reach=2000.0, dimension=36_864, failure=2.0**-64, honest=12)
    integer = replace(TRAIN, steps=1, integers=part)
    with opened(charged) as writer:
        entry = writer.charge(integer, run="autumn", round=1, question="5" * 64)
        assert entry.release == integer
    with opened(charged) as writer:  # a ledger of both kinds of line is verified and continued
        assert writer.ledger.releases[-1] == integer
        expected = DP_ACCOUNTING.epsilon([PRIOR, TRAIN, TRAIN, integer], 1e-5).epsilon
        assert writer.epsilon == expected
        assert writer.preview(integer).epsilon > expected


def test_a_ledger_goes_on_after_reopening(charged: Path) -> None:
    before = read_ledger(charged)
    with opened(charged) as writer:
        assert writer.epsilon == before.epsilon and writer.head == before.head
        entry = writer.charge(TRAIN, run="autumn", round=1, question="5" * 64)
    # An accountant that began anew at each start would say less than half of this.
    assert entry.epsilon == DP_ACCOUNTING.epsilon([PRIOR, TRAIN, TRAIN, TRAIN], 1e-5).epsilon > before.epsilon
    assert read_ledger(charged).entries[:3] == before.entries


def test_one_identity_has_one_ledger(charged: Path) -> None:
    """A second one would allow the whole budget once more, which the audit holds to be unsound, and so is not begun."""
    aside = charged.with_name("until-2030.jsonl")
    charged.rename(aside)
    for budget in (8.0, 16.0):
        with pytest.raises(PrivacyError, match=aside.name) as caught, opened(charged, budget=budget):
            pass
        assert f"move it back to {charged.name}" in caught.value.do and "add up" in caught.value.do
    assert not charged.exists()
    # Another identity's, another platform's, or what is no ledger, is in nobody's way.
    other = Identity(b"o" * 32)
    with opened(charged, identity=other):
        charged.unlink()
    with opened(charged.with_name("music.jsonl"), platform="music"):
        pass
    aside.write_bytes(aside.read_bytes()[20:])
    with opened(charged):
        pass


def test_every_word_of_a_larger_budget_is_of_a_platform_that_is_made_anew(charged: Path) -> None:
    """Raised in the file, spent, opened by other keys: all three say what the audit then says."""
    with opened(charged) as writer, pytest.raises(BudgetExceeded) as spent:
        writer.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.1), run="r", round=9, question="5" * 64)
    said = [spent.value.do]
    for over in ({"budget": 16.0}, {"identity": Identity(b"o" * 32)}):
        with pytest.raises(PrivacyError) as caught, opened(charged, **over):
            pass
        said.append(caught.value.do)
    for words in said:
        assert "made anew, with its own identity and ledger" in words and "both add up" in words and "operating.md" in words
        assert "another file" not in words and "start a new ledger" not in words


def test_only_the_owner_may_read_or_write(path: Path) -> None:
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_ledger_that_others_may_write_is_refused(charged: Path, mode: int) -> None:
    charged.chmod(mode)
    with pytest.raises(StorageError, match="chmod go-w"), opened(charged):
        pass


def test_the_budget_is_kept_and_a_refused_charge_leaves_no_trace(charged: Path) -> None:
    content = charged.read_bytes()
    with opened(charged) as writer:
        big = Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.5, sample_rate=0.5, steps=20)
        with pytest.raises(BudgetExceeded, match=r"above the budget of 8 ") as caught:
            writer.charge(big, run="spring", round=3, question="5" * 64)
        assert "round 3" in caught.value.where
        assert charged.read_bytes() == content
        with pytest.raises(BudgetExceeded):
            writer.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.0), run="spring", round=3, question="5" * 64)
        assert charged.read_bytes() == content
        writer.charge(TRAIN, run="spring", round=3, question="5" * 64)  # a smaller one still fits


def test_charging_stops_at_the_budget_and_never_beyond(path: Path) -> None:
    step = Release(kind=ReleaseKind.TRAIN, noise_multiplier=2.0)
    with opened(path, budget=5.0) as writer:
        with pytest.raises(BudgetExceeded):
            for number in range(100):
                writer.charge(step, run="spring", round=number, question="5" * 64)
        count = len(writer.ledger.entries)
    assert DP_ACCOUNTING.epsilon([step] * count, 1e-5).epsilon <= 5.0 < DP_ACCOUNTING.epsilon([step] * (count + 1), 1e-5).epsilon


def test_an_accountant_that_answers_nan_does_not_open_the_door(path: Path) -> None:
    class Broken:
        name = "broken"

        def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
            return Spent(epsilon=math.nan, accountant=Method.NONE)

    with opened(path, accountant=Broken()) as writer, pytest.raises(BudgetExceeded):
        writer.charge(TRAIN, run="spring", round=1, question="5" * 64)


def test_privacy_off_is_charged_as_infinite(path: Path) -> None:
    with opened(path, budget=math.inf) as writer:
        entry = writer.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.0), run="spring", round=1, question="5" * 64)
        assert entry.epsilon == math.inf and entry.accountant == Method.NONE
        assert writer.charge(TRAIN, run="spring", round=2, question="5" * 64).epsilon == math.inf
    assert read_ledger(path).epsilon == math.inf


# --- crashes ---------------------------------------------------------------------------------------


def test_a_line_torn_at_any_byte_is_cut_off(charged: Path) -> None:
    content = charged.read_bytes()
    whole = content.rstrip(b"\n").rfind(b"\n") + 1
    head = read_head(content[:whole], charged)
    for end in range(whole, len(content)):
        charged.write_bytes(content[:end])
        with opened(charged) as writer:
            assert (writer.head, len(writer.ledger.entries)) == (head, 2)
        assert charged.read_bytes() == content[:whole]


def read_head(content: bytes, like: Path) -> str:
    other = like.with_suffix(".other")
    other.write_bytes(content)
    return read_ledger(other).head


def test_after_a_tear_charges_go_on(charged: Path) -> None:
    charged.write_bytes(charged.read_bytes()[:-7])
    with opened(charged) as writer:
        writer.charge(TRAIN, run="spring", round=2, question="5" * 64)
    assert [entry.round for entry in read_ledger(charged).entries] == [0, 1, 2]


def test_zeros_that_a_crash_left_at_the_end_are_cut_off(charged: Path) -> None:
    content = charged.read_bytes()
    charged.write_bytes(content + b"\0" * 300)
    with opened(charged) as writer:
        assert len(writer.ledger.entries) == 3
    assert charged.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 1, 10, 40, -1])
def test_a_torn_header_begins_anew(path: Path, kept: int) -> None:
    with opened(path):
        content = path.read_bytes()
    path.write_bytes(content[:kept])
    with opened(path) as writer:
        writer.charge(TRAIN, run="spring", round=1, question="5" * 64)
    assert len(read_ledger(path).entries) == 1


@pytest.mark.parametrize("content", [b"my dissertation, without a newline", b"two\nlines\n", b'{"a":1}\n', b"x" * 100_000])
def test_a_file_that_is_no_ledger_is_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StorageError), opened(path):
        pass
    assert path.read_bytes() == content


def test_an_altered_ledger_is_not_continued_and_not_cut(charged: Path) -> None:
    altered = charged.read_bytes().replace(b'"steps":10', b'"steps":11', 1) + b'{"torn'
    charged.write_bytes(altered)
    with pytest.raises(PrivacyError, match="line 3"), opened(charged):
        pass
    assert charged.read_bytes() == altered


# --- disks that refuse -------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [0, 1, 200])
def test_a_full_disk_charges_nothing_and_damages_nothing(charged: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    content, real = charged.read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100 and written and not calls:
            calls.append(real(descriptor, data[:written]))  # a short write, and then nothing more
            return calls[0]
        raise OSError(errno.ENOSPC, "No space left on device")

    calls: list[int] = []
    with opened(charged) as writer:
        monkeypatch.setattr(module.os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
        monkeypatch.undo()
        assert charged.read_bytes() == content
        with pytest.raises(StorageError, match="closed"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
    with opened(charged) as writer:
        writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
    assert len(read_ledger(charged).entries) == 4


def test_a_short_write_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: real(descriptor, data[:17]))
    with opened(path) as writer:
        writer.charge(TRAIN, run="spring", round=1, question="5" * 64)
    assert len(read_ledger(path).entries) == 1


def test_a_charge_that_is_not_synced_is_no_charge(charged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, real, calls = charged.read_bytes(), os.fsync, []

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    with opened(charged) as writer:
        monkeypatch.setattr(module.os, "fsync", fails)
        with pytest.raises(StorageError, match="Input/output error"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
    assert charged.read_bytes() == content and len(calls) >= 1


def test_an_interrupt_in_the_middle_is_rolled_back(charged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, real = charged.read_bytes(), os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        real(descriptor, data[:50])
        raise KeyboardInterrupt

    with opened(charged) as writer:
        monkeypatch.setattr(module.os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
    assert charged.read_bytes() == content


def test_the_file_and_its_folder_are_synced_before_anything_is_returned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, kinds = os.fsync, []

    def spy(descriptor: int) -> None:
        kinds.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.stat().st_size)
        real(descriptor)

    monkeypatch.setattr(module.os, "fsync", spy)
    with opened(path) as writer:
        header = path.stat().st_size
        assert kinds[0] == header and "folder" in kinds[1:] and set(kinds) == {header, "folder"}  # its own, and those on the way
        kinds.clear()
        writer.charge(TRAIN, run="spring", round=1, question="5" * 64)
        assert kinds == [path.stat().st_size] and path.stat().st_size > header


# --- others -------------------------------------------------------------------------------------------


def test_one_ledger_has_one_writer(charged: Path) -> None:
    with opened(charged):
        with pytest.raises(StorageError, match="another process"), opened(charged):
            pass
        code = (
            "from pathlib import Path; from client.privacy.ledger_writer import LedgerWriter\n"
            "from shared.secagg.identity import Identity\n"
            f"LedgerWriter.open(Path({str(charged)!r}), platform='movies', budget=8.0, delta=1e-5, identity=Identity(b'i' * 32))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd())
        assert done.returncode != 0 and "another process holds this ledger" in done.stderr
    with opened(charged):
        pass  # the lock died with its holder


@pytest.mark.parametrize("change", [{"budget": 9.0}, {"delta": 1e-6}, {"platform": "music"}, {"budget": math.inf}])
def test_whose_ledger_it_is_and_what_it_may_spend_never_change(charged: Path, change: dict[str, Any]) -> None:
    content = charged.read_bytes()
    with pytest.raises(PrivacyError, match=f"begun with {next(iter(change))}") as caught, opened(charged, **change):
        pass
    assert "set" in caught.value.do and charged.read_bytes() == content


def test_a_ledger_replaced_or_changed_meanwhile_is_noticed(charged: Path) -> None:
    with opened(charged) as writer:
        copy = charged.read_bytes()
        charged.unlink()
        with pytest.raises(StorageError, match="gone"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
        charged.write_bytes(copy)
        with pytest.raises(StorageError, match="replaced"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)
    charged.chmod(0o600)
    with opened(charged) as writer:
        with charged.open("ab") as other:
            other.write(b"x")
        with pytest.raises(StorageError, match="changed"):
            writer.charge(TRAIN, run="spring", round=3, question="5" * 64)


def test_a_link_is_not_followed(charged: Path) -> None:
    link = charged.with_name("link.jsonl")
    link.symlink_to(charged)
    with pytest.raises(StorageError), opened(link):
        pass


@pytest.mark.parametrize(
    "change", [{"platform": "Movies!"}, {"budget": 0.0}, {"budget": math.nan}, {"delta": 1.0}, {"delta": math.nan}]
)
def test_values_are_checked_before_a_file_is_made(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError), opened(path, **change):
        pass
    assert not path.exists()


@pytest.mark.parametrize(("run", "round"), [("../etc", 1), ("", 1), ("spring", -1), ("spring", 1 << 60)])
def test_what_could_not_be_read_back_is_not_written(charged: Path, run: str, round: int) -> None:
    content = charged.read_bytes()
    with opened(charged) as writer:
        with pytest.raises(InputError):
            writer.charge(TRAIN, run=run, round=round, question="5" * 64)
        assert charged.read_bytes() == content
        writer.charge(TRAIN, run="spring", round=3, question="5" * 64)


def test_threads_take_turns(path: Path) -> None:
    small = Release(kind=ReleaseKind.TRAIN, noise_multiplier=100.0)
    with opened(path) as writer:
        threads = [
            threading.Thread(target=writer.charge, args=(small,), kwargs={"run": "spring", "round": n, "question": "5" * 64})
            for n in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(writer.ledger.entries) == 12
    assert len(read_ledger(path).entries) == 12


def test_previews_charge_nothing(charged: Path) -> None:
    content = charged.read_bytes()
    with opened(charged) as writer:
        assert writer.preview(TRAIN).epsilon > writer.epsilon
    assert charged.read_bytes() == content


def test_whether_the_last_charges_answer_left(path: Path) -> None:
    with opened(path) as writer:
        assert not writer.left
        first = writer.charge(PRIOR, run="spring", round=0, question="5" * 64)
        assert not writer.left
        writer.record_release("6" * 64, charge=first.hash, run="spring", round=0)
        assert writer.left
        writer.charge(TRAIN, run="spring", round=1, question="7" * 64)
        assert not writer.left
        writer.record_release("8" * 64, charge="", run="spring", round=1)  # which no charge paid for
        assert not writer.left
    with opened(path) as writer:
        assert not writer.left and writer.charge_for("spring", "5" * 64) == first.hash
        assert writer.charge_for("autumn", "5" * 64) == writer.charge_for("spring", "9" * 64) == ""


class TestRoom:
    """A ledger is written as long as it may be read, and no longer; beyond that no platform would start with it."""

    def limited(self, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
        for reads_or_writes in (module, reading):
            monkeypatch.setattr(reads_or_writes, name, most)

    @pytest.mark.parametrize("short", [0, 1])
    @pytest.mark.parametrize("what", ["lines", "bytes"])
    def test_a_charge_is_made_only_if_its_release_can_be_written_down(
        self, charged: Path, monkeypatch: pytest.MonkeyPatch, what: str, short: int
    ) -> None:
        before = charged.read_bytes()
        with opened(charged) as writer:
            writer.charge(TRAIN, run="summer", round=1, question="5" * 64)
            line = len(charged.read_bytes()) - len(before)
        charged.write_bytes(before)
        if what == "lines":
            self.limited(monkeypatch, "MAX_ENTRIES", 3 + 1 + 1 - short)
        else:
            self.limited(monkeypatch, "MAX_BYTES", len(before) + line + module.MAX_LINE - short)
        with opened(charged) as writer:
            if short:
                with pytest.raises(InputError, match="too long") as caught:
                    writer.charge(TRAIN, run="summer", round=1, question="5" * 64)
                assert charged.read_bytes() == before and "start a new ledger" in caught.value.do
                return
            entry = writer.charge(TRAIN, run="summer", round=1, question="5" * 64)
            writer.record_release("6" * 64, charge=entry.hash, run="summer", round=1)
        assert [str(type(one).__name__) for one in read_ledger(charged).lines[-2:]] == ["Entry", "ReleaseRecord"]

    @pytest.mark.parametrize("what", ["lines", "bytes"])
    def test_an_answer_that_was_not_charged_leaves_only_if_it_can_be_written_down(
        self, charged: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        with opened(charged) as writer:
            writer.record_release("6" * 64, charge="", run="spring", round=1)
            size = charged.stat().st_size
            self.limited(monkeypatch, *{"lines": ("MAX_ENTRIES", 5), "bytes": ("MAX_BYTES", size + 700)}[what])
            writer.record_release("7" * 64, charge="", run="spring", round=2)
            full = charged.read_bytes()
            if what == "bytes":
                self.limited(monkeypatch, "MAX_BYTES", len(full) + len(full) - size - 1)
            with pytest.raises(StorageError, match="too long"):
                writer.record_release("8" * 64, charge="", run="spring", round=3)
            assert charged.read_bytes() == full
            assert writer.record_release("7" * 64, charge="", run="spring", round=2) == writer.head  # it has its line
            if what == "bytes":
                self.limited(monkeypatch, "MAX_BYTES", len(full) + len(full) - size)
                writer.record_release("8" * 64, charge="", run="spring", round=3)
        assert len(read_ledger(charged).lines) == (5 if what == "lines" else 6)
