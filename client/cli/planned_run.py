"""Whether a planned run would be refused: by a platform's own file, by its budget, or of all platforms together.

What is certain is said with the exit code. What only a run's other platforms decide is said to be so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.base.errors import NoisyPlan, PrivacyError, ProtocolError
from shared.base.settings import Settings

if TYPE_CHECKING:
    from client.config.platform_file import PlatformFile
    from client.sources.tables import Tables


@dataclass(frozen=True, kw_only=True)
class PlannedPlatform:
    """What one platform would bring to a run.

    Args:
        users: That it declares.
        noise_multiplier: That training needs of what leaves it; 0 where nothing is trained.
        preference_noise, taste_noise: The same of the sums before training.
        items: Hashes by which others find its items; none where its users do not count in preferences.
    """

    users: int
    noise_multiplier: float
    preference_noise: float
    taste_noise: float
    items: AbstractSet[int]


def forecast_run(
    file: PlatformFile, settings: Settings, tables: Tables, *, hashes: AbstractSet[int], planned: bool
) -> tuple[dict[str, Any], PlannedPlatform | None]:
    """What the planned run would spend and how loud its update would be; a refusal is an answer too.

    Args:
        hashes: By which others find the platform's items.
        planned: Whether the settings are a planned run's, and not the defaults: then the platform's own terms decide, too.

    Returns:
        For people and for JSON; and what it would bring to a run, None where it would refuse.
    """
    from client.privacy.release_plan import preference_plan
    from client.run.quoting import quote_run
    from shared.ledger.reading import read_ledger

    deployed = file.federation.coordinator is not None
    if not deployed:
        # Without a coordinator it can be in a simulation alone, whose metrics are exact and cost nothing.
        settings = settings.model_copy(update={"simulation": True})
    try:
        if deployed:
            # What a deployed platform refuses before it plans anything.
            file.require_catalogue()
            file.require_delta()
            if planned:
                file.federation.require_settings(settings, users=file.users)
        spent = [entry.release for entry in read_ledger(file.ledger).entries] if deployed and file.ledger.exists() else []
        found = quote_run(file, settings, tables, budget=file.privacy.epsilon, spent=spent, simulation=not deployed)
    except PrivacyError as error:
        term = f" ({error.where})" if error.where.startswith("[federation]") else ""
        return {"possible": False, "why": f"{error.found}{term}"}, None
    plan = found.plan
    forecast = {
        "possible": True,
        "rounds": settings.rounds_each,
        "steps": settings.steps,
        "sample_rate": settings.training.rate(file.users) if settings.trains else 0.0,
        "batch": settings.training.batch([file.users]) if settings.trains else 0.0,
        "epsilon": found.epsilon if plan.private else "inf",
        "left": found.share.left if plan.private else "inf",
        "budget": plan.budget if plan.private else "inf",
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "preference_noise": plan.preference_noise,
        "taste_noise": plan.taste_noise,
        "signal_to_noise": plan.signal_to_noise if plan.private else "inf",
        "group_size": found.group_size,
        "accountant": str(plan.accountant),
    }
    return forecast, PlannedPlatform(
        users=file.users,
        noise_multiplier=found.need,
        preference_noise=plan.preference_noise,
        taste_noise=plan.taste_noise,
        items=hashes if preference_plan(file, settings) is not None else frozenset(),
    )


def refused_together(settings: Settings, platforms: Sequence[PlannedPlatform]) -> str:
    """Why a run of these platforms and no others would be refused; '' where it would not.

    Where noise is shared, what all of them sum is held against the noise of the sum, as a run does when they have joined.
    """
    from shared.model.adapter import initial, most_trained
    from shared.model.factor_schedule import scheme_of
    from shared.secagg.noise_agreement import Agreement
    from shared.secagg.sum_signal import require_signal

    if not settings.distributed or len(platforms) < 2:
        return ""
    times = Counter(item for one in platforms for item in one.items)
    users = [one.users for one in platforms]
    try:
        agreement = Agreement(
            noise_multiplier=max(one.noise_multiplier for one in platforms),
            preference_noise=max(one.preference_noise for one in platforms),
            taste_noise=max(one.taste_noise for one in platforms),
            batch=max(settings.training.batch([one]) for one in users),
        )
        parameters = most_trained(initial(settings), scheme_of(settings.strategy).cycle) if settings.trains else 1
        shared = sum(owners > 1 for owners in times.values())
        require_signal(settings, agreement, users=users, parameters=parameters, shared=shared)
    except (NoisyPlan, ProtocolError) as error:
        return error.found
    return ""


def undecided(file: PlatformFile, settings: Settings, forecast: dict[str, Any], *, planned: bool, alone: bool) -> list[str]:
    """What may still refuse the run, in words: what only all of its platforms decide, or settings that are not known.

    Args:
        planned: As `forecast_run` takes it.
        alone: Whether nothing is known of other platforms.
    """
    from shared.privacy.plan import short_number

    found = []
    if file.federation.coordinator is not None and not planned:
        try:
            file.federation.require_settings(settings, users=file.users)
        except PrivacyError as error:
            found.append(
                f"a run with default settings would be refused: {error.found} ({error.where}); --config FILE, with the settings "
                "that are planned, says whether theirs would"
            )
    quiet = forecast["possible"] and forecast["signal_to_noise"] != "inf" and forecast["signal_to_noise"] < 1
    if alone and quiet and settings.distributed:
        most = short_number(forecast["signal_to_noise"])
        asked = "fedfuse run --dry-run" if file.federation.coordinator is not None else "fedfuse check FOLDER, with all of them,"
        found.append(
            f"what this platform can show is at most {most} of the noise. Whether the run is refused is decided of all its "
            f"platforms together, since the noise is in their sum alone: {asked} says it; more users, a larger budget or fewer "
            "items (preferences.items) help"
        )
    return found
