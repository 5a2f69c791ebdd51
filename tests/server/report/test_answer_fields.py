"""The list of all fields that leave is that of the message classes: a new field of an answer has to be explained."""

from __future__ import annotations

from dataclasses import fields

from server.report.answer_fields import FIELDS
from shared.protocol.messages import ANSWERS


def test_every_field_of_every_answer_is_listed_once() -> None:
    listed = [(message, one.name) for one in FIELDS for message in one.messages]
    assert len(listed) == len(set(listed))
    assert set(listed) == {(kind, part.name) for kind, answer in ANSWERS.items() for part in fields(answer)}
