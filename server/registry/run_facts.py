"""What a finished run says of its model: `training.json`, from which the model card is written again when the model is published.

Everything here is public: declared by the platforms, released by them with noise, or a setting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainSerializer, ValidationError

from server.monitoring.run_events import EarlyStop, Tally
from shared.base.errors import FedfuseError, InputError
from shared.base.settings import Scalar, Settings, explain, flatten, settings_digest, unflatten
from shared.ledger.format import Entry, now
from shared.ledger.reading import read_ledger
from shared.model.adapter import adapter_digest
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.taste_map import TasteMap
from shared.protocol.messages import Arrays, Metrics
from shared.registry.manifest import MAX_MANIFEST, Name, Origin, Perhaps256, read_json
from strategies.secure_sum.mutual_trust import UntrustedPlatform

FACTS = "training.json"
_FORMAT = 2

# JSON knows no infinity; `ge` also refuses a NaN.
Amount = Annotated[float, Field(ge=0), PlainSerializer(lambda value: "inf" if math.isinf(value) else value)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
MetricName = Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9@_-]+$")]
Word = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9 ._+-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedQuality(_Frozen):
    """How well a platform's held-out items were ranked; `exact` only in a simulation, else noised and charged."""

    round: Count
    quality: dict[MetricName, Share]
    exact: bool


class PlatformFacts(_Frozen):
    """One platform's part.

    Args:
        users, items: Declared users, public catalogue.
        epsilon: Spent, as the platform's last answer says; `delta` is its own.
        rounds: Rounds whose sum holds its update.
        released: Kind of release -> how often it was charged; empty where the coordinator has not seen the ledger.
        accountant: That computed epsilon; '' likewise.
        ledger: Head of its ledger, the receipt that an auditor checks the ledger against.
    """

    name: Name
    users: Count
    items: Count
    budget: Amount
    delta: Share
    epsilon: Amount
    noise_multiplier: Amount
    preference_noise: Amount = 0.0
    taste_noise: Amount = 0.0
    rounds: Count
    released: dict[Word, Count] = {}
    accountant: Word = ""
    ledger: Perhaps256 = ""
    before: PublishedQuality | None = None
    federated: PublishedQuality | None = None


class PreferenceFacts(_Frozen):
    """What the published preferences are of.

    Args:
        items: Shared items that they are of.
        factors: Directions above the noise.
        noise: Standard deviation of the noise in the sum's diagonal, where one user's part has norm 1.
        users: Declared users of the platforms in the sum.
    """

    items: Count
    factors: Count
    noise: Amount
    users: Count


class TasteFacts(_Frozen):
    """What the published taste map is of.

    Args:
        directions: Of the items' texts.
        strong: Those of the sum that are above the noise.
        noise, users: As `PreferenceFacts`.
        backbone: Whose vectors the directions are of.
    """

    directions: Count
    strong: Count
    noise: Amount
    users: Count
    backbone: Annotated[str, Field(max_length=200)]


class LeftOutFacts(_Frozen):
    """A platform that joined and is in no sum: `strategies.secure_sum.mutual_trust.UntrustedPlatform`."""

    platform: Name
    unknown_to: tuple[Name, ...] = ()
    strangers: tuple[Name, ...] = ()

    def __str__(self) -> str:
        """Why, and who has to do what."""
        return str(UntrustedPlatform(platform=self.platform, unknown_to=self.unknown_to, strangers=self.strangers))


class StoppedFacts(_Frozen):
    """Why training ended before its last round: `server.monitoring.run_events.EarlyStop`."""

    round: Count
    rounds: Count
    best: Count
    evaluations: Count

    def __str__(self) -> str:
        """For a person."""
        return str(EarlyStop(round=self.round, rounds=self.rounds, best=self.best, evaluations=self.evaluations))


class Facts(_Frozen):
    """What a finished run says of its model."""

    format: Annotated[int, Field(ge=_FORMAT, le=_FORMAT)] = _FORMAT
    run: Name
    created: str
    rounds: Count
    settings: dict[str, Scalar]
    platforms: Annotated[tuple[PlatformFacts, ...], FailFast(), Field(max_length=10_000)]
    backbone_sha256: Perhaps256
    adapter_sha256: Perhaps256
    start_sha256: Perhaps256
    preferences: PreferenceFacts | None = None
    taste: TasteFacts | None = None
    left_out: Annotated[tuple[LeftOutFacts, ...], FailFast(), Field(max_length=10_000)] = ()
    stopped: StoppedFacts | None = None


def facts_of(
    adapter: Arrays,
    settings: Settings,
    *,
    run: str,
    rounds: int,
    tallies: Mapping[str, Tally],
    stopped: EarlyStop | None = None,
    start: Arrays | None,
    backbone_sha256: str,
    ledgers: Path,
    preferences: SharedPreferences | None = None,
    taste: TasteMap | None = None,
    left_out: Iterable[UntrustedPlatform] = (),
) -> Facts:
    """The facts of a run that has ended now.

    Args:
        adapter: As it is published.
        stopped: Why training ended before its last round, if it did.
        start: Adapter that training began from, if it was not a fresh one.
        ledgers: Folder with the platforms' ledgers, where the coordinator has them: in a simulation.
    """
    return Facts(
        run=run,
        created=now(),
        rounds=rounds,
        settings=flatten(settings),
        platforms=tuple(_platform(tallies[name], ledgers / f"{name}.jsonl") for name in sorted(tallies)),
        backbone_sha256=backbone_sha256,
        adapter_sha256=adapter_digest(adapter) if settings.trains else "",
        start_sha256="" if start is None else adapter_digest(start),
        preferences=None
        if preferences is None
        else PreferenceFacts(
            items=len(preferences.items),
            factors=len(preferences.factors),
            noise=preferences.noise,
            users=preferences.users,
        ),
        taste=None
        if taste is None
        else TasteFacts(
            directions=taste.directions, strong=taste.strong, noise=taste.noise, users=taste.users, backbone=taste.backbone
        ),
        left_out=tuple(
            LeftOutFacts(platform=one.platform, unknown_to=one.unknown_to, strangers=one.strangers) for one in left_out
        ),
        stopped=None if stopped is None else StoppedFacts(**asdict(stopped)),
    )


def facts_in(data: bytes, where: str) -> Facts:
    """The facts in a model's `training.json`.

    Raises:
        InputError: they are none.
    """
    if len(data) > MAX_MANIFEST:
        raise InputError(f"{FACTS} is larger than {MAX_MANIFEST} bytes", where=where, do="name the model of a finished run")
    try:
        facts = Facts.model_validate(read_json(data, FACTS, where))
    except ValidationError as error:
        raise InputError(explain(error)[:2000], where=where, do="name the model of a finished run") from None
    unflatten(dict(facts.settings), where=where)
    return facts


def json_of(facts: Facts) -> bytes:
    """The text of `training.json`."""
    return (json.dumps(facts.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode("ascii")


def origin_of(facts: Facts, name: str = "") -> Origin:
    """The part of the facts that the manifest vouches for; the model is called after its run unless it gets a name.

    Raises:
        InputError: the name is none.
    """
    settings = published_settings(facts)
    try:
        return Origin(
            name=name or facts.run,
            run=facts.run,
            created=facts.created,
            strategy=settings.strategy,
            rounds=facts.rounds,
            platforms=tuple(platform.name for platform in facts.platforms),
            settings_sha256=settings_digest(settings),
            backbone=settings.model.backbone,
            backbone_sha256=facts.backbone_sha256,
            adapter_sha256=facts.adapter_sha256,
            start_sha256=facts.start_sha256,
        )
    except ValidationError as error:
        raise InputError(explain(error), where="the model", do="names are like 'spring-2'") from None


def published_settings(facts: Facts) -> Settings:
    """The run's settings."""
    return unflatten(dict(facts.settings), where=FACTS)


def unpromised(facts: Facts) -> list[str]:
    """Why a run promises nothing to the users behind its model, whatever epsilon its accountant computed; empty if it does.

    Privacy that was off needs no mention here: such a card claims no epsilon.
    """
    settings = published_settings(facts)
    exact = [p.name for p in facts.platforms if any(q is not None and q.exact for q in (p.before, p.federated))]
    reasons = {
        "it comes from a simulation": settings.simulation,
        "its noise can be computed again from a seed": settings.privacy.generator == "seeded",
        f"the figures of {', '.join(exact)} are exact": bool(exact),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _platform(tally: Tally, ledger: Path) -> PlatformFacts:
    joined = tally.joined
    released, accountant = _charged(ledger, tally.ledger)
    return PlatformFacts(
        name=joined.platform,
        users=joined.users,
        items=joined.items,
        budget=joined.budget,
        delta=joined.delta,
        epsilon=tally.epsilon,
        noise_multiplier=joined.noise_multiplier,
        preference_noise=joined.preference_noise,
        taste_noise=joined.taste_noise,
        rounds=tally.rounds,
        released=released,
        accountant=accountant,
        ledger=tally.ledger,
        before=_measured(tally.before),
        federated=_measured(tally.federated),
    )


def _charged(path: Path, head: str) -> tuple[dict[str, int], str]:
    """What the ledger charged up to its receipt, and by which accountant; nothing where it is not here, or not the one."""
    try:
        lines = read_ledger(path).lines if path.exists() else ()
    except FedfuseError:
        return {}, ""  # the card says that it was not seen; `fedfuse audit` says what is wrong with it
    upto = next((number for number, line in enumerate(lines, start=1) if line.hash == head), 0)
    released: dict[str, int] = {}
    entries = [line for line in lines[:upto] if isinstance(line, Entry)]
    for entry in entries:
        released[str(entry.kind)] = released.get(str(entry.kind), 0) + entry.steps
    return dict(sorted(released.items())), str(entries[-1].accountant) if entries else ""


def _measured(metrics: Metrics | None) -> PublishedQuality | None:
    if metrics is None:
        return None
    if metrics.exact and not any(metrics.quality.values()):
        return None  # nobody could be evaluated
    return PublishedQuality(round=metrics.round, quality=dict(metrics.quality), exact=metrics.exact)
