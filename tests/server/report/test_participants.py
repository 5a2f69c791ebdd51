"""A row a platform, from whatever file speaks of it: which one counts where several do, and what is no figure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.registry.run_facts import FACTS, Facts, facts_in
from server.report.participants import first_count, participants, platforms_in, quality
from server.report.report_model import MOST_PLATFORMS
from server.report.subject import SubjectFiles
from tests.support.qualities import quality_of

NDCG = "ndcg@10"


def files_of(*, facts: Facts | None = None, events: tuple[dict[str, Any], ...] = (), **over: Any) -> SubjectFiles:
    values: dict[str, Any] = {"metrics": {}, "settings": {}, "run": "spring", "state": {}, "attack": {}, "gaps": ()}
    return SubjectFiles(**{**values, "facts": facts, "events": events, **over})


def facts_with(**platform: Any) -> Facts:
    one = {
        "name": "shop",
        "users": 40,
        "items": 12,
        "budget": 8.0,
        "delta": 1e-5,
        "epsilon": 3.5,
        "noise_multiplier": 1.0,
        "rounds": 9,
    }
    values = {"run": "spring", "created": "", "rounds": 10, "settings": {}, "platforms": [{**one, **platform}]}
    none = dict.fromkeys(("backbone_sha256", "adapter_sha256", "start_sha256"), "")
    return facts_in(json.dumps({"format": 2, **values, **none}).encode(), FACTS)


def released(value: float, *, exact: bool = False) -> dict[str, Any]:
    return {"round": 1, "quality": {name: float(mean) for name, mean in quality_of({NDCG: value}).items()}, "exact": exact}


MEASURED = {"platforms": {"shop": {"users": 50, "rounds": 5, "bytes_up": 7, "bytes_down": 0, "refusals": {"1": "budget"}}}}
STATE = {"platforms": {"shop": {"users": 60, "rounds": 6, "trouble": "was silent"}}}


@pytest.mark.parametrize(
    ("metrics", "facts", "state", "users", "rounds"),
    [
        (MEASURED, facts_with(), STATE, 50, 5),
        ({}, facts_with(), STATE, 40, 9),
        ({}, None, STATE, 60, 6),
        ({"platforms": {"shop": {"users": 0, "rounds": 0}}}, facts_with(), STATE, 40, 0),  # no users are declared as 0
        ({}, None, {"platforms": {"shop": {"users": 0, "rounds": 0}}}, None, 0),
        ({}, None, {}, None, None),
    ],
)
def test_a_simulations_figures_count_first_then_the_models_then_the_journals(
    metrics: dict[str, Any], facts: Facts | None, state: dict[str, Any], users: int | None, rounds: int | None
) -> None:
    (row,) = participants(files_of(metrics=metrics, facts=facts, state=state), ["shop"], {})
    assert (row.users, row.rounds) == (users, rounds) and row.items == (12 if facts else None)
    assert (row.bytes_up, row.bytes_down, row.refusals) == ((7, 0, 1) if metrics is MEASURED else (None, None, None))


def test_troubles_are_counted_by_kind_and_the_last_is_named() -> None:
    kinds = ("refused", "failed", "silent", "dropped", "left", "refused", "answered", "joined", "late", "abandoned")
    events = tuple({"kind": kind, "platform": "shop", "text": f"shop: {kind} {at}"} for at, kind in enumerate(kinds))
    rows = participants(files_of(events=(*events, {"kind": "failed", "text": "nobody's"}), state=STATE), ["shop", "video"], {})
    assert [(row.refusals, row.failures, row.trouble) for row in rows] == [(2, 3, "refused 5"), (0, 0, "")]
    # Why it was left out of the run says more than its last trouble; the journal's word is there where no event is.
    left = participants(files_of(events=events, metrics={"left_out": {"shop": "nobody knows it"}}), ["shop"], {})
    assert left[0].trouble == "nobody knows it"
    assert participants(files_of(state=STATE), ["shop"], {})[0].trouble == "was silent"


def test_answers_of_all_kinds_are_added_up_where_there_are_receipts() -> None:
    answers = {("shop", "update"): 3, ("shop", "metrics"): 2, ("video", "update"): 1}
    assert [row.answers for row in participants(files_of(), ["news", "shop"], answers)] == [0, 5]
    assert [row.answers for row in participants(files_of(), ["news", "shop"], {})] == [None, None]


def test_every_platform_that_any_file_speaks_of_is_listed_once() -> None:
    metrics = {"platforms": {"video": {}}, "left_out": {"news": "x"}}
    files = files_of(metrics=metrics, facts=facts_with(), state={"platforms": {"books": {}, "video": {}}})
    assert platforms_in(files, ["games", "shop"]) == ["books", "games", "news", "shop", "video"]
    many = [f"p{number:05d}" for number in range(MOST_PLATFORMS + 1)]
    assert platforms_in(files_of(), reversed(many)) == many[:MOST_PLATFORMS]


def test_of_the_same_platform_measured_figures_count_before_published_ones() -> None:
    facts = facts_with(before=released(0.1), federated=released(0.2, exact=True))
    (noised,) = quality(files_of(facts=facts), ["shop"], NDCG)
    assert (noised.before, noised.after, noised.exact, noised.own) == (0.1, 0.2, True, None)
    (noised,) = quality(files_of(facts=facts_with(before=released(0.1))), ["shop"], NDCG)
    assert (noised.before, noised.after, noised.exact) == (0.1, None, False)
    gain = {"low": -1.0, "mean": 0.0, "high": 1.0}
    row = {"own": {NDCG: 0.3}, "global": {NDCG: 0.0}, "fused": {NDCG: 1.0}, "fused_minus_own": gain, "recommended_by": "fused"}
    for exact in (True, False):
        metrics = {"platforms": {"shop": row}, "exact": exact}
        (one,) = quality(files_of(metrics=metrics, facts=facts), ["shop"], NDCG)
        assert (one.own, one.global_, one.fused, one.before, one.after, one.exact) == (0.3, 0.0, 1.0, None, None, exact)
        assert (one.low, one.gain, one.high, one.recommended_by) == (-1.0, 0.0, 1.0, "fused")
    assert quality(files_of(metrics=MEASURED, facts=facts_with()), ["shop", "video"], NDCG) == ()


@given(st.one_of(st.none(), st.booleans(), st.text(max_size=2), st.floats(), st.integers()))
def test_what_is_no_figure_is_none(value: Any) -> None:
    fits = type(value) is int and 0 <= value < 2**53
    assert first_count(value) == (value if fits else None) and first_count(value, 3) == (value if fits else 3)
    metrics = {"platforms": {"shop": {"own": {NDCG: value}, "fused_minus_own": {"mean": value}, "global": {NDCG: 0.5}}}}
    (one,) = quality(files_of(metrics=metrics), ["shop"], NDCG)
    number = value if type(value) in (int, float) else None
    assert one.own == (number if number is not None and 0 <= number <= 1 else None)
    assert one.gain == (number if number is not None and -1 <= number <= 1 else None)


@pytest.mark.parametrize("value", [0, 2**53 - 1, -1, 2**53])
def test_a_count_has_bounds(value: int) -> None:
    assert first_count(value) == (value if value in (0, 2**53 - 1) else None)
