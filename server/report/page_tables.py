"""The page's tables: every cell shows one value of `report.json` and names its place there, so a test can hold both equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.protocol.quality import METRICS

Shown = Callable[[Any], str]
NOT_KNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One cell.

    Args:
        at: JSON pointer (RFC 6901) of the value.
        drawn: Name of a chart that is drawn beside it; '' for none.
    """

    text: str
    at: str
    drawn: str = ""


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """One column.

    Args:
        number: Whether it holds figures, aligned to the right.
    """

    title: str
    number: bool


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table; the first cell of a row is its heading."""

    name: str
    caption: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[TableCell, ...], ...]


def words(value: Any) -> str:
    """Text, or a list of texts."""
    if isinstance(value, list):
        return "; ".join(map(str, value)) or NOT_KNOWN
    return str(value) if value not in (None, "") else NOT_KNOWN


def count(value: Any) -> str:
    """A whole number.

    >>> count(1234567), count(None)
    ('1,234,567', '–')
    """
    return NOT_KNOWN if value is None else f"{value:,}"


def figure(value: Any) -> str:
    """A number to three digits.

    >>> figure(7.9902), figure("inf"), figure(0.0001), figure(1234.5), figure(None)
    ('7.99', '∞', '0.0001', '1,230', '–')
    """
    if value is None:
        return NOT_KNOWN
    if value == "inf":
        return "∞"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def share(value: Any) -> str:
    """A probability in per cent, to a digit more where it is near 1.

    >>> share(0.5), share(0.99967), share(0.7311), share(None)
    ('50 %', '99.97 %', '73.1 %', '–')
    """
    if value is None:
        return NOT_KNOWN
    return f"{100 * value:.4g} %" if value > 0.99 else f"{100 * value:.3g} %"


def signed(value: Any) -> str:
    """A difference, with its sign."""
    return NOT_KNOWN if value is None else f"{value:+.4f}".replace("-", "−")


def metric_mean(value: Any) -> str:
    """A ranking metric's mean."""
    return NOT_KNOWN if value is None else f"{value:.4f}"


def yes(value: Any) -> str:
    """A truth value."""
    return NOT_KNOWN if value is None else "yes" if value else "no"


_BUDGETS = (
    ("Platform", "platform", words),
    ("Spent ε", "spent", figure),
    ("Budget ε", "budget", figure),
    ("δ", "delta", figure),
    ("Best guess about one person", "guess", share),
    ("Recomputed", "recomputed", yes),
    ("Records", "verdict", words),
)
_RELEASES = (
    ("Platform", "platform", words),
    ("What", "what", words),
    ("Steps charged", "times", count),
    ("Releases recorded", "answers", count),
    ("One user changes at most", "one_user", words),
    ("Noise, times that", "noise_multiplier", figure),
    ("Users sampled", "sample_rate", share),
    ("Numbers", "numbers", count),
    ("Bytes at most", "bytes_at_most", count),
)
_FIELDS = (
    ("Field", "field", words),
    ("In answers", "message", words),
    ("What it is", "what", words),
    ("One user changes", "one_user", words),
    ("Bytes", "size", words),
    ("Answers", "answers", count),
)
_PARTICIPANTS = (
    ("Platform", "platform", words),
    ("Users (declared)", "users", count),
    ("Items", "items", count),
    ("Rounds in", "rounds", count),
    ("Answers", "answers", count),
    ("Refused", "refusals", count),
    ("Failed", "failures", count),
    ("Bytes sent", "bytes_up", count),
    ("Bytes received", "bytes_down", count),
    ("Trouble", "trouble", words),
)
_QUALITY = (
    ("Platform", "platform", words),
    ("Own model", "own", metric_mean),
    ("Global model", "global_", metric_mean),
    ("Fused model", "fused", metric_mean),
    ("Fused − own", "gain", signed),
    ("at least", "low", signed),
    ("at most", "high", signed),
    ("It recommends with", "recommended_by", words),
)
_TRAINED = (
    ("Platform", "platform", words),
    ("Before", "before", metric_mean),
    ("After", "after", metric_mean),
    ("Exact", "exact", yes),
)
_RECORDS = (
    ("Ledger", "file", words),
    ("Verdict", "verdict", words),
    ("ε recorded", "recorded", figure),
    ("RDP", "renyi", figure),
    ("PRV", "prv", figure),
    ("PLD", "pld", figure),
    ("Charges", "charges", count),
    ("Answers named", "answers", count),
    ("Charges without answer", "unreleased", count),
    ("Rowless answers", "rowless", count),
    ("Heads checked", "checked", count),
)
_VIEWS = (
    ("Attacker", "attacker", words),
    ("Planted users", "canaries", count),
    ("ε is at least", "bound", figure),
    ("Telling apart (AUROC)", "area", metric_mean),
    ("Found at 1 % false alarms", "low", share),
)
_ACTORS = (("Who", "who", words), ("Sees", "sees", words), ("Is trusted for", "trusted_for", words))
_NUMBERS = frozenset({count, figure, share, signed, metric_mean})


def page_tables(report: dict[str, Any]) -> dict[str, PageTable]:
    """The tables of a report, by name.

    Args:
        report: `report.json`, parsed.
    """
    metric = report["quality"][0]["metric"] if report["quality"] else ""
    title = METRICS[metric].title if metric in METRICS else metric
    bars = {"spent": "bar"}
    found = (
        _table("budgets", "What each platform spent of its budget", "/budgets", _BUDGETS, report, drawn=bars),
        _table(
            "releases",
            "Sums with noise: what was charged, what left, and what one user changes in it",
            "/releases",
            _RELEASES,
            report,
        ),
        _table("fields", "Every field of every answer", "/fields", _FIELDS, report),
        _table("participants", "Platforms and what they answered", "/participants", _PARTICIPANTS, report),
        _table("quality", f"Quality of recommendations ({title})", "/quality", _QUALITY, report, drawn={"gain": "gain"}),
        _table("trained", f"The global model before and after training ({title})", "/quality", _TRAINED, report),
        _table("records", "Ledgers, recomputed", "/records", _RECORDS, report),
        _table("actors", "Who sees what, and whom one has to trust", "/promise/actors", _ACTORS, report),
    )
    tables = {table.name: table for table in found}
    if report["attack"]:
        tables["attack"] = _table("attack", "What attackers prove", "/attack/views", _VIEWS, report)
    tables["history"] = _history(report)
    tables["settings"] = _settings(report)
    return tables


def _table(
    name: str,
    caption: str,
    at: str,
    columns: Sequence[tuple[str, str, Shown]],
    report: dict[str, Any],
    *,
    drawn: dict[str, str] | None = None,
) -> PageTable:
    values: Any = report
    for step in at.strip("/").split("/"):
        values = values[step]
    rows = tuple(
        tuple(
            TableCell(text=shown(row[key]), at=f"{at}/{number}/{key}", drawn=(drawn or {}).get(key, ""))
            for _, key, shown in columns
        )
        for number, row in enumerate(values)
    )
    return PageTable(name=name, caption=caption, columns=_columns(columns), rows=rows)


def _columns(columns: Sequence[tuple[str, str, Shown]]) -> tuple[TableColumn, ...]:
    return tuple(TableColumn(title=title, number=shown in _NUMBERS) for title, _, shown in columns)


def _history(report: dict[str, Any]) -> PageTable:
    columns = (("Platform", "", words), ("Run", "run", words), ("Round", "round", count), ("ε by then", "epsilon", figure))
    rows = tuple(
        (
            TableCell(text=words(one["platform"]), at=f"/history/{place}/platform"),
            *(TableCell(text=shown(point[key]), at=f"/history/{place}/points/{number}/{key}") for _, key, shown in columns[1:]),
        )
        for place, one in enumerate(report["history"])
        for number, point in enumerate(one["points"])
    )
    return PageTable(name="history", caption="Epsilon after each charged round", columns=_columns(columns), rows=rows)


def _settings(report: dict[str, Any]) -> PageTable:
    rows = tuple(
        (
            TableCell(text=key, at=""),
            TableCell(text=words(value if not isinstance(value, bool) else yes(value)), at=f"/settings/{_escaped(key)}"),
        )
        for key, value in report["settings"].items()
    )
    columns = (("Setting", "", words), ("Value", "", words))
    return PageTable(name="settings", caption="Settings of the run", columns=_columns(columns), rows=rows)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
