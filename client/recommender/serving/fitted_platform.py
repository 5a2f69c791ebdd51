"""A platform's recommender: what was kept of an earlier call where nothing has changed, else read and fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from client.config.platform_file import PlatformFile
from client.recommender.evidence import NOBODY
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.kept_model import keep_fitted, kept_fitted, state_digest
from client.recommender.serving.lazy_tables import SEED, LazyTables
from client.recommender.tell import UNREPORTED, Reports
from shared.base.errors import StorageError

if TYPE_CHECKING:
    from client.recommender.global_model import GlobalModel
    from client.recommender.pulled_model import UsableModel
    from shared.registry.signing import PublicKey


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What a recommender is made of beside the platform's file.

    Args:
        model, state, trusted, texts, cache: As `client.recommender.serving.recommend.recommend_items`.
    """

    model: Path | None = None
    state: Path | None = None
    trusted: Sequence[PublicKey] = ()
    texts: bool = False
    cache: Path

    @property
    def of_own_model(self) -> ModelInputs:
        """The same without a published model."""
        return replace(self, model=None, state=None, trusted=())

    def kept_as(self, file: PlatformFile) -> tuple[Path, str | None]:
        """Where what is fitted on them is kept, and what it depends on; None where that cannot be said."""
        further = [path for path in (self.model, self.state) if path is not None]
        options = {"model": str(self.model), "state": str(self.state), "texts": self.texts}
        trusted = [key.fingerprint for key in self.trusted]
        digest = state_digest(file, {**options, "trusted": trusted}, further)
        name = hashlib.sha256(repr(options).encode()).hexdigest()[:12]
        return self.cache.parent / f"recommender-{name}.safetensors", digest


class FittedPlatform:
    """What a platform recommends by.

    A fitted model is kept beside the platform's state, unless the released parts alone are asked for or the model has an adapter,
    which reads users' texts.

    Args:
        alone: Whether only what was published counts.
        rows: The platform's tables, where another recommender of it reads them, too.

    Raises:
        InputError: the model or the sources cannot be used.
        StorageError, Untrusted: the model's folder is not what was published.
    """

    def __init__(
        self,
        file: PlatformFile,
        inputs: ModelInputs,
        reports: Reports = UNREPORTED,
        *,
        alone: bool = False,
        rows: LazyTables | None = None,
    ) -> None:
        self._file, self._inputs, self._reports, self._alone = file, inputs, reports, alone
        self._rows = rows or LazyTables(file, reports.tell)
        self._fitted: PlatformModel | None = None
        self._usable: UsableModel | None = None
        path, self.digest = inputs.kept_as(file) if not alone else (Path(), None)
        found = None if self.digest is None else kept_fitted(path, self.digest)
        if found is not None:
            self.shelf, self._fitted = found
        else:
            self._read()

    def _read(self) -> None:
        # Torch and all that reads tables take seconds to load, and what was kept needs none of them.
        from client.recommender.pulled_model import open_model, use_model
        from client.sources.platform_tables import require_items, require_usable

        file, inputs, say = self._file, self._inputs, self._reports.say
        opened = None if inputs.model is None else open_model(inputs.model, trusted=inputs.trusted, say=say)
        tables = self._rows.tables
        require_items(tables, where=str(file.path))
        if opened is None:
            require_usable(tables, where=str(file.path))
        self.shelf = self._rows.shelf
        if opened is not None:
            self._usable = use_model(
                opened, file, tables, cache=inputs.cache, state=inputs.state, say=say, progress=self._reports.progress
            )

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
                self._reports.say("this platform has no liked item yet: the model answers by what was released alone")
                return self._released
            if not liked and self._usable.text is not None and user != NOBODY and self.shelf.profiled[user]:
                return self._released
        return self.fitted

    @cached_property
    def _released(self) -> GlobalModel:
        from client.recommender.own_model import training_histories

        assert self._usable is not None
        return self._usable.alone(training_histories(self._rows.tables, self._rows.split))

    @property
    def fitted(self) -> PlatformModel:
        """The model that was fitted on the platform's rows; kept where that is possible.

        Raises:
            InputError: there is no liked item.
        """
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def _keep(self, model: PlatformModel, path: Path, digest: str | None) -> None:
        if digest is None:
            return
        try:
            keep_fitted(path, self.shelf, model, digest)
        except StorageError as error:
            self._reports.say(f"the fitted model could not be kept, so the next call fits it again: {error}")

    def _fit(self) -> PlatformModel:
        from client.recommender.pulled_model import fit_with_model

        inputs, reports = self._inputs, self._reports
        own, fused = fit_with_model(
            self._file,
            self._rows.tables,
            self._rows.split,
            self._usable,
            texts=inputs.texts,
            cache=inputs.cache,
            seed=SEED,
            calibrate=True,
            tell=reports.tell,
            progress=reports.progress,
        )
        if self._usable is not None and fused is own:
            reports.say("the model does not predict this platform's users better than its own rows do: those alone decide")
        if self._usable is None or self._usable.text is None:
            self._keep(fused, inputs.kept_as(self._file)[0], self.digest)
            if self._usable is not None:
                # It was fitted on the way, and `fedfuse serve` wants it next.
                self._keep(own, *inputs.of_own_model.kept_as(self._file))
        return fused
