"""A ledger that was put back from an older copy would spend a budget twice: a receipt shows it, and nothing is answered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.privacy.receipt_file import LedgerWentBack, last_receipt, require_whole_ledger
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.ledger.receipts import LedgerReceipt, sign_head
from shared.model.adapter import initial
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import Answer, Factors, Join, Joined, Reason, Refusal, Released, Request, Train, Update
from shared.secagg.identity import Identity
from tests.client.worker.test_request_handler import PRIVATE, Bench, allowing

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def platform(write_platform: Write, tiny_settings: Make, tiny_bert: str, tmp_path: Path) -> Iterator[Bench]:
    """A deployed platform that has joined a run and answered one round of it; the ledger from before that round is `old.copy`."""
    settings = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None})
    path = write_platform(declared=41, privacy=PRIVATE, extra=allowing(tiny_bert))
    made = Bench(path, settings, tmp_path / "d", simulation=False)
    assert isinstance(made.join(), Joined)
    shutil.copy(made.ledger, made.root / "old.copy")
    yield made
    made.worker.close()


def ask(bench: Bench, request: Request, receipt: str = "") -> Answer:
    return bench.worker.handle(request_from(to_record(request)), receipt=receipt)


def join(bench: Bench, run: str) -> Join:
    return Join(run=run, settings=bench.settings)


def train(bench: Bench, **over: Any) -> Train:
    values = {"run": "run-1", "settings": bench.settings, "round": 1, "factors": Factors.BOTH, "adapter": initial(bench.settings)}
    return Train(**{**values, **over})


def receipt_of(answer: Answer) -> str:
    """What the coordinator keeps of an answer."""
    assert isinstance(answer, Released)
    return LedgerReceipt(
        platform=answer.platform,
        run=answer.run,
        round=answer.round,
        kind=answer.kind,
        left="a" * 64,
        ledger=answer.ledger,
        head_signature=answer.signature,
    ).text()


def restore(bench: Bench) -> None:
    bench.worker.close()
    shutil.copy(bench.root / "old.copy", bench.ledger)
    bench.worker = bench.open()


def test_nothing_is_answered_with_an_older_ledger(platform: Bench) -> None:
    answer = ask(platform, train(platform))
    assert isinstance(answer, Update)
    receipt, spent = receipt_of(answer), read_ledger(platform.ledger).epsilon
    restore(platform)
    before = platform.ledger.read_bytes()
    assert read_ledger(platform.ledger).epsilon < spent  # or this would be no test
    # A new run, and the old one: the first thing that comes is refused, and nothing is charged.
    for request in (join(platform, "run-2"), train(platform), train(platform, round=2)):
        refused = ask(platform, request, receipt)
        assert isinstance(refused, Refusal) and refused.reason is Reason.LEDGER
        assert isinstance(platform.worker.failure, LedgerWentBack)
    assert platform.ledger.read_bytes() == before


def test_a_restarted_worker_does_not_forget_it(platform: Bench) -> None:
    receipt = receipt_of(ask(platform, train(platform)))
    restore(platform)
    assert isinstance(ask(platform, join(platform, "run-2"), receipt), Refusal)
    assert last_receipt(platform.root / "state" / "receipts.jsonl") == receipt
    platform.restart()
    with pytest.raises(LedgerWentBack, match="older copy"):
        platform.worker.hold()


def test_the_newest_copy_goes_on(platform: Bench) -> None:
    receipt = receipt_of(ask(platform, train(platform)))
    shutil.copy(platform.ledger, platform.root / "new.copy")
    restore(platform)
    assert isinstance(ask(platform, join(platform, "run-2"), receipt), Refusal)
    platform.worker.close()
    shutil.copy(platform.root / "new.copy", platform.ledger)
    platform.worker = platform.open()
    platform.worker.hold()
    assert isinstance(ask(platform, join(platform, "run-2"), receipt), Joined)


def test_what_this_platform_never_signed_proves_nothing(platform: Bench) -> None:
    answer = ask(platform, train(platform))
    assert isinstance(answer, Update)
    restore(platform)
    head, forged = "b" * 64, sign_head(Identity(b"x" * 32), answer.ledger)
    texts = [
        LedgerReceipt(platform="shop", run="run-1", round=1, kind="update", left="", ledger=head).text(),
        LedgerReceipt(
            platform="shop", run="run-1", round=1, kind="update", left="", ledger=answer.ledger,
            head_signature=forged,
        ).text(),
        receipt_of(answer).replace(answer.ledger, head),
        "nothing",
    ]  # fmt: skip
    for text in texts:
        assert isinstance(ask(platform, join(platform, "run-2"), text), Joined)


def test_a_ledger_that_was_kept_beside_a_new_one_counts(platform: Bench) -> None:
    receipt = receipt_of(ask(platform, train(platform)))
    platform.worker.close()
    kept = platform.ledger.with_name("until-2030.jsonl")
    shutil.copy(platform.ledger, kept)
    shutil.copy(platform.root / "old.copy", platform.ledger)
    ledger = read_ledger(platform.ledger)
    require_whole_ledger(receipt, ledger, path=platform.ledger)
    kept.write_bytes(kept.read_bytes()[:-20])  # damaged: it holds nothing
    with pytest.raises(LedgerWentBack):
        require_whole_ledger(receipt, ledger, path=platform.ledger)
