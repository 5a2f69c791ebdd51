"""`fedfuse evaluate`: what a pulled model is worth to a platform, on its own rows. Exact, so nothing of it may leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.config.platform_file import PlatformFile
from client.model.prepared_platform import PlatformRows, read_rows
from client.recommender.fused_model import fit_fused_model
from client.recommender.model_comparison import SHOWN, ModelComparison, compare_models
from client.recommender.own_model import UserScores, training_histories
from client.recommender.platform_model import PlatformModel
from client.recommender.pulled_model import open_model, untrained_text, use_model
from client.recommender.tell import Tell, silent
from shared.base.errors import InputError
from shared.base.progress import Progress
from shared.base.settings import Settings


@dataclass(frozen=True, kw_only=True)
class OwnEvaluation:
    """What a platform's people are shown.

    Args:
        comparison: By segment.
        chosen: Which model recommends on this platform, "own" or "fused".
        settings: Model -> what validation chose.
    """

    comparison: ModelComparison
    chosen: str
    settings: dict[str, dict[str, Any]]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are shown."""
        return SHOWN

    @property
    def lines(self) -> list[str]:
        """What validation chose, in words."""
        shown = []
        for name, chosen in self.settings.items():
            parts = ["own preferences", *([f"{chosen['share']:g} x released preferences"] if chosen["share"] else [])]
            parts += [f"{weight:.2g} x {part}" for part, weight in chosen["weights"].items()]
            fades = (
                f"an item counts half after {chosen['half_life']:g} later ones"
                if chosen["half_life"]
                else "all items count alike"
            )
            shown.append(f"The {name} model: {' + '.join(parts)} (ridge {chosen['ridge']:g}; {fades}).")
        if self.chosen == "fused":
            return [
                *shown,
                "Recommendations come from the fused model: it predicts left-out items of the platform's users better.",
            ]
        return [*shown, "Recommendations come from the own model: nothing released predicts left-out items better."]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"recommended_by": self.chosen, "settings": self.settings, "segments": self.comparison.as_dict()}


def evaluate_platform(
    file: PlatformFile,
    *,
    model: Path | None,
    seed: int,
    texts: bool = False,
    cache: Path,
    state: Path | None = None,
    say: Tell = silent,
    tell: Tell = silent,
    progress: Progress | None = None,
    read: PlatformRows | None = None,
) -> OwnEvaluation:
    """Fit the own and the fused model on what trains, and rank every held-out item by these and by the global model.

    Args:
        model: A published model's folder; without it, the own model alone is looked at.
        seed: Which items are held out where there are no times. A model of a run of another seed has seen some of them.
        texts: Whether the items' texts are encoded although the model has no adapter.
        cache: Folder of the trunk cache.
        state: The platform's file of the run that made the model, if it is here.
        say: Called with what a person should know.
        tell: Called with what is being done.
        read: The sources, where they were read already.

    Raises:
        InputError: the model or the sources cannot be used, or nobody has two liked items.
    """
    opened = None if model is None else open_model(model)
    tell("reading the platform's tables")
    rows = read_rows(file, Settings(seed=seed)) if read is None else read
    tables, split = rows.tables, rows.split
    if opened is not None and not opened.says_something(tables):
        say("none of this platform's items is among the model's (are their public keys declared?): its own model is shown alone")
        opened = None
    if (split.held < 0).all():
        raise InputError("no user has two liked items, so none can be held out", where=str(file.path), do="evaluate later")
    usable = None if opened is None else use_model(opened, file, tables, cache=cache, state=state, say=say, progress=progress)
    own, fused = fit_fused_model(
        tables,
        split,
        factors=usable.factors if usable else None,
        popularity=usable.preferences.popularity if usable and usable.preferences else None,
        text=untrained_text(file, tables, usable, texts=texts, cache=cache, progress=progress),
        adapted=usable.own_text.items if usable and usable.own_text else None,
        taste=usable.taste if usable else None,
        seed=seed,
        tell=tell,
    )
    models: dict[str, UserScores] = {"own": own}
    if usable:
        models |= {"global": usable.alone(training_histories(tables, split)), "fused": fused}
    tell("ranking held-out items")
    return OwnEvaluation(
        comparison=compare_models(models, split, seed=seed),
        chosen="own" if fused is own else "fused",
        settings={"own": _chosen(own), **({} if fused is own else {"fused": _chosen(fused)})},
    )


def _chosen(model: PlatformModel) -> dict[str, Any]:
    preferences = model.preferences
    return {
        "ridge": preferences.model.ridge,
        "share": preferences.share,
        "half_life": preferences.half_life,
        "weights": {name: float(f"{weight:.4g}") for name, weight in model.weights.items()},
        "gain": round(model.gain, 6),
    }
