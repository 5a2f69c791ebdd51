"""Service files are written whole, name the program that is installed, and never take the place of an operator's."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.base.errors import InputError
from shared.deploy.service_files import PROGRAM, ServiceKind, installed_program, service_files, write_service_files

SOURCE = Path(__file__).parents[3] / "shared" / "deploy"


def test_every_file_of_the_source_is_written(tmp_path: Path) -> None:
    done = write_service_files(tmp_path)
    shipped = {path.relative_to(SOURCE) for kind in ServiceKind for path in (SOURCE / kind).rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in done.written} == shipped
    assert not done.same
    for path in shipped:
        assert (tmp_path / path).read_text() == (SOURCE / path).read_text()


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    first = write_service_files(tmp_path, (ServiceKind.SYSTEMD,))
    again = write_service_files(tmp_path, (ServiceKind.SYSTEMD,))
    assert not again.written and set(again.same) == set(first.written)


def test_an_operators_file_is_kept_and_nothing_else_is_written(tmp_path: Path) -> None:
    mine = tmp_path / "compose" / "coordinator.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"compose/coordinator\.yaml"):
        write_service_files(tmp_path)
    assert mine.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_units_name_the_installed_program() -> None:
    units = service_files((ServiceKind.SYSTEMD,), program="/srv/f/bin/fedfuse")
    services = {path: text for path, text in units.items() if path.suffix == ".service"}
    assert len(services) == 3
    for text in services.values():
        assert "ExecStart=/srv/f/bin/fedfuse " in text and PROGRAM not in text
    found = installed_program()
    assert found is not None and found.is_file()


@pytest.mark.parametrize("program", ["fedfuse", "/a b/fedfuse", "/x%h/fedfuse", "/x\nUser=root", ""])
def test_a_program_that_systemd_would_read_otherwise_is_refused(program: str) -> None:
    with pytest.raises(InputError):
        service_files((ServiceKind.SYSTEMD,), program=program)
