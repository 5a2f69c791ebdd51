"""The models that a server answers by: own, global and fused, read or fitted once when it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from client.config.platform_file import PlatformFile
from client.recommender.lists.person import Person
from client.recommender.lists.recommended import ScoresInParts
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.fitted_platform import FittedPlatform, ModelInputs
from client.recommender.serving.lazy_tables import LazyTables
from client.recommender.tell import UNREPORTED, Reports
from client.serving.messages import ModelName
from client.serving.nearest_taste import for_serving
from shared.base.errors import InputError

OWN: Final = "own"
GLOBAL: Final = "global"
FUSED: Final = "fused"


class ServedModels:
    """What is recommended by.

    Args:
        inputs: With a published model's folder, or without: then the own model alone.

    Raises:
        InputError: a model or the sources cannot be used.
    """

    def __init__(self, file: PlatformFile, inputs: ModelInputs, reports: Reports = UNREPORTED) -> None:
        self._starting, model = True, inputs.model

        def at_start(text: str) -> None:
            # What is said while a model is chosen for somebody is said to nobody: the answer has it.
            if self._starting:
                reports.say(text)

        rows = LazyTables(file, reports.tell)

        def fitted(own: ModelInputs, *, alone: bool = False) -> FittedPlatform:
            return FittedPlatform(file, own, replace(reports, say=at_start), alone=alone, rows=rows)

        self.default: ModelName = OWN if model is None else FUSED
        main = fitted(inputs)
        self.shelf = main.shelf
        self._platforms: dict[ModelName, FittedPlatform] = {}
        self._ready: dict[int, PlatformModel] = {}
        someone = int(np.argmax(self.shelf.liked.lengths())) if self.shelf.users else -1

        def take(name: ModelName, platform: FittedPlatform) -> None:
            if (platform.shelf.items, platform.shelf.users) != (self.shelf.items, self.shelf.users):
                raise InputError("a source has changed while it was read", where=str(file.path), do="start again")
            reports.tell(f"making the {name} model ready")
            found = platform.model_for(someone, liked=1)
            if isinstance(found, PlatformModel):
                self._ready[id(found)] = for_serving(found)
            self._platforms[name] = platform

        take(self.default, main)
        if model is not None:
            if len(self.shelf.liked.values):
                # After the fused model, on the way to which it was fitted and kept.
                take(OWN, fitted(inputs.of_own_model))
            take(GLOBAL, fitted(inputs, alone=True))
        self.same_as_own = self._same_as_own()
        self._starting = False

    @property
    def names(self) -> list[ModelName]:
        """Of the models that there are."""
        order: tuple[ModelName, ...] = (OWN, GLOBAL, FUSED)
        return [name for name in order if name in self._platforms]

    def model_for(self, name: ModelName, person: Person) -> ScoresInParts:
        """What recommends to somebody.

        Raises:
            InputError: there is no such model.
        """
        if name not in self._platforms:
            raise InputError("there is no such model here", do=f"ask for one of: {', '.join(self.names)}")
        found = self._platforms[name].model_for(person.number, liked=len(person.liked))
        return self._ready.get(id(found), found)

    def _same_as_own(self) -> bool:
        """Whether validation took the own model in the place of the fused one: its parts are those of the own one."""
        if not {OWN, FUSED} <= self._platforms.keys():
            return False
        own, fused = (self._platforms[name].fitted for name in (OWN, FUSED))
        return own.weights == fused.weights and own.preferences.share == fused.preferences.share
