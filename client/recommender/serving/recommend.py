"""Recommendations on the platform, from its own rows and, if there is one, a pulled global model. Nothing of it leaves.

Lists that a platform shows in public are made of the released parts alone (`client/recommender/global_model.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.examples.split import ragged
from client.recommender.evidence import NOBODY
from client.recommender.explanation import parts_of_item, reason_for, total_of
from client.recommender.histories import Histories
from client.recommender.serving.fitted_platform import FittedPlatform
from client.recommender.serving.kept_model import Shelf
from client.recommender.tell import Tell, silent
from client.sources.ids import spelled_id
from client.sources.item_keys import spelled_keys
from shared.base.errors import InputError
from shared.base.progress import Progress

_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Args:
        score: The sum of its parts; only its order within one person's list means something.
        because: The part that adds most, in words.
        parts: What adds how much.
        probability: That it is the next item that they like, among all that they have not met; calibrated on the platform's own
            users. None where the score was made without their rows, or where they are too few.
    """

    rank: int
    item: str
    title: str
    score: float
    because: str
    parts: Mapping[str, float]
    probability: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Person:
    """Whom items are recommended to.

    Args:
        liked: int32. Items of the history, oldest first.
        met: int32. Items that are not recommended.
    """

    number: int
    liked: NDArray[np.int32]
    met: NDArray[np.int32]


def recommend_items(
    file: PlatformFile,
    *,
    model: Path | None = None,
    user: str | None = None,
    like: Sequence[str] = (),
    top: int = 10,
    released_alone: bool = False,
    texts: bool = False,
    cache: Path,
    state: Path | None = None,
    say: Tell = silent,
    tell: Tell = silent,
    progress: Progress | None = None,
) -> list[Recommendation]:
    """The best items that somebody has not had, best first.

    Args:
        model: A published model's folder; without it, the platform's own model is used.
        user: Id of a user of the platform, or of anybody.
        like: Ids or public keys of items that somebody who is in no table likes, in the place of `user`.
        released_alone: Whether only what was published counts, and the person's own history: for lists shown in public.
        texts: Whether the items' texts are encoded although the model has no adapter.
        cache: Folder of the trunk cache; a second call is quick.
        state: The platform's file of the run that made the model, if it is here.
        say: Called with what a person should know of the answer, in one line.
        tell: Called with what is being done.

    Raises:
        InputError: an option, the model or the sources cannot be used, or an item is unknown.
    """
    if top < 1:
        raise InputError(f"--top is {top}", do="ask for at least one item")
    if (user is None) == (not like):
        raise InputError("it is not said for whom", do="give either --user, or --like once or more")
    if released_alone and model is None:
        raise InputError("--private needs a model: a platform by itself has released nothing", do="add --model")
    at_hand = FittedPlatform(
        file, model=model, state=state, texts=texts, cache=cache, say=say, tell=tell, progress=progress, alone=released_alone
    )
    shelf = at_hand.shelf
    if user is not None:
        person = _named(shelf, spelled_id(user, file.ids), say)
    else:
        person = _liking(shelf, [spelled_id(one, file.ids) for one in like])
    fitted = at_hand.model_for(person.number, liked=len(person.liked))
    # In the order in which they are named, none is older than another.
    history = Histories(liked=ragged([person.liked]), items=shelf.items, ordered=shelf.ordered and not like)
    tell("ranking")
    parts = fitted.parts(history, user=person.number)
    scores = np.sum([part.scores for part in parts], axis=0)
    order = history.recent(np.zeros(1, np.int64), half_life=None).indices
    unmet = np.setdiff1d(np.arange(shelf.items), with_twins(shelf, person.met))
    best = unmet[np.argsort(-scores[unmet], kind="stable")][:top]
    likely = None if fitted.calibration is None else fitted.calibration.probabilities(scores)
    found = []
    for rank, item in enumerate(best.tolist(), start=1):
        adds = parts_of_item(parts, item)
        found.append(
            Recommendation(
                rank=rank,
                item=shelf.item_ids[item],
                title=shelf.item_titles[item],
                score=total_of(adds),
                because=reason_for(parts, item, order.tolist(), shelf.item_titles),
                parts=adds,
                probability=None if likely is None else float(f"{likely[item]:.{_DIGITS}g}"),
            )
        )
    return found


def _named(shelf: Shelf, user: str, say: Tell) -> _Person:
    none = np.zeros(0, np.int32)
    number = shelf.number_of(user)
    if number is None:
        say(f"nothing is known of user {user!r}: popular items are shown")
        return _Person(number=NOBODY, liked=none, met=none)
    liked = shelf.liked[number]
    if not len(liked):
        say(
            f"user {user!r} has liked no item yet: "
            + ("their profile, and then popularity, decide" if shelf.profiled[number] else "popular items are shown")
        )
    return _Person(number=number, liked=liked, met=shelf.known[number])


def with_twins(shelf: Shelf, items: NDArray[np.int32]) -> NDArray[np.int32]:
    """These items, and all that have a key of theirs: another entry of the same book is no news."""
    return np.union1d(items, shelf.twins.entries(items.astype(np.int64))[2]).astype(np.int32)


def _liking(shelf: Shelf, like: Sequence[str]) -> _Person:
    by_id = {name: place for place, name in enumerate(shelf.item_ids)}
    by_key = {key: place for place, key in reversed(list(enumerate(shelf.item_keys))) if key}
    items = []
    for name in like:
        place = next((by_key[key] for key in spelled_keys(name, by_key) if key in by_key), None)
        place = by_id.get(name, place)
        if place is None:
            key = next(iter(by_key), "")
            such = f"{shelf.item_ids[0]!r}" + (f" or {key!r}" if key else "")
            raise InputError(f"no item has the id or key {name!r}", where="--like", do=f"name one such as {such}")
        items.append(place)
    liked = np.asarray(list(dict.fromkeys(items)), np.int32)
    return _Person(number=NOBODY, liked=liked, met=np.unique(liked))
