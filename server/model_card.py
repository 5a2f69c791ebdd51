"""The facts of a run that its model carries, and the model card that tells them to a person.

`training.json` holds the facts as data, so that a card can be written again when the model is published and gets its number.
Everything here is public: declared by the platforms, released by them with noise, or a setting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainSerializer, ValidationError

from server.manifest import MAX_MANIFEST, Name, Origin, Perhaps256, Sha256, read_json
from server.outcome import Tally
from shared.adapter import digest as adapter_digest
from shared.errors import FedfuseError, InputError
from shared.ledger import UNIT, now
from shared.ledger import read as read_ledger
from shared.messages import Arrays, Metrics
from shared.peft_export import base_of, usage
from shared.settings import Scalar, Settings, digest, explain, flatten, unflatten

FACTS = "training.json"
CARD = "README.md"
_FORMAT = 1

# JSON knows no infinity; `ge` also refuses a NaN.
Amount = Annotated[float, Field(ge=0), PlainSerializer(lambda value: "inf" if math.isinf(value) else value)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Word = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9 ._+-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quality(_Frozen):
    """How well a platform's held-out items were ranked; `exact` only in a simulation, else noised and charged."""

    round: Count
    ndcg: Share
    hr: Share
    auc: Share
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
    rounds: Count
    released: dict[Word, Count] = {}
    accountant: Word = ""
    ledger: Perhaps256 = ""
    before: Quality | None = None
    federated: Quality | None = None


class Facts(_Frozen):
    """What a finished run says of its model."""

    format: Annotated[int, Field(ge=_FORMAT, le=_FORMAT)] = _FORMAT
    run: Name
    created: str
    rounds: Count
    settings: dict[str, Scalar]
    platforms: Annotated[tuple[PlatformFacts, ...], FailFast(), Field(max_length=10_000)]
    backbone_sha256: Perhaps256
    adapter_sha256: Sha256
    start_sha256: Perhaps256


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a published model stands in its registry.

    Args:
        previous: SHA-256 of the manifest of the version before; '' for the first.
        start: Version whose adapter training began from; None if it is in no version here.
    """

    version: int
    previous: str = ""
    start: int | None = None


def facts_of(
    adapter: Arrays,
    settings: Settings,
    *,
    run: str,
    rounds: int,
    tallies: Mapping[str, Tally],
    start: Arrays | None,
    backbone_sha256: str,
    ledgers: Path,
) -> Facts:
    """The facts of a run that has ended now.

    Args:
        adapter: As it is published.
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
        adapter_sha256=adapter_digest(adapter),
        start_sha256="" if start is None else adapter_digest(start),
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
    settings = settings_of(facts)
    try:
        return Origin(
            name=name or facts.run,
            run=facts.run,
            created=facts.created,
            strategy=settings.strategy,
            rounds=facts.rounds,
            platforms=tuple(platform.name for platform in facts.platforms),
            settings_sha256=digest(settings),
            backbone=settings.model.backbone,
            backbone_sha256=facts.backbone_sha256,
            adapter_sha256=facts.adapter_sha256,
            start_sha256=facts.start_sha256,
        )
    except ValidationError as error:
        raise InputError(explain(error), where="the model", do="names are like 'spring-2'") from None


def settings_of(facts: Facts) -> Settings:
    """The run's settings."""
    return unflatten(dict(facts.settings), where=FACTS)


def render(facts: Facts, lineage: Lineage | None = None) -> str:
    """The model card, in Markdown; `lineage` is None for a model that is in no registry."""
    settings = settings_of(facts)
    model = settings.model
    title = f"Version {lineage.version}" if lineage else "A run's own copy, not published"
    return f"""---
library_name: peft
base_model: {json.dumps(base_of(model))}
tags: [fedfuse, lora, recommendation]
---
# A cross-platform recommender's encoder: {facts.run}

{title}. A LoRA adapter (rank {model.rank}, on {model.targets}) that {len(facts.platforms)} platforms trained together with
Fedfuse; no platform's rows were pooled.

| | |
|---|---|
| strategy | {settings.strategy} |
| platforms | {", ".join(f"{platform.name} ({platform.users:,} users declared)" for platform in facts.platforms)} |
| rounds | {facts.rounds} |
| backbone | `{base_of(model)}`, SHA-256 of the weights `{facts.backbone_sha256 or "not recorded"}` |
| trained by | run `{facts.run}`, ended {facts.created}{", a simulation" if settings.simulation else ""} |

## Privacy

{_privacy(facts, settings)}
## Quality

{_quality(facts)}
## How to use it

{usage(model)}
## Lineage

{_lineage(facts, settings, lineage)}"""


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
        entries = read_ledger(path).entries if path.exists() else ()
    except FedfuseError:
        return {}, ""  # the card says that it was not seen; `fedfuse audit` says what is wrong with it
    upto = next((number for number, entry in enumerate(entries, start=1) if entry.hash == head), 0)
    released: dict[str, int] = {}
    for entry in entries[:upto]:
        released[str(entry.kind)] = released.get(str(entry.kind), 0) + entry.steps
    return dict(sorted(released.items())), str(entries[upto - 1].accountant) if upto else ""


def _measured(metrics: Metrics | None) -> Quality | None:
    if metrics is None:
        return None
    return Quality(round=metrics.round, ndcg=metrics.ndcg, hr=metrics.hr, auc=metrics.auc, exact=metrics.exact)


def _privacy(facts: Facts, settings: Settings) -> str:
    off = [platform.name for platform in facts.platforms if math.isinf(platform.epsilon) or math.isinf(platform.budget)]
    if off or not settings.private:
        return (
            f"**Privacy was OFF (epsilon = inf) on {', '.join(off) or 'every platform'}: "
            "the adapter carries no promise for the users of these platforms.**\n"
            + ("" if len(off) in (0, len(facts.platforms)) else "\n" + _promise(facts, settings))
        )
    return _promise(facts, settings)


def _promise(facts: Facts, settings: Settings) -> str:
    training, privacy = settings.training, settings.privacy
    rows = "\n".join(
        f"| {p.name} | {_number(p.epsilon)} | {p.delta:g} | {_number(p.budget)} | {_number(p.noise_multiplier)} "
        f"| {_released(p)} | {p.accountant or 'named in its ledger'} | `{p.ledger[:16] or '-'}` |"
        for p in facts.platforms
    )
    trust = (
        "each platform adds all of its noise itself"
        if privacy.noise == "local"
        else "each platform adds its share of the noise, and the coordinator sees only the secure sum"
    )
    return f"""(epsilon, delta)-differential privacy for {UNIT}, with everything that the platform knows of
that user. It holds against the coordinator, the other platforms and whoever holds this model. A person on several platforms
is covered by the sum of their epsilons and deltas.

| platform | epsilon spent | delta | budget | noise multiplier | charged releases | accountant | ledger head |
|---|---|---|---|---|---|---|---|
{rows}

Noise is `{privacy.noise}`: {trust}. Each user's gradient is clipped to {training.clip:g}; a step samples users with probability
{training.sample_rate:g}; a round has {training.local_steps} steps. The popularity prior was released once with noise multiplier
{privacy.prior_noise_multiplier:g}. Epsilon is what each platform says; its ledger proves it, and `fedfuse audit` recomputes it
with two accountants and checks the ledger against the head above.
"""


def _released(platform: PlatformFacts) -> str:
    if platform.released:
        return ", ".join(f"{count} {kind}" for kind, count in platform.released.items())
    return f"updates of {platform.rounds} rounds, popularity, metrics (the ledger is at the platform)"


def _quality(facts: Facts) -> str:
    measured = [q for p in facts.platforms for q in (p.before, p.federated) if q is not None]
    if not measured:
        return "Not measured.\n"
    rows = "\n".join(
        f"| {p.name} | {_change(p, 'ndcg')} | {_change(p, 'hr')} | {_change(p, 'auc')} | {_kind(p)} |" for p in facts.platforms
    )
    return f"""Each user's last item is ranked among the platform's whole catalogue without what the user already knows. Before
training (text similarity and the popularity prior) -> this model:

| platform | NDCG@10 | HR@10 | AUC | figures are |
|---|---|---|---|---|
{rows}

Exact figures exist only in simulations. Noised ones are estimates under differential privacy, charged to the platform's
ledger, and may be off by chance.
"""


def _change(platform: PlatformFacts, name: str) -> str:
    return " -> ".join("?" if q is None else f"{getattr(q, name):.4f}" for q in (platform.before, platform.federated))


def _kind(platform: PlatformFacts) -> str:
    known = [q for q in (platform.before, platform.federated) if q is not None]
    return "not released" if not known else "exact" if all(q.exact for q in known) else "noised"


def _lineage(facts: Facts, settings: Settings, lineage: Lineage | None) -> str:
    if not facts.start_sha256:
        start = f"fresh factors, drawn from seed {settings.seed}"
    elif lineage is not None and lineage.start is not None:
        start = f"version {lineage.start} of this registry (adapter `{facts.start_sha256}`)"
    else:
        start = f"the adapter `{facts.start_sha256}`"
    before = f"manifest `{lineage.previous}`" if lineage and lineage.previous else "none"
    place = f"- version {lineage.version}; the version before: {before}\n" if lineage else ""
    return f"""{place}- training began from {start}
- this adapter: `{facts.adapter_sha256}`
- settings of the run: `{digest(settings)}` (in full in `{FACTS}`)
"""


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.4g}"


def model_card_files(facts: Facts, lineage: Lineage | None = None) -> Mapping[str, bytes]:
    """The two files that a model's folder gets beside its tensors."""
    return {FACTS: json_of(facts), CARD: render(facts, lineage).encode()}
