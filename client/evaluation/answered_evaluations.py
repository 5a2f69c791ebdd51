"""Evaluations that a platform answered: a run has so many as its plan paid for, and the same question gets the same answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from shared.base.errors import OutOfOrder
from shared.base.safetensors_checks import feed
from shared.base.settings import Settings
from shared.protocol.messages import Evaluate, Label, Metrics

Facts = Mapping[str, float | int | str]
_PREFIX = "metrics "


def recall(facts: Facts, request: Evaluate, settings: Settings, *, users: int, platform: str) -> Metrics | None:
    """The answer that was given to this very question, or None if it is new.

    Raises:
        OutOfOrder: it is a question that the plan did not pay for: of another round, about another model than the one that
            was evaluated in its place, or one too many.
    """
    known = kept(facts)
    found = known.get(_key(request))
    if found is not None:
        values: dict[str, Any] = json.loads(str(found))
        if values.pop("model") != _digest(request):
            raise OutOfOrder(f"another model was evaluated as '{request.label}' of round {request.round}")
        return Metrics(
            run=request.run, platform=platform, round=request.round, label=request.label, users=users, exact=False, **values
        )
    if (request.label is Label.BEFORE) != (request.round == 0) or request.round > settings.rounds:
        raise OutOfOrder(f"an evaluation '{request.label}' of round {request.round} of {settings.rounds}")
    if len(known) >= settings.evaluations:
        raise OutOfOrder(f"the run's {settings.evaluations} evaluations were answered")
    return None


def remember(facts: Facts, request: Evaluate, metrics: Metrics) -> dict[str, float | int | str]:
    """The facts with this answer among them."""
    names = ("ndcg", "hr", "auc", "epsilon", "ledger", "seconds")
    values = {"model": _digest(request), **{name: getattr(metrics, name) for name in names}}
    return {**facts, _key(request): json.dumps(values, sort_keys=True)}


def kept(facts: Facts) -> dict[str, float | int | str]:
    """Those of the facts that are remembered evaluations; they outlive the rounds."""
    return {key: value for key, value in facts.items() if key.startswith(_PREFIX)}


def _key(request: Evaluate) -> str:
    return f"{_PREFIX}{request.label} {request.round}"


def _digest(request: Evaluate) -> str:
    sha = hashlib.sha256()
    feed(sha, request.adapter)
    return sha.hexdigest()
