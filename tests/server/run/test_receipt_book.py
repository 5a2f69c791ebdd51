"""The coordinator's receipts: one for each answer that was made from rows, as the platform itself computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.run.receipt_book import ReceiptBook
from shared.base.errors import StorageError
from shared.ledger.receipts import RECEIPTS, read_receipts
from shared.ledger.release_digest import is_release, release_digest
from shared.protocol.flower_records import answer_from, receipt_in, request_from, to_record, with_receipt
from shared.protocol.messages import Join, Label, Metrics, Personalised, Reason, Refusal, Released, Summed, Update
from shared.protocol.quality import METRICS, Quality

KEY = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
WHO = {"run": "spring", "platform": "shop", "round": 1, "users": 9, "epsilon": 1.0, "ledger": "a" * 64, "seconds": 1.0}
UPDATE = Update(**WHO, change={"a": np.ones((2, 3), np.float32), "b": np.zeros(1, np.float32)})  # type: ignore[arg-type]
QUALITY = Quality(dict.fromkeys(METRICS, 0.25))


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages are made by a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(answer: Released | Refusal) -> Message:
    return Message(to_record(answer), dst_node_id=1, message_type="train")


def test_an_answer_has_one_digest_on_both_sides() -> None:
    answers: list[Released] = [
        UPDATE,
        Summed(**WHO, body=b"masked"),  # type: ignore[arg-type]
        Metrics(**WHO, label=Label.BEFORE, quality=QUALITY, exact=False),  # type: ignore[arg-type]
        Personalised(**WHO, chosen=True),  # type: ignore[arg-type]
        Personalised(**WHO, chosen=False),  # type: ignore[arg-type]
    ]
    digests = [release_digest(answer) for answer in answers]
    assert len(set(digests)) == len(answers)
    assert [release_digest(answer_from(to_record(answer))) for answer in answers] == digests  # type: ignore[arg-type]
    other = Update(**{**WHO, "round": 2}, change=UPDATE.change)  # type: ignore[arg-type]
    assert release_digest(other) != digests[0]
    # What the platform says of itself is not in it: the ledger's line is named after it.
    assert release_digest(Update(**{**WHO, "ledger": "b" * 64, "epsilon": 2.0}, change=UPDATE.change)) == digests[0]  # type: ignore[arg-type]
    assert not is_release(Metrics(**WHO, label=Label.BEFORE, quality=QUALITY, exact=True))  # type: ignore[arg-type]


def test_a_receipt_for_each_answer(tmp_path: Path) -> None:
    book = ReceiptBook(tmp_path, run="spring", signer=KEY)
    assert book.last("shop") == ""
    for _ in range(2):
        book.enter(message(UPDATE), "shop")  # the same answer to the same question is one
    book.enter(message(UPDATE), "video")  # somebody else's name
    book.enter(message(Refusal(run="spring", platform="shop", round=1, reason=Reason.BUDGET)), "shop")
    book.enter(Message(RecordDict(), dst_node_id=1, message_type="train"), "shop")
    (found,) = read_receipts(tmp_path / RECEIPTS)
    assert (found.platform, found.left, found.ledger, found.vouched) == ("shop", release_digest(UPDATE), "a" * 64, True)
    assert book.last("shop") == found.text()


def test_it_goes_on_after_a_crash(tmp_path: Path) -> None:
    ReceiptBook(tmp_path, run="spring", signer=KEY).enter(message(UPDATE), "shop")
    whole = (tmp_path / RECEIPTS).read_bytes()
    (tmp_path / RECEIPTS).write_bytes(whole + b'{"torn')
    again = ReceiptBook(tmp_path, run="spring", signer=KEY)
    again.restore()
    again.enter(message(UPDATE), "shop")
    assert (tmp_path / RECEIPTS).read_bytes() == whole
    (tmp_path / RECEIPTS).write_bytes(b"nothing\n" + whole)
    with pytest.raises(StorageError, match="receipts are damaged"):
        again.restore()


def test_it_travels_beside_a_request(tiny_settings: object) -> None:
    request = Join(run="spring", settings=tiny_settings())  # type: ignore[operator]
    record = to_record(request)
    beside = with_receipt(record, "a receipt")
    assert receipt_in(beside) == "a receipt" and receipt_in(record) == ""
    assert request_from(beside) == request == request_from(record)
