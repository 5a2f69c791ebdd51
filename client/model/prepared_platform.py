"""One platform made ready for one model: sources read, examples written, trunk features cached.

Everything here is computed from the platform's rows and the public settings; nothing of it leaves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from client.compute.backend import require_compiler, training_encoder
from client.compute.feature_cache import TrunkCache
from client.config.platform_file import PlatformFile
from client.examples.friends import Friends
from client.examples.item_texts import ItemTexts, build_catalogue
from client.examples.split import Split, leave_one_out
from client.examples.texts import Texts
from client.examples.user_examples import HeldOutViews, Reader, TrainingViews
from client.examples.vectors import item_vectors
from client.fusion.operators import fusion_named
from client.model.item_bank import Bank
from client.model.planned_reads import planned_reads
from client.model.towers import Rows, Towers, cached_rows
from client.model.user_rows import HeldOutRows, TrainingRows
from client.privacy.failure_guard import Guard, raising
from client.sources.item_keys import hashes_of
from client.sources.platform_tables import read_tables, require_items, require_usable
from client.sources.tables import Tables
from shared.base.progress import Progress, counted
from shared.base.settings import Settings
from shared.model.backbone import load_backbone
from shared.model.encoder import default_device
from shared.preferences.item_index import Hashes, declared_items
from shared.secagg.shared_catalogues import catalogue_digest


@dataclass(frozen=True, kw_only=True)
class PlatformRows:
    """A platform's sources, read: all that preferences need."""

    file: PlatformFile
    tables: Tables
    split: Split

    @property
    def name(self) -> str:
        """The platform's public name."""
        return self.file.name

    @cached_property
    def catalogue_digest(self) -> bytes:
        """Digest of its public item ids."""
        return catalogue_digest(self.tables.item_ids)

    @cached_property
    def item_hashes(self) -> Hashes:
        """Hash of every item's public key, uint64 (items,)."""
        return hashes_of(self.tables)

    @cached_property
    def item_list(self) -> bytes:
        """The hashes as they are declared (`shared.preferences.item_index.declared_items`)."""
        return declared_items(self.item_hashes)


@dataclass(frozen=True, kw_only=True)
class PreparedPlatform(PlatformRows):
    """A platform ready to train and to recommend.

    Args:
        bank: Encodes the items.
        reader: Writes users' texts.
        training, held_out: What of users is read for training and for evaluations.
    """

    catalogue: ItemTexts
    friends: Friends
    reader: Reader
    texts: Texts
    towers: Towers
    items: Rows
    bank: Bank
    training: TrainingRows
    held_out: HeldOutRows


def preparation_key(settings: Settings) -> str:
    """What a prepared platform depends on; two settings with the same one can share it."""
    training = settings.training
    if not settings.trains:
        return json.dumps([settings.seed])
    parts = [settings.model.model_dump(), settings.seed, training.views, training.targets, training.compile]
    return json.dumps(parts, sort_keys=True)


def read_rows(
    file: PlatformFile, settings: Settings, *, tables: Tables | None = None, split: Split | None = None
) -> PlatformRows:
    """Read the sources; no model and no text is touched.

    Args:
        tables: The sources, where they were read already.
        split: Their split under these settings, where it is at hand.

    Raises:
        InputError: the sources cannot be used.
    """
    if tables is None:
        tables = read_tables(file)
        require_usable(tables, where=str(file.path))
    require_items(tables, where=str(file.path))
    return PlatformRows(file=file, tables=tables, split=leave_one_out(tables, seed=settings.seed) if split is None else split)


def read_platform(
    file: PlatformFile, settings: Settings, *, tables: Tables | None = None, split: Split | None = None
) -> tuple[Tables, Split, ItemTexts, Friends, Reader, Texts]:
    """Read the sources and set up the texts: all that needs no model weights but the tokenizer.

    Args:
        tables, split: As `read_rows`.

    Raises:
        InputError: the sources cannot be used.
    """
    rows = read_rows(file, settings, tables=tables, split=split)
    tables, split = rows.tables, rows.split
    backbone = load_backbone(settings.model.backbone)
    texts = Texts(backbone.tokenizer, longest=backbone.shape.positions)
    declared = {name: source.tokens for name, source in file.sources.items() if source.tokens is not None}
    catalogue = build_catalogue(tables, texts, settings.model, declared)
    friends = Friends(tables, split)
    return tables, split, catalogue, friends, Reader(tables, catalogue, texts, friends, settings.model, declared), texts


def prepare(
    file: PlatformFile,
    settings: Settings,
    *,
    cache: Path,
    tables: Tables | None = None,
    split: Split | None = None,
    guard: Guard = raising,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> PreparedPlatform:
    """Make a platform ready: the slow part of joining, most of it the trunk features of texts not yet cached.

    Users' texts are encoded ahead where the run is going to read most of them anyway (`client/model/planned_reads.py`), else when
    their user is sampled.

    Args:
        cache: Folder of the trunk cache, inside the platform's own state.
        tables, split: As `read_rows`.
        guard: What becomes of a failure on users' texts.
        device: Where to compute; by default the first GPU, else the processor.

    Raises:
        InputError: the sources or the backbone cannot be used.
        StorageError: the cache cannot be written.
    """
    device = device or default_device()
    require_compiler(settings, device)
    tables, split, catalogue, friends, reader, texts = read_platform(file, settings, tables=tables, split=split)
    encoder = training_encoder(load_backbone(settings.model.backbone), settings, device)
    planned = planned_reads(settings, users=file.users, items=tables.items, width=encoder.hidden)
    trunk = TrunkCache(cache, encoder, most=planned.bytes_kept)
    training = TrainingRows(TrainingViews(tables, split, reader, settings.training, seed=settings.seed), tables, trunk)
    advance = counted(progress, "reading texts", tables.items + (len(training.everybodys()) if planned.ahead else 0))
    towers, vectors = Towers(encoder, fusion_named(settings.model.fusion)), item_vectors(tables)
    items = cached_rows(trunk, catalogue.sequences, vectors, advance)
    if planned.ahead:
        # Where it fails they are read when their users are sampled, and who cannot be read then is left out alone.
        guard(lambda: training.read_ahead(advance), lambda: None, what="encoding users' texts ahead")
    return PreparedPlatform(
        file=file,
        tables=tables,
        split=split,
        catalogue=catalogue,
        friends=friends,
        reader=reader,
        texts=texts,
        towers=towers,
        items=items,
        bank=Bank(towers, items, catalogue.sequences, vectors),
        training=training,
        held_out=HeldOutRows(HeldOutViews(split, reader), tables, trunk),
    )
