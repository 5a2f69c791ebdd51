"""What `fedfuse check` found of a platform, in words for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from shared.base.terminal_table import terminal_console, terminal_table

_EVENTS = 20
"""Events of one source that are shown on a terminal."""


def show_check(report: dict[str, Any]) -> None:
    """Print what was found of one platform."""
    from shared.privacy.plan import noise_words, short_number

    console = terminal_console()
    users = report["users"]
    console.print(
        f"[bold]{report['platform']}[/]: {users['with_interactions']:,} users with interactions (declared {users['declared']:,}, "
        f"evaluated {users['evaluated']:,}), {report['items']:,} items, {report['interactions']:,} interactions of which "
        f"{report['positive']:,} positive"
    )
    keys = report["keys"]
    if keys["items"]:
        twins = f"; {keys['shared']:,} share theirs with another item here, and count as one" if keys["shared"] else ""
        console.print(f"[bold]keys:[/] {keys['items']:,} of {report['items']:,} items have one that can be read{twins}")
    else:
        console.print("[bold]keys:[/] none are declared: items are in common only with platforms of the very same catalogue")
    table = terminal_table("sources")
    for name in ("source", "kind", "rows read", "kept", "left out, and why", "cells made alike"):
        table.add_column(name, justify="right" if name in ("rows read", "kept") else "left", overflow="fold")
    for source in report["sources"]:
        why = "\n".join(f"{rows:,} {escape(reason)}" for reason, rows in source["dropped"].items()) or "-"
        alike = "\n".join(f"{cells:,} {escape(how)}" for how, cells in source["changed"].items()) or "-"
        table.add_row(escape(source["source"]), source["kind"], f"{source['read']:,}", f"{source['kept']:,}", why, alike)
    console.print(table)
    _show_order(console, report["sources"])
    if report["weights_differ"]:
        console.print(
            "[bold]weights differ:[/] what has one above 0 is liked, and counts as one like in all that is released or trained; "
            "in the history that this platform's own and fused models read it counts by its weight where that predicts its users "
            "better (`fedfuse evaluate` says what was chosen)"
        )
    cut = [f"{escape(name)} {one['cut']:,} of {one['of']:,}" for name, one in report["texts_cut"].items() if one["cut"]]
    if cut:
        more = "tokens in the source, or model.user_tokens and model.item_tokens of the run, raise the limit"
        console.print(f"[bold]texts that are cut[/] (of the first that there are): {', '.join(cut)}; {more}")
    console.print(f"[bold]an item as text:[/] {escape(report['item_example'])}")
    for example in report["examples"]:
        console.print(f"[bold]user {escape(str(example['user']))} as text:[/] {escape(example['text'])}")
        held = example["held_out"]
        nothing = f"nothing: {example['because']}"
        console.print(f"  held out: {nothing if held is None else escape(held)}")
    forecast = report["forecast"]
    if not forecast["possible"]:
        console.print(f"[bold red]the planned run would be refused:[/] {escape(forecast['why'])}")
    elif forecast["epsilon"] == "inf":
        console.print("[bold red]PRIVACY IS OFF (epsilon = inf): no noise would be added, and nothing is promised to anyone.[/]")
    else:
        batch = f"{forecast['batch']:,.0f} users expected in each, sample rate {forecast['sample_rate']:.3g}"
        what = [f"{forecast['rounds']} rounds ({forecast['steps']} private steps, {batch})"] if forecast["steps"] else []
        what += ["a taste map"] if forecast["taste_noise"] else []
        what += ["sums of what users like together"] if forecast["preference_noise"] else []
        noise = noise_words(forecast["noise_multiplier"], forecast["preference_noise"], forecast["taste_noise"])
        spent = f"epsilon {short_number(forecast['epsilon'])} of the {forecast['left']:.3g} left of {forecast['budget']:g}"
        console.print(
            f"[bold]forecast[/] for {' and '.join(what)}: {spent} at delta {forecast['delta']:g}; noise multiplier {noise}, "
            f"group size {forecast['group_size']}, signal to noise at most {short_number(forecast['signal_to_noise'], 1)} "
            f"({forecast['accountant']})"
        )
    for warning in report["warnings"]:
        if warning == forecast.get("why"):
            continue
        loud = warning in report["privacy_warnings"]
        console.print(f"[bold {'red' if loud else 'yellow'}]warning:[/] {escape(warning)}")


def _show_order(console: Any, sources: Sequence[dict[str, Any]]) -> None:
    """Whether times are used and what they span, and what every event counts for."""
    timed = any(source["times"] is not None for source in sources if source["kind"] == "interactions")
    for source in sources:
        name = escape(source["source"])
        if source["times"] is not None:
            console.print(f"[bold]times of {name}:[/] used, {source['times']['first']} to {source['times']['last']}")
        elif source["kind"] in ("interactions", "reviews"):
            cure = "where a column has times, name it: columns = { ..., time = NAME }"
            drawn = (
                "texts are in the order of reading" if source["kind"] == "reviews" else "what is held out is drawn by the seed"
            )
            order = "rows are before all that have one" if timed else drawn
            console.print(f"[bold]times of {name}:[/] none: {order}; {cure}")
        events = source["events"]
        if events:
            shown = (
                f"{escape(one['event'])} {one['rows']:,} x {'no weight' if one['weight'] is None else format(one['weight'], 'g')}"
                for one in events[:_EVENTS]
            )
            more = f"; {len(events) - _EVENTS:,} more" if len(events) > _EVENTS else ""
            console.print(f"[bold]events of {name}:[/] {'; '.join(shown)}{more}")
