"""The adapter of an earlier run as the first one of another: training goes on, on rows that have come since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError, ProtocolError
from shared.base.settings import Settings
from shared.model.adapter import layout_of, require_layout
from shared.model.backbone import shape_of
from shared.model.factor_schedule import PLAIN, scheme_of
from shared.model.peft_export import ADAPTER_SETTINGS, load_published


def starting_adapter(model: Path, settings: Settings) -> dict[str, NDArray[np.float32]]:
    """A published model's adapter, for a run with these settings to begin from.

    It is public, so beginning from it costs no privacy; what platforms release for it from now on is charged as ever.

    Raises:
        InputError: there is no such model, it is of another form than the run trains, or the run trains none.
    """
    if not settings.trains:
        raise InputError("a run that trains no adapter begins from none", where="--from", do="name --rounds, or leave --from out")
    if scheme_of(settings.strategy) != PLAIN:
        raise InputError(
            f"strategy {settings.strategy!r} draws its own factors, and cannot go on from a published adapter",
            where="--from",
            do="choose one that trains both factors, such as fedavg or secure-sum",
        )
    if model.exists() and not (model / ADAPTER_SETTINGS).exists():
        raise InputError(
            "that run trained no adapter: what platforms like together is summed anew by every run",
            where=str(model),
            do="leave --from out, or name a run with rounds",
        )
    found = load_published(model)
    before, after = found.model.model_dump(), settings.model.model_dump()
    differs = [f"model.{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if differs:
        raise InputError(
            f"the model was trained with other settings ({'; '.join(differs)})",
            where=str(model),
            do="begin with its settings: --config RUN/run.toml",
        )
    try:
        require_layout(found.adapter, layout_of(shape_of(settings.model.backbone), settings.model), where=str(model))
    except ProtocolError as error:
        raise InputError(error.found, where=str(model), do="name the model of a run that trained both factors") from None
    return {name: np.asarray(value, np.float32) for name, value in found.adapter.items()}
