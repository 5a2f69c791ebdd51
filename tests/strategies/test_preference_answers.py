"""Sums of preferences without a secure sum: what is added up, and whose answer is left out with which reason."""

from __future__ import annotations

import numpy as np
import pytest

from shared.base.settings import build
from shared.preferences.summed_preferences import PreferenceQuestion
from shared.protocol.messages import Preferred
from strategies.base import AdapterStrategy, Member, NoUpdate
from strategies.composition import named
from tests.strategies.contract import RUN, Nodes, identify, reply

QUESTION = PreferenceQuestion(items=np.array([3, 5, 9], np.uint64), direction=np.full(3, 3**-0.5, np.float32))
GOOD = np.arange(6, dtype=np.float32)
BAD = {
    "another shape": {"preferences": GOOD[:5]},
    "not finite": {"preferences": np.array([np.nan, 0, 0, 0, 0, 0], np.float32)},
    "another name": {"likes": GOOD},
    "one too many": {"preferences": GOOD, "likes": GOOD},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> AdapterStrategy:
    identify(monkeypatch)
    settings = build({"strategy": "preferences", "privacy": {"noise": "local"}}, where="test")
    members = [Member(node=node, platform=f"p{node}", users=10) for node in (1, 2, 3)]
    strategy = named("preferences")(settings=settings, run=RUN, members=members)
    assert len(strategy.configure_prefer(QUESTION, grid=Nodes(1, 2, 3))) == 3
    return strategy


def answer(node: int, sums: dict[str, np.ndarray]) -> Preferred:
    who = {"run": RUN, "platform": f"p{node}", "round": 0, "users": 10}
    return Preferred(**who, epsilon=1.0, ledger="", seconds=0.1, sums=sums)


@pytest.mark.parametrize("why", BAD)
def test_an_answer_that_cannot_be_right_is_left_out_and_whose_it_is_known(asked: AdapterStrategy, why: str) -> None:
    replies = [
        reply(answer(1, {"preferences": GOOD}), 1),
        reply(answer(2, BAD[why]), 2),
        reply(answer(3, {"preferences": GOOD}), 3),
    ]
    total = asked.aggregate_prefer(replies)
    np.testing.assert_array_equal(total, 2.0 * GOOD)
    assert [receipt.platform for receipt in asked.report.preferred] == ["p1", "p3"]
    assert [(drop.node, drop.platform) for drop in asked.report.drops] == [(2, "p2")]


def test_without_any_usable_answer_nothing_is_summed(asked: AdapterStrategy) -> None:
    with pytest.raises(NoUpdate, match="preferences"):
        asked.aggregate_prefer([reply(answer(2, BAD["another shape"]), 2)])
