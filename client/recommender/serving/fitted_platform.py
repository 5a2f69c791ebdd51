"""A platform's recommender: what was kept of an earlier call where nothing has changed, else read and fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from client.config.platform_file import PlatformFile
from client.recommender.evidence import NOBODY
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.kept_model import Shelf, keep_fitted, kept_fitted, state_digest
from client.recommender.tell import Tell
from shared.base.errors import InputError, StorageError
from shared.base.progress import Progress

if TYPE_CHECKING:
    from client.examples.split import Split
    from client.recommender.global_model import GlobalModel
    from client.recommender.pulled_model import UsableModel
    from client.sources.tables import Tables
    from shared.registry.signing import PublicKey

SEED = 0


class FittedPlatform:
    """What a platform recommends by.

    A fitted model is kept beside the platform's state, unless the released parts alone are asked for or the model has an adapter,
    which reads users' texts.

    Args:
        file, model, state, trusted, texts, cache, say, tell, progress: As `client.recommender.serving.recommend.recommend_items`.
        alone: Whether only what was published counts.

    Raises:
        InputError: the model or the sources cannot be used.
        StorageError, Untrusted: the model's folder is not what was published.
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
        trusted: Sequence[PublicKey] = (),
        alone: bool = False,
    ) -> None:
        self._file, self._texts, self._cache, self._alone = file, texts, cache, alone
        self._say, self._tell, self._progress = say, tell, progress
        self._fitted: PlatformModel | None = None
        self._tables: Tables | None = None
        self._split: Split | None = None
        self._usable: UsableModel | None = None
        further = [path for path in (model, state) if path is not None]
        options = {"model": str(model), "state": str(state), "texts": texts}
        self.digest = None if alone else state_digest(file, {**options, "trusted": [key.fingerprint for key in trusted]}, further)
        name = hashlib.sha256(repr(options).encode()).hexdigest()[:12]
        self._path = cache.parent / f"recommender-{name}.safetensors"
        found = None if self.digest is None else kept_fitted(self._path, self.digest)
        if found is not None:
            self.shelf, self._fitted = found
        else:
            self._read(model, state, trusted)

    def _read(self, model: Path | None, state: Path | None, trusted: Sequence[PublicKey]) -> None:
        # Torch, polars and all that reads tables take seconds to load, and what was kept needs none of them.
        from client.examples.split import nothing_held_out
        from client.recommender.pulled_model import open_model, use_model
        from client.sources.platform_tables import read_tables, require_usable

        file = self._file
        opened = None if model is None else open_model(model, trusted=trusted, say=self._say)
        self._tell("reading the platform's tables")
        tables = self._tables = read_tables(file, lenient=True)
        if tables.items < 2:
            found = f"the catalogue has {tables.items} item"
            raise InputError(found, where=str(file.path), do="a recommender needs two at least")
        if opened is None:
            require_usable(tables, where=str(file.path))
        self._split = nothing_held_out(tables, seed=SEED)
        self.shelf = Shelf.of(tables, self._split)
        if opened is not None:
            self._usable = use_model(opened, file, tables, cache=self._cache, state=state, say=self._say, progress=self._progress)

    def model_for(self, user: int, *, liked: int) -> PlatformModel | GlobalModel:
        """What recommends to somebody.

        Args:
            user: Their number, or `NOBODY`.
            liked: Items in their history.
        """
        if self._fitted is not None:
            return self._fitted
        if self._usable is not None:
            if self._alone:
                return self._released
            if not len(self.shelf.liked.values):
                self._say("this platform has no liked item yet: the model answers by what was released alone")
                return self._released
            if not liked and self._usable.text is not None and user != NOBODY and self.shelf.profiled[user]:
                return self._released
        return self.fitted

    @cached_property
    def _released(self) -> GlobalModel:
        from client.recommender.own_model import training_histories

        assert self._usable is not None and self._tables is not None and self._split is not None
        return self._usable.alone(training_histories(self._tables, self._split))

    @property
    def fitted(self) -> PlatformModel:
        """The model that was fitted on the platform's rows; kept where that is possible.

        Raises:
            InputError: there is no liked item.
        """
        if self._fitted is None:
            self._fitted = self._fit()
            if self.digest is not None and (self._usable is None or self._usable.text is None):
                try:
                    keep_fitted(self._path, self.shelf, self._fitted, self.digest)
                except StorageError as error:
                    self._say(f"the fitted model could not be kept, so the next call fits it again: {error}")
        return self._fitted

    def _fit(self) -> PlatformModel:
        from client.recommender.fused_model import fit_fused_model
        from client.recommender.pulled_model import untrained_text

        usable, tables, split = self._usable, self._tables, self._split
        assert tables is not None and split is not None
        own, fused = fit_fused_model(
            tables,
            split,
            factors=None if usable is None else usable.factors,
            popularity=None if usable is None or usable.preferences is None else usable.preferences.popularity,
            text=untrained_text(self._file, tables, usable, texts=self._texts, cache=self._cache, progress=self._progress),
            adapted=usable.own_text.items if usable and usable.own_text else None,
            taste=usable.taste if usable else None,
            seed=SEED,
            calibrate=True,
            tell=self._tell,
        )
        if usable is not None and fused is own:
            self._say("the model does not predict this platform's users better than its own rows do: those alone decide")
        return fused
