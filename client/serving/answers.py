"""The answers: lists, alike items, reasons, events. Plain functions of many threads; nothing of HTTP is in them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from client.config.platform_file import PlatformFile
from client.evaluation.score_calibration import Calibration
from client.recommender.evidence import FRIENDS, POOLED, POPULARITY
from client.recommender.global_model import UNRELEASED
from client.recommender.lists.diversity import likeness_of, mean_unlikeness
from client.recommender.lists.item_attributes import AttributeFilter
from client.recommender.lists.person import ItemNames, Person, somebody_who_likes, with_twins
from client.recommender.lists.recommended import (
    ListRules,
    Recommendation,
    ScoresInParts,
    allowed_items,
    best_of,
    described_list,
    listed_items,
    total_scores,
)
from client.recommender.platform_model import ScorePart
from client.recommender.serving.kept_model import Shelf
from client.recommender.serving.recommend import about_person
from client.serving.event_log import EventLog, LoggedEvent
from client.serving.live_people import EventMeaning, LivePeople
from client.serving.messages import (
    EventsRequest,
    ExplainRequest,
    ItemsRequest,
    ModelName,
    RecommendRequest,
    SimilarRequest,
)
from client.sources.ids import spelled_id
from shared.base.errors import InputError
from shared.layers.malloc_tuning import keep

Answer = dict[str, Any]

_NAMED_EVERY, _NEWEST, _SAMPLED, _VALUES, _ATTRIBUTES = 100, 12, 8, 40, 12
_SPELLINGS = 1 << 16
_OF_NOBODY = (POPULARITY, POOLED, FRIENDS, UNRELEASED)
"""Parts that say nothing of which items are alike."""


class AnsweringModels(Protocol):
    """What is asked of `client.serving.served_models.ServedModels`."""

    shelf: Shelf
    default: ModelName
    same_as_own: bool

    @property
    def names(self) -> list[ModelName]:
        """Of the models that there are."""

    def model_for(self, name: ModelName, person: Person) -> ScoresInParts:
        """What recommends to somebody."""


class UnknownItem(InputError):
    """An item that is asked for is not in the catalogue."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Who is asked for, and the scores of the model that answers."""

    person: Person
    name: ModelName
    parts: Sequence[ScorePart]
    calibration: Calibration | None


class PlatformAnswers:
    """What one platform answers.

    Args:
        log: Where events are kept.
    """

    def __init__(self, file: PlatformFile, models: AnsweringModels, log: EventLog) -> None:
        self._file, self._models, self._shelf = file, models, models.shelf
        self._names = ItemNames(self._shelf)
        self._meaning = EventMeaning.of(file)
        self.people = LivePeople(self._shelf, self._names, log)
        self._spelled = lru_cache(_SPELLINGS)(lambda text: spelled_id(text, file.ids))

    @property
    def of_what(self) -> tuple[int, int, int]:
        """Items, users and likes: what a process that has read the same rows has, too."""
        return self._shelf.items, self._shelf.users, len(self._shelf.liked.values)

    def warm(self) -> None:
        """Make all that the first request would wait for, and leave nothing of it for a later one to clean up."""
        # A list takes and frees some megabytes: fresh pages take longer than the sums that are written into them.
        keep()
        self.platform()
        _ = self._shelf.words, self._shelf.twins, self._folded_titles
        if self._shelf.users:
            self.recommend(RecommendRequest(user=self._shelf.user_ids[0], diversity=0.5))
        # What is here stays for good: a collection that looked through it would stop a request for as long.
        gc.collect()
        gc.freeze()

    def platform(self) -> Answer:
        """What is served."""
        described = self._shelf.described
        return {
            "platform": self._file.name,
            "items": self._shelf.items,
            "models": self._models.names,
            "same_as_own": self._models.same_as_own,
            "attributes": [{"name": name, "values": described.common(name, _VALUES)} for name in described.names[:_ATTRIBUTES]],
        }

    def users(self) -> Answer:
        """Ids of some users with a history."""
        count = self._shelf.users
        drawn = random.sample(range(count), min(_SAMPLED * 4, count))
        liked = [number for number in drawn if len(self._shelf.liked[number])]
        return {"users": [self._shelf.user_ids[number] for number in (liked or drawn)[:_SAMPLED]]}

    def items(self, asked: ItemsRequest) -> Answer:
        """Items whose title has these letters."""
        text, found = asked.text.strip().casefold(), []
        for item, title in enumerate(self._folded_titles):
            if text in title:
                found.append(self._named(item))
                if len(found) == asked.top:
                    break
        return {"items": found}

    def recommend(self, asked: RecommendRequest) -> Answer:
        """A list.

        Raises:
            InputError: a model, an item or an attribute is not there.
        """
        found = self._asked(asked.user, asked.like, asked.model)
        person, parts = found.person, found.parts
        rules = ListRules(
            top=asked.top,
            diversity=asked.diversity,
            caps=asked.caps,
            filters=[AttributeFilter(**one.model_dump()) for one in asked.filters],
            seen=asked.seen,
        )
        scores = total_scores(parts)
        items = listed_items(self._shelf, person, scores, rules)
        listed = described_list(self._shelf, parts, person, items, calibration=found.calibration)
        answer: Answer = {
            "model": found.name,
            "note": about_person(self._shelf, person),
            "items": [_plain(one) for one in listed],
            "unlikeness": self._unlikeness(items),
        }
        if asked.sources:
            answer["sources"] = self._sources(person, parts, scores, items, rules)
        if asked.history:
            answer["history"] = [self._named(int(item)) for item in person.liked[::-1][:_NEWEST]]
        return answer

    def similar(self, asked: SimilarRequest) -> Answer:
        """Items that are alike with one: what a history of it alone adds.

        Raises:
            InputError: the model or the item is not there.
        """
        found = self._asked(None, [asked.item], asked.model)
        person = found.person
        about = [part for part in found.parts if part.name not in _OF_NOBODY] or found.parts
        rules = ListRules(top=asked.top)
        items = best_of(total_scores(about), allowed_items(self._shelf, person, rules), rules.top)
        listed = described_list(self._shelf, about, person, items)
        return {
            "model": found.name,
            "note": "",
            "items": [{**_plain(one), "because": "it is liked and described alike"} for one in listed],
            "unlikeness": self._unlikeness(items),
        }

    def explain(self, asked: ExplainRequest) -> Answer:
        """All reasons for one item.

        Raises:
            InputError: the model or the item is not there.
        """
        model = self._asked(asked.user, asked.like, asked.model)
        person, item = model.person, self._place(asked.item)
        scores = total_scores(model.parts)
        others = np.ones(self._shelf.items, np.bool_)
        others[with_twins(self._shelf, person.met)] = False
        others[item] = True
        ahead = others & ((scores > scores[item]) | ((scores == scores[item]) & (np.arange(len(scores)) < item)))
        (found,) = described_list(
            self._shelf, model.parts, person, np.array([item]), calibration=model.calibration, named=_NAMED_EVERY
        )
        return {**_plain(found), "rank": int(ahead.sum()) + 1, "of": int(others.sum()), "model": model.name}

    def events(self, asked: EventsRequest) -> Answer:
        """Take events in; they count from the next answer on.

        Raises:
            InputError: one of them is of no item or says nothing; none of them counts.
            StorageError: they cannot be kept; none of them counts.
        """
        now, found = int(time.time()), []
        for place, one in enumerate(asked.events):
            try:
                liked = self._meaning.liked(event=one.event, value=one.value, liked=one.liked)
                item = self._shelf.item_ids[self._place(one.item)]
            except InputError as error:
                raise type(error)(error.found, where=f"events[{place}]", do=error.do) from None
            found.append(LoggedEvent(user=self._spelled(one.user), item=item, liked=liked, time=now))
        self.people.add(found)
        return {"accepted": len(found)}

    def close(self) -> None:
        """Take no further event in."""
        self.people.close()

    def _asked(self, user: str | None, like: Sequence[str], model: ModelName | None) -> _Asked:
        name = model or self._models.default
        if user is not None:
            person = self.people.person(self._spelled(user))
        else:
            person = somebody_who_likes([self._place(one) for one in like])
        found = self._models.model_for(name, person)
        parts = found.parts(person.history(self._shelf.items), user=person.number)
        return _Asked(person=person, name=name, parts=parts, calibration=found.calibration)

    def _place(self, item: str) -> int:
        place = self._names.place(item)
        if place is None:
            place = self._names.place(self._spelled(item))
        if place is None:
            raise UnknownItem("the catalogue has no such item", do="name an item's id or public key")
        return place

    def _sources(self, person: Person, parts: Sequence[ScorePart], scores: Any, items: Any, rules: ListRules) -> list[Answer]:
        """What each part does for a list: what it adds in the mean, and which items would not be in the list without it."""
        found = []
        for part in parts:
            without = listed_items(self._shelf, person, scores - part.scores, rules)
            adds = float(part.scores[items].mean()) if len(items) else 0.0
            found.append({"name": part.name, "adds": round(adds, 6), "brings": len(np.setdiff1d(items, without))})
        return found

    def _unlikeness(self, items: Any) -> float:
        return round(mean_unlikeness(likeness_of(self._shelf.words, items)), 4)

    def _named(self, item: int) -> Answer:
        return {"item": self._shelf.item_ids[item], "title": self._shelf.item_titles[item]}

    @cached_property
    def _folded_titles(self) -> list[str]:
        return [title.casefold() for title in self._shelf.item_titles]


def _plain(one: Recommendation) -> Answer:
    # `dataclasses.asdict` copies every value, which took a quarter of the time of an answer.
    return {**vars(one), "from_history": [vars(share) for share in one.from_history]}
