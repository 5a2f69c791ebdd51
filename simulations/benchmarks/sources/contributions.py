"""What the files of an ablation say together: contributions with their signs and intervals, and which operator wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from simulations.benchmarks.sources.ablation import EVERYTHING, OPERATOR, SERVING, AblationCell, measured_cells
from simulations.seed_bootstrap import crossed_estimates

HELPS, HARMS, NEITHER, UNREAD = "helps", "harms", "does not help", "changes nothing"
ALL = "all of them"
"""In the place of a platform: the users of all of a world; in that of a world, of all worlds."""

Floats = NDArray[np.float64]
By = dict[AblationCell, dict[tuple[str, str], Floats]]
Key = tuple[str, str, str, str, str]
"""World, platform, source, when, model."""
Pairs = dict[int, tuple[Floats, Floats]]
"""Seed -> NDCG@10 of every user with everything, and the difference."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """NDCG@10 with everything less NDCG@10 without a source; for an operator, its own less the default's.

    Args:
        when: As `AblationCell`.
        whole: NDCG@10 with everything, or by the default operator.
        adds: The difference; `low` and `high`: its 95 % interval, paired by user, over users and seeds.
    """

    world: str
    platform: str
    source: str
    when: str
    model: str
    users: int
    whole: float
    adds: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What can be told from chance; `UNREAD` where nobody's quality changed."""
        if self.low == self.high == 0:
            return UNREAD
        return HELPS if self.low > 0 else HARMS if self.high < 0 else NEITHER

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {name: round(getattr(self, name), 6) for name in ("whole", "adds", "low", "high")}
        return {**asdict(self), **numbers, "verdict": self.verdict}


def contributions(folder: Path) -> list[Contribution]:
    """Of every source, platform and model, and over all platforms of a world that have the source."""
    cells: By = dict(measured_cells(folder))
    found: dict[Key, Pairs] = {}
    for cell, models in cells.items():
        whole = AblationCell(world=cell.world, seed=cell.seed, source=EVERYTHING, when=SERVING)
        if cell.when == OPERATOR or cell == whole or whole not in cells:
            continue
        for (platform, model), without in models.items():
            # A source may be why there is a model of that kind at all.
            if (platform, model) in cells[whole]:
                everything = cells[whole][platform, model]
                key = (cell.world, platform, cell.source, cell.when, model)
                found.setdefault(key, {})[cell.seed] = (everything, everything - without)
    return [_contribution(key, seeds) for key, seeds in {**found, **_pooled(found, by_world=True)}.items()]


def operator_differences(folder: Path, *, default: str) -> list[Contribution]:
    """Of every operator but the default: its NDCG@10 less the default's, per platform and over all of them."""
    cells: By = {cell: found for cell, found in measured_cells(folder) if cell.when == OPERATOR}
    found: dict[Key, Pairs] = {}
    for cell, models in cells.items():
        usual = AblationCell(world=cell.world, seed=cell.seed, source=default, when=OPERATOR)
        if cell.source == default or usual not in cells:
            continue
        for (platform, model), values in models.items():
            base = cells[usual][platform, model]
            found.setdefault((cell.world, platform, cell.source, OPERATOR, model), {})[cell.seed] = (base, values - base)
    return [_contribution(key, seeds) for key, seeds in {**found, **_pooled(found, by_world=False)}.items()]


def _pooled(found: Mapping[Key, Pairs], *, by_world: bool) -> dict[Key, Pairs]:
    """The users of several platforms together, seed by seed; of one platform it would say the same again."""
    groups: dict[Key, list[Pairs]] = {}
    for (world, _, source, when, model), seeds in found.items():
        groups.setdefault((world if by_world else ALL, ALL, source, when, model), []).append(seeds)
    pooled: dict[Key, Pairs] = {}
    for key, parts in groups.items():
        # Seeds that some platform was not measured under are left out: a grid has the same users in every row.
        common = set.intersection(*(set(part) for part in parts))
        if len(parts) > 1 and common:
            pooled[key] = {
                seed: (np.concatenate([part[seed][0] for part in parts]), np.concatenate([part[seed][1] for part in parts]))
                for seed in sorted(common)
            }
    return pooled


def _contribution(key: Key, seeds: Pairs) -> Contribution:
    """Of (NDCG@10 with everything, difference) per seed."""
    # Without times it depends on the seed which of a user's items is held out, but never who has one.
    (estimate,) = crossed_estimates([np.stack([difference for _, difference in seeds.values()])])
    world, platform, source, when, model = key
    return Contribution(
        world=world if world == ALL else Path(world).name,
        platform=platform,
        source=source,
        when=when,
        model=model,
        users=len(next(iter(seeds.values()))[0]),
        whole=float(np.mean([whole.mean() for whole, _ in seeds.values()])),
        adds=estimate.value,
        low=estimate.low,
        high=estimate.high,
    )


def shown(rows: Sequence[Contribution]) -> Iterator[Contribution]:
    """Rows without those of a fused model that is the own one, and one alone of a source that no model of a platform reads."""
    by = {(row.world, row.platform, row.source, row.when, row.model): row for row in rows}
    unread = set()
    for key, row in by.items():
        own = by.get((*key[:4], "own"))
        if row.model == "fused" and own is not None and (own.whole, own.adds) == (row.whole, row.adds):
            continue
        if all(one.verdict == UNREAD for other, one in by.items() if other[:4] == key[:4]):
            if key[:4] not in unread:
                unread.add(key[:4])
                yield replace(row, model="all")
            continue
        yield row


def contribution_table(rows: Sequence[Contribution], title: str) -> Table:
    """For a person."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("world", "platform", "source", "missing at", "model", "users", "NDCG@10", "adds", "95 %", ""):
        words = name in ("world", "platform", "source", "missing at", "model", "")
        table.add_column(name, justify="left" if words else "right", no_wrap=name not in ("world", "platform"), overflow="fold")
    for row in shown(rows):
        style = "bold" if row.verdict in (HELPS, HARMS) else ""
        interval = f"{row.low:+.4f} to {row.high:+.4f}"
        named = (row.world, row.platform, row.source, row.when, row.model)
        table.add_row(*named, str(row.users), f"{row.whole:.4f}", f"{row.adds:+.4f}", interval, row.verdict, style=style)
    return table


def operator_verdict(rows: Sequence[Contribution], *, default: str) -> str:
    """Which operator wins over all worlds, in one sentence."""
    overall = [row for row in rows if row.platform == ALL]
    if not overall:
        return "no operators were compared"
    better = [row for row in overall if row.verdict == HELPS]
    worse = [row.source for row in overall if row.verdict == HARMS]
    if better:
        best = max(better, key=lambda row: row.adds)
        return f"{best.source} is better than {default}, the default: {best.adds:+.4f} ({best.low:+.4f} to {best.high:+.4f})"
    if len(worse) == len(overall):
        return f"{default}, the default, wins"
    told = f"; worse: {', '.join(worse)}" if worse else ""
    return f"no operator is better than {default}, the default, beyond chance{told}"


def as_json(rows: Sequence[Contribution], operators: Sequence[Contribution]) -> Mapping[str, Any]:
    """What `--json` prints."""
    return {"sources": [row.as_dict() for row in rows], "operators": [row.as_dict() for row in operators]}


def markdown_rows(rows: Sequence[Contribution]) -> Iterator[str]:
    """A table's lines, as a document has them."""
    yield "| world | platform | source | missing at | model | users | NDCG@10 | adds (95 %) | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in shown(rows):
        adds = f"{row.adds:+.4f} ({row.low:+.4f} to {row.high:+.4f})"
        numbers = f"{row.users} | {row.whole:.4f} | {adds}"
        yield f"| {row.world} | {row.platform} | {row.source} | {row.when} | {row.model} | {numbers} | {row.verdict} |"
