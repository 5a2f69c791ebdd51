"""What a published model says of the ledgers of the platforms behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from server.registry.run_facts import FACTS, Facts, PlatformFacts, facts_in, published_settings
from shared.base.errors import InputError, StorageError
from shared.base.regular_files import open_regular
from shared.base.settings import Settings
from shared.ledger.evidence import LedgerEvidence, MechanismClaim, Witness
from shared.preferences.sum_kind import SumKind
from shared.privacy.plan import sum_multiplier
from shared.privacy.releases import ReleaseKind
from shared.registry.manifest import MANIFEST, MAX_MANIFEST, parse_manifest
from shared.registry.signing import PublicKey


def model_evidence(folder: Path, *, trusted: Iterable[PublicKey] = ()) -> LedgerEvidence:
    """Heads, epsilons and mechanisms that a model's facts name.

    Args:
        folder: Of a model that was pulled, or of a run, with its model in it.
        trusted: Keys of which one must have signed the model; without any, only damage is noticed.

    Raises:
        InputError: there is no model, or its facts are not what its manifest says.
        Untrusted: no trusted key signed it.
        StorageError: it cannot be read.
    """
    keys = tuple(trusted)
    place = next((one for one in (folder, folder / "model", folder.parent) if (one / MANIFEST).exists()), folder)
    try:
        manifest = parse_manifest(_bounded(place / MANIFEST), str(place / MANIFEST))
        where = next(
            (
                path
                for entry in manifest.files
                if Path(entry.name).name == FACTS
                for path in (place / entry.name, place / FACTS)
                if path.exists() and hashlib.sha256(_bounded(path)).hexdigest() == entry.sha256
            ),
            None,
        )
    except FileNotFoundError:
        raise InputError("no model is there", where=str(folder), do="name the folder that `fedfuse pull` made") from None
    except OSError as error:
        raise StorageError(f"the model cannot be read ({error.strerror})", where=str(folder)) from None
    if where is None:
        raise InputError(f"{FACTS} is missing, or is not what the manifest says", where=str(place), do="pull the model again")
    notes = [f"the model in {folder} was not checked against any key: name the coordinator's with --trust"]
    if keys:
        manifest.require_signed(keys, where=str(place))
        notes = []
    facts = facts_in(_bounded(where), str(where))
    return LedgerEvidence(witnesses=tuple(_witnesses(facts)), claims=tuple(_claims(facts)), notes=tuple(notes))


def _witnesses(facts: Facts) -> Iterable[Witness]:
    for one in facts.platforms:
        if one.ledger:
            yield Witness(platform=one.name, head=one.ledger, source=f"the model of run {facts.run}", epsilon=one.epsilon)


def _claims(facts: Facts) -> Iterable[MechanismClaim]:
    settings = published_settings(facts)
    if not settings.private:
        return
    for one in facts.platforms:
        yield MechanismClaim(
            platform=one.name,
            run=facts.run,
            rounds=one.rounds if settings.trains else 0,
            steps=settings.round_steps,
            sample_rate=settings.training.rate(one.users),
            noise_multiplier=None if settings.distributed else one.noise_multiplier,
            once={} if settings.distributed else _once(one, settings),
        )


def _once(platform: PlatformFacts, settings: Settings) -> Mapping[ReleaseKind, float]:
    """Noise multipliers of the sums that are released once, as the platform declared them."""

    def of(sum_: SumKind) -> float:
        return sum_multiplier(sum_, preference_noise=platform.preference_noise, taste_noise=platform.taste_noise)

    # Two sums are called popularity: that of what is liked of shared items, and the prior of training.
    prior = settings.privacy.prior_noise_multiplier if settings.trains else 0.0
    return {
        ReleaseKind.POPULARITY: max(of(SumKind.LIKES), prior),
        ReleaseKind.PREFERENCES: of(SumKind.PREFERENCES),
        ReleaseKind.TASTE: of(SumKind.TASTE),
    }


def _bounded(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(MAX_MANIFEST + 1)
