"""What `gain` found: one file a cell, and from these rows, gains with intervals, tables and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from client.recommender.model_comparison import COMPARED, MODELS, SHOWN, RankedUsers
from shared.protocol.quality import NDCG
from simulations.benchmarks.baselines import BASELINES
from simulations.cell_files import read_cell, write_cell

PREFERENCES = "preferences"
UNTRAINED = "untrained"
"""The fused model without the adapter."""
SHOWN_ALONE = ("words", UNTRAINED, *BASELINES)
WIDTH = 100
"""Columns that a table takes, at most."""
_RESAMPLES = 2000
_SHORT = {"popularity": "popular", "attributes x popularity": "by attr.", "item-knn": "knn"}
_LEFT = ("platform", "segment")
_PARTS = "segment/"

Floats = NDArray[np.float64]
Found: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class GainCell:
    """What is measured at once.

    Args:
        world: Folder of the world as it was before it was dealt.
        platform: The platform whose parts take part; with `dealt` 1, all platforms of the world do.
        epsilon: Of the federation; None for models that need none, own and baselines.
        newcomers: Numbers of first users of a platform that joins afterwards; none: the platforms of the federation are measured.
        strategy: Of the federation.
    """

    world: str
    platform: str
    dealt: int
    epsilon: float | None
    seed: int
    newcomers: tuple[int, ...] = ()
    strategy: str = PREFERENCES

    @property
    def name(self) -> str:
        """Name of its file."""
        told = "baselines" if self.epsilon is None else f"{self.epsilon:g}"
        later = f"-newcomers-{'-'.join(map(str, self.newcomers))}" if self.newcomers else ""
        trained = "" if self.strategy == PREFERENCES or self.epsilon is None else f"-{self.strategy}"
        return f"{self.platform}-{self.dealt}-{told}-{self.seed}{later}{trained}"


def save_cell(path: Path, cell: GainCell, ranked: Mapping[str, RankedUsers]) -> None:
    """Write what was found, whole or not at all."""
    parts = {
        part: {**users.quality, **{f"{_PARTS}{name}": mask for name, mask in users.segments.items()}}
        for part, users in ranked.items()
    }
    write_cell(path, asdict(cell), parts)


def load_cell(path: Path) -> tuple[GainCell, list[tuple[str, dict[str, Floats]]]]:
    """A cell, and by platform as it was before it was dealt: model or segment -> per user."""
    facts, measured = read_cell(path)
    cell = GainCell(**{**facts, "newcomers": tuple(facts.get("newcomers", ()))})
    grouped: dict[str, dict[str, list[Floats]]] = {}
    for part, values in measured.items():
        # Parts of one platform are one platform; every number of a newcomer's first users is a case of its own.
        name = part if cell.dealt == 1 or cell.newcomers else cell.platform
        for what, array in values.items():
            grouped.setdefault(name, {}).setdefault(what, []).append(array)
    return cell, [
        (cell.platform if cell.newcomers else name, {what: np.concatenate(parts) for what, parts in found.items()})
        for name, found in grouped.items()
    ]


def summary_of(folder: Path, *, strategy: str = PREFERENCES) -> Found:
    """All rows and gains of a folder's cells of one strategy, and of those that need none.

    Returns:
        "rows": a model's means over a segment's users; epsilon is null for models that need none. "gains": fused / own - 1 over
        all seeds' users; null where the own model finds nothing. "training", where an adapter was trained: fused / untrained - 1.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[tuple[str, int, float, str], list[tuple[Floats, Floats]]] = {}
    trained: dict[tuple[str, int, float, str], list[tuple[Floats, Floats]]] = {}
    for cell, platform, segment, models in _segments(folder, strategy):
        users = len(next(iter(models.values())))
        facts = {"platform": platform, "dealt": cell.dealt, "epsilon": cell.epsilon, "seed": cell.seed, "segment": segment}
        for model, values in models.items():
            means = values.mean(0) if users else np.full(len(COMPARED), np.nan)
            shown = {name: _finite(means[COMPARED.index(name)]) for name in SHOWN}
            rows.append({**facts, "model": model, **shown, "users": users})
        if cell.epsilon is not None:
            ndcg = {model: values[:, COMPARED.index(NDCG)] for model, values in models.items()}
            key = (platform, cell.dealt, cell.epsilon, segment)
            pooled.setdefault(key, []).append((ndcg["own"], ndcg["fused"]))
            if UNTRAINED in ndcg:
                trained.setdefault(key, []).append((ndcg[UNTRAINED], ndcg["fused"]))
    found = {"rows": rows, "gains": _gains(pooled)}
    return {**found, "training": _gains(trained)} if trained else found


def _gains(pooled: Mapping[tuple[str, int, float, str], Sequence[tuple[Floats, Floats]]]) -> list[dict[str, Any]]:
    return [
        {"platform": platform, "dealt": dealt, "epsilon": epsilon, "segment": segment, **_gain_of(pairs)}
        for (platform, dealt, epsilon, segment), pairs in sorted(pooled.items())
    ]


def _segments(folder: Path, strategy: str) -> Iterator[tuple[GainCell, str, str, dict[str, Floats]]]:
    """Cell, platform, segment, and every model's metrics of the segment's users."""
    for path in sorted(folder.glob("*.npz")):
        cell, platforms = load_cell(path)
        for platform, values in platforms if cell.epsilon is None or cell.strategy == strategy else ():
            models = [name for name in (*MODELS, *SHOWN_ALONE) if name in values]
            for key, mask in values.items():
                if key.startswith(_PARTS):
                    chosen = mask.astype(bool)
                    yield cell, platform, key.removeprefix(_PARTS), {model: values[model][chosen] for model in models}


def _gain_of(pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, float | None]:
    """Ratio of the means over users, less 1, and its bootstrap interval; None where the own model finds nothing."""
    own, fused = np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
    if not own.any():
        return {"gain": None, "low": None, "high": None}
    random = np.random.default_rng(0)
    drawn = [_ratio(own[chosen], fused[chosen]) for chosen in (random.integers(0, len(own), len(own)) for _ in range(_RESAMPLES))]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"gain": _ratio(own, fused), "low": float(low), "high": float(high)}


def _ratio(own: Floats, fused: Floats) -> float:
    return float(fused.mean() / own.mean() - 1) if own.any() else float("nan")


def gain_table(found: Found) -> Table | None:
    """Means over seeds, and the gain, for a person; None where no federation ran."""
    title = "NDCG@10 on held-out items; gain is fused / own - 1"
    return _table_of(found["rows"], found["gains"], MODELS, title, "gain") if found["gains"] else None


def training_table(found: Found) -> Table | None:
    """The same of what training adds; None where nothing was trained."""
    title = "NDCG@10 on held-out items; training adds fused / untrained - 1"
    models = ("own", UNTRAINED, "fused")
    return _table_of(found["rows"], found["training"], models, title, "adds") if found.get("training") else None


def _table_of(
    rows: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]], models: Sequence[str], title: str, name: str
) -> Table:
    table = _empty_table(title, ("platform", "dealt", "ε", "segment", "users", *models, name, "95 %"))
    for gain in gains:
        mine = _alike(rows, gain, ("platform", "dealt", "epsilon", "segment"))
        means = [_mean([row[NDCG] for row in mine if row["model"] == model]) for model in models]
        share = (
            ("-", "-") if gain["gain"] is None else (_change(gain["gain"]), f"{_change(gain['low'])} to {_change(gain['high'])}")
        )
        users = sum(row["users"] for row in mine if row["model"] == "own")
        table.add_row(
            gain["platform"], str(gain["dealt"]), f"{gain['epsilon']:g}", gain["segment"], str(users), *map(_shown, means), *share
        )
    return table


def baseline_table(found: Found) -> Table | None:
    """Own beside the baselines, means over seeds, the best of these in bold; None where none was fitted."""
    rows = [row for row in found["rows"] if row["epsilon"] is None]
    if not rows:
        return None
    names = [_SHORT.get(name, name) for name in BASELINES]
    table = _empty_table(
        "NDCG@10 on held-out items, without a federation", ("platform", "dealt", "segment", *names, "own", "own / best")
    )
    for key in dict.fromkeys((row["platform"], row["dealt"], row["segment"]) for row in rows):
        mine = _alike(rows, dict(zip(("platform", "dealt", "segment"), key, strict=True)), ("platform", "dealt", "segment"))
        means = {model: _mean([row[NDCG] for row in mine if row["model"] == model]) for model in (*BASELINES, "own")}
        best = max((means[name] for name in BASELINES if not np.isnan(means[name])), default=float("nan"))
        cells = [f"[bold]{_shown(means[name])}[/bold]" if means[name] == best else _shown(means[name]) for name in BASELINES]
        share = f"{means['own'] / best - 1:+.1%}" if best > 0 else "-"
        table.add_row(key[0], str(key[1]), key[2], *cells, _shown(means["own"]), share)
    return table


def plot_gains(found: Found, path: Path) -> None:
    """Gain of all users with its interval, per platform, number of parts and epsilon, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    gains = [gain for gain in found["gains"] if gain["segment"] == "all" and gain["gain"] is not None]
    platforms = list(dict.fromkeys(gain["platform"] for gain in gains)) or ["nothing was measured"]
    epsilons = sorted({gain["epsilon"] for gain in gains})
    colours = dict(zip(epsilons, mpl.colormaps["viridis"](np.linspace(0.75, 0.1, max(len(epsilons), 1))), strict=False))
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            1, len(platforms), figsize=(2.2 + 2.9 * len(platforms), 4.6), sharey=True, squeeze=False, layout="constrained"
        )
        for panel, platform in zip(axes[0], platforms, strict=True):
            mine = [gain for gain in gains if gain["platform"] == platform]
            dealt = sorted({gain["dealt"] for gain in mine})
            panel.axhline(0.0, color="0.45", linewidth=1.2)
            panel.grid(axis="y", color="0.92")
            panel.set_axisbelow(True)
            for at, epsilon in enumerate(epsilons):
                shift = 0.22 * (at - (len(epsilons) - 1) / 2)
                some = [gain for gain in mine if gain["epsilon"] == epsilon]
                where = [dealt.index(gain["dealt"]) + shift for gain in some]
                middle = np.array([gain["gain"] for gain in some])
                off = np.abs(np.array([[gain["low"], gain["high"]] for gain in some]).reshape(-1, 2).T - middle)
                panel.errorbar(
                    where, middle, off, fmt="o", markersize=8, linewidth=2.4, color=colours[epsilon],
                    markeredgecolor="white", label=f"ε = {epsilon:g}",
                )  # fmt: skip
                # In numbers the largest epsilon alone: three of them would cover each other.
                for place, value, up in zip(where, middle, off[1], strict=True) if epsilon == epsilons[-1] else ():
                    panel.annotate(
                        f"{value:+.0%}", (place, value + up), (0, 5), textcoords="offset points", ha="center", fontsize=9,
                        color=colours[epsilon],
                    )  # fmt: skip
            panel.set_title(platform, fontweight="bold", loc="left", fontsize=12)
            panel.set_xticks(range(len(dealt)), [f"{parts} parts" if parts > 1 else "whole" for parts in dealt])
            panel.set_xlim(-0.6, max(len(dealt), 1) - 0.4)
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel.tick_params(length=0)
        axes[0][0].set_ylabel("NDCG@10, fused against own")
        if len(epsilons) > 1:
            axes[0][-1].legend(frameon=False, loc="upper left")
        figure.suptitle("What a platform gains by joining", x=0.01, ha="left", fontsize=15, fontweight="bold")
        figure.supxlabel(
            "Platforms that the users are dealt to. Bars: 95 % of bootstraps over users. "
            + (f"ε = {epsilons[0]:g}." if len(epsilons) == 1 else ""),
            fontsize=9,
            color="0.35",
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _empty_table(title: str, columns: Sequence[str]) -> Table:
    """Names of platforms are folded where they are long; numbers never."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        long = name == "platform"
        table.add_column(
            name,
            justify="left" if name in _LEFT else "right",
            no_wrap=not long,
            overflow="fold",
            min_width=8 if long else None,
            max_width=20 if long else None,
        )
    return table


def _alike(rows: Sequence[Mapping[str, Any]], to: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["users"] and all(row[name] == to[name] for name in names)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _change(gain: float) -> str:
    return f"{gain:+.1%}" if gain < 10 else f"{1 + gain:.0f}x"


def _shown(mean: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.4f}".removeprefix("0")
