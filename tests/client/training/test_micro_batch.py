"""The size of a backward pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.training.micro_batch import COMPILED, LENGTH, SEQUENCES, MicroBatch


def passes(batch: MicroBatch, lengths: list[int], each: int = 1) -> list[list[int]]:
    """The lengths of each pass until nobody waits."""
    waiting, found = np.sort(np.asarray(lengths, np.int64)), []
    while len(waiting):
        count, size = batch.users(waiting, each)
        assert 1 <= len(waiting[:count]) <= size
        found.append(waiting[:count].tolist())
        waiting = waiting[count:]
    return found


@given(
    lengths=st.lists(st.integers(0, 512), max_size=400), each=st.integers(1, 5), device=st.sampled_from(["cpu", "cuda", "mps"])
)
def test_a_pass_holds_no_more_than_the_device_takes(lengths: list[int], each: int, device: str) -> None:
    most = SEQUENCES.get(device, SEQUENCES["cpu"])
    found = passes(MicroBatch(device), lengths, each)
    assert sorted(lengths) == [length for one in found for length in one]
    for one in found:
        assert len(one) == 1 or len(one) * each <= most
        assert len(one) == 1 or len(one) * each * max(max(one), LENGTH) <= most * LENGTH


def test_passes_are_about_equal_and_as_few_as_can_be() -> None:
    most = SEQUENCES["cpu"]
    assert [len(one) for one in passes(MicroBatch("cpu"), [64] * (most + 2))] == [most // 2 + 1] * 2
    assert [len(one) for one in passes(MicroBatch("cpu"), [16] * most)] == [most]


def test_longer_texts_go_fewer_at_a_time() -> None:
    most = SEQUENCES["cpu"] * LENGTH // 512
    assert [len(one) for one in passes(MicroBatch("cpu"), [512] * 2 * most)] == [most, most]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_passes_are_of_one_size_whatever_their_length(device: str) -> None:
    batch = MicroBatch(device, compiled=True)
    assert [batch.users(np.full(5, length), 1) for length in (16, 512)] == 2 * [(5, COMPILED[device])]


def test_what_the_settings_ask_for_is_taken() -> None:
    batch = MicroBatch("cpu", asked=24)
    assert batch.users(np.full(500, 512), 1) == (24, 24) and batch.users(np.full(500, 512), 5) == (4, 8)


@pytest.mark.parametrize("batch", [MicroBatch("cpu"), MicroBatch("cpu", asked=64), MicroBatch("cuda", compiled=True)])
def test_halving_halves_down_to_one(batch: MicroBatch) -> None:
    lengths = np.full(4096, 64)
    sizes = [batch.users(lengths, 1)[0]]
    while sizes[-1] > 1:
        batch.halve()
        sizes.append(batch.users(lengths, 1)[0])
    assert sizes[1:] == [size // 2 for size in sizes[:-1]]
    batch.halve()
    assert batch.users(lengths, 1)[0] == 1


@given(
    lengths=st.lists(st.integers(1, 8).map(lambda n: 64 * n), min_size=2, max_size=300),
    each=st.integers(1, 4),
    expected=st.sampled_from([3.0, 40.0, 1e6]),
    compiled=st.booleans(),
    data=st.data(),
)
def test_off_a_processor_no_user_moves_the_shape_of_anothers_gradient(
    lengths: list[int], each: int, expected: float, compiled: bool, data: st.DataObject
) -> None:
    def shapes(tokens: list[int]) -> dict[int, set[int]]:
        batch, waiting = MicroBatch("cuda", compiled=compiled, expected=expected), np.sort(np.asarray(tokens, np.int64))
        found: dict[int, set[int]] = {}
        while len(waiting):
            count, size = batch.users(waiting, each)
            assert len(set(waiting[:count].tolist())) == 1
            found.setdefault(int(waiting[0]), set()).add(size)
            waiting = waiting[count:]
        return found

    gone = data.draw(st.integers(0, len(lengths) - 1))
    others = shapes(lengths[:gone] + lengths[gone + 1 :])
    assert others.items() <= shapes(lengths).items()
    assert all(len(sizes) == 1 for sizes in others.values())


def test_a_small_plan_fills_no_large_pass() -> None:
    assert MicroBatch("cuda", expected=21.5).users(np.full(20, 64), 1) == (20, 24)
