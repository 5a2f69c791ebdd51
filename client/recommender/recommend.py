"""Recommendations on the platform, from its own rows and, if there is one, a pulled global model. Nothing of it leaves.

Lists that a platform shows in public are made of the released parts alone (`client/recommender/global_model.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.examples.split import Split, nothing_held_out, ragged
from client.model.prepared_platform import Progress
from client.recommender.evidence import NOBODY
from client.recommender.explanation import parts_of_item, reason_for, total_of
from client.recommender.fused_model import fit_fused_model
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories
from client.recommender.own_model import Tell, silent, training_histories
from client.recommender.platform_model import PlatformModel
from client.recommender.pulled_model import UsableModel, open_model, untrained_text, use_model
from client.sources.ids import spelled_id
from client.sources.item_keys import spelled_keys
from client.sources.platform_tables import read_tables, require_usable
from client.sources.tables import Tables
from shared.base.errors import InputError

Floats = NDArray[np.float32]

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Args:
        score: The sum of its parts; only its order within one person's list means something.
        because: The part that adds most, in words.
        parts: What adds how much.
    """

    rank: int
    item: str
    title: str
    score: float
    because: str
    parts: Mapping[str, float]


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
    opened = None if model is None else open_model(model)
    tell("reading the platform's tables")
    tables = read_tables(file, lenient=True)
    if tables.items < 2:
        raise InputError(f"the catalogue has {tables.items} item", where=str(file.path), do="a recommender needs two at least")
    if opened is None:
        require_usable(tables, where=str(file.path))
    split = nothing_held_out(tables, seed=_SEED)
    if user is not None:
        person = _named(tables, split, spelled_id(user, file.ids), say)
    else:
        person = _liking(tables, [spelled_id(one, file.ids) for one in like])
    usable = None if opened is None else use_model(opened, file, tables, cache=cache, state=state, say=say, progress=progress)

    def text() -> Floats | None:
        return untrained_text(file, tables, usable, texts=texts, cache=cache, progress=progress)

    fitted = _model(tables, split, person, usable, released_alone=released_alone, text=text, say=say, tell=tell)
    history = Histories(liked=ragged([person.liked]), items=tables.items, ordered=tables.interactions.time is not None)
    if like:
        # In the order in which they are named, none is older than another.
        history = Histories(liked=history.liked, items=tables.items, ordered=False)
    tell("ranking")
    parts = fitted.parts(history, user=person.number)
    scores = np.sum([part.scores for part in parts], axis=0)
    order = history.recent(np.zeros(1, np.int64), half_life=None).indices
    unmet = np.setdiff1d(np.arange(tables.items), with_twins(tables, person.met))
    best = unmet[np.argsort(-scores[unmet], kind="stable")][:top]
    found = []
    for rank, item in enumerate(best.tolist(), start=1):
        adds = parts_of_item(parts, item)
        found.append(
            Recommendation(
                rank=rank,
                item=tables.item_ids[item],
                title=tables.item_titles[item],
                score=total_of(adds),
                because=reason_for(parts, item, order.tolist(), tables),
                parts=adds,
            )
        )
    return found


def _named(tables: Tables, split: Split, user: str, say: Tell) -> _Person:
    none = np.zeros(0, np.int32)
    if user not in tables.user_ids:
        say(f"nothing is known of user {user!r}: popular items are shown")
        return _Person(number=NOBODY, liked=none, met=none)
    number = list(tables.user_ids).index(user)
    liked = split.train[number]
    if not len(liked):
        say(
            f"user {user!r} has liked no item yet: "
            + ("their profile, and then popularity, decide" if _profile(tables, number) else "popular items are shown")
        )
    return _Person(number=number, liked=liked, met=split.known[number])


def with_twins(tables: Tables, items: NDArray[np.int32]) -> NDArray[np.int32]:
    """These items, and all that have a key of theirs: another entry of the same book is no news."""
    keys = {tables.item_keys[item] for item in items} - {""}
    if not keys:
        return items
    twins = [place for place, key in enumerate(tables.item_keys) if key in keys]
    return np.union1d(items, np.asarray(twins, np.int32)).astype(np.int32)


def _liking(tables: Tables, like: Sequence[str]) -> _Person:
    by_id = {name: place for place, name in enumerate(tables.item_ids)}
    by_key = {key: place for place, key in reversed(list(enumerate(tables.item_keys))) if key}
    items = []
    for name in like:
        place = next((by_key[key] for key in spelled_keys(name, by_key) if key in by_key), None)
        place = by_id.get(name, place)
        if place is None:
            key = next(iter(by_key), "")
            such = f"{tables.item_ids[0]!r}" + (f" or {key!r}" if key else "")
            raise InputError(f"no item has the id or key {name!r}", where="--like", do=f"name one such as {such}")
        items.append(place)
    liked = np.asarray(list(dict.fromkeys(items)), np.int32)
    return _Person(number=NOBODY, liked=liked, met=np.unique(liked))


def _model(
    tables: Tables,
    split: Split,
    person: _Person,
    usable: UsableModel | None,
    *,
    released_alone: bool,
    text: Callable[[], Floats | None],
    say: Tell,
    tell: Tell,
) -> PlatformModel | GlobalModel:
    if usable is not None:
        alone = usable.alone(training_histories(tables, split))
        if released_alone:
            return alone
        if not tables.interactions.positive.any():
            say("this platform has no liked item yet: the model answers by what was released alone")
            return alone
        if not len(person.liked) and usable.text is not None and _profile(tables, person.number):
            return alone
    own, fused = fit_fused_model(
        tables,
        split,
        factors=None if usable is None else usable.factors,
        popularity=None if usable is None or usable.preferences is None else usable.preferences.popularity,
        text=text(),
        adapted=usable.own_text.items if usable and usable.own_text else None,
        taste=usable.taste if usable else None,
        seed=_SEED,
        tell=tell,
    )
    if usable is not None and fused is own:
        say("the model does not predict this platform's users better than its own rows do: those alone decide")
    return fused


def _profile(tables: Tables, number: int) -> bool:
    return number != NOBODY and any(texts[number] for texts in tables.user_text.values())
