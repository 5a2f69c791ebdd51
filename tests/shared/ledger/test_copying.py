"""Copies of ledgers: whole lines and no more, of a ledger that is sound, and none that an audit counts twice."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError, PrivacyError, StorageError
from shared.ledger import copying
from shared.ledger.copying import copy_ledger, without_copies
from tests.shared.ledger.test_audit import PRIOR, TRAIN, write

BYTES = st.lists(st.sampled_from([b"a\n", b"b\n"]), max_size=6).map(b"".join)


@given(contents=st.lists(BYTES, max_size=5))
def test_of_ledgers_those_are_left_out_that_begin_another(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And of equal ones all but the first. A part is read at a time, whose bound may be in the middle of a line."""
    folder = tmp_path_factory.mktemp("ledgers")
    paths = [folder / f"{at}.jsonl" for at in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    gone = {
        paths[at]
        for at, own in enumerate(contents)
        for other, whole in enumerate(contents)
        if own and other != at and whole.startswith(own) and (whole != own or other < at)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_PART", 3)
        kept, notes = without_copies(paths)
    assert kept == [path for path in paths if path not in gone]
    told = [note.removesuffix(", or of its beginning: not counted again").split(" is a copy of ") for note in notes]
    assert [Path(own) for own, _ in told] == [path for path in paths if path in gone]
    assert all(own != whole and Path(whole).read_bytes().startswith(Path(own).read_bytes()) for own, whole in told)


def test_what_cannot_be_read_is_nobodys_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, missing, folder = tmp_path / "there.jsonl", tmp_path / "missing.jsonl", tmp_path / "folder"
    there.write_bytes(b"a\nb\n")
    folder.mkdir()
    paths = [missing, there, folder, missing]
    assert without_copies(paths) == ([missing, there, folder], [])
    # Nor one that is too large to be audited; as large as may be, it is.
    older = tmp_path / "older.jsonl"
    older.write_bytes(b"a\n")
    monkeypatch.setattr(copying, "MAX_BYTES", 4)
    assert without_copies([older, there])[0] == [there]
    monkeypatch.setattr(copying, "MAX_BYTES", 3)
    assert without_copies([older, there])[0] == [older, there]


def test_a_copy_has_the_whole_lines_and_is_its_owners_alone(tmp_path: Path) -> None:
    heads = write(tmp_path, [PRIOR, TRAIN])
    ledger, out = tmp_path / "ledger" / "movies.jsonl", tmp_path / "copy.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"being": "writ')
    made = copy_ledger(ledger, out)
    assert (made.platform, made.lines, made.head) == ("movies", 2, heads[-1])
    assert out.read_bytes() == whole and stat.S_IMODE(out.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="there already"):
        copy_ledger(ledger, out)
    assert out.read_bytes() == whole


def test_of_a_damaged_ledger_no_copy_is_left(tmp_path: Path) -> None:
    write(tmp_path, [PRIOR, TRAIN])
    ledger, out = tmp_path / "ledger" / "movies.jsonl", tmp_path / "copy.jsonl"
    with pytest.raises(StorageError, match="cannot be read"):
        copy_ledger(tmp_path / "none.jsonl", out)
    first, second, third = ledger.read_bytes().splitlines(keepends=True)
    for damaged in (first + third, first + second.replace(b"6.0", b"7.0") + third, first + b"nonsense\n" + third):
        assert damaged != first + second + third
        ledger.write_bytes(damaged)
        with pytest.raises(PrivacyError):
            copy_ledger(ledger, out)
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
