"""What a simulation showed, in words: who gained by joining, with what certainty, and what the others could do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.protocol.quality import METRICS, NDCG

_WEAK = 1.0
"""Signal to noise below which the noise is the larger."""


def verdict(metrics: dict[str, Any]) -> list[str]:
    """One sentence a platform, from the content of `metrics.json`, and one of advice where it helps.

    Gains are of the first metric, fused - own over own, with the paired 95 % interval of the platform's own held-out users.
    """
    lines = [line for name, result in metrics["platforms"].items() for line in _platform(name, result, metrics)]
    lines += [f"{name} was left out: {why}" for name, why in metrics.get("left_out", {}).items()]
    return lines


def _platform(name: str, result: dict[str, Any], metrics: dict[str, Any]) -> Iterator[str]:
    own, gain = result.get("own"), result.get("fused_minus_own")
    title = METRICS[NDCG].title
    if not own:
        yield f"{name}: nobody has two liked items, so nothing can be held out and compared."
        return
    if not gain:
        yield f"{name} uses its own model: {_silent(metrics)}"
        return
    if not own[NDCG]:
        yield f"{name}: its own model finds none of the held-out items, so there is nothing to compare with."
        return
    low, mean, high = (100 * gain[key] / own[NDCG] for key in ("low", "mean", "high"))
    interval = f"95 % interval {low:+.0f} to {high:+.0f} %"
    if gain["low"] > 0:
        yield f"{name} gains by joining: {title} {mean:+.0f} % over its own model ({interval})."
    elif gain["high"] < 0:
        yield f"{name} loses by the fused model: {title} {mean:+.0f} % ({interval}). Its own model is the better one."
    elif result.get("recommended_by") == "own":
        yield f"{name} neither gains nor loses: its validation chose its own model. {_advice(result)}"
    else:
        yield f"{name}: no gain that its held-out users could show ({title} {mean:+.0f} %, {interval}). {_advice(result)}"


def _silent(metrics: dict[str, Any]) -> str:
    if metrics["strategy"] == "preferences":
        return (
            "none of what was released is about its items. Platforms share what they know of items that two of them have: "
            "declare public keys (`columns.key` and `keys` in the source of items)."
        )
    return "nothing was released that it could use."


def _advice(result: dict[str, Any]) -> str:
    ratio = result["signal_to_noise"]
    if isinstance(ratio, int | float) and ratio < _WEAK:
        return "The noise is larger than what its users have in common: more platforms, more users or a larger epsilon help."
    return (
        "A platform gains most where its own rows are few and others have its items: more platforms with the same items, "
        "public keys for more of its items, or a larger epsilon help."
    )
