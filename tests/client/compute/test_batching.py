"""Token-budgeted batches of the encoder."""

from __future__ import annotations

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.compute.batching import ROW_STEP, TOKENS, Passes, fit, within_memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


def sizes(tokens: list[int], device: str) -> list[list[int]]:
    lengths = np.sort(np.asarray(tokens, np.int64))
    return list(Passes(device).run(lengths, lambda rows, size: lengths[rows].tolist()))


class TestFit:
    @given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=300), tokens=st.integers(1, 5000))
    def test_takes_as_many_as_fit(self, lengths: list[int], tokens: int) -> None:
        lengths.sort()
        count = fit(np.asarray(lengths, np.int64), tokens)
        assert count == 1 or count * lengths[count - 1] <= tokens
        assert count == len(lengths) or (count + 1) * lengths[count] > tokens


class TestPasses:
    @given(lengths=st.lists(st.integers(1, 600), max_size=300), device=st.sampled_from(["cpu", "cuda", "mps"]))
    def test_every_row_goes_once_and_no_pass_is_larger_than_the_device_takes(self, lengths: list[int], device: str) -> None:
        found = sizes(lengths, device)
        assert [length for one in found for length in one] == sorted(lengths)
        most = TOKENS.get(device, TOKENS["cpu"])
        assert all(len(one) == 1 or len(one) * max(one) <= most for one in found)

    @pytest.mark.parametrize("error", OUT_OF_MEMORY)
    def test_out_of_memory_halves_them_and_goes_on(self, error: RuntimeError, caplog: pytest.LogCaptureFixture) -> None:
        lengths, tried = np.full(40, 64, np.int64), list[int]()

        def work(rows: slice, size: int) -> list[int]:
            tried.append(rows.stop - rows.start)
            if rows.stop - rows.start > 15:
                raise error
            return list(range(rows.start, min(rows.stop, 40)))

        passes = Passes("cpu")
        with caplog.at_level(logging.WARNING, "fedfuse.memory"):
            found = list(passes.run(lengths, work))
        assert [row for one in found for row in one] == list(range(40))
        assert tried == [40, 20, 10, 10, 10, 10]
        assert "out of memory: 640 tokens at a time" in caplog.text
        list(passes.run(lengths, work))
        assert tried[6:] == [10] * 4  # it has learnt

    def test_a_row_that_does_not_fit_alone_is_an_error(self) -> None:
        def work(rows: slice, size: int) -> None:
            raise OUT_OF_MEMORY[0]

        with pytest.raises(torch.OutOfMemoryError):
            list(Passes("cpu").run(np.full(5, 8, np.int64), work))

    def test_another_error_is_not_taken_for_it(self) -> None:
        def work(rows: slice, size: int) -> None:
            raise RuntimeError("shapes differ")

        with pytest.raises(RuntimeError, match="shapes differ"):
            list(Passes("cpu").run(np.full(5, 8, np.int64), work))


@given(lengths=st.lists(st.integers(1, 10).map(lambda n: 64 * n), min_size=2, max_size=300), data=st.data())
def test_off_a_processor_no_user_moves_the_shape_that_another_is_computed_in(lengths: list[int], data: st.DataObject) -> None:
    def shapes(tokens: list[int]) -> dict[int, set[tuple[int, int]]]:
        ordered, found = np.sort(np.asarray(tokens, np.int64)), dict[int, set[tuple[int, int]]]()

        def work(rows: slice, size: int) -> bool:
            assert rows.stop - rows.start <= size
            for length in ordered[rows]:
                found.setdefault(int(length), set()).add((size, int(ordered[rows.stop - 1])))
            return True

        list(Passes("cuda", apart=True).run(ordered, work))
        return found

    gone = data.draw(st.integers(0, len(lengths) - 1))
    others = shapes(lengths[:gone] + lengths[gone + 1 :])
    assert others.items() <= shapes(lengths).items()
    assert all(len(shape) == 1 for shape in others.values())


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=300))
def test_on_a_processor_users_are_filled_up_to_whole_steps(lengths: list[int]) -> None:
    found = Passes("cpu", apart=True).run(np.sort(np.asarray(lengths, np.int64)), lambda rows, size: (rows, size))
    assert all(size % ROW_STEP == 0 and 0 <= size - (rows.stop - rows.start) < ROW_STEP for rows, size in found)


def test_what_a_failed_attempt_had_allocated_is_free_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def work() -> None:
        tensor = torch.zeros(9)
        allocated.append(weakref.ref(tensor))
        raise RuntimeError(str(OUT_OF_MEMORY[2]))

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(allocated[0]() is not None))
    gc.disable()
    try:
        assert within_memory(work, last=False) is None
    finally:
        gc.enable()
    assert alive == [False]
