"""Receipts that come back: the coordinator's own, for lines of this ledger, and nothing else."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.privacy.ledger_writer import LedgerWriter
from client.privacy.receipt_file import ReceiptFile
from shared.ledger.evidence import receipts_evidence
from shared.ledger.receipts import LedgerReceipt
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity

COORDINATOR, STRANGER = Ed25519PrivateKey.from_private_bytes(b"c" * 32), Ed25519PrivateKey.from_private_bytes(b"s" * 32)
PINNED = COORDINATOR.public_key().public_bytes_raw()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LedgerWriter]:
    path, identity = tmp_path / "shop.jsonl", Identity(b"i" * 32)
    with LedgerWriter.open(path, platform="shop", budget=8.0, delta=1e-5, identity=identity, accountant=DP_ACCOUNTING) as made:
        charge = made.charge(Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0), run="spring", round=1, question="5" * 64)
        made.record_release("a" * 64, charge=charge.hash, run="spring", round=1)
        yield made


def receipt(writer: LedgerWriter, **changes: object) -> LedgerReceipt:
    made = LedgerReceipt(
        platform="shop",
        run="spring",
        round=1,
        kind="update",
        left="a" * 64,
        ledger=writer.head,
        head_signature=writer.sign(writer.head),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_receipt_is_kept_once_and_for_the_owner_alone(writer: LedgerWriter, tmp_path: Path) -> None:
    good, file = receipt(writer).signed(COORDINATOR), tmp_path / "receipts.jsonl"
    for _ in range(2):  # a restarted worker receives it again
        kept = ReceiptFile(tmp_path, platform="shop", coordinator=PINNED)
        kept.keep(good.text(), writer)
        kept.keep(good.text(), writer)
    assert file.read_text() == good.text() + "\n" and stat.S_IMODE(file.stat().st_mode) == 0o600
    (witness,) = receipts_evidence(file, trusted=[PINNED], own=True).witnesses
    assert witness.receipt == good and good.head_signed_by(Identity(b"i" * 32).public)


def test_anything_else_is_left_out(writer: LedgerWriter, tmp_path: Path) -> None:
    kept = ReceiptFile(tmp_path, platform="shop", coordinator=PINNED)
    bad = [
        "",
        "nothing",
        "{}" * 2000,
        receipt(writer).text(),  # nobody signed it
        receipt(writer).signed(STRANGER).text(),
        receipt(writer, platform="video").signed(COORDINATOR).text(),
        receipt(writer, ledger="b" * 64).signed(COORDINATOR).text(),
        replace(receipt(writer).signed(COORDINATOR), round=2).text(),
    ]
    for text in bad:
        kept.keep(text, writer)
    ReceiptFile(tmp_path, platform="shop", coordinator=None).keep(receipt(writer).signed(COORDINATOR).text(), writer)
    assert not (tmp_path / "receipts.jsonl").exists()
