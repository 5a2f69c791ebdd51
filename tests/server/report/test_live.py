"""The live report: served on this machine alone, made anew as the run goes on, and read by no page of somebody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from server.report import live
from server.report.live import LiveReport
from server.report.report_model import RunReport
from shared.base.errors import InputError, StorageError

Make = Callable[[Path], RunReport]


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[], RunReport]], LiveReport]]:
    running: list[tuple[LiveReport, threading.Thread]] = []

    def start(make: Callable[[], RunReport]) -> LiveReport:
        served = LiveReport(make)
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((served, thread))
        return served

    yield start
    for served, thread in running:
        served.shutdown()
        thread.join(timeout=10)
        served.server_close()


def test_a_run_that_goes_on_is_followed(
    run: Path, report_of: Make, serve: Callable[..., LiveReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH", 0)
    ledger, metrics = run / "ledger" / "shop.jsonl", (run / "metrics.json").read_bytes()
    whole = ledger.read_bytes().splitlines(keepends=True)
    (run / "metrics.json").unlink()
    (run / "receipts.jsonl").unlink()
    ledger.write_bytes(b"".join(whole[:4]))
    served = serve(lambda: report_of(run))
    assert served.server_address[0] == "127.0.0.1"
    first = httpx.get(served.url + "report.json").json()
    assert first["finished"] is False and len(first["history"][0]["points"]) == 2
    assert "the run has not ended" in httpx.get(served.url).text
    ledger.write_bytes(b"".join(whole))
    (run / "metrics.json").write_bytes(metrics)
    last = httpx.get(served.url + "report.json").json()
    assert last["finished"] is True and len(last["history"][0]["points"]) == 4
    assert 'http-equiv="refresh"' not in httpx.get(served.url).text


def test_the_page_asks_again_while_the_run_goes_on(run: Path, report_of: Make, serve: Callable[..., LiveReport]) -> None:
    (run / "metrics.json").unlink()
    text = httpx.get(serve(lambda: report_of(run)).url).text
    assert f'<meta http-equiv="refresh" content="{live.REFRESH}">' in text and "<script" not in text


def test_a_report_is_made_once_for_many_readers(finished: Path, report_of: Make, serve: Callable[..., LiveReport]) -> None:
    made = []

    def make() -> RunReport:
        made.append(1)
        return report_of(finished)

    served = serve(make)
    for _ in range(5):
        assert httpx.get(served.url).status_code == 200
    assert len(made) == 1


def test_other_hosts_and_other_paths_get_nothing(finished: Path, report_of: Make, serve: Callable[..., LiveReport]) -> None:
    served = serve(lambda: report_of(finished))
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 403
    for path in ("run.toml", "../../etc/passwd", "%2e%2e/run.toml", "report.json?x"):
        assert httpx.get(served.url + path).status_code == 404
    assert httpx.post(served.url).status_code == 501


def test_what_cannot_be_told_yet_is_said(serve: Callable[..., LiveReport]) -> None:
    def make() -> RunReport:
        raise InputError("no run and no ledger found", where="/secret/place")

    answer = httpx.get(serve(make).url)
    assert answer.status_code == 503 and "no run and no ledger found" in answer.text and "secret" not in answer.text


def test_a_port_that_is_taken_is_said(finished: Path, report_of: Make, serve: Callable[..., LiveReport]) -> None:
    served = serve(lambda: report_of(finished))
    with pytest.raises(StorageError, match="port"):
        LiveReport(lambda: report_of(finished), port=served.server_address[1])
