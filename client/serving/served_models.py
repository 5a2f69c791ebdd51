"""The models that a server answers by: own, global and fused, read or fitted once when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from client.config.platform_file import PlatformFile
from client.recommender.lists.person import Person
from client.recommender.lists.recommended import ScoresInParts
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.fitted_platform import FittedPlatform
from client.recommender.tell import Tell
from client.serving.messages import ModelName
from client.serving.nearest_taste import for_serving
from shared.base.errors import InputError
from shared.base.progress import Progress

OWN: Final = "own"
GLOBAL: Final = "global"
FUSED: Final = "fused"


class ServedModels:
    """What is recommended by.

    Args:
        model: A published model's folder; None: the own model alone.
        file, state, texts, cache, say, tell, progress: As `client.recommender.serving.recommend.recommend_items`.

    Raises:
        InputError: a model or the sources cannot be used.
    """

    def __init__(
        self,
        file: PlatformFile,
        *,
        model: Path | None,
        state: Path | None,
        texts: bool,
        cache: Path,
        say: Tell,
        tell: Tell,
        progress: Progress | None,
    ) -> None:
        self._starting = True

        def at_start(text: str) -> None:
            # What is said while a model is chosen for somebody is said to nobody: the answer has it.
            if self._starting:
                say(text)

        def fitted(folder: Path | None, *, alone: bool = False) -> FittedPlatform:
            return FittedPlatform(
                file,
                model=folder,
                state=state if folder is not None else None,
                texts=texts,
                cache=cache,
                say=at_start,
                tell=tell,
                progress=progress,
                alone=alone,
            )

        self._platforms: dict[ModelName, FittedPlatform] = {}
        main = fitted(model)
        self.shelf = main.shelf
        self.default: ModelName = OWN if model is None else FUSED
        self._platforms[self.default] = main
        if model is not None:
            if len(self.shelf.liked.values):
                self._platforms[OWN] = fitted(None)
            self._platforms[GLOBAL] = fitted(model, alone=True)
        self._ready: dict[int, PlatformModel] = {}
        someone = int(np.argmax(self.shelf.liked.lengths())) if self.shelf.users else -1
        for name, platform in self._platforms.items():
            if (platform.shelf.items, platform.shelf.users) != (self.shelf.items, self.shelf.users):
                raise InputError("a source has changed while it was read", where=str(file.path), do="start again")
            tell(f"making the {name} model ready")
            found = platform.model_for(someone, liked=1)
            if isinstance(found, PlatformModel):
                self._ready[id(found)] = for_serving(found)
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
