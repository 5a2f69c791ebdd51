"""The run configuration: every public setting of a federation, checked where it is made.

Nothing here is private data. The server sends these settings to every platform; a platform's
own file (its sources and its budget) is `client/config/platform_file.py`, and never travels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from shared.base.errors import InputError

_SECURE = "secure-sum"
PREFERENCES = "preferences"
"""The strategy that shares preferences and trains nothing."""
_ITEMS = 1024
Scalar = bool | int | float | str
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CLIPS = (1e-3, 1e3)
"""Least and greatest clipping bound: far from where float32 loses digits, with a gradient's norm of about 1 between them."""
NOISES = (0.05, 200.0)
"""Least and greatest noise multiplier that a run may ask for."""
EPSILONS = (1e-3, 1e6)
"""Least and greatest finite budget."""
LEAST_RATE = 1e-7
"""Least sampling probability that a run may name."""
USUAL_RATE, USUAL_BATCH = 0.08, 1000.0
"""Sampling probability where a run names none, and the most users that it expects in one platform's step then."""
RATES = (1e-7, 10.0)
"""Least and greatest learning rate."""


def _between(least: float, most: float) -> Any:
    return Field(ge=least, le=most, allow_inf_nan=False)


Noise = Annotated[float, _between(*NOISES)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSettings(_Frozen):
    """The shared two-tower encoder."""

    backbone: str = Field("minilm", max_length=300, description="'minilm' (embedded), a folder, or a hub name of a BERT model")
    layers: int = Field(0, ge=0, le=1000, description="trainable layers, counted from the top; 0 means the top third")
    rank: int = Field(8, ge=1, le=256, description="LoRA rank")
    alpha: Annotated[float, _between(1e-2, 1e4)] = Field(
        16.0, description="LoRA scale numerator: the update is alpha / rank * B A"
    )
    targets: str = Field("query,value", max_length=300, description="linear maps of a layer that get LoRA, comma-separated")
    item_tokens: int = Field(32, ge=4, le=512, description="longest item text, tokens")
    user_tokens: int = Field(64, ge=8, le=512, description="longest user text, tokens")
    temperature: Annotated[float, _between(1e-3, 1e2)] = Field(
        0.12, description="score = cosine / temperature + popularity prior"
    )
    fusion: str = Field(
        "vote", pattern=r"^[a-z][a-z0-9-]{0,31}$", description="how source vectors join the text; a module of client/fusion"
    )


class TrainingSettings(_Frozen):
    """One platform's local training in a round."""

    objective: Literal["softmax", "click"] = Field(
        "softmax", description="'softmax': the target among all items; 'click': each item by itself, against those of no interest"
    )
    local_steps: int = Field(8, ge=1, le=100_000, description="private steps per round")
    sample_rate: Annotated[float, _between(0.0, 1.0)] = Field(
        0.0,
        description="Poisson sampling probability of a user, per step; 0: 0.08, and 1000 users expected of a platform at most",
    )
    learning_rate: Annotated[float, _between(*RATES)] = Field(5e-3, description="of Adam, on the platform")
    clip: Annotated[float, _between(*CLIPS)] = Field(
        1.0, description="joint L2 bound of one user's gradient; where adaptive clipping begins"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed", description="'adaptive' lets the bound follow a noised quantile of the gradients' norms"
    )
    clip_quantile: Annotated[float, _between(0.01, 0.99)] = Field(
        0.5, description="share of users that adaptive clipping leaves uncut"
    )
    clip_rate: Annotated[float, _between(1e-3, 10.0)] = Field(0.2, description="how fast the adaptive bound moves")
    views: int = Field(3, ge=1, le=64, description="different (context, targets) cuts prepared per user")
    sequences: int = Field(1, ge=1, le=64, description="views of a user that one step reads; the loss is their mean")
    bank_steps: int = Field(
        8, ge=1, le=1_000_000, description="private steps that the items' vectors serve for; a round of more encodes them once"
    )
    targets: int = Field(4, ge=1, le=64, description="items after the context that one view predicts, at most")
    engine: Literal["batched", "opacus"] = Field("batched", description="how per-user gradients are made")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="'auto': torch.compile on CUDA, and on a CPU with bfloat16 the native kernels, where they work; "
        "'on': torch.compile; 'off': neither",
    )
    micro_batch: int = Field(0, ge=0, le=65536, description="sequences of one backward pass; 0: by device")

    @model_validator(mode="after")
    def _rate(self) -> TrainingSettings:
        if 0 < self.sample_rate < LEAST_RATE:
            raise ValueError(f"sample_rate must be at least {LEAST_RATE:g}, or 0: by the platform's declared users")
        return self

    def rate(self, users: int) -> float:
        """Sampling probability of a user of a platform that declares so many.

        By default the expected batch does not grow beyond `USUAL_BATCH`, so a step of a large platform costs what one of 12,500
        users costs, and its noise falls with the rate all the same. Ten rounds of 8 steps at epsilon 8 have a signal-to-noise
        bound (`shared.privacy.plan.signal_to_noise`, 36,864 parameters) of 56 with 12,500 users (noise multiplier 0.82), 93 with
        100,000 (0.49) and 117 with a million (0.39); at epsilon 2 of 20, 55 and 74. Three times the batch of a million would have
        313 at epsilon 8, and take three times as long. (delta is 1e-5, and at most a tenth of 1 / users.)

        >>> TrainingSettings().rate(500), TrainingSettings().rate(1_000_000), TrainingSettings(sample_rate=0.5).rate(500)
        (0.08, 0.001, 0.5)
        """
        return self.sample_rate or min(USUAL_RATE, USUAL_BATCH / max(1, users))

    def batch(self, users: Iterable[int]) -> float:
        """Expected number of users of one step on platforms that declare so many each.

        >>> round(TrainingSettings().batch([500, 1_000_000]), 6)
        1040.0
        """
        by_rate: Counter[float] = Counter()
        for declared in users:
            by_rate[self.rate(declared)] += declared
        return sum(rate * declared for rate, declared in by_rate.items())

    @model_validator(mode="after")
    def _engine(self) -> TrainingSettings:
        if self.engine == "opacus" and self.sequences > 1:
            raise ValueError("engine 'opacus' reads one sequence a user: set training.sequences = 1, or engine 'batched'")
        return self


class PrivacySettings(_Frozen):
    """How noise is added; the budget itself is each platform's own."""

    epsilon: float | None = Field(
        None,
        description="that a run may add to what a platform has spent, at most, if the platform's file allows it; in a simulation "
        "every platform's budget, and 'inf' turns privacy off",
    )
    share: Annotated[float, _between(1e-3, 1.0)] = Field(
        0.25, description="part of what a platform has left that a deployed run asks for where it names no epsilon"
    )
    noise: Literal["local", "distributed"] = Field(
        "local", description="'local': every platform adds all of it; 'distributed': the platforms share it, under a secure sum"
    )
    generator: Literal["secure", "seeded"] = Field("secure", description="'seeded' only in simulations")
    prior_noise_multiplier: Noise = Field(3.0, description="noise of the popularity prior, per unit L2 bound of a user")
    metrics_noise_multiplier: Noise = Field(
        10.0, description="noise of a deployed platform's metrics, per unit L2 bound of a user"
    )
    accept_noise: bool = Field(
        False,
        description="run a plan whose noise exceeds all that users can agree on, to report that; only in simulations",
    )

    @model_validator(mode="after")
    def _epsilon(self) -> PrivacySettings:
        if self.epsilon is not None and not (self.epsilon == math.inf or EPSILONS[0] <= self.epsilon <= EPSILONS[1]):
            raise ValueError(f"epsilon must be between {EPSILONS[0]:g} and {EPSILONS[1]:g} (or 'inf' for no privacy)")
        return self


class SecureSettings(_Frozen):
    """The secure sum; see `shared/secagg/security_argument.py`."""

    threshold: Annotated[float, _between(0.01, 1.0)] = Field(0.8, description="part of the platforms that a round needs")
    colluders: int = Field(1, ge=0, le=1000, description="platforms that may tell the coordinator all they know")
    phase_timeout: Annotated[float, _between(0.1, 1e6)] = Field(
        600.0, description="seconds that phases without training (dealing, confirming, unmasking) wait; reply_timeout at most"
    )


class ServerSettings(_Frozen):
    """How the coordinator asks and combines; a strategy reads what it needs."""

    minimum_platforms: int = Field(1, ge=1, le=100_000, description="fewest platforms that make a run or a round")
    participation: Annotated[float, _between(1e-4, 1.0)] = Field(
        1.0, description="part of the platforms asked in a round; each plans and is charged for that part of the rounds"
    )
    faulty: int = Field(1, ge=0, le=1000, description="platforms that may send anything at all (median, trimmed, krum)")
    learning_rate: Annotated[float, _between(0.0, 100.0)] = Field(0.0, description="of the server optimizer; 0: its own default")
    momentum: Annotated[float, _between(0.0, 0.9999)] = Field(0.9, description="of the server optimizer (beta or beta 1)")
    second_moment: Annotated[float, _between(0.0, 0.999999)] = Field(0.99, description="of fedadam and fedyogi (beta 2)")
    adaptivity: Annotated[float, _between(1e-9, 10.0)] = Field(1e-3, description="of fedadam and fedyogi (tau)")


class PersonalSettings(_Frozen):
    """What a strategy with `personalise` does after the last round, on each platform by itself."""

    share: Annotated[float, _between(0.01, 0.99)] = Field(0.25, description="part of a platform's epsilon that is left for it")
    steps: int = Field(40, ge=1, le=100_000, description="private steps of the residual adapter")
    comparison_noise: Noise = Field(10.0, description="noise of the comparison with the global model")


class PreferenceSettings(_Frozen):
    """Which items are liked together, summed over all platforms before the first round (`shared/preferences`)."""

    items: int = Field(0, ge=0, le=4096, description="items whose preferences are summed, the most popular; 0: none are")
    share: Annotated[float, _between(0.01, 1.0)] = Field(
        0.5, description="part of a platform's epsilon that preferences take; all of it where nothing is trained"
    )
    map: int = Field(
        0, ge=0, le=256, description="directions of the items' texts whose taste map is summed, over one encoder pass; 0: none"
    )
    map_share: Annotated[float, _between(0.01, 1.0)] = Field(
        0.1, description="part of a platform's epsilon that the taste map takes; all of it where nothing else is released"
    )


class Settings(_Frozen):
    """Every setting of one run, as `run.toml` records it and as Flower's run_config carries it."""

    rounds: int = Field(10, ge=0, le=10_000, description="rounds of the federation; 0 with strategy 'preferences'")
    strategy: str = Field("fedavg", max_length=100, description="see `fedfuse strategies`")
    seed: int = Field(0, ge=0, lt=2**31, description="of what is drawn without secrecy: splits, views, where factors begin")
    simulation: bool = Field(False, description="exact metrics and seeded noise are allowed; a deployed platform refuses it")
    evaluate_every: int = Field(
        0, ge=0, le=10_000, description="evaluate after every so many rounds; 0: only before the first and after the last"
    )
    patience: int = Field(
        0,
        ge=0,
        le=9_999,
        description="end training after so many evaluations in a row without an improvement beyond their noise, which is then "
        "added and charged in simulations, too; 0: train all rounds",
    )
    reply_timeout: Annotated[float, _between(0.1, 1e6)] = Field(
        3600.0, description="seconds that a round waits for its platforms"
    )
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    secure: SecureSettings = SecureSettings()
    server: ServerSettings = ServerSettings()
    personal: PersonalSettings = PersonalSettings()
    preferences: PreferenceSettings = PreferenceSettings()

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, values: Any) -> Any:
        if not isinstance(values, dict) or str(values.get("strategy", "")) != PREFERENCES:
            return values
        asked, privacy = values.get("preferences", {}), values.get("privacy", {})
        values = {"rounds": 0, **values}
        if isinstance(asked, dict):
            values["preferences"] = {"items": _ITEMS, **asked}
        if isinstance(privacy, dict):
            values["privacy"] = {"noise": "distributed", **privacy}
        return values

    @model_validator(mode="before")
    @classmethod
    def _summed(cls, values: Any) -> Any:
        # The one strategy whose name says how the noise is added.
        if isinstance(values, dict) and _is_secure_sum(str(values.get("strategy", ""))):
            privacy = values.get("privacy", {})
            if isinstance(privacy, dict) and "noise" not in privacy:
                return {**values, "privacy": {**privacy, "noise": "distributed"}}
        return values

    @model_validator(mode="after")
    def _accepted(self) -> Settings:
        # It would spend people's budgets for nothing.
        if self.privacy.accept_noise and not self.simulation:
            raise ValueError("privacy.accept_noise is for simulations only")
        return self

    @model_validator(mode="after")
    def _distributed(self) -> Settings:
        if not self.distributed:
            if _is_secure_sum(self.strategy):
                raise ValueError(f"strategy {self.strategy!r} adds noise under a secure sum: set privacy.noise = 'distributed'")
            return self
        if self.training.clipping != "fixed":
            raise ValueError("training.clipping = 'adaptive' needs noise of its own: under distributed noise it must be 'fixed'")
        if self.server.participation < 1:
            raise ValueError(
                "server.participation must be 1 under distributed noise: a platform that is not asked is lost to the secure sum"
            )
        return self

    @model_validator(mode="after")
    def _something_to_do(self) -> Settings:
        if self.trains == (self.rounds == 0):
            raise ValueError(
                "rounds must be at least 1: only strategy 'preferences' trains nothing"
                if self.trains
                else "strategy 'preferences' trains nothing, and so has no rounds: set rounds = 0"
            )
        if not self.trains and not self.preferences.items and not self.preferences.map:
            raise ValueError("strategy 'preferences' with preferences.items = 0 and preferences.map = 0 would do nothing")
        return self

    @model_validator(mode="after")
    def _patient(self) -> Settings:
        if not self.patience:
            return self
        if not self.evaluate_every:
            raise ValueError(
                f"patience = {self.patience} counts evaluations between rounds, and there are none: set evaluate_every, or "
                "patience = 0"
            )
        if self.patience > self._between_rounds:
            raise ValueError(
                f"patience = {self.patience} would never end the run: evaluations before the last of {self.rounds} rounds are "
                f"{self._between_rounds} with evaluate_every = {self.evaluate_every}; lower one of the two, or set patience = 0"
            )
        return self

    @model_validator(mode="after")
    def _seeded(self) -> Settings:
        if self.privacy.generator == "seeded" and not self.simulation:
            raise ValueError("privacy.generator = 'seeded' is for simulations only: its noise can be predicted")
        return self

    @property
    def private(self) -> bool:
        """False when `--epsilon inf` turned privacy off."""
        return self.privacy.epsilon is None or math.isfinite(self.privacy.epsilon)

    @property
    def distributed(self) -> bool:
        """Whether the noise is shared among the platforms, under a secure sum; then a round is one step."""
        return self.privacy.noise == "distributed"

    @property
    def trains(self) -> bool:
        """Whether adapters are trained; else a run shares preferences alone, and an encoder is loaded for a taste map only."""
        return self.strategy != PREFERENCES

    @property
    def encodes(self) -> bool:
        """Whether platforms load an encoder."""
        return self.trains or self.preferences.map > 0

    @property
    def evaluations(self) -> int:
        """Evaluations of a whole run: before the first round, after the last, and every so many between."""
        return 2 + self._between_rounds if self.trains else 0

    @property
    def _between_rounds(self) -> int:
        """Evaluations after the first round and before the last."""
        return (self.rounds - 1) // self.evaluate_every if self.evaluate_every and self.rounds else 0

    @property
    def exact_metrics(self) -> bool:
        """Whether evaluations are exact, and no release: in a simulation that decides nothing by them."""
        return self.simulation and not self.patience

    @property
    def round_steps(self) -> int:
        """Private steps of one round, per platform."""
        return 1 if self.distributed else self.training.local_steps

    @property
    def rounds_each(self) -> int:
        """Rounds that one platform answers at most: `server.participation` of them, rounded up."""
        return math.ceil(self.server.participation * self.rounds - 1e-9)

    @property
    def steps(self) -> int:
        """Private steps of the whole run, per platform."""
        return self.rounds_each * self.round_steps


def _is_secure_sum(strategy: str) -> bool:
    return _SECURE in (part.strip() for part in strategy.split("+"))


def build(values: dict[str, Any], *, where: str) -> Settings:
    """Settings from nested values; the message of a bad one names file, key, found and expected.

    Returns:
        The settings, checked and frozen; what `values` does not name has its default.

    Raises:
        InputError: a key is unknown or a value is out of its range.

    | given | result |
    |---|---|
    | `{}` | every setting's default |
    | an unknown key | `InputError`, with the key that was probably meant |
    | a bound itself, as `training.clip` 1000 | taken |
    | beyond a bound, NaN, infinity | `InputError`, with the key |
    | strategy "preferences" alone | 0 rounds, 1,024 items, distributed noise |
    | 0 rounds, and a strategy that trains | `InputError` |
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        unknown = [".".join(map(str, one["loc"])) for one in error.errors() if one["type"] == "extra_forbidden"]
        meant = [f"{key}: did you mean {' or '.join(near)}?" for key in unknown[:5] if (near := nearest_settings(key))]
        do = "; ".join([*meant, "`fedfuse settings` lists every setting"])
        raise InputError(explain(error), where=where, do=do) from None


def nearest_settings(key: str) -> list[str]:
    """The settings that somebody may have meant by a key that is none, at most three, the nearest first.

    >>> nearest_settings("training.lr"), nearest_settings("epsilon"), nearest_settings("rouns"), nearest_settings("qqq")
    (['training.learning_rate'], ['privacy.epsilon'], ['rounds'], [])
    """
    table, _, leaf = key.rpartition(".")
    known = list(described())
    same = [one for one in known if one.rpartition(".")[2] == leaf]
    short = [one for one in known if "".join(word[0] for word in one.rpartition(".")[2].split("_")) == leaf and "_" in one]
    close = get_close_matches(key, known, n=3, cutoff=0.75)
    found = list(dict.fromkeys([*same, *short] or close))
    here = [one for one in found if one.startswith(f"{table}.")] if table else found
    return (here or found)[:3]


def explain(error: ValidationError, *, whole: str = "settings") -> str:
    """One line per mistake that pydantic found, the first twenty: key, what is expected, what was found.

    Args:
        whole: What a mistake is in that no key has.
    """
    lines = []
    for mistake in error.errors(include_url=False)[:20]:
        key = ".".join(str(part) for part in mistake["loc"]) or whole
        found = mistake.get("input")
        shown = "" if isinstance(found, dict | BaseModel) or mistake["type"] == "missing" else f" (found {found!r:.200})"
        what = "there is no such key" if mistake["type"] == "extra_forbidden" else mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{key:.200}: {what}{shown}")
    return "\n".join(lines)


def setting_fields(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its dotted name."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= setting_fields(kind, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def described() -> dict[str, str]:
    """Every setting by its dotted name, and what it is for ('' where the name says it).

    >>> described()["preferences.items"]
    'items whose preferences are summed, the most popular; 0: none are'
    """
    return {key: field.description or "" for key, field in setting_fields().items()}


def flatten(settings: Settings) -> dict[str, Scalar]:
    """The settings as Flower's run_config holds them: dotted keys, scalars only.

    >>> flatten(Settings())["training.clip"]
    1.0
    """
    flat: dict[str, Scalar] = {}
    for key, value in settings.model_dump(mode="python").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": _scalar(leaf) for inner, leaf in value.items()}
        else:
            flat[key] = _scalar(value)
    return flat


def unflatten(flat: dict[str, Any], *, where: str) -> Settings:
    """The inverse of `flatten`.

    Raises:
        InputError: as `build`.
    """
    nested: dict[str, Any] = {}
    tables = {key.partition(".")[0] for key in flat if key.partition(".")[2]}
    both = sorted(tables & set(flat))
    if both:
        raise InputError(f"{both[0]} is both a value and a table", where=where, do=f"write {both[0]}.<setting> = ...")
    for key, value in flat.items():
        head, _, tail = key.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    privacy = nested.get("privacy")
    if isinstance(privacy, dict) and privacy.get("epsilon") == "":
        privacy["epsilon"] = None
    return build(nested, where=where)


def settings_digest(settings: Settings) -> str:
    """SHA-256 of the settings, in hex: two runs with the same one were asked for the same thing."""
    return hashlib.sha256(json.dumps(flatten(settings), sort_keys=True).encode()).hexdigest()


def _scalar(value: Any) -> Scalar:
    # Flower's run_config has no null, and TOML knows no infinity as a string-typed option.
    if value is None:
        return ""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    assert isinstance(value, bool | int | float | str)
    return value
