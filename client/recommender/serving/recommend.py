"""Recommendations on the platform, from its own rows and, if there is one, a pulled global model. Nothing of it leaves.

Lists that a platform shows in public are made of the released parts alone (`client/recommender/global_model.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from client.config.platform_file import PlatformFile
from client.recommender.evidence import NOBODY
from client.recommender.lists.person import NO_ITEMS, ItemNames, Person, somebody_who_likes
from client.recommender.lists.recommended import ListRules, Recommendation, recommended
from client.recommender.serving.fitted_platform import FittedPlatform, ModelInputs
from client.recommender.serving.kept_model import Shelf
from client.recommender.tell import Reports, Tell, silent
from client.sources.ids import spelled_id
from shared.base.errors import InputError
from shared.base.progress import Progress

if TYPE_CHECKING:
    from shared.registry.signing import PublicKey


def recommend_items(
    file: PlatformFile,
    *,
    model: Path | None = None,
    user: str | None = None,
    like: Sequence[str] = (),
    rules: ListRules | None = None,
    released_alone: bool = False,
    texts: bool = False,
    cache: Path,
    state: Path | None = None,
    trusted: Sequence[PublicKey] = (),
    say: Tell = silent,
    tell: Tell = silent,
    progress: Progress | None = None,
) -> list[Recommendation]:
    """The best items that somebody has not had, best first.

    Args:
        model: A published model's folder; without it, the platform's own model is used.
        user: Id of a user of the platform, or of anybody.
        like: Ids or public keys of items that somebody who is in no table likes, in the place of `user`.
        rules: What the list is to be like; by default ten items by score.
        released_alone: Whether only what was published counts, and the person's own history: for lists shown in public.
        texts: Whether the items' texts are encoded although the model has no adapter.
        cache: Folder of the trunk cache; a second call is quick.
        state: The platform's file of the run that made the model, if it is here.
        trusted: Public keys, of which one must have signed the model; without any, no signature is asked for.
        say: Called with what a person should know of the answer, in one line.
        tell: Called with what is being done.

    Returns:
        `rules.top` items at most. `score` has no unit: only its order within the list means something. `parts` add up to it, in
        decimals. `probability` is in [0, 1], or None.

    Raises:
        StorageError, Untrusted: the model's folder is not what was published.
        InputError: an option, the model or the sources cannot be used, or an item is unknown.

    | given | result |
    |---|---|
    | an unknown user | what is popular, and `say` is called with that |
    | both a user and liked items, or neither | `InputError` |
    | an unknown item in `like` | `InputError`, with one that is known |
    | more items than there are left | those that there are |
    | a list of 0 | `InputError`, from `ListRules` |
    | `released_alone` without a model | `InputError` |
    """
    rules = rules or ListRules()
    if (user is None) == (not like):
        raise InputError("it is not said for whom", do="give either --user, or --like once or more")
    if released_alone and model is None:
        raise InputError("--private needs a model: a platform by itself has released nothing", do="add --model")
    inputs = ModelInputs(model=model, state=state, trusted=trusted, texts=texts, cache=cache)
    at_hand = FittedPlatform(file, inputs, Reports(say=say, tell=tell, progress=progress), alone=released_alone)
    shelf = at_hand.shelf
    if user is not None:
        person = named_person(shelf, spelled_id(user, file.ids))
        if said := about_person(shelf, person):
            say(f"user {user!r}: {said}")
    else:
        person = _liking(shelf, [spelled_id(one, file.ids) for one in like])
    fitted = at_hand.model_for(person.number, liked=len(person.liked))
    tell("ranking")
    found = recommended(shelf, fitted, person, rules)
    if len(found) < rules.top and (rules.filters or rules.caps):
        say(f"the filters and caps leave {len(found)} of {rules.top} items")
    return found


def named_person(shelf: Shelf, user: str) -> Person:
    """The person with this id, as ids are spelled here; `NOBODY` for one who is in no table."""
    number = shelf.number_of(user)
    if number is None:
        return Person(number=NOBODY, liked=NO_ITEMS, met=NO_ITEMS, in_order=shelf.ordered)
    weight = None if shelf.weight is None else shelf.weight[slice(*shelf.liked.offsets[[number, number + 1]])]
    return Person(number=number, liked=shelf.liked[number], met=shelf.known[number], in_order=shelf.ordered, weight=weight)


def about_person(shelf: Shelf, person: Person) -> str:
    """What should be known of a list for somebody of whom there is little to go by; '' where there is enough."""
    if len(person.liked):
        return ""
    if person.number == NOBODY:
        return "nothing is known of them, so popular items are shown"
    known = "their profile, and then popularity, decide" if shelf.profiled[person.number] else "popular items are shown"
    return f"they have liked no item yet, so {known}"


def _liking(shelf: Shelf, like: Sequence[str]) -> Person:
    names, items = ItemNames(shelf), []
    for name in like:
        place = names.place(name)
        if place is None:
            raise InputError(f"no item has the id or key {name!r}", where="--like", do=f"name one such as {names.example()}")
        items.append(place)
    return somebody_who_likes(items)
