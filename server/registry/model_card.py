"""The model card: what a run's facts tell a person, and what they promise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from server.registry.run_facts import (
    FACTS,
    Facts,
    PlatformFacts,
    PreferenceFacts,
    TasteFacts,
    json_of,
    published_settings,
    unpromised,
)
from shared.base.settings import USUAL_BATCH, USUAL_RATE, Settings, TrainingSettings, settings_digest
from shared.ledger.format import UNIT
from shared.model.peft_export import base_of, usage
from shared.preferences.denoising import public_ridge
from shared.preferences.shared_preferences import FILE
from shared.preferences.taste_map import FILE as TASTE_FILE
from shared.preferences.taste_map import RIDGE
from shared.privacy.plan import noise_words
from shared.protocol.quality import METRICS

CARD = "README.md"

_PREFERENCES = """\
## Which items are liked together

`{file}` holds, for {items:,} items that platforms share, {factors:,} factors F of the sum over some {users:,} users of
x x' / |x|^2, x the indicator of what a user likes: F'F is what of that sum can be told from its noise (standard deviation
{noise:.3g}), and its first factor is popularity. Items are known by a hash of their public key. With numpy alone:

```python
import hashlib
import numpy as np
from safetensors.numpy import load_file

found = load_file("{file}")
F, items = found["factors"].astype(float), found["items"]

def hash_of(key):  # kind and key: an ISBN of 13 digits, a GTIN of 14, anything else as it is spelled
    return int.from_bytes(hashlib.sha256(b"key\\0" + key.encode()).digest()[:8], "little")

P = np.linalg.inv(F.T @ F + {ridge:.4g} * np.eye(len(items)))  # ridge regression of every item on the others
mine = ["isbn:9780306406157"]  # yours here
liked = np.isin(items, [hash_of(key) for key in mine]).astype(float)
assert liked.any(), "none of these keys is among the items"
scores = liked - liked @ P / np.diag(P)  # of every item, for whoever likes these
best = items[np.argsort(-(scores + 1e-4 * found["popularity"]) + 1e9 * liked)[:10]]
```

`noised` is the sum beside popularity as it was released, noise and all: the upper triangle row by row, numbers off the diagonal
times sqrt(2). Fedfuse reads it anew on every platform, by the words that items' texts have in common, and recommends better by it
than by F alone.

"""
_TASTE = """\
## Which directions of texts are liked together

`{file}` is a linear head over the frozen backbone's vectors of items' texts; no item has to be in common. It holds the sum A over
some {users:,} users of P / |P|, P the sum over pairs i != j of what a user likes of f_i f_j', f the items' {directions}
directions: {strong} of A's are above its noise (standard deviation {noise:.3g}). Between platforms of one trade it carries over;
between trades it carries little. With numpy alone, from your catalogue's vectors (mean of the backbone's last hidden states over
the tokens of an item's text, of length 1):

```python
import numpy as np
from safetensors.numpy import load_file

found = load_file("{file}")
vectors = np.load("items.npy").astype(float)  # (items, width), yours here
F = (vectors - vectors.mean(0)) @ found["projection"]
F /= np.maximum(np.linalg.norm(F, axis=1, keepdims=True), 1e-9)
S = F.T @ F / len(F)
A = found["map"].astype(float)
values, vectors = np.linalg.eigh(A)
leading = vectors[:, np.abs(values).argmax()]  # what is popular
B = np.linalg.inv(S + {ridge} * np.trace(S) / len(S) * np.eye(len(S))) @ (np.eye(len(S)) - np.outer(leading, leading))
M = B @ A @ B.T
M /= max(np.linalg.norm(M, 2), 1e-12)
mine = [0, 1]  # rows of what somebody likes
scores = F[mine].mean(0) @ (np.eye(len(M)) + M) @ F.T
```

"""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A published model's place in its registry.

    Args:
        previous: SHA-256 of the manifest of the version before; '' for the first.
        start: Version whose adapter training began from; None if it is in no version here.
    """

    version: int
    previous: str = ""
    start: int | None = None


def render_card(facts: Facts, lineage: Lineage | None = None) -> str:
    """The model card, in Markdown; `lineage` is None for a model that is in no registry."""
    settings = published_settings(facts)
    reasons = unpromised(facts)
    first = f"**NOTHING IS PROMISED to the users behind this model: {'; '.join(reasons)}.**\n\n" if reasons else ""
    made, simulated = "trained" if settings.trains else "summed", ", a simulation" if settings.simulation else ""
    title = f"Version {lineage.version}" if lineage else "A run's own copy, not published"
    return f"""---
{_front(settings)}
---
{first}# A cross-platform recommender{"'s encoder" if settings.trains else ""}: {facts.run}

{title}. {_what(facts, settings)} with
Fedfuse; no platform's rows were pooled.

| | |
|---|---|
| strategy | {settings.strategy} |
| platforms | {", ".join(f"{platform.name} ({platform.users:,} users declared)" for platform in facts.platforms)} |
{_left_out(facts)}| rounds | {_rounds(facts, settings)} |
{_backbone(facts, settings)}| {made} by | run `{facts.run}`, ended {facts.created}{simulated} |

## Privacy

{_privacy(facts, settings)}
## Quality

{_quality(facts)}
{_usage(settings)}{_preferences(facts.preferences)}{_taste(facts.taste)}## Lineage

{_lineage(facts, settings, lineage)}"""


def _left_out(facts: Facts) -> str:
    return "".join(f"| left out | {one.platform}: {one} |\n" for one in facts.left_out)


def _rounds(facts: Facts, settings: Settings) -> str:
    if facts.stopped:
        lost = facts.stopped.round - facts.rounds
        others = f"; {lost} of {facts.stopped.round} were given up" if lost > 0 else ""
        return f"{facts.rounds} count{others}; {facts.stopped}"
    given_up = settings.rounds - facts.rounds
    return (
        f"{facts.rounds}"
        if given_up <= 0
        else f"{facts.rounds} of {settings.rounds} count: the others were given up, or not begun"
    )


def _usage(settings: Settings) -> str:
    return f"## How to use it\n\n{usage(settings.model)}\n" if settings.trains else ""


def _backbone(facts: Facts, settings: Settings) -> str:
    if not settings.trains:
        return ""
    sha256 = facts.backbone_sha256 or "not recorded"
    return f"| backbone | `{base_of(settings.model)}`, SHA-256 of the weights `{sha256}` |\n"


def _front(settings: Settings) -> str:
    if not settings.trains:
        return "tags: [fedfuse, recommendation]"
    return f"library_name: peft\nbase_model: {json.dumps(base_of(settings.model))}\ntags: [fedfuse, lora, recommendation]"


def _what(facts: Facts, settings: Settings) -> str:
    model, platforms = settings.model, f"{len(facts.platforms)} platforms"
    if settings.trains:
        return f"A LoRA adapter (rank {model.rank}, on {model.targets}) that {platforms} trained together"
    return f"What users of {platforms} like together, summed"


def _privacy(facts: Facts, settings: Settings) -> str:
    off = [platform.name for platform in facts.platforms if math.isinf(platform.epsilon) or math.isinf(platform.budget)]
    if off or not settings.private:
        return (
            f"**Privacy was OFF (epsilon = inf) on {', '.join(off) or 'every platform'}: "
            "the model carries no promise for the users of these platforms.**\n"
            + ("" if len(off) in (0, len(facts.platforms)) else "\n" + _promise(facts, settings))
        )
    return _promise(facts, settings)


def _promise(facts: Facts, settings: Settings) -> str:
    privacy = settings.privacy
    rows = "\n".join(
        f"| {p.name} | {_number(p.epsilon)} | {p.delta:g} | {_number(p.budget)} | {_noise(p)} "
        f"| {_released(p)} | {p.accountant or 'named in its ledger'} | `{p.ledger[:16] or '-'}` |"
        for p in facts.platforms
    )
    trust = (
        "each platform adds all of its noise itself"
        if privacy.noise == "local"
        else "each platform adds its share of the noise, and the coordinator sees only the secure sum"
    )
    return f"""{_claim(facts)}

| platform | epsilon spent | delta | budget | noise multiplier | charged releases | accountant | ledger head |
|---|---|---|---|---|---|---|---|
{rows}

Noise is `{privacy.noise}`: {trust}. {_released_how(settings)}
Epsilon is what each platform says; its ledger proves it: `fedfuse audit LEDGER --model .` recomputes it with three accountants,
and checks the ledger against the head that this model names.
"""


def _noise(platform: PlatformFacts) -> str:
    return noise_words(platform.noise_multiplier, platform.preference_noise, platform.taste_noise, digits=".4g")


def _released_how(settings: Settings) -> str:
    training, found = settings.training, []
    if settings.preferences.items:
        found.append("What users like together was summed once, each user's part of norm 1.")
    if settings.preferences.map:
        found.append("Which directions of texts users like together was summed once, each user's part of norm 1.")
    if settings.trains:
        found.append(
            f"""Each user's gradient is clipped to {training.clip:g}; a step samples {_sampled(training)};
a round has {settings.round_steps} steps. The popularity prior was released once with noise multiplier
{settings.privacy.prior_noise_multiplier:g}."""
        )
    return " ".join(found)


def _sampled(training: TrainingSettings) -> str:
    if training.sample_rate:
        return f"users with probability {training.sample_rate:g}"
    return f"users with probability {USUAL_RATE:g}, and {USUAL_BATCH:g} of a platform in expectation at most"


def _claim(facts: Facts) -> str:
    reasons = unpromised(facts)
    if reasons:
        return f"""Nothing is promised, because {"; ".join(reasons)}. The table says what an accountant
computes for such a run where its noise is secret and its figures are noised; here they are not."""
    before = (
        "\nIt is about what this run released: the adapter that it began from has a card of its own."
        if facts.start_sha256
        else ""
    )
    return f"""(epsilon, delta)-differential privacy for {UNIT}, with everything that the platform knows of
that user. It holds against the coordinator, the other platforms and whoever holds this model. A person on several platforms
is covered by the sum of their epsilons and deltas.{before}"""


def _released(platform: PlatformFacts) -> str:
    if platform.released:
        return ", ".join(f"{count} {kind}" for kind, count in platform.released.items())
    if not platform.epsilon:
        return "nothing"
    return f"updates of {platform.rounds} rounds, popularity, metrics (the ledger is at the platform)"


def _quality(facts: Facts) -> str:
    measured = [q for p in facts.platforms for q in (p.before, p.federated) if q is not None]
    if not measured:
        return "Not measured.\n"
    rows = "\n".join(f"| {p.name} | {' | '.join(_change(p, name) for name in METRICS)} | {_kind(p)} |" for p in facts.platforms)
    return f"""Each user's last item is ranked among the platform's whole catalogue without what the user already knows. Before
training (text similarity and the popularity prior) -> this model:

| platform | {" | ".join(metric.title for metric in METRICS.values())} | figures are |
|---|{"---|" * len(METRICS)}---|
{rows}

Exact figures exist only in simulations. Noised ones are estimates under differential privacy, charged to the platform's
ledger, and may be off by chance.
"""


def _change(platform: PlatformFacts, name: str) -> str:
    means = [None if q is None else q.quality.get(name) for q in (platform.before, platform.federated)]
    return " -> ".join("?" if mean is None else f"{mean:.4f}" for mean in means)


def _kind(platform: PlatformFacts) -> str:
    known = [q for q in (platform.before, platform.federated) if q is not None]
    return "not released" if not known else "exact" if all(q.exact for q in known) else "noised"


def _preferences(found: PreferenceFacts | None) -> str:
    if found is None:
        return ""
    ridge = public_ridge(found.items, found.noise)
    return _PREFERENCES.format(
        file=FILE, items=found.items, factors=found.factors, users=found.users, noise=found.noise, ridge=ridge
    )


def _taste(found: TasteFacts | None) -> str:
    if found is None:
        return ""
    return _TASTE.format(
        file=TASTE_FILE,
        directions=found.directions,
        strong=found.strong,
        users=found.users,
        noise=found.noise,
        ridge=RIDGE,
    )


def _lineage(facts: Facts, settings: Settings, lineage: Lineage | None) -> str:
    if not settings.trains:
        start = "nothing: no adapter was trained"
    elif not facts.start_sha256:
        start = f"fresh factors, drawn from seed {settings.seed}"
    elif lineage is not None and lineage.start is not None:
        start = f"version {lineage.start} of this registry (adapter `{facts.start_sha256}`)"
    else:
        start = f"the adapter `{facts.start_sha256}`"
    before = f"manifest `{lineage.previous}`" if lineage and lineage.previous else "none"
    place = f"- version {lineage.version}; the version before: {before}\n" if lineage else ""
    return f"""{place}- training began from {start}
- this adapter: {f"`{facts.adapter_sha256}`" if facts.adapter_sha256 else "none"}
- settings of the run: `{settings_digest(settings)}` (in full in `{FACTS}`)
"""


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.4g}"


def model_card_files(facts: Facts, lineage: Lineage | None = None) -> Mapping[str, bytes]:
    """The two files that a model's folder gets beside its tensors."""
    return {FACTS: json_of(facts), CARD: render_card(facts, lineage).encode()}
