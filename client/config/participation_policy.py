"""The terms on which a platform takes part: the `[federation]` table of its platform file, and whether a run keeps them.

The worker checks them, from the platform's own installed code, so they hold whatever the coordinator's code says. A run
that asks for less privacy than the platform's file allows is refused before anything is read or charged for it.
"""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from client.config.table_location import AsTuple, Frozen
from shared.base.errors import PrivacyError, ProtocolError
from shared.base.settings import CLIPS, Settings, settings_digest
from shared.model.factor_schedule import personalises
from shared.protocol.keys import ed25519_from_line, ed25519_line
from shared.protocol.run_authorization import parse_warrant

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Unwarranted(ProtocolError):
    """The request does not come from the coordinator that this platform trusts."""


def _ssh_key(text: str) -> str:
    """The key part of an OpenSSH line, checked to be Ed25519."""
    return ed25519_line(ed25519_from_line(text))


def _identity(text: str) -> str:
    try:
        if len(base64.b64decode(text, validate=True)) == 32:
            return text
    except ValueError:
        pass
    raise ValueError("expected 32 bytes in base64, as `fedfuse init client` prints them")


class ParticipationPolicy(Frozen):
    """What this platform lets its federation ask for.

    Args:
        coordinator: The federation's Ed25519 public key (OpenSSH); with it every request needs that coordinator's warrant.
        minimum_noise_multiplier: Least noise of a training step, of the prior and of metrics, per unit of their bounds.
        maximum_sample_rate: Largest part of the users that a step may draw.
        minimum_clip, maximum_clip: Between which a user's gradient may be clipped.
        preferences: Whether this platform's users count in the sum of which items are liked together.
        metrics: Whether noised metrics are answered; without them a run is evaluated on other platforms alone.
        maximum_evaluations: Noised evaluations of one run, at most.
        maximum_epsilon_per_run: What one run may spend, at most, in nats; the budget is for all runs together. A run gets so much
            noise that its releases cost no more by themselves, and raise what all runs have spent by no more.
        minimum_participants: Fewest platforms among which this one's part is combined.
        maximum_rounds: Of one run.
        strategies: That are accepted; by default all.
        noise: Ways of adding noise that are accepted; by default all.
        backbones: That may be loaded: 'minilm', folders, hub names. A run cannot make this platform load another.
        show_budget: Whether the coordinator may see the whole budget, instead of this run's part alone.
        colluders: Fewest platforms on the coordinator's side that a secure sum must withstand.
        minimum_threshold: Smallest part of the platforms of which a secure sum may be.
        answer_step: Seconds to the first moment at which an answer made from rows may leave; each further one is a quarter later.
            How long rows took says something of them. 0 sends an answer when it is there.
        identities: Other platforms' names -> their Ed25519 identity keys (base64); the secure sum runs among these alone.
        peers: A file with further identities, which `fedfuse client trust` keeps.
    """

    coordinator: Annotated[str, AfterValidator(_ssh_key)] | None = None
    minimum_noise_multiplier: float = Field(0.3, ge=0, allow_inf_nan=False)
    maximum_epsilon_per_run: float | None = Field(None, gt=0)
    maximum_sample_rate: float = Field(0.5, gt=0, le=1)
    minimum_clip: float = Field(CLIPS[0], ge=CLIPS[0], le=CLIPS[1])
    maximum_clip: float = Field(CLIPS[1], ge=CLIPS[0], le=CLIPS[1])
    preferences: bool = True
    metrics: bool = True
    maximum_evaluations: int = Field(20, ge=0)
    minimum_participants: int = Field(1, ge=1)
    maximum_rounds: int | None = Field(None, ge=1)
    strategies: Annotated[tuple[str, ...], AsTuple] | None = Field(None, min_length=1)
    noise: Annotated[tuple[str, ...], AsTuple] | None = Field(None, min_length=1)
    backbones: Annotated[tuple[str, ...], AsTuple] = Field(("minilm",), min_length=1)
    show_budget: bool = True
    colluders: int = Field(1, ge=0)
    minimum_threshold: float = Field(0.5, ge=0, le=1)
    answer_step: float = Field(1.0, ge=0, le=3600, allow_inf_nan=False)
    identities: dict[Name, Annotated[str, AfterValidator(_identity)]] = Field(default_factory=dict)
    peers: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _named_anew(cls, values: object) -> object:
        if isinstance(values, dict) and "maximum_epsilon" in values:
            raise ValueError("maximum_epsilon is called maximum_epsilon_per_run now; the value stays")
        return values

    @property
    def key(self) -> bytes | None:
        """The coordinator's public key, 32 bytes."""
        if self.coordinator is None:
            return None
        return ed25519_from_line(self.coordinator).public_bytes_raw()

    def require_warrant(self, warrant: str, *, run: str, settings: Settings, now: float) -> None:
        """Check who asks.

        Raises:
            Unwarranted: the coordinator's key is pinned, and the request has no warrant of it for this run.
        """
        key = self.key
        if key is None:
            return
        try:
            parse_warrant(warrant).require(key, run=run, settings=settings_digest(settings), now=now)
        except ProtocolError as error:
            raise Unwarranted(error.found, where="[federation] coordinator", do="ask who runs the federation") from None

    def require_settings(self, settings: Settings, *, users: int) -> None:
        """Check what is asked for.

        Args:
            users: Declared number of this platform's users.

        Raises:
            PrivacyError: this platform's file allows less; nothing was read or charged.
        """
        privacy = settings.privacy
        _keep(settings.private, "maximum_epsilon_per_run", "no privacy at all (privacy.epsilon = inf)")
        _keep(self.maximum_rounds is None or settings.rounds <= self.maximum_rounds, "maximum_rounds", settings.rounds)
        _keep(self.strategies is None or settings.strategy in self.strategies, "strategies", settings.strategy)
        _keep(self.preferences or settings.trains, "preferences", f"strategy {settings.strategy}, which shares preferences alone")
        _keep(self.noise is None or privacy.noise in self.noise, "noise", privacy.noise)
        secure, training = settings.secure, settings.training
        if settings.distributed:
            _keep(secure.colluders >= self.colluders, "colluders", f"secure.colluders = {secure.colluders}")
            _keep(secure.threshold >= self.minimum_threshold, "minimum_threshold", f"secure.threshold = {secure.threshold:g}")
        _keep(
            training.rate(users) <= self.maximum_sample_rate,
            "maximum_sample_rate",
            f"training.sample_rate = {training.rate(users):g}",
        )
        clip = f"training.clip = {training.clip:g}"
        _keep(training.clip >= self.minimum_clip, "minimum_clip", clip)
        _keep(training.clip <= self.maximum_clip, "maximum_clip", clip)
        count = settings.evaluations
        _keep(not self.metrics or count <= self.maximum_evaluations, "maximum_evaluations", f"{count} evaluations")
        _keep(not settings.encodes or settings.model.backbone in self.backbones, "backbones", settings.model.backbone)
        _keep(
            settings.server.minimum_platforms >= self.minimum_participants,
            "minimum_participants",
            f"server.minimum_platforms = {settings.server.minimum_platforms}",
        )
        asked = {name: getattr(privacy, name) for name in ("prior_noise_multiplier", "metrics_noise_multiplier")}
        if personalises(settings.strategy):
            asked["comparison_noise"] = settings.personal.comparison_noise
        for name, multiplier in asked.items():
            _keep(multiplier >= self.minimum_noise_multiplier, "minimum_noise_multiplier", f"{name} = {multiplier}")

    def require_noise(self, *multipliers: float) -> None:
        """Check the noise multipliers of what is planned.

        Raises:
            PrivacyError: less than this platform's file allows; nothing was charged.
        """
        for one in multipliers:
            _keep(one >= self.minimum_noise_multiplier, "minimum_noise_multiplier", f"a noise multiplier of {one:.4g}")


def _keep(holds: bool, term: str, found: object) -> None:
    if not holds:
        raise PrivacyError(
            f"the run asks for {found}, which this platform's terms do not allow",
            where=f"[federation] {term}",
            do="agree with the coordinator on other settings; the platform file is the platform's own",
        )
