"""Which evaluations a run may ask for: those that its plan paid for, each once, and the same question as often as it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from client.evaluation.answered_evaluations import Evaluated, answered_before, evaluated_model, evaluation_key
from client.privacy.answer_stamp import AnswerStamp
from shared.base.errors import OutOfOrder
from shared.base.settings import Settings
from shared.protocol.messages import Evaluate, Label
from shared.protocol.quality import METRICS, Quality

ROUNDS = 4


@pytest.fixture
def settings(tiny_settings: Callable[..., Settings]) -> Settings:
    return tiny_settings(rounds=ROUNDS)


@pytest.fixture
def asked(settings: Settings) -> Callable[..., Evaluate]:
    def make(label: Label, round_: int, value: float = 1.0) -> Evaluate:
        return Evaluate(
            run="run", settings=settings, round=round_, label=label, adapter={"a": np.full((1, 2), value, np.float32)}
        )

    return make


def answered(*requests: Evaluate) -> dict[str, Evaluated]:
    quality = Quality(dict.fromkeys(METRICS, 0.25))
    return {
        evaluation_key(one): Evaluated(model=evaluated_model(one), quality=quality, stamp=AnswerStamp.__new__(AnswerStamp))
        for one in requests
    }


def test_before_is_of_round_0_and_all_others_of_a_later_one(settings: Settings, asked: Callable[..., Evaluate]) -> None:
    for label, rounds in ((Label.BEFORE, {0}), (Label.FEDERATED, {1, ROUNDS}), (Label.PERSONAL, {1, ROUNDS})):
        for round_ in (0, 1, ROUNDS, ROUNDS + 1):
            if round_ in rounds:
                assert answered_before({}, asked(label, round_), settings) is None
            else:
                with pytest.raises(OutOfOrder, match=f"'{label}' of round {round_} of {ROUNDS}"):
                    answered_before({}, asked(label, round_), settings)


def test_the_same_question_has_the_same_answer_and_no_other_model_gets_one(
    settings: Settings, asked: Callable[..., Evaluate]
) -> None:
    known = answered(asked(Label.BEFORE, 0), asked(Label.FEDERATED, 1))
    assert answered_before(known, asked(Label.FEDERATED, 1), settings) is known[evaluation_key(asked(Label.FEDERATED, 1))]
    assert answered_before(known, asked(Label.BEFORE, 0), settings) is known[evaluation_key(asked(Label.BEFORE, 0))]
    other = asked(Label.FEDERATED, 1, value=2.0)
    with pytest.raises(OutOfOrder, match="another model was evaluated as 'federated' of round 1"):
        answered_before(known, other, settings)
    renamed = replace(other, adapter={"b": asked(Label.FEDERATED, 1).adapter["a"]})
    with pytest.raises(OutOfOrder, match="another model"):
        answered_before(known, renamed, settings)


def test_no_more_are_answered_than_were_paid_for(settings: Settings, asked: Callable[..., Evaluate]) -> None:
    paid = settings.evaluations
    assert 2 <= paid <= ROUNDS + 1
    questions = [asked(Label.BEFORE, 0), *(asked(Label.FEDERATED, round_) for round_ in range(1, ROUNDS + 1))]
    questions += [asked(Label.PERSONAL, round_) for round_ in range(1, ROUNDS + 1)]
    assert answered_before(answered(*questions[: paid - 1]), questions[paid], settings) is None
    full = answered(*questions[:paid])
    with pytest.raises(OutOfOrder, match=f"the run's {paid} evaluations were answered"):
        answered_before(full, questions[paid], settings)
    assert answered_before(full, questions[0], settings) is full[evaluation_key(questions[0])]
