"""A platform's recommender of its own rows and of what a federation released, weighted by what predicts its own users best.

Everything released is one more choice that validation may refuse: the factors by a share of 0, popularity elsewhere, the
adapter's texts and the taste map by a weight of 0. The fused model is used where the left-out points are predicted better by it
than by the own model, which was fitted on the same points, by more than chance explains. Where a federation helps, it
does by several of these (films dealt to 8 platforms: .012 of mean gain, with an error of .003); where it does not, the best of
many choices is still a little better by chance: a generated shop whose points gained .0001 lost 9 % of NDCG@10 on held-out items.
"""

from __future__ import annotations

from client.examples.split import Split
from client.recommender.evidence import ADAPTED, SHARED_TASTE, Alike, Evidence, PopularElsewhere, centred
from client.recommender.item_preferences import fit_preferences
from client.recommender.left_out import surely_more
from client.recommender.own_model import Floats, OwnFit, fit_own
from client.recommender.platform_model import PlatformModel, calibrated, weigh_evidence
from client.recommender.taste import Taste, TasteOnItems
from client.recommender.tell import Tell, silent
from client.sources.tables import Tables


def fit_fused_model(
    tables: Tables,
    split: Split,
    *,
    factors: Floats | None,
    popularity: Floats | None,
    text: Floats | None = None,
    adapted: Floats | None = None,
    taste: TasteOnItems | None = None,
    seed: int,
    calibrate: bool = False,
    tell: Tell = silent,
) -> tuple[PlatformModel, PlatformModel]:
    """The own model of a platform and the fused one, as `fit_own` and `fused_with` make them.

    Args:
        calibrate: Whether they have probabilities.

    Returns:
        The own model and the fused one, of which `scores(users)` is float32 (users, items).

    | given | result |
    |---|---|
    | nothing released, or factors of zeros | the fused model is the own one, the same object |
    | popularity NaN | an item that is not released: it counts as the platform alone says |
    """
    tell("fitting the own model")
    own = fit_own(tables, split, text=text, seed=seed)
    fused = fused_with(own, factors=factors, popularity=popularity, adapted=adapted, taste=taste, tell=tell)
    if not calibrate:
        return own.model, fused
    tell("calibrating probabilities")
    alone = calibrated(own.model, own.validation)
    return alone, alone if fused is own.model else calibrated(fused, own.validation)


def fused_with(
    own: OwnFit,
    *,
    factors: Floats | None,
    popularity: Floats | None,
    adapted: Floats | None = None,
    taste: TasteOnItems | None = None,
    tell: Tell = silent,
) -> PlatformModel:
    """The fused model; the own one itself where what was released does not predict this platform's users.

    Args:
        factors: float32 (rank, items), zeros for items that are not released; None: there are none.
        popularity: float32 (items,), NaN for items that are not released; None: there is none.
        adapted: Vectors of the items' texts by a published adapter, float32 (items, width); None: there is none.
        taste: A released taste map; None: there is none.
        tell: Called with what is being done.
    """
    preferences = own.model.preferences
    released: list[Evidence] = [] if popularity is None else [PopularElsewhere(popularity)]
    released += [] if adapted is None else [Alike(centred(adapted), name=ADAPTED)]
    released += [] if taste is None else [Taste(taste, name=SHARED_TASTE)]
    if factors is not None and factors.any():
        tell("fitting it with released preferences")
        preferences = fit_preferences(own.validation, [factors], own=preferences)
    if not released and not preferences.share:
        return own.model
    tell("weighing what was released")
    fused = weigh_evidence(own.validation, preferences, [*own.evidence, *released])
    return fused if surely_more(fused.gains, own.model.gains, own.validation.points.user) else own.model
