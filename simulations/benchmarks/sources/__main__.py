"""What each source adds to the own, the global and the fused model, and which fusion operator joins sources best.

    python -m simulations.benchmarks.sources WORLD... --out FOLDER [--sources attributes texts ...] [--texts] [--rounds N]
        [--fusion attention average ...] [--seeds 0 1] [--set key=value] [--json | --markdown]

Each source is taken away in turn from all platforms of a world that have it, and every model is made anew. What it adds is
NDCG@10 with everything less NDCG@10 without, paired by user, with a 95 % bootstrap interval; a source whose interval holds 0 does
not help as far as can be told. What others released does not depend on sources but the interactions as long as nothing is
trained.

--texts lets the untrained encoder read texts: the models get its likeness of items' texts, and "text" is the two towers alone,
which read profiles and reviews, too. --rounds trains adapters: then each source is taken away once where recommendations are made
alone ("serving") and once from the training as well, and "text" is the trained model on each platform.

--fusion trains with each operator, and compares the text model with the default's, on platforms that have vectors or numbers.
One file in FOLDER is one of these; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console

from client.fusion.operators import FUSIONS
from shared.base.settings import ModelSettings
from simulations.benchmarks.sources.ablation import AblationPlan, run_ablation
from simulations.benchmarks.sources.contributions import (
    as_json,
    contribution_table,
    contributions,
    markdown_rows,
    operator_differences,
    operator_verdict,
)
from simulations.benchmarks.sources.removal import REMOVALS


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", nargs="*", choices=list(REMOVALS), default=list(REMOVALS), metavar="SOURCE")
    parser.add_argument("--fusion", nargs="*", choices=list(FUSIONS), default=[], metavar="OPERATOR")
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="any setting of the runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    if options.fusion and not options.rounds:
        parser.error("operators differ by what they learn: give --rounds")
    options.out.mkdir(parents=True, exist_ok=True)
    plan = AblationPlan(
        sources=options.sources,
        operators=options.fusion,
        seeds=options.seeds,
        texts=options.texts,
        rounds=options.rounds,
        words=options.words,
    )
    for world in options.worlds:
        run_ablation(world, plan, options.out, say=lambda what: print(what, file=sys.stderr, flush=True))
    default = ModelSettings().fusion
    sources, operators = contributions(options.out), operator_differences(options.out, default=default)
    if options.json:
        json.dump(as_json(sources, operators), sys.stdout, indent=1, allow_nan=False)
    elif options.markdown:
        print("\n".join([*markdown_rows(sources), "", *markdown_rows(operators)]))
    else:
        console = Console()
        console.width = max(console.width, 130)
        if sources:
            console.print(contribution_table(sources, "What sources add"))
        if operators:
            console.print(contribution_table(operators, f"Fusion operators, against {default}"))
            console.print(operator_verdict(operators, default=default))


if __name__ == "__main__":
    main()
