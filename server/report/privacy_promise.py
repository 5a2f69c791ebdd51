"""The promise of a run in words: unit, neighbours, actors, mechanisms, composition, and what is not protected.

The fields are those of NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees, 2025) and of the OpenDP
deployments registry. `docs/guarantees.md` says the same at length.
"""

from __future__ import annotations

from server.report.report_model import PrivacyPromise, PromiseStanding, TrustedActor

ONE_USER = {
    "popularity": "a vector of norm 1: 20 liked items at most, or a vector scaled to norm 1",
    "preferences": "a vector of norm 1, whatever the user likes",
    "taste": "a vector of norm 1, whatever the user likes",
    "train": "in each step, a gradient cut to the clipping bound",
    "evaluate": "quality figures of norm 1 at most, or a gain between -1 and 1",
}
WHAT = {
    "popularity": "how popular items are",
    "preferences": "which shared items are liked together",
    "taste": "which directions of items' texts are liked together",
    "train": "the training steps of the adapter",
    "evaluate": "ranking quality, or a comparison of two models",
}
KEPT = "; it stays on the platform, whose own training uses it"
"""Of a popularity that no answer held."""
_STATEMENT = {
    PromiseStanding.PROMISED: (
        "Whatever anybody does with all that left a platform, it is almost as likely had any one user, with everything that the "
        "platform knows of them, never been there. Epsilon and delta say how nearly."
    ),
    PromiseStanding.SIMULATED: (
        "A simulation promises nothing: its noise can be computed again from a seed, and its figures are exact. The epsilon "
        "shown is what the same run, deployed with secret noise, would promise."
    ),
    PromiseStanding.OFF: "Privacy was off on some platform: nothing is promised to its users.",
}
_MECHANISMS = (
    "Each release is a sum over users; each user's vector has a bounded length.",
    "The sum is rounded by chance to a public integer grid and gets discrete Gaussian noise; floats come after the noise.",
    "Training and large evaluations read Poisson samples of users, which the accounting takes into account.",
    "Implemented and accounted in Fedfuse; recomputed by Opacus (RDP, PRV) and dp-accounting (PLD).",
    "Noise comes from the operating system's cryptographic generator, and from a seed in simulations alone.",
    "Answers leave at few public moments, so that their timing says little.",
)
_UNPROTECTED = (
    "Facts that are declared public: platform names, declared numbers of users, catalogues, budgets, who took part and when.",
    "What is true of people at large: the model may teach something about somebody who never was a user.",
    "A person on several platforms: what they spend there adds up, and no platform by itself can know how much it is.",
    "Groups: what a family has in common is protected less than what one person has.",
    "What a platform itself does with its rows, and what it shows to its own users.",
    "That an answer was made without any row is the platform's own statement.",
    "Timing is bounded by few public moments, not by differential privacy.",
    "On a GPU, the rounding of other users in one batch is not measured yet; nothing is promised that rests on it.",
)
_ASSUMPTIONS = (
    "Each platform runs unchanged Fedfuse code; its ledger proves what was charged, not what code ran.",
    "The declared numbers of users, catalogues and bounds of numbers are public facts and were not counted from rows.",
    "The ledger is kept: a platform restored from an older copy has forgotten charges.",
    "The platform's own computers, keys and people are as safe as the rows they hold.",
)


def privacy_promise(
    *, standing: PromiseStanding, distributed: bool | None, colluders: int | None, units: int | None, utility: str, known: bool
) -> PrivacyPromise:
    """The promise of a run.

    Args:
        distributed: Whether the platforms share the noise under a secure sum; None where that is not known.
        colluders: Platforms that may collude with the coordinator, under a secure sum.
        units: Declared users of all platforms; None where it is not known.
        utility: What the run was good for, in words.
        known: Whether the run's settings are here.
    """
    if distributed is None:
        model = "Federated. How the noise was added is not known here: the run's settings are not in this folder."
    elif distributed:
        some = "some platforms collude" if colluders is None else "nobody colludes with the coordinator"
        if colluders:
            some = f"at most {colluders} platform{'s collude' if colluders > 1 else ' colludes'} with the coordinator"
        model = f"Federated, distributed noise: each platform adds a share, under a secure sum; holds while {some}."
    else:
        model = "Federated, local noise: each platform adds all of its noise before anything leaves it; nobody else is trusted."
    secure = bool(distributed)
    actors = (
        TrustedActor(
            who="A platform", sees="its own users' rows, and nothing of others' rows", trusted_for="its own users' rows"
        ),
        TrustedActor(
            who="The coordinator",
            sees="the noised sum over platforms" if secure else "each platform's noised answers",
            trusted_for="nothing in privacy; for the run going on, and the model being right",
        ),
        TrustedActor(
            who="Other platforms",
            sees="the published model and its noised sums",
            trusted_for="not colluding beyond the declared number" if secure else "nothing",
        ),
        TrustedActor(who="Whoever holds the model", sees="the published model", trusted_for="nothing"),
    )
    assumptions: tuple[str, ...] = _ASSUMPTIONS
    if not known:
        assumptions = (*assumptions, "The run was no simulation: a ledger alone does not show that its noise was secret.")
    if secure:
        assumptions = (*assumptions, "Enough platforms of each sum are honest: no more collude than was declared.")
    return PrivacyPromise(
        statement=_STATEMENT[standing],
        privacy_unit="One user of one platform, with everything that the platform knows of them",
        units=units,
        neighbours="Two data sets are neighbours where one has one user more: add or remove one user with all their rows.",
        variant="Approximate DP, (epsilon, delta)",
        deployment_model=model,
        actors=actors,
        mechanisms=_MECHANISMS,
        composition=(
            "All charges of a ledger are composed, adaptively, over all rounds and runs. Charges of a person's several platforms "
            "are composed once more, at the sum of their deltas."
        ),
        post_processing=(
            "Averaging, denoising, server optimizers, checkpoints, publishing, and everything that holders of the model do: none "
            "of it costs privacy."
        ),
        preprocessing_and_tuning=(
            "Texts and numbers are prepared with public bounds, not with statistics of the rows. Adaptive clipping and "
            "evaluations are charged. Settings that people chose after looking at their own platform's exact figures are not "
            "accounted for."
        ),
        assumptions=assumptions,
        unprotected=_UNPROTECTED,
        utility=utility,
    )
