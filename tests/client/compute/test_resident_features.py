"""Rows of features as padded batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.compute.resident_features import Features, room

CPU = torch.device("cpu")


def features(lengths: list[int]) -> tuple[Features, list[torch.Tensor]]:
    rows = [torch.randn(length, 5).to(torch.bfloat16) for length in lengths]
    flat = torch.cat(rows) if rows else torch.empty(0, 5, dtype=torch.bfloat16)
    return Features(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), CPU, torch.float32), rows


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    picks=st.lists(st.integers(0, 999), max_size=20),
    more=st.integers(0, 5),
)
def test_a_batch_is_its_rows_padded_with_zeros(lengths: list[int], picks: list[int], more: int) -> None:
    made, rows = features(lengths)
    chosen = np.asarray([pick % len(lengths) for pick in picks], np.int64)
    length = int(made.lengths(chosen).max(initial=0)) + more
    hidden, mask = made.gather(chosen, length=length)
    assert hidden.shape == (len(picks), length, 5) and hidden.dtype == torch.float32 and mask.dtype == torch.bool
    for at, row in enumerate(chosen):
        assert mask[at].tolist() == [True] * lengths[row] + [False] * (length - lengths[row])
        assert torch.equal(hidden[at, : lengths[row]], rows[row].float())
        assert not hidden[at, lengths[row] :].any()


def test_no_rows_at_all() -> None:
    hidden, mask = features([])[0].gather(np.zeros(0, np.int64), length=3)
    assert hidden.shape == (0, 3, 5) and mask.shape == (0, 3)


def test_a_processor_needs_no_copy() -> None:
    assert room(CPU) == 0


def test_a_copy_leaves_most_of_a_gpus_free_memory_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 80 << 30))
    assert room(torch.device("cuda:0")) == 2 << 30
