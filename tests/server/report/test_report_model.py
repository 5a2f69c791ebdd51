"""The JSON of a report: its schema is the published one, and what is made is of that schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server.report.report_model import RunReport, bounded_text, report_schema

SCHEMA = Path(__file__).parents[3] / "docs" / "report.schema.json"
Make = Callable[[Path], RunReport]


def test_the_published_schema_is_the_model_s() -> None:
    # After a change of the model: write `json.dumps(report_schema(), indent=2) + "\n"` to the file.
    assert json.loads(SCHEMA.read_text()) == report_schema()


def test_a_report_is_of_the_published_schema_and_reads_back(finished: Path, report_of: Make) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = report_of(finished)
    text = report.to_json()
    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_text()))
    assert RunReport.model_validate_json(text) == report
    broken = {**json.loads(text), "kind": "other"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads(SCHEMA.read_text()))


def test_an_infinite_epsilon_is_the_word(finished: Path, report_of: Make) -> None:
    report = report_of(finished)
    line = report.budgets[0].model_copy(update={"spent": float("inf")})
    values = json.loads(report.model_copy(update={"budgets": (line,)}).to_json())
    assert values["budgets"][0]["spent"] == "inf"
    assert RunReport.model_validate(values).budgets[0].spent == float("inf")


@pytest.mark.parametrize("text", ["a" * 10_000, "\u202e\x00\x1b[31mx", "\ud800"])
def test_another_party_s_words_are_bounded_and_plain(text: str) -> None:
    shown = bounded_text(text, most=50)
    assert len(shown) <= 51
    shown.encode()
    assert not set(shown) & {"\u202e", "\x00", "\x1b"}
