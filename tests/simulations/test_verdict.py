"""The verdict under the table: who gained, with what certainty, who was left out, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.verdict import verdict


def metrics(result: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "strategy": "preferences",
        "rounds": 0,
        "preference_items": 1024,
        "platforms": {} if result is None else {"shop": result},
        "left_out": {},
        **more,
    }


def platform(low: float, mean: float, high: float, **more: Any) -> dict[str, Any]:
    gain = {"low": low, "mean": mean, "high": high}
    return {"own": {"ndcg@10": 0.1}, "fused_minus_own": gain, "recommended_by": "fused", "signal_to_noise": 5.0, **more}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (platform(0.01, 0.02, 0.03), ["gains by joining", "+20 %", "+10 to +30 %"]),
        (platform(-0.03, -0.02, -0.01), ["loses", "-20 %", "-30 to -10 %"]),
        (platform(-0.01, 0.002, 0.02), ["no gain that its held-out users could show", "-10 to +20 %"]),
        (platform(0.0, 0.0, 0.0, recommended_by="own"), ["neither gains nor loses", "chose its own"]),
        (platform(-0.01, 0.0, 0.01, signal_to_noise=0.5), ["noise is larger", "epsilon"]),
        (platform(-0.01, 0.0, 0.01, signal_to_noise="inf"), ["same items", "keys"]),
        (platform(0.01, 0.02, 0.03, own={"ndcg@10": 0.0}), ["nothing to compare with"]),
        ({"own": {"ndcg@10": 0.1}, "fused_minus_own": None, "signal_to_noise": 1.0}, ["own model", "public keys"]),
        ({"own": None, "fused_minus_own": None, "signal_to_noise": 1.0}, ["nobody has two liked items and one not met"]),
    ],
)
def test_a_platform(result: dict[str, Any], words: list[str]) -> None:
    line, *advice = verdict(metrics(result))
    assert line.startswith("shop") and all(word in " ".join([line, *advice]) for word in words), (line, advice)


def test_advice_for_several_is_given_once() -> None:
    result = platform(-0.01, 0.0, 0.01)
    lines = verdict({**metrics(result), "platforms": {"a": result, "b": result}})
    assert [line.partition(":")[0] for line in lines[:2]] == ["a", "b"] and len(lines) == 3


def test_a_run_that_gave_adapters_the_whole_budget_says_so_where_nobody_gained() -> None:
    nothing, gained = platform(-0.01, 0.0, 0.01), platform(0.01, 0.02, 0.03)
    trained = {"strategy": "fedavg", "rounds": 10, "preference_items": 0}
    assert any("All of the budget went to adapters" in line for line in verdict(metrics(nothing, **trained)))
    for result, facts in ((gained, trained), (nothing, {**trained, "preference_items": 1024}), (nothing, {})):
        assert not any("went to adapters" in line for line in verdict(metrics(result, **facts)))


def test_who_was_left_out_is_last() -> None:
    lines = verdict(metrics(platform(0.01, 0.02, 0.03), left_out={"books": "the budget does not carry it"}))
    assert lines[-1] == "books was left out: the budget does not carry it"
