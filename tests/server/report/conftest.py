"""Reports of the run that `finished` is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.report.collect import ReportMaterial, collect_report
from server.report.report_model import RunReport
from server.report.subject import open_subject, read_subject
from shared.ledger.evidence import folder_evidence


@pytest.fixture
def report_of() -> Callable[[Path], RunReport]:
    """The report of a simulation's folder."""

    def make(folder: Path) -> RunReport:
        subject = open_subject(folder)
        ledgers = sorted((folder / "ledger").glob("*.jsonl"))
        material = ReportMaterial(subject=subject, files=read_subject(subject), ledgers=ledgers, evidence=folder_evidence(folder))
        return collect_report(material)

    return make
