"""A pulled model's folder: shared preferences, a taste map, an adapter; and what of it a platform can use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.examples.split import Split, leave_one_out
from client.recommender.evidence import word_vectors
from client.recommender.frozen_texts import frozen_item_vectors
from client.recommender.fused_model import fit_fused_model
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories, Sparse
from client.recommender.platform_model import PlatformModel
from client.recommender.released_preferences import ReleasedPreferences, released_by_others, released_on
from client.recommender.taste import TasteOnItems
from client.recommender.tell import Tell, silent
from client.recommender.text_model import TextModel, no_adapter
from client.run.run_state import load_run_state
from client.sources.item_keys import hashes_of
from client.sources.tables import Tables
from shared.base.errors import InputError
from shared.base.progress import Progress, counted
from shared.base.settings import ModelSettings
from shared.model.backbone import load_backbone
from shared.model.peft_export import PublishedModel, load_published
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences
from shared.preferences.taste_directions import item_directions
from shared.preferences.taste_map import FILE as TASTE_FILE
from shared.preferences.taste_map import TasteMap, load_taste_map
from shared.registry.manifest import MANIFEST
from shared.registry.pulled_folder import require_unaltered
from shared.registry.signing import PublicKey

Floats = NDArray[np.float32]

_ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "fedfuse.json")
"""Any of these speaks of an adapter; one that lacks the others is damaged, and that is said."""
_OPENED = (*_ADAPTER, "head.safetensors", FILE, TASTE_FILE)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """What is in a folder, read and checked.

    Args:
        preferences: None where the federation shared none.
        adapter: None for a federation of preferences alone.
        taste: None where no taste map was summed.
        platforms: Names of those that made it; none where no manifest says.
    """

    folder: Path
    preferences: SharedPreferences | None
    adapter: PublishedModel | None
    taste: TasteMap | None = None
    platforms: tuple[str, ...] = ()

    def says_something(self, tables: Tables) -> bool:
        """Whether it is of use on a platform: it reads texts, or has preferences of items that the platform has."""
        if self.adapter is not None or self.taste is not None:
            return True
        return self.preferences is not None and bool(np.isin(hashes_of(tables), self.preferences.items).any())


@dataclass(frozen=True, kw_only=True)
class UsableModel:
    """What of a model a platform can use.

    Args:
        preferences: On the platform's items; None where there are none.
        shared: The same as they were published.
        joined: Whether this platform's users are in them.
        text: The adapter as it was published; None without one.
        own_text: The same with the parameters that its run left on this platform, if it ran here; else `text`.
        taste: The taste map on the platform's items; None without one.
        frozen: Vectors of the items' texts that the map is over, float32 (items, width).
        words: Of the items' texts, (items, words).
    """

    preferences: ReleasedPreferences | None
    shared: SharedPreferences | None
    joined: bool
    text: TextModel | None
    own_text: TextModel | None
    taste: TasteOnItems | None = None
    frozen: Floats | None = field(default=None, repr=False)
    words: Sparse | None = field(default=None, repr=False)

    def beside_own(self, tables: Tables, *, seed: int) -> tuple[Floats | None, Floats | None]:
        """Factors and popularity as `fused_with` takes them: without the platform's own part, where it is in them.

        Args:
            seed: Of the run: what its evaluation held out was not summed, whatever trains here.
        """
        if self.shared is None or self.preferences is None:
            return None, None
        if not self.joined:
            return self.preferences.factors, self.preferences.popularity
        words = word_vectors(tables) if self.words is None else self.words
        return released_by_others(self.shared, hashes_of(tables), words=words, liked=leave_one_out(tables, seed=seed).train)

    def alone(self, histories: Histories) -> GlobalModel:
        """The released parts, for the platform's users."""
        return GlobalModel(histories, preferences=self.preferences, text=self.text, taste=self.taste, words=self.words)


def untrained_text(
    file: PlatformFile, tables: Tables, model: UsableModel | None, *, texts: bool, cache: Path, progress: Progress | None = None
) -> Floats | None:
    """Vectors of the items' texts by the frozen encoder, float32 (items, width); None where none is at hand.

    Args:
        model: Its adapter's encoder is at hand.
        texts: Whether the embedded encoder is loaded where the model has none.
    """
    if model is not None and model.text is not None:
        return model.text.untrained().items
    if model is not None and model.frozen is not None:
        return model.frozen
    if not texts:
        return None
    frozen = no_adapter(ModelSettings())
    return TextModel(file, frozen, tables=tables, cache=cache, where=str(file.path), progress=progress).items


def fit_with_model(
    file: PlatformFile,
    tables: Tables,
    split: Split,
    model: UsableModel | None,
    *,
    texts: bool,
    cache: Path,
    seed: int,
    calibrate: bool,
    tell: Tell = silent,
    progress: Progress | None = None,
) -> tuple[PlatformModel, PlatformModel]:
    """The own model of a platform and the one fused with a pulled model, as `fit_fused_model`; without a model both are one.

    Args:
        texts, cache, progress: As `untrained_text`.
        seed, calibrate, tell: As `fit_fused_model`.
    """
    factors, popularity = model.beside_own(tables, seed=seed) if model else (None, None)
    return fit_fused_model(
        tables,
        split,
        factors=factors,
        popularity=popularity,
        text=untrained_text(file, tables, model, texts=texts, cache=cache, progress=progress),
        adapted=model.own_text.items if model and model.own_text else None,
        taste=model.taste if model else None,
        seed=seed,
        calibrate=calibrate,
        tell=tell,
    )


def open_model(folder: Path, *, trusted: Iterable[PublicKey] = (), say: Tell = silent) -> ModelFolder:
    """Read a published model, once its files are those of the manifest that lies with them.

    Args:
        trusted: Public keys, of which one must have signed the manifest; without any, only its hashes are looked at.
        say: Called with what a person should know.

    Raises:
        InputError: there is no such folder, it is no model's, or one of its files is damaged.
        StorageError: a file is not what the manifest says.
        Untrusted: none of `trusted` signed the manifest.
    """
    what = "name the folder of a model: RUN/model, or what `fedfuse pull` gave"
    if not folder.is_dir():
        raise InputError("there is no folder of a model", where=str(folder), do=what)
    found = require_unaltered(folder, opened=_OPENED, trusted=trusted)
    preferences = load_preferences(folder / FILE) if (folder / FILE).exists() else None
    adapter = load_published(folder) if any((folder / name).exists() for name in _ADAPTER) else None
    taste = load_taste_map(folder / TASTE_FILE) if (folder / TASTE_FILE).exists() else None
    if preferences is None and adapter is None and taste is None:
        raise InputError("this is no model: it has neither shared preferences nor an adapter", where=str(folder), do=what)
    if found is None:
        say(f"{folder} has no {MANIFEST}: whether its files are those that were published cannot be checked")
    platforms = found.origin.platforms if found else ()
    return ModelFolder(folder=folder, preferences=preferences, adapter=adapter, taste=taste, platforms=platforms)


def holds_model(folder: Path) -> bool:
    """Whether `open_model` would find anything in a folder."""
    return any((folder / name).exists() for name in (*_ADAPTER, FILE, TASTE_FILE))


def use_model(
    opened: ModelFolder,
    file: PlatformFile,
    tables: Tables,
    *,
    cache: Path,
    state: Path | None,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> UsableModel:
    """A model on a platform.

    Args:
        cache: Folder of the trunk cache.
        state: The platform's file of the run that made the model, if it ran here.
        say: Called with what the platform's people should know.

    Raises:
        InputError: nothing of it can be used here, or the adapter's backbone is another one.
    """
    shared, preferences, words = opened.preferences, None, word_vectors(tables)
    if shared is not None:
        preferences = released_on(shared, hashes_of(tables), words=words)
        if not preferences.released.any():
            found = "none of this platform's items is among the shared preferences' items"
            if opened.adapter is None and opened.taste is None:
                raise InputError(
                    found,
                    where=str(opened.folder),
                    do="declare the items' public keys (`key` in the source of items), or pull a model with an adapter",
                )
            say(f"{found}: of this model only what reads texts is used")
            preferences = None
    text = own_text = None
    if opened.adapter is not None:
        known = load_run_state(state) if state else None
        text = own_text = TextModel(file, opened.adapter, tables=tables, cache=cache, where=str(opened.folder), progress=progress)
        if known is not None:
            own_text = text.with_state(known)
    taste, frozen = None, None
    if opened.taste is not None:
        frozen = _frozen(opened.taste, file, tables, cache=cache, where=str(opened.folder), progress=progress)
        directions = item_directions(frozen, opened.taste.directions)
        taste = TasteOnItems.of(directions, opened.taste.matrix.astype(np.float64))
    return UsableModel(
        preferences=preferences,
        shared=shared,
        joined=file.name in opened.platforms,
        text=text,
        own_text=own_text,
        taste=taste,
        frozen=frozen,
        words=words,
    )


def _frozen(taste: TasteMap, file: PlatformFile, tables: Tables, *, cache: Path, where: str, progress: Progress | None) -> Floats:
    """The vectors that a map is over.

    Raises:
        InputError: the backbone here is another one.
    """
    backbone = load_backbone(taste.backbone)
    if backbone.shape.hidden != taste.width or (taste.backbone_sha256 and taste.backbone_sha256 != backbone.sha256):
        raise InputError(
            "the taste map is over another backbone", where=where, do=f"use the one with SHA-256 {taste.backbone_sha256}"
        )
    advance = counted(progress, "reading the items' texts", tables.items)
    model = ModelSettings(backbone=taste.backbone, item_tokens=taste.item_tokens)
    return frozen_item_vectors(file, tables, model, cache=cache, advance=advance)
