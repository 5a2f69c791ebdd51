"""A platform is shown its last receipt of all runs when the next one begins; a damaged file of them is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.run.last_receipts import LastReceipts
from server.run.receipt_book import ReceiptBook
from shared.ledger.receipts import RECEIPTS, LedgerReceipt

KEY = Ed25519PrivateKey.from_private_bytes(b"c" * 32)


def receipt(run: str, *, platform: str = "shop", head: str = "a") -> LedgerReceipt:
    return LedgerReceipt(platform=platform, run=run, round=1, kind="update", left="b" * 64, ledger=head * 64).signed(KEY)


def test_the_next_run_begins_with_the_last_ones(tmp_path: Path) -> None:
    last = LastReceipts(tmp_path / "receipts")
    book = ReceiptBook(tmp_path / "runs" / "autumn", run="autumn", signer=KEY, over_all=last)
    assert book.last("shop") == ""
    last.put(receipt("spring"))
    last.put(receipt("summer"))
    last.put(receipt("summer", platform="video", head="c"))
    assert (
        book.last("shop") == receipt("summer").text()
        and book.last("video") == receipt("summer", platform="video", head="c").text()
    )
    assert book.last("news") == "" and last.get("../x") == ""
    # Without the folder a run knows itself alone, as in a simulation.
    assert ReceiptBook(tmp_path / "runs" / "autumn", run="autumn", signer=KEY).last("shop") == ""


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 10, b"{}" * 4000])
def test_a_damaged_file_is_none(tmp_path: Path, content: bytes) -> None:
    last = LastReceipts(tmp_path)
    last.put(receipt("spring"))
    (tmp_path / "shop.json").write_bytes(content)
    assert last.get("shop") == ""
    (tmp_path / "shop.json").write_text(receipt("spring", platform="video").text())
    assert last.get("shop") == ""  # another platform's is none of its


def test_runs_of_an_earlier_version_are_gathered_once(tmp_path: Path) -> None:
    for moment, run in enumerate(("zebra", "ant"), start=1):  # by their time, not by their names
        path = tmp_path / "runs" / run / RECEIPTS
        path.parent.mkdir(parents=True)
        path.write_text(receipt(run).text() + "\n")
        os.utime(path, (moment, moment))
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / RECEIPTS).write_text("nothing\n")
    last = LastReceipts(tmp_path / "receipts")
    last.gather(tmp_path / "runs")
    assert last.get("shop") == receipt("ant").text()
    last.put(receipt("later"))
    last.gather(tmp_path / "runs")
    assert last.get("shop") == receipt("later").text()
