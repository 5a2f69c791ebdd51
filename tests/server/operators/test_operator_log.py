"""The log of operators' actions: who may what is computed from it, and nothing in it can be altered, moved, cut or made up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.operators.log_writer import ActingOperator, NotAllowed, begin_log, public_text
from server.operators.operator_log import HEAD, KEY, LOG, MAY, AlteredLog, OperatorAction, head_note, read_operator_log
from server.operators.rights import ALL, Right, Verb, rights_in, rights_text
from shared.base.errors import InputError, StorageError

OWNER, ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))


def acting(folder: Path, key: Ed25519PrivateKey) -> ActingOperator:
    return ActingOperator(folder, key, where="a key")


def add(folder: Path, name: str, key: Ed25519PrivateKey, may: str, *, by: Ed25519PrivateKey = OWNER) -> None:
    acting(folder, by).record(Verb.ADD_OPERATOR, name, {KEY: public_text(key), MAY: may})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of an owner, and of alice, who may run and publish."""
    begin_log(tmp_path / "operators", OWNER, federation="spring")
    add(tmp_path / "operators", "alice", ALICE, "run,publish")
    acting(tmp_path / "operators", ALICE).record(Verb.RUN, "first", {"rounds": "20"})
    acting(tmp_path / "operators", OWNER).record(Verb.REVOKE, "shop", {"node": "SHA256:x"})
    return tmp_path / "operators"


def lines(folder: Path) -> list[bytes]:
    return (folder / LOG).read_bytes().splitlines(keepends=True)


def test_it_says_who_did_what_and_who_may_what(folder: Path) -> None:
    log = read_operator_log(folder)
    said = [(one.seq, one.operator, one.verb, one.of) for one in log.actions]
    assert said == [
        (0, "owner", Verb.BEGIN, "spring"),
        (1, "owner", Verb.ADD_OPERATOR, "alice"),
        (2, "alice", Verb.RUN, "first"),
        (3, "owner", Verb.REVOKE, "shop"),
    ]
    assert log.operators["owner"].rights == ALL and log.operators["alice"].rights == {Right.RUN, Right.PUBLISH}
    assert log.holds(log.actions[1].hash) and log.head == log.actions[3].hash and not log.holds("0" * 64)
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in (LOG, HEAD))


def test_without_the_right_nothing_is_done(folder: Path) -> None:
    before = (folder / LOG).read_bytes()
    with pytest.raises(NotAllowed, match=r"alice has no right to revoke.*run,publish") as caught:
        acting(folder, ALICE).record(Verb.REVOKE, "shop")
    assert "owner" in caught.value.do and int(caught.value.exit_code) == 6
    with pytest.raises(NotAllowed, match="operators"):
        add(folder, "bob", BOB, "all", by=ALICE)
    with pytest.raises(NotAllowed, match="no operator's"):
        acting(folder, BOB)
    assert (folder / LOG).read_bytes() == before


def test_rights_are_changed_and_taken(folder: Path) -> None:
    add(folder, "alice", ALICE, "invite")
    acting(folder, ALICE).record(Verb.INVITE, "video")
    with pytest.raises(NotAllowed, match="no right to run"):
        acting(folder, ALICE).require(Right.RUN)
    late = acting(folder, ALICE)
    acting(folder, OWNER).record(Verb.REMOVE_OPERATOR, "alice")
    with pytest.raises(NotAllowed, match="alice is no operator any more"):
        late.record(Verb.INVITE, "news")
    with pytest.raises(NotAllowed, match="any more"):
        acting(folder, ALICE)
    add(folder, "alice", BOB, "run")  # who comes back may have another key
    assert acting(folder, BOB).name == "alice"


def test_somebody_is_always_left_who_may_add_operators(folder: Path) -> None:
    for act in (
        lambda: acting(folder, OWNER).record(Verb.REMOVE_OPERATOR, "owner"),
        lambda: add(folder, "owner", OWNER, "run"),
    ):
        with pytest.raises(InputError, match="nobody would be left"):
            act()
    add(folder, "alice", ALICE, "all")
    acting(folder, ALICE).record(Verb.REMOVE_OPERATOR, "owner")
    with pytest.raises(NotAllowed):
        acting(folder, OWNER)


def test_a_key_belongs_to_one_and_a_name_keeps_its_key(folder: Path) -> None:
    with pytest.raises(InputError, match="belongs to alice"):
        add(folder, "bob", ALICE, "run")
    with pytest.raises(InputError, match="with another key"):
        add(folder, "alice", BOB, "run")
    with pytest.raises(InputError, match="no operator"):
        acting(folder, OWNER).record(Verb.REMOVE_OPERATOR, "carol")
    for name in ("Alice", "", "a b", "../x"):
        with pytest.raises(InputError):
            add(folder, name, BOB, "run")


def rewritten(folder: Path, at: int, change: Callable[[dict[str, Any]], None], key: Ed25519PrivateKey) -> None:
    """Change a line and every later hash, as whoever may write the file can; the changed line is signed by `key`."""
    out, previous = [], ""
    for number, line in enumerate(lines(folder)):
        values = json.loads(line)
        if number >= at:
            values["previous"] = previous or values["previous"]
        if number == at:
            change(values)
        kept = {name: value for name, value in values.items() if name not in ("signature", "hash")}
        action = OperatorAction(**{**kept, "verb": Verb(kept["verb"])})
        signers = {"owner": OWNER, "alice": ALICE, "bob": BOB}
        sealed, text = action.sealed(key if number == at else signers[action.operator])
        out.append(text)
        previous = sealed.hash
    (folder / LOG).write_bytes(b"".join(out))
    (folder / HEAD).write_bytes(head_note(sealed))


def test_a_line_in_anothers_name_is_refused(folder: Path) -> None:
    rewritten(folder, 3, lambda values: None, ALICE)
    with pytest.raises(AlteredLog, match="not signed by owner") as caught:
        read_operator_log(folder)
    assert "line 4" in caught.value.where and int(caught.value.exit_code) == 5


def test_a_line_whose_operator_had_no_right_is_refused_even_if_the_chain_holds(folder: Path) -> None:
    rewritten(folder, 2, lambda values: values.update(verb="approve"), ALICE)
    with pytest.raises(AlteredLog, match="alice had no right to approve"):
        read_operator_log(folder)


def test_nobody_gives_themselves_rights(folder: Path) -> None:
    rewritten(folder, 1, lambda values: values["details"].update(may="all"), ALICE)
    with pytest.raises(AlteredLog, match="not signed by owner"):
        read_operator_log(folder)


def test_a_rewritten_beginning_is_another_log(folder: Path) -> None:
    rewritten(folder, 0, lambda values: values["details"].update(key=public_text(BOB)), BOB)
    with pytest.raises(AlteredLog, match="line is not signed by owner"):
        read_operator_log(folder)


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_a_cut_end_is_seen(folder: Path, keep: int) -> None:
    (folder / LOG).write_bytes(b"".join(lines(folder)[:keep]))
    with pytest.raises(AlteredLog, match=r"action 3|is empty"):
        read_operator_log(folder)
    with pytest.raises(AlteredLog):
        acting(folder, OWNER)


def test_a_log_that_is_gone_is_not_begun_anew(folder: Path) -> None:
    (folder / LOG).unlink()
    with pytest.raises(AlteredLog, match="gone"):
        read_operator_log(folder)
    with pytest.raises(InputError, match="already"):
        begin_log(folder, OWNER, federation="spring")


def test_a_beginning_that_is_cut_off(folder: Path) -> None:
    (folder / LOG).write_bytes(b"".join(lines(folder)[1:]))
    with pytest.raises(AlteredLog, match=r"does not follow|begins no log"):
        read_operator_log(folder)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_can_be_changed(folder: Path, data: st.DataObject) -> None:
    whole = (folder / LOG).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 2))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    (folder / LOG).write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
    try:
        with pytest.raises(AlteredLog):
            read_operator_log(folder)
    finally:
        (folder / LOG).write_bytes(whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(lambda order: order != list(range(len(order)))))
def test_no_line_can_be_left_out_moved_or_repeated(folder: Path, order: list[int]) -> None:
    """Every line is whole and signed, and the head is noted anew, as whoever may write the folder can: the chain alone tells."""
    whole, actions = lines(folder), read_operator_log(folder).actions
    note = (folder / HEAD).read_bytes()
    (folder / LOG).write_bytes(b"".join(whole[at] for at in order))
    (folder / HEAD).write_bytes(head_note(actions[order[-1]]))
    try:
        with pytest.raises(AlteredLog, match="does not follow the one before"):
            read_operator_log(folder)
    finally:
        (folder / LOG).write_bytes(b"".join(whole))
        (folder / HEAD).write_bytes(note)


@pytest.mark.parametrize("change", [{"seq": 2}, {"seq": 4}, {"previous": "0" * 64}], ids=str)
def test_a_line_follows_the_one_before_by_number_and_by_hash(folder: Path, change: dict[str, Any]) -> None:
    """Signed by an operator who may do what it says, but not leave out what was done before."""
    rewritten(folder, 3, lambda values: values.update(change), OWNER)
    with pytest.raises(AlteredLog, match="does not follow the one before"):
        read_operator_log(folder)


def test_a_torn_line_was_never_acted_upon_and_is_written_over(folder: Path) -> None:
    whole = (folder / LOG).read_bytes()
    (folder / LOG).write_bytes(whole + lines(folder)[-1][:-20])
    assert read_operator_log(folder).actions[-1].seq == 3
    acting(folder, OWNER).record(Verb.INVITE, "news")
    assert [one.seq for one in read_operator_log(folder).actions] == [0, 1, 2, 3, 4]
    assert (folder / LOG).read_bytes().startswith(whole)


def test_a_crash_before_the_head_is_noted_loses_nothing(folder: Path) -> None:
    note = (folder / HEAD).read_bytes()
    acting(folder, OWNER).record(Verb.INVITE, "news")
    (folder / HEAD).write_bytes(note)
    assert read_operator_log(folder).actions[-1].of == "news"


def test_a_full_disk_leaves_the_log_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, owner = (folder / LOG).read_bytes(), acting(folder, OWNER)
    monkeypatch.setattr(os, "write", _filling(os.write))
    with pytest.raises(StorageError, match="not done"):
        owner.record(Verb.INVITE, "news")
    monkeypatch.undo()
    assert (folder / LOG).read_bytes() == before


def _filling(real: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    written = 0

    def write(handle: int, data: bytes) -> int:
        nonlocal written
        if written:
            raise OSError(28, "No space left on device")
        written = real(handle, bytes(data)[:40])
        return written

    return write


def test_rights_have_one_text() -> None:
    assert rights_in("run, invite") == {Right.RUN, Right.INVITE} and rights_text(rights_in("run,invite")) == "invite,run"
    assert rights_text(rights_in("all")) == "all" == rights_text(Right)
    for text in ("", "walk", "all,run", ","):
        with pytest.raises(InputError, match="no right"):
            rights_in(text)
