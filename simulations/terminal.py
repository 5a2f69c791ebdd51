"""What a person sees of a simulation: one bar with the time left, the lines that matter, and the table at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from client.recommender.model_comparison import SHOWN
from server.monitoring.run_events import Event, Kind
from shared.base.settings import Settings
from shared.base.terminal_table import terminal_table
from shared.privacy.plan import noise_words, short_number
from shared.protocol.quality import METRICS, NDCG

_SAID = (
    Kind.JOINED,
    Kind.REFUSED,
    Kind.FAILED,
    Kind.SILENT,
    Kind.DROPPED,
    Kind.LEFT,
    Kind.RESUMED,
    Kind.PREFERRED,
    Kind.ABANDONED,
    Kind.LOST,
    Kind.PLATEAU,
    Kind.PERSONALISED,
)
_PRIVACY_OFF = "PRIVACY IS OFF (epsilon = inf): no noise is added, and nothing is promised to anyone."


class ProgressBoard:
    """A progress bar over all training steps of a simulation, on standard error so that `--json` stays clean.

    Args:
        platforms: How many.
    """

    def __init__(self, console: Console, settings: Settings, *, platforms: int) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._steps = self._bar.add_task("training steps", total=settings.steps * platforms, visible=False)
        self._texts: dict[str, Any] = {}
        self._done: dict[tuple[str, str], int] = {}
        self._begun: set[str] = set()
        # What decides whether training goes on is shown.
        self._said = (*_SAID, Kind.EVALUATED) if settings.patience else _SAID
        if not settings.private:
            console.print(f"[bold red]{_PRIVACY_OFF}[/]")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def progress(self, platform: str, what: str, done: int, total: int) -> None:
        """Take in how far a platform is; where no bar can move, as in a log, a line says what begins."""
        if not self._console.is_terminal:
            begins = what if what.endswith("training") else f"{what}: {platform}"
            if begins not in self._begun:
                self._begun.add(begins)
                self._console.print(f"{begins} ...", markup=False, highlight=False)
            return
        if what.endswith("training"):
            self._done[platform, what] = done
            self._bar.update(self._steps, completed=sum(self._done.values()), visible=True, description=f"{what}: {platform}")
            return
        if platform not in self._texts:
            self._texts[platform] = self._bar.add_task(f"{what}: {platform}", total=total)
        self._bar.update(self._texts[platform], completed=done, total=total, visible=done < total)

    def event(self, event: Event) -> None:
        """Show what the coordinator says."""
        if event.kind is Kind.JOINED and event.platform in event.tallies:
            joined = event.tallies[event.platform].joined
            noise = noise_words(joined.noise_multiplier, joined.preference_noise, joined.taste_noise)
            self._console.print(
                f"{joined.platform}: {joined.users:,} users (declared), {joined.items:,} items; "
                f"plan: epsilon {short_number(joined.planned_epsilon)} of {joined.budget:g} at delta {joined.delta:g}, "
                f"noise multiplier {noise}, {strength_words(joined.signal_to_noise)}"
            )
        elif event.kind in self._said:
            self._console.print(event.text)


def strength_words(signal_to_noise: float) -> str:
    """The bound on signal to noise in plain words.

    >>> strength_words(3.14), strength_words(float("inf"))
    ('what users agree on is at most 3.1 times the noise', 'no noise')
    """
    if signal_to_noise == float("inf"):
        return "no noise"
    return f"what users agree on is at most {signal_to_noise:.2g} times the noise"


def metrics_table(metrics: dict[str, Any]) -> Table:
    """The result of a simulation as a table of 80 columns, from the content of `metrics.json`."""
    evaluated = "exact metrics" if metrics["exact"] else "noised evaluations"
    title = f"{metrics['strategy']}, {metrics['rounds']} rounds, {metrics['seconds']:.0f} s; {evaluated} (a simulation)"
    off = None if metrics["private"] else _PRIVACY_OFF
    table = terminal_table(title, caption=off, caption_style="bold red")
    table.add_column("platform, model", overflow="fold")
    for column in (*(METRICS[name].title for name in SHOWN), "few events", "rare items", "ε of budget", "KiB sent"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in metrics["platforms"].items():
        sent = (f"{_number(result['epsilon'])} of {_number(result['budget'])}", f"{result['bytes_up'] / 1024:,.0f}")
        table.add_row(name, "", "", "", "", *sent, style="bold")
        models = [model for model in ("own", "global", "fused") if result.get(model)]
        for model in models:
            few, rare = (result["segments"][segment].get(model, {}).get(NDCG) for segment in ("few-events", "rare-items"))
            figures = [f"{result[model][key]:.3f}" for key in SHOWN]
            shown = ["-" if value is None else f"{value:.3f}" for value in (few, rare)]
            table.add_row(f"  {model}", *figures, *shown)
        gain = result.get("fused_minus_own")
        if gain:
            style = "bold" if gain["low"] > 0 else ""
            table.add_row("  fused - own", f"{gain['mean']:+.3f}", style=style)
            table.add_row("  95 %", f"{gain['low']:+.3f}", f"{gain['high']:+.3f}", style=style)
        ranked, held_out = result["segments"].get("all", {}).get("users", 0), result.get("held_out_users") or 0
        if models and ranked < held_out:
            table.add_row(f"  {ranked:,} of {held_out:,} users ranked", style="dim")
        if not models:
            table.add_row("  nobody to evaluate", *("-" for _ in SHOWN), "-", "-")
        for stage in ("before", "federated", "personal") if metrics["rounds"] else ():
            if result[stage]:
                chosen = stage if stage != "personal" or result["personal_chosen"] else "personal: global"
                table.add_row(f"  text, {chosen}", *(f"{result[stage][key]:.3f}" for key in SHOWN), style="dim")
        table.add_section()
    for name, why in metrics.get("left_out", {}).items():
        table.add_row(name, "left out", style="bold")
        table.add_row(f"  {why}", style="dim")
        table.add_section()
    return table


def _number(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{value:.4g}"
