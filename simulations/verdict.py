"""What a simulation showed, in words: who gained by joining, with what certainty, and what the others could do."""

from __future__ import annotations

from typing import Any

from shared.protocol.quality import METRICS, NDCG

_WEAK = 1.0
"""Signal to noise below which the noise is the larger."""

_ALL_TO_ADAPTERS = (
    "All of the budget went to adapters: which items are liked together was not summed, and that is what gained where it was "
    "measured (films dealt to 8 platforms, epsilon 8: +10 % over own). `--strategy preferences` gives it the whole budget, "
    "`--set preferences.items=1024 --set preferences.share=0.5` a part of it."
)


def verdict(metrics: dict[str, Any]) -> list[str]:
    """One sentence a platform, from the content of `metrics.json`, and what would help those that gained nothing.

    Gains are of the first metric, fused - own over own, with the paired 95 % interval of the platform's own held-out users.
    """
    said: list[str] = []
    advice: dict[str, None] = {}
    for name, result in metrics["platforms"].items():
        line, helps = _platform(name, result, metrics)
        said.append(line)
        if helps:
            advice[helps] = None
    if advice and metrics["rounds"] and not metrics["preference_items"]:
        advice[_ALL_TO_ADAPTERS] = None
    left = [f"{name} was left out: {why}" for name, why in metrics.get("left_out", {}).items()]
    return [*said, *advice, *left]


def _platform(name: str, result: dict[str, Any], metrics: dict[str, Any]) -> tuple[str, str]:
    """What it gained, and what would help it ('' where it gained)."""
    own, gain = result.get("own"), result.get("fused_minus_own")
    title = METRICS[NDCG].title
    if not own:
        return f"{name}: nobody has two liked items and one not met, so nothing can be held out and compared.", ""
    if not gain:
        return f"{name} uses its own model: nothing that was released is about its items.", _silent(metrics)
    if not own[NDCG]:
        return f"{name}: its own model finds none of the held-out items, so there is nothing to compare with.", ""
    low, mean, high = (100 * gain[key] / own[NDCG] for key in ("low", "mean", "high"))
    interval = f"95 % interval {low:+.0f} to {high:+.0f} %"
    if gain["low"] > 0:
        return f"{name} gains by joining: {title} {mean:+.0f} % over its own model ({interval}).", ""
    if gain["high"] < 0:
        return f"{name} loses by the fused model: {title} {mean:+.0f} % ({interval}). Its own model is the better one.", ""
    if result.get("recommended_by") == "own":
        return f"{name} neither gains nor loses: its validation chose its own model.", _advice(result)
    return f"{name}: no gain that its held-out users could show ({title} {mean:+.0f} %, {interval}).", _advice(result)


def _silent(metrics: dict[str, Any]) -> str:
    if metrics["strategy"] == "preferences":
        return (
            "Platforms share what they know of items that two of them have: declare public keys (`columns.key` and `keys` in the "
            "source of items)."
        )
    return ""


def _advice(result: dict[str, Any]) -> str:
    ratio = result["signal_to_noise"]
    if isinstance(ratio, int | float) and ratio < _WEAK:
        return "The noise is larger than what its users have in common: more platforms, more users or a larger epsilon help."
    return (
        "A platform gains most where its own rows are few and others have its items: more platforms with the same items, "
        "public keys for more of its items, or a larger epsilon help."
    )
