"""`fedfuse evaluate`: what a pulled model is worth to a platform, on its own rows. Exact, so nothing of it may leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.evaluation.list_metrics import item_facts
from client.examples.split import Split
from client.model.prepared_platform import PlatformRows, read_rows
from client.recommender.evidence import word_vectors
from client.recommender.model_comparison import SHOWN, ModelComparison, RankedUsers, compared, rank_users, ranked_users
from client.recommender.own_model import UserScores, training_histories
from client.recommender.platform_model import PlatformModel
from client.recommender.pulled_model import fit_with_model, open_model, use_model
from client.recommender.quality.model_quality import JudgedModel, QualityReport, judge_model, quality_report
from client.recommender.quality.user_segments import declared_segments, usual_segments
from client.recommender.tell import Tell, silent
from client.sources.tables import Tables
from shared.base.errors import InputError
from shared.base.progress import Progress
from shared.base.settings import Settings
from shared.registry.signing import PublicKey

MOST_USERS = 10_000
"""Users whose held-out items are ranked. Of more, that many represent all: a mean over 10,000 is known to some .003."""


@dataclass(frozen=True, kw_only=True)
class OwnEvaluation:
    """What a platform's people are shown.

    Args:
        comparison: By segment.
        chosen: Which model recommends on this platform, "own" or "fused".
        settings: Model -> what validation chose.
        ranked: What every model makes of every user.
        user_ids, held: Of these users, their ids and their held-out items'.
        held_out_users: Users with a held-out item, of whom `ranked` were drawn.
        quality: All metrics at several lengths, where they were asked for.
    """

    comparison: ModelComparison
    chosen: str
    settings: dict[str, dict[str, Any]]
    ranked: RankedUsers = field(repr=False)
    user_ids: Sequence[str] = field(repr=False)
    held: Sequence[str] = field(repr=False)
    held_out_users: int
    quality: QualityReport | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are shown."""
        return SHOWN

    @property
    def lines(self) -> list[str]:
        """What validation chose, in words."""
        shown, ranked = [], len(self.ranked.users)
        if ranked < self.held_out_users:
            shown.append(f"Of {self.held_out_users:,} users with a held-out item, {ranked:,} drawn at random were ranked.")
        for name, chosen in self.settings.items():
            parts = ["own preferences", *([f"{chosen['share']:g} x released preferences"] if chosen["share"] else [])]
            parts += [f"{weight:.2g} x {part}" for part, weight in chosen["weights"].items()]
            fades = (
                f"an item counts half after {chosen['half_life']:g} later ones"
                if chosen["half_life"]
                else "all items count alike"
            )
            if chosen["emphasis"]:
                fades += f"; by the weight of its event or value to the power of {chosen['emphasis']:g}"
            shown.append(f"The {name} model: {' + '.join(parts)} (ridge {chosen['ridge']:g}; {fades}).")
        if self.chosen == "fused":
            return [
                *shown,
                "Recommendations come from the fused model: it predicts left-out items of the platform's users better.",
            ]
        return [*shown, "Recommendations come from the own model: nothing released predicts left-out items better."]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {
            "recommended_by": self.chosen,
            "settings": self.settings,
            "held_out_users": self.held_out_users,
            "segments": self.comparison.as_dict(),
        }
        return found if self.quality is None else {**found, "quality": self.quality.as_dict()}


def evaluate_platform(
    file: PlatformFile,
    *,
    model: Path | None,
    seed: int,
    texts: bool = False,
    cache: Path,
    state: Path | None = None,
    trusted: Sequence[PublicKey] = (),
    say: Tell = silent,
    tell: Tell = silent,
    progress: Progress | None = None,
    read: PlatformRows | None = None,
    lengths: Sequence[int] = (),
    by: Sequence[str] = (),
    most_users: int = MOST_USERS,
) -> OwnEvaluation:
    """Fit the own and the fused model on what trains, and rank held-out items by these and by the global model.

    Args:
        model: A published model's folder; without it, the own model alone is looked at.
        seed: Which items are held out where there are no times. A model of a run of another seed has seen some of them.
        texts: Whether the items' texts are encoded although the model has no adapter.
        cache: Folder of the trunk cache.
        state: The platform's file of the run that made the model, if it is here.
        trusted: Public keys, of which one must have signed the model; without any, no signature is asked for.
        say: Called with what a person should know.
        tell: Called with what is being done.
        read: The sources, where they were read already.
        lengths: Of the lists that all metrics are wanted of; by default none, and the models are compared alone.
        by: Columns of profiles or items whose values are segments, each as source.column.
        most_users: Users whose held-out items are ranked; of more, that many are drawn at random. 0: all.

    Returns:
        `comparison` by segment, `chosen`: which model recommends here, "own" or "fused"; `ranked`, what each model makes of
        each user; with `lengths`, `quality`: all metrics at these lengths, with 95 % intervals.

    Raises:
        InputError: an option, the model or the sources cannot be used, or nobody has two liked items and one not met.
        StorageError, Untrusted: the model's folder is not what was published.

    | given | result |
    |---|---|
    | no `model` | the own model alone |
    | a length of 0 | `InputError` |
    | a `by` that no source has | `InputError`, with the columns that there are |
    | nobody with two liked items | `InputError` |
    | more users with a held-out item than `most_users` | models fitted on all of them, and the figures of those drawn |
    """
    if any(length < 1 for length in lengths):
        raise InputError(f"a list of {min(lengths)} items", where="--k", do="give lengths from 1 on, such as 5,10,20")
    opened = None if model is None else open_model(model, trusted=trusted, say=say)
    tell("reading the platform's tables")
    rows = read_rows(file, Settings(seed=seed)) if read is None else read
    tables, split = rows.tables, rows.split
    if opened is not None and not opened.says_something(tables):
        say("none of this platform's items is among the model's (are their public keys declared?): its own model is shown alone")
        opened = None
    if (split.held < 0).all():
        found = "no user has two liked items and one that they have not met, so nothing can be held out"
        raise InputError(found, where=str(file.path), do="evaluate later")
    sample = split.holding_out(most_users, seed=seed) if most_users else split
    # A column that is not there is said before anything is fitted.
    segments = {**usual_segments(sample, items=tables.items), **declared_segments(file, tables, sample, by)} if lengths else {}
    usable = None if opened is None else use_model(opened, file, tables, cache=cache, state=state, say=say, progress=progress)
    own, fused = fit_with_model(
        file, tables, split, usable, texts=texts, cache=cache, seed=seed, calibrate=bool(lengths), tell=tell, progress=progress
    )
    models: dict[str, UserScores] = {"own": own}
    if usable:
        models |= {"global": usable.alone(training_histories(tables, split)), "fused": fused}
    tell("ranking held-out items")
    if lengths:
        ranked, quality = _judged(models, segments, tables, sample, lengths=lengths, seed=seed, tell=tell, progress=progress)
    else:
        ranked, quality = rank_users(models, sample), None
    return OwnEvaluation(
        comparison=compared(ranked, seed=seed),
        chosen="own" if fused is own else "fused",
        settings={"own": _chosen(own), **({} if fused is own else {"fused": _chosen(fused)})},
        ranked=ranked,
        user_ids=[tables.user_ids[user] for user in ranked.users.tolist()],
        held=[tables.item_ids[item] for item in split.held[ranked.users].tolist()],
        held_out_users=int((split.held >= 0).sum()),
        quality=quality,
    )


def _judged(
    models: Mapping[str, UserScores],
    segments: Mapping[str, NDArray[np.bool_]],
    tables: Tables,
    split: Split,
    *,
    lengths: Sequence[int],
    seed: int,
    tell: Tell,
    progress: Progress | None,
) -> tuple[RankedUsers, QualityReport]:
    judged: dict[str, JudgedModel] = {}
    for name, one in models.items():
        same = next((before for before in judged if models[before] is one), None)
        calibration = one.calibration if isinstance(one, PlatformModel) else None
        judged[name] = (
            judge_model(one, split, longest=max(lengths), calibration=calibration, seed=seed, progress=progress)
            if same is None
            else judged[same]
        )
    tell("resampling users")
    likes = np.bincount(split.train.values, minlength=tables.items)
    facts = item_facts(likes, word_vectors(tables), users=split.users)
    found = quality_report(judged, segments, facts, lengths=lengths, seed=seed)
    return ranked_users({name: (one.lists.rank, one.candidates) for name, one in judged.items()}, split), found


def _chosen(model: PlatformModel) -> dict[str, Any]:
    preferences = model.preferences
    return {
        "ridge": preferences.model.ridge,
        "share": preferences.share,
        "half_life": preferences.half_life,
        "emphasis": preferences.emphasis,
        "weights": {name: float(f"{weight:.4g}") for name, weight in model.weights.items()},
        "gain": round(model.gain, 6),
    }
