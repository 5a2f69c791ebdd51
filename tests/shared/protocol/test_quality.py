"""Ranking metrics by name, and what is refused of another party's."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from shared.base.errors import ProtocolError
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import Label, Metrics
from shared.protocol.quality import METRICS, Quality, mean_quality, per_user_metrics

GOOD = {**dict.fromkeys(METRICS, 0.4), "ndcg@10": 0.1, "hr@10": 0.2, "auc": 0.6}


@pytest.mark.parametrize(
    "means",
    [
        {},
        {"ndcg@10": 0.1, "hr@10": 0.2},
        {**GOOD, "rows": 0.5},
        {**GOOD, "auc": 1.001},
        {**GOOD, "auc": -0.001},
        {**GOOD, "auc": math.nan},
        {**GOOD, "auc": "0.5"},
        {**GOOD, "auc": True},
        {**GOOD, "auc": None},
    ],
)
def test_what_is_no_quality(means: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Quality(means)


@pytest.mark.parametrize("text", ["[]", "1", "{", json.dumps({**GOOD, "auc": math.nan}), '{"auc": 1e400}', "[" * 5000])
def test_a_malformed_quality_on_the_wire(text: str) -> None:
    said = {"run": "run", "platform": "shop", "round": 1, "users": 9, "epsilon": 0.5, "ledger": "", "seconds": 1.0}
    record = to_record(Metrics(**said, label=Label.BEFORE, quality=Quality(GOOD), exact=True))
    assert answer_from(record).quality == Quality(GOOD)
    record["fedfuse"] = ConfigRecord({**record["fedfuse"], "quality": text})
    with pytest.raises(ProtocolError):
        answer_from(record)


def test_every_metric_is_in_its_range_at_both_ends() -> None:
    rank, candidates = np.array([1.0, 1.0, 10.0, 10.5, 2000.0]), np.array([1, 2, 10, 2000, 2000])
    found = per_user_metrics(rank, candidates)
    assert found.shape == (5, len(METRICS)) and ((found >= 0) & (found <= 1)).all()
    assert list(mean_quality(rank, candidates)) == list(METRICS)
    assert mean_quality(rank, candidates).means == pytest.approx(dict(zip(METRICS, found.mean(0), strict=True)))
