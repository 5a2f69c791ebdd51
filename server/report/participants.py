"""Who took part, what they answered, what went wrong and what it was good for: from figures, facts, journal and receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from server.monitoring.run_events import Kind
from server.report.report_model import MOST_PLATFORMS, Participant, PlatformQuality, bounded_text
from server.report.subject import SubjectFiles
from shared.ledger.evidence import LedgerEvidence

_REFUSED = (Kind.REFUSED,)
_FAILED = (Kind.FAILED, Kind.SILENT, Kind.DROPPED)
_TROUBLE = (*_REFUSED, *_FAILED, Kind.LEFT)


def answers_of(evidence: LedgerEvidence) -> Counter[tuple[str, str]]:
    """(platform, kind of answer) -> answers that there are receipts for; two files may have the same."""
    receipts = {
        (one.platform, one.receipt.run, one.receipt.round, one.receipt.kind, one.receipt.left, one.head): one.receipt
        for one in evidence.witnesses
        if one.receipt is not None
    }
    return Counter((platform, receipt.kind) for (platform, *_), receipt in receipts.items())


def platforms_in(files: SubjectFiles, ledgers: Iterable[str]) -> list[str]:
    """Names of all platforms that any file speaks of, sorted; at most `MOST_PLATFORMS`."""
    names = {*ledgers, *_table(files.metrics, "platforms"), *_table(files.metrics, "left_out"), *_table(files.state, "platforms")}
    if files.facts is not None:
        names |= {platform.name for platform in files.facts.platforms}
    return sorted(map(str, names))[:MOST_PLATFORMS]


def participants(files: SubjectFiles, names: Iterable[str], answers: Mapping[tuple[str, str], int]) -> tuple[Participant, ...]:
    """A row a platform."""
    measured, left_out = _table(files.metrics, "platforms"), _table(files.metrics, "left_out")
    lines = _table(files.state, "platforms")
    facts = {} if files.facts is None else {one.name: one for one in files.facts.platforms}
    refused, failed, last = _troubles(files.events)
    watched, answered = bool(files.events), Counter[str]()
    for (name, _), count in answers.items():
        answered[name] += count
    found = []
    for name in names:
        row, line, fact = _table(measured, name), _table(lines, name), facts.get(name)
        refusals = row.get("refusals")
        trouble = left_out.get(name) or last.get(name) or line.get("trouble") or ""
        found.append(
            Participant(
                platform=bounded_text(name, most=63),
                users=first_count(row.get("users")) or (fact.users if fact else None) or first_count(line.get("users")) or None,
                items=fact.items if fact else None,
                rounds=first_count(row.get("rounds"), fact.rounds if fact else None, line.get("rounds")),
                answers=answered[name] if answers else None,
                refusals=len(refusals) if isinstance(refusals, dict) else refused[name] if watched else None,
                failures=failed[name] if watched else None,
                bytes_up=first_count(row.get("bytes_up")),
                bytes_down=first_count(row.get("bytes_down")),
                trouble=bounded_text(trouble, most=200),
            )
        )
    return tuple(found)


def quality(files: SubjectFiles, names: Iterable[str], metric: str) -> tuple[PlatformQuality, ...]:
    """What each platform's models find; platforms of which nothing was measured are left out."""
    measured = _table(files.metrics, "platforms")
    facts = {} if files.facts is None else {one.name: one for one in files.facts.platforms}
    found = []
    for name in names:
        row, fact = _table(measured, name), facts.get(name)
        models = [_mean(row.get(model), metric) for model in ("own", "global", "fused")]
        around = [_mean(row.get(model), metric) for model in ("before", "federated")]
        exact = bool(row) and files.metrics.get("exact") is not False
        if fact is not None and not row:
            published = (fact.before, fact.federated)
            around = [None if one is None else _mean(dict(one.quality), metric) for one in published]
            exact = any(one is not None and one.exact for one in published)
        if all(value is None for value in (*models, *around)):
            continue
        gain = _table(row, "fused_minus_own")
        low, mean, high = (_between(gain.get(key), -1.0) for key in ("low", "mean", "high"))
        found.append(
            PlatformQuality(
                platform=bounded_text(name, most=63),
                metric=metric,
                own=models[0],
                global_=models[1],
                fused=models[2],
                low=low,
                gain=mean,
                high=high,
                before=around[0],
                after=around[1],
                exact=exact,
                recommended_by=bounded_text(row.get("recommended_by") or "", most=20),
            )
        )
    return tuple(found)


def first_count(*values: Any) -> int | None:
    """The first of the values that is a whole number from 0 on.

    >>> first_count(None, "x", True, 0, 3)
    0
    """
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 53), None)


def _troubles(events: Iterable[Mapping[str, Any]]) -> tuple[Counter[str], Counter[str], dict[str, str]]:
    """Refusals and failures by platform, and the last of each platform's troubles in words."""
    refused, failed, last = Counter[str](), Counter[str](), dict[str, str]()
    for event in events:
        kind, platform = event.get("kind"), str(event.get("platform", ""))
        if not platform or kind not in _TROUBLE:
            continue
        refused[platform] += kind in _REFUSED
        failed[platform] += kind in _FAILED
        last[platform] = str(event.get("text", "")).removeprefix(f"{platform}: ")
    return refused, failed, last


def _table(values: Any, key: str) -> dict[str, Any]:
    found = values.get(key) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _mean(values: Any, metric: str) -> float | None:
    return _between(values.get(metric), 0.0) if isinstance(values, dict) else None


def _between(value: Any, least: float) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= 1 else None
