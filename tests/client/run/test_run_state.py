"""What a platform remembers comes back to the bit, or is known to be damaged."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from client.evaluation.answered_evaluations import Evaluated
from client.privacy.answer_stamp import AnswerStamp
from client.run.run_state import PersonalChoice, PreferenceAnswer, RunState, load_run_state, save_run_state
from shared.base.errors import StorageError
from shared.preferences.sum_kind import SumKind
from tests.support.qualities import quality_of


def state() -> RunState:
    generator = torch.Generator().manual_seed(0)
    stamp = AnswerStamp(epsilon=math.inf, ledger="b" * 64, seconds=2.5)
    quality = quality_of({"ndcg@10": 0.1, "hr@10": 1 / 3})
    return RunState(
        settings="a" * 64,
        finished=3,
        answered=replace(stamp, epsilon=1.25),
        clip=0.1,
        prior=torch.randn(7, generator=generator),
        local={
            "source.image.weight": torch.randn(4, 3, generator=generator),
            "click.bias": torch.randn(1, generator=generator),
        },
        moments={"steps:head.lora_A": torch.ones(1), "first:head.lora_A": torch.randn(2, 4, generator=generator)},
        change={"head.lora_A": torch.randn(2, 4, generator=generator), "a/name/with/slashes": torch.zeros(2, 0)},
        evaluations={"before 0": Evaluated(model="c" * 64, quality=quality, stamp=stamp)},
        personal={"head.lora_A": torch.randn(1, 4, generator=generator)},
        choice=PersonalChoice(own=True, stamp=stamp),
        bank={"since": torch.tensor([2.0]), "head.lora_A": torch.randn(2, 4, generator=generator)},
        preferences=PreferenceAnswer(question="d" * 64, of=SumKind.LIKES, stamp=replace(stamp, seconds=0.25)),
        preferred={"likes": torch.randn(5, generator=generator)},
    )


def test_every_field_is_set_in_what_comes_back_here() -> None:
    nothing, full = RunState(settings=""), state()
    assert [
        part.name for part in fields(RunState) if part.name != "prior" and getattr(full, part.name) == getattr(nothing, part.name)
    ] == []


def same(one: RunState, other: RunState) -> bool:
    for part in fields(RunState):
        here, there = getattr(one, part.name), getattr(other, part.name)
        if isinstance(here, torch.Tensor) and isinstance(there, torch.Tensor):
            here, there = {part.name: here}, {part.name: there}
        if isinstance(here, dict) and all(isinstance(value, torch.Tensor) for value in here.values()):
            if set(here) != set(there) or not all(torch.equal(value, there[name]) for name, value in here.items()):
                return False
        elif here != there:
            return False
    return True


def test_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "spring.safetensors"
    save_run_state(path, state())
    found = load_run_state(path)
    assert found is not None
    assert same(found, state())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [part.name for part in path.parent.iterdir()] == [path.name]


def test_nothing_is_none(tmp_path: Path) -> None:
    assert load_run_state(tmp_path / "none.safetensors") is None


def test_a_state_of_nothing_comes_back(tmp_path: Path) -> None:
    save_run_state(tmp_path / "file", RunState(settings=""))
    found = load_run_state(tmp_path / "file")
    assert found is not None
    assert same(found, RunState(settings=""))


def test_what_is_loaded_can_be_changed_and_the_file_stays(tmp_path: Path) -> None:
    save_run_state(tmp_path / "file", state())
    found = load_run_state(tmp_path / "file")
    assert found is not None
    assert found.prior is not None
    found.prior.zero_()
    again = load_run_state(tmp_path / "file")
    assert again is not None
    assert same(again, state())


def test_views_of_one_tensor(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"all": base, "turned": base.T, "row": base[1], "spread": base[0].expand(2, 4)}
    save_run_state(tmp_path / "file", RunState(settings="s", local=views, change=views))
    found = load_run_state(tmp_path / "file")
    assert found is not None
    for group in (found.local, found.change):
        assert all(torch.equal(group[name], value) for name, value in views.items())


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file"
    save_run_state(path, state())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = load_run_state(path)
    except StorageError as error:
        assert error.where == str(path)
        assert "ledger" in error.do
    else:
        # JSON's spaces and the like: a change that changes nothing.
        assert found is not None
        assert same(found, state())


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early_is_noticed(tmp_path: Path, part: float) -> None:
    path = tmp_path / "file"
    save_run_state(path, state())
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(StorageError, match="damaged"):
        load_run_state(path)


@pytest.mark.parametrize(
    "header", [None, {}, {"version": "2"}, {"version": "1", "state": "{}"}, {"version": "2", "state": "[]", "sha256": ""}]
)
def test_another_programs_file_is_noticed(tmp_path: Path, header: dict[str, str] | None) -> None:
    save_file({"prior/log": torch.ones(2)}, tmp_path / "file", metadata=header)
    with pytest.raises(StorageError):
        load_run_state(tmp_path / "file")


def test_a_folder_in_its_place_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError):
        load_run_state(tmp_path / "file")


def test_a_full_disk_leaves_the_state_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    save_run_state(path, state())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            save_run_state(path, RunState(settings="other", finished=4))
    found = load_run_state(path)
    assert found is not None
    assert same(found, state())
