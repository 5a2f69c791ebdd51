"""What a platform remembers comes back to the bit, or is known to be damaged."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from client.run.run_state import Memory, load_memory, save_memory
from shared.base.errors import StorageError


def memory() -> Memory:
    generator = torch.Generator().manual_seed(0)
    return Memory(
        settings="a" * 64,
        finished=3,
        facts={"epsilon": 1.25, "ledger": "b" * 64, "seconds": 2, "budget": math.inf},
        tensors={
            "prior": {"log": torch.randn(7, generator=generator)},
            "local": {
                "source.image.weight": torch.randn(4, 3, generator=generator),
                "click.bias": torch.randn(1, generator=generator),
            },
            "moments": {"steps:head.lora_A": torch.ones(1), "first:head.lora_A": torch.randn(2, 4, generator=generator)},
            "change": {"head.lora_A": torch.randn(2, 4, generator=generator), "a/name/with/slashes": torch.zeros(2, 0)},
        },
    )


def same(one: Memory, other: Memory) -> bool:
    if (one.settings, one.finished, dict(one.facts)) != (other.settings, other.finished, dict(other.facts)):
        return False
    if {g: set(t) for g, t in one.tensors.items()} != {g: set(t) for g, t in other.tensors.items()}:
        return False
    return all(
        torch.equal(value, other.tensors[group][name]) for group, names in one.tensors.items() for name, value in names.items()
    )


def test_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "spring.safetensors"
    save_memory(path, memory())
    found = load_memory(path)
    assert found is not None
    assert same(found, memory())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [part.name for part in path.parent.iterdir()] == [path.name]


def test_nothing_is_none(tmp_path: Path) -> None:
    assert load_memory(tmp_path / "none.safetensors") is None


def test_a_memory_of_nothing_comes_back(tmp_path: Path) -> None:
    save_memory(tmp_path / "file", Memory(settings=""))
    found = load_memory(tmp_path / "file")
    assert found is not None
    assert same(found, Memory(settings=""))


def test_what_is_loaded_can_be_changed_and_the_file_stays(tmp_path: Path) -> None:
    save_memory(tmp_path / "file", memory())
    found = load_memory(tmp_path / "file")
    assert found is not None
    found.tensors["prior"]["log"].zero_()
    again = load_memory(tmp_path / "file")
    assert again is not None
    assert same(again, memory())


def test_views_of_one_tensor(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"all": base, "turned": base.T, "row": base[1], "spread": base[0].expand(2, 4)}
    save_memory(tmp_path / "file", Memory(settings="s", tensors={"local": views, "change": views}))
    found = load_memory(tmp_path / "file")
    assert found is not None
    for group in ("local", "change"):
        assert all(torch.equal(found.tensors[group][name], value) for name, value in views.items())


@given(st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file"
    save_memory(path, memory())
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = load_memory(path)
    except StorageError as error:
        assert error.where == str(path)
        assert "ledger" in error.do
    else:
        # JSON's spaces and the like: a change that changes nothing.
        assert found is not None
        assert same(found, memory())


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early_is_noticed(tmp_path: Path, part: float) -> None:
    path = tmp_path / "file"
    save_memory(path, memory())
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(StorageError, match="damaged"):
        load_memory(path)


@pytest.mark.parametrize("header", [None, {}, {"version": "1"}, {"version": "0", "settings": "", "finished": "0", "facts": "{}"}])
def test_another_programs_file_is_noticed(tmp_path: Path, header: dict[str, str] | None) -> None:
    save_file({"prior/log": torch.ones(2)}, tmp_path / "file", metadata=header)
    with pytest.raises(StorageError):
        load_memory(tmp_path / "file")


def test_a_folder_in_its_place_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError):
        load_memory(tmp_path / "file")


def test_a_full_disk_leaves_the_state_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    save_memory(path, memory())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            save_memory(path, Memory(settings="other", finished=4))
    found = load_memory(path)
    assert found is not None
    assert same(found, memory())
