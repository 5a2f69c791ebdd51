"""Evaluations that a platform answered: a run has so many as its plan paid for, and the same question gets the same answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from client.privacy.answer_stamp import AnswerStamp
from shared.base.errors import OutOfOrder
from shared.base.safetensors_checks import feed
from shared.base.settings import Settings
from shared.protocol.messages import Evaluate, Label
from shared.protocol.quality import Quality


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A noised and charged evaluation.

    Args:
        model: SHA-256 of the adapter that was evaluated, in hex.
    """

    model: str
    quality: Quality
    stamp: AnswerStamp


def answered_before(known: Mapping[str, Evaluated], request: Evaluate, settings: Settings) -> Evaluated | None:
    """What was answered to this very question, or None if it is new.

    Args:
        known: The run's evaluations, by `evaluation_key`.

    Raises:
        OutOfOrder: it is a question that the plan did not pay for: of another round, about another model than the one that
            was evaluated in its place, or one too many.
    """
    found = known.get(evaluation_key(request))
    if found is not None:
        if found.model != evaluated_model(request):
            raise OutOfOrder(f"another model was evaluated as '{request.label}' of round {request.round}")
        return found
    if (request.label is Label.BEFORE) != (request.round == 0) or request.round > settings.rounds:
        raise OutOfOrder(f"an evaluation '{request.label}' of round {request.round} of {settings.rounds}")
    if len(known) >= settings.evaluations:
        raise OutOfOrder(f"the run's {settings.evaluations} evaluations were answered")
    return None


def evaluation_key(request: Evaluate) -> str:
    """Which of a run's evaluations it is."""
    return f"{request.label} {request.round}"


def evaluated_model(request: Evaluate) -> str:
    """SHA-256 of the adapter to be evaluated, in hex."""
    sha = hashlib.sha256()
    feed(sha, request.adapter)
    return sha.hexdigest()
