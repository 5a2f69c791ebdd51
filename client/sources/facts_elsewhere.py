"""What other platforms know of the entities that a platform's items are, or have.

An entity under one public key is one entity, on whichever platform. Of each that an item here is or has (the book itself, its
author), the other platforms' catalogues hold a neighbourhood: the item that is this entity, and the items that have it (the films
made of that author's books). A fact counts by the part of them of which it is said, less the part of all items of which it is: so
what everything is tells nothing, and neither does an entity that everything has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from client.sources.cell_values import LONGEST_TEXT
from client.sources.entity_facts import EntityFact, KnownItem, PublishedFacts

MOST_NEIGHBOURS = 256
"""Items that an entity is judged by, the first of each file's order."""

Scores = dict[str, float]


class Neighbourhoods:
    """The catalogues of other platforms, by their entities.

    Args:
        published: Of each platform.
    """

    def __init__(self, published: Iterable[PublishedFacts]) -> None:
        self._items = [item for one in published for item in one.items]
        self._is: dict[str, list[int]] = {}
        self._has: dict[str, list[int]] = {}
        said: Counter[str] = Counter()
        for place, item in enumerate(self._items):
            for key in item.keys:
                self._is.setdefault(key, []).append(place)
            for key in dict.fromkeys(key for fact in item.facts for key in fact.keys):
                self._has.setdefault(key, []).append(place)
            said.update({phrase(fact) for fact in item.facts if fact.tail})
        self._usual = {text: times / len(self._items) for text, times in said.items()}
        self._known: dict[tuple[str, ...], Scores] = {}

    def of_entity(self, keys: tuple[str, ...]) -> Scores:
        """Phrase -> how much more often it is said in the neighbourhood of an entity than anywhere, above 0.

        Args:
            keys: Of the entity.
        """
        if keys not in self._known:
            scores: Scores = {}
            for index in (self._is, self._has):
                places = list(dict.fromkeys(place for key in keys for place in index.get(key, ())))[:MOST_NEIGHBOURS]
                for text, share in self._shares(places, set(keys)).items():
                    scores[text] = scores.get(text, 0.0) + share
            self._known[keys] = scores
        return self._known[keys]

    def _shares(self, places: Sequence[int], keys: set[str]) -> Scores:
        # That an item has this very entity is how it was found.
        said = Counter(
            text
            for place in places
            for text in dict.fromkeys(
                phrase(fact) for fact in self._items[place].facts if fact.tail and keys.isdisjoint(fact.keys)
            )
        )
        more = ((text, times / len(places) - self._usual[text]) for text, times in said.items())
        return {text: share for text, share in more if share > 0}


def phrase(fact: EntityFact) -> str:
    """As it is read in an item's text."""
    return f"{fact.relation}: {fact.tail}"


def facts_from_elsewhere(own: Sequence[KnownItem], published: Iterable[PublishedFacts], *, most: int) -> list[str]:
    """A text of each item, '' where nobody else knows anything of it.

    Args:
        own: What the platform's own graph says of each item.
        most: Phrases of a text.
    """
    others = Neighbourhoods(published)
    return [". ".join(_of_item(item, others)[:most])[:LONGEST_TEXT] for item in own]


def _of_item(item: KnownItem, others: Neighbourhoods) -> list[str]:
    scores: Scores = {}
    for keys in dict.fromkeys([item.keys, *(fact.keys for fact in item.facts)]):
        for text, share in others.of_entity(keys).items() if keys else ():
            scores[text] = scores.get(text, 0.0) + share
    known = {phrase(fact) for fact in item.facts}
    return sorted((text for text in scores if text not in known), key=lambda text: (-scores[text], text))
