"""People as they are now: their rows, and their events since."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from client.config.platform_file import PlatformFile
from client.config.source_schema import InteractionsSource
from client.recommender.lists.person import ItemNames, Person
from client.recommender.serving.kept_model import Shelf
from client.recommender.serving.recommend import named_person
from client.serving.event_log import EventLog, LoggedEvent, News
from shared.base.errors import InputError

MOST_OF_ONE = 1000
"""Events of one user that count, the newest."""


@dataclass(frozen=True, kw_only=True)
class EventMeaning:
    """What an event says, by a source of interactions.

    Args:
        weights: Event in small letters -> weight; empty where the source has no events.
        threshold: Value from which on an item counts as liked; None where values do not matter.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @classmethod
    def of(cls, file: PlatformFile) -> EventMeaning:
        """By the first source of interactions, which the platform's events come from."""
        source = next((one for one in file.sources.values() if isinstance(one, InteractionsSource)), None)
        if source is None:
            return cls()
        weights = {name.casefold(): weight for name, weight in (source.events or {}).items()}
        return cls(weights=weights, threshold=source.threshold)

    def liked(self, *, event: str | None, value: float | None, liked: bool | None) -> bool:
        """Whether the item is liked; else it is known and no more.

        Args:
            liked: What is said outright; it counts before the rest.

        Raises:
            InputError: it does not follow from what was said.
        """
        if liked is not None:
            return liked
        if self.weights:
            weight = self.weights.get((event or "").casefold())
            if weight is None:
                raise InputError(
                    "the event is none of the platform file's", do=f"say `liked`, or one of: {', '.join(self.weights)}"
                )
            if not weight:
                return False
        if self.threshold is not None:
            if value is None:
                raise InputError(
                    "the value is missing", do=f"say `liked`, or a value: from {self.threshold:g} on an item is liked"
                )
            return value >= self.threshold
        return True


class LivePeople:
    """The platform's users, and everybody whom an event has named. Safe to use from many threads.

    Args:
        log: Where events are kept; what is in it counts from the beginning.
    """

    def __init__(self, shelf: Shelf, names: ItemNames, log: EventLog) -> None:
        self._shelf, self._names, self._log = shelf, names, log
        self._lock = threading.Lock()
        self._since: dict[str, list[tuple[int, bool]]] = {}
        self.kept = self.unknown = 0
        self._count(log.news())

    @property
    def in_words(self) -> str:
        """How many events are kept, for whoever starts a server."""
        lost = self._log.skipped + self.unknown
        kept = f"{self.kept:,} events are kept in {self._log.folder}"
        return f"{kept}; {lost:,} of them say nothing any more" if lost else kept

    def person(self, user: str) -> Person:
        """A person with all their events; number `NOBODY` for one who is in no table.

        Raises:
            StorageError: what other processes wrote cannot be read.
        """
        with self._lock:
            self._count(self._log.news())
            since = tuple(self._since.get(user, ()))
        return named_person(self._shelf, user).after(since)

    def add(self, events: Sequence[LoggedEvent]) -> None:
        """Take events in: on the disk first, and then they count.

        Raises:
            StorageError: they cannot be kept, so they do not count.
        """
        with self._lock:
            self._count(self._log.append(events))

    def close(self) -> None:
        """No further event is taken in."""
        with self._lock:
            self._log.close()

    def _count(self, news: News) -> None:
        if news.anew:
            self._since, self.kept, self.unknown = {}, 0, 0
        self.kept += len(news.events)
        for one in news.events:
            place = self._names.place(one.item)
            if place is None:
                self.unknown += 1  # it is no longer in the catalogue
                continue
            since = self._since.setdefault(one.user, [])
            since.append((place, one.liked))
            del since[:-MOST_OF_ONE]
