"""Sealed shares in files: each is there for its receiver, in the order of senders, until it has arrived; a torn one is none."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.run.share_store import MailFolder
from shared.base.errors import StorageError
from shared.secagg.messages import Parcel

parcels = st.builds(Parcel, sender=st.integers(0, 2**32 - 1), sealed=st.binary(max_size=20))


@pytest.fixture
def mail(tmp_path: Path) -> MailFolder:
    return MailFolder(tmp_path / "run" / "mail")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3), parcels), max_size=12))
def test_each_receiver_has_the_last_of_every_sender(mail: MailFolder, put: list[tuple[int, Parcel]]) -> None:
    mail.empty()
    for receiver, parcel in put:
        mail.put(parcel, receiver=receiver)
    for receiver in range(4):
        last = {parcel.sender: parcel for to, parcel in put if to == receiver}
        assert mail.parcels(receiver) == tuple(last[sender] for sender in sorted(last))


def test_what_has_arrived_or_is_dropped_is_gone(mail: MailFolder, tmp_path: Path) -> None:
    one = Parcel(sender=7, sealed=b"x")
    for receiver in (1, 2, 100_000):
        mail.put(one, receiver=receiver)
    mail.discard(1)
    mail.discard(1)
    assert [mail.parcels(receiver) for receiver in (1, 2, 100_000)] == [(), (one,), (one,)]
    (tmp_path / "run" / "mail" / "session").write_bytes(b"stays")
    mail.empty()
    mail.empty()
    assert [path.name for path in (tmp_path / "run" / "mail").iterdir()] == ["session"] and mail.parcels(2) == ()


def test_one_that_is_cut_off_is_as_if_it_had_never_been_dealt(mail: MailFolder, tmp_path: Path) -> None:
    first, second = Parcel(sender=2, sealed=b"abc"), Parcel(sender=1, sealed=b"defg")
    for parcel in (first, second):
        mail.put(parcel, receiver=3)
    (path,) = (tmp_path / "run" / "mail").iterdir()
    whole = path.read_bytes()
    assert len(whole) == 8 + 3 + 8 + 4
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert mail.parcels(3) == ((first,) if length >= 11 else ())
    path.write_bytes(whole)
    assert mail.parcels(3) == (second, first)


def test_nobody_else_reads_them(mail: MailFolder, tmp_path: Path) -> None:
    mail.put(Parcel(sender=1, sealed=b""), receiver=1)
    assert stat.S_IMODE((tmp_path / "run" / "mail").stat().st_mode) == 0o700


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("no folder")
    with pytest.raises(StorageError, match="sealed shares cannot be written"):
        MailFolder(tmp_path / "mail").put(Parcel(sender=1, sealed=b""), receiver=1)
