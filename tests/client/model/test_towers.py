"""The two towers: a bank is what its rows are one by one, however they are batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.fusion.operators import FUSIONS
from tests.support.small_towers import CPU, require_rows_apart, small_towers


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize("budget", [64, 8192])
def test_a_bank_is_its_rows_one_by_one(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str, budget: int
) -> None:
    monkeypatch.setattr("client.compute.batching.TOKENS", {"cpu": budget})
    towers, rows, local = small_towers(tiny_bert, tmp_path, rows=70, fusion=fusion)
    seen: list[int] = []
    bank = towers.encode(rows, local, seen.append)
    assert sum(seen) == len(rows) == 70
    assert bank.dtype == torch.float32
    for row in range(0, 70, 9):
        alone = towers.vectors(*rows.take(np.asarray([row]), CPU), local)
        torch.testing.assert_close(bank[row], alone[0], atol=1e-5, rtol=1e-4)


def test_padding_of_a_batch_does_not_matter(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = small_towers(tiny_bert, tmp_path, rows=6)
    chosen = np.asarray([4, 0, 2])
    short, long = (towers.vectors(*rows.take(chosen, CPU, multiple=multiple), local) for multiple in (1, 64))
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-4)
    for multiple in (1, 8, 16):
        hidden, mask, _ = rows.take(chosen, CPU, multiple=multiple)
        assert hidden.shape[1] == mask.shape[1] == -(-int(rows.lengths[chosen].max()) // multiple) * multiple


def test_no_rows(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = small_towers(tiny_bert, tmp_path, rows=0)
    assert towers.encode(rows, local).shape == (0, 32)


def test_a_bank_needs_no_gradient(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = small_towers(tiny_bert, tmp_path, rows=3)
    leaves = {name: value.clone().requires_grad_() for name, value in local.items()}
    assert not towers.encode(rows, leaves).requires_grad


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_others_do_not_move_a_rows_last_bits(tiny_bert: str, tmp_path: Path, fusion: str) -> None:
    """A product of fewer than four rows rounds otherwise, and an adapter can be chosen that makes much of it."""
    require_rows_apart(tiny_bert, tmp_path, fusion=fusion)
