"""The end of a run: its adapter becomes a model in the run's own folder, with its card, whole or not at all.

It is not signed, and no version of a registry: that is what `fedfuse publish` makes of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from server.monitoring.run_events import EarlyStop, Tally
from server.registry.model_card import model_card_files
from server.registry.run_facts import facts_of, origin_of
from shared.base.atomic_files import exchange, sync_folder, write_whole
from shared.base.errors import StorageError
from shared.base.settings import Settings
from shared.model.backbone import load_backbone, weights_sha256
from shared.model.peft_export import export as plain_peft
from shared.model.peft_export import plain
from shared.preferences.shared_preferences import FILE, SharedPreferences, save_preferences
from shared.preferences.taste_map import FILE as TASTE_FILE
from shared.preferences.taste_map import TasteMap, save_taste_map
from shared.protocol.messages import Arrays
from shared.registry.manifest import MANIFEST, describe
from strategies.secure_sum.mutual_trust import UntrustedPlatform

MODEL = "model"
Export = Callable[[Arrays, Settings, Path], None]
"""Writes the files of a model into a folder."""


def publish_adapter(
    adapter: Arrays,
    settings: Settings,
    out: Path,
    *,
    run: str,
    rounds: int,
    tallies: Mapping[str, Tally],
    stopped: EarlyStop | None = None,
    start: Arrays | None = None,
    export: Export | None = None,
    preferences: SharedPreferences | None = None,
    taste: TasteMap | None = None,
    left_out: Iterable[UntrustedPlatform] = (),
) -> Path:
    """Put the model of a finished run in `out/model`, with its card and its manifest, in place of an older one.

    Args:
        stopped: Why training ended before its last round, if it did.
        start: Adapter that training began from, if it was not a fresh one.
        export: Writes the tensors and the settings; None: `shared.model.peft_export.export`.
        preferences: What the platforms' users like together; None where none were shared.
        taste: Which directions of texts they like together; None without one.
        left_out: Platforms that joined, and are in no sum of the run.

    Raises:
        StorageError: it cannot be written; an older one is still there.
    """
    target, draft = out / MODEL, None
    backbone = ""
    if settings.trains:
        backbone = weights_sha256(settings.model.backbone) or load_backbone(settings.model.backbone).sha256
    facts = facts_of(
        plain(adapter, settings),
        settings,
        run=run,
        rounds=rounds,
        tallies=tallies,
        stopped=stopped,
        start=start,
        backbone_sha256=backbone,
        ledgers=out / "ledger",
        preferences=preferences,
        taste=taste,
        left_out=left_out,
    )
    try:
        draft = Path(tempfile.mkdtemp(dir=out, prefix=f".{MODEL}."))
        fresh = draft / "fresh"
        fresh.mkdir()
        # What was not trained is as it was drawn, and says nothing.
        if settings.trains and export is None:
            plain_peft(adapter, settings, fresh, backbone_sha256=backbone)
        elif settings.trains and export is not None:
            export(adapter, settings, fresh)
        if preferences is not None:
            save_preferences(fresh / FILE, preferences)
        if taste is not None:
            save_taste_map(fresh / TASTE_FILE, taste)
        for name, content in model_card_files(facts).items():
            write_whole(fresh / name, content)
        write_whole(fresh / MANIFEST, describe(fresh, origin_of(facts)).content)
        if target.exists():
            exchange(fresh, target)
        else:
            fresh.rename(target)
        sync_folder(out)
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(target), do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target
