"""What a platform's graph says of its items, as a public file that other platforms read: entities under public keys.

A line of JSON names the form, the platform and the number of items; then comes a line for each item: the public keys under which
others may know it, and facts, each a relation, the name of what is so related and its public keys ('' and none where there is no
name or no key). No user's row is behind it: items, keys and triples come from declared public tables.

Whoever reads it does not trust who wrote it: lines, texts, keys and counts have bounds, and what is outside of them is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.config.platform_file import NAME
from shared.base.atomic_files import whole_file
from shared.base.errors import InputError
from shared.preferences.item_index import MOST_DECLARED

FORM = 1
MOST_FACTS, MOST_KEYS, LONGEST = 32, 4, 200
"""Facts of one item, keys of one entity, characters of a text, at most."""
MOST_FACTS_OF_ALL = 1 << 20
_LONGEST_LINE = 1 << 18
"""Bytes of a line, its end included: of an item with all that it may have, four to each character."""
_KEY = re.compile(r"[a-z][a-z0-9-]{0,30}:\S(?:.*\S)?")
_JOINERS = re.compile("[\u200c\u200d]")
"""Some scripts are spelled with them."""
_REWRITTEN = "ask its platform for the file anew: `fedfuse facts` writes it"


@dataclass(frozen=True, kw_only=True)
class EntityFact:
    """What an item is related to.

    Args:
        relation: In words.
        tail: The name of what is so related, '' where it has none.
        keys: Its public keys.
    """

    relation: str
    tail: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KnownItem:
    """What is known of one item.

    Args:
        keys: Public keys under which others may know it.
    """

    keys: tuple[str, ...]
    facts: tuple[EntityFact, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PublishedFacts:
    """What one platform has published."""

    platform: str
    items: Sequence[KnownItem] = field(repr=False)


def publishable(items: Iterable[KnownItem]) -> list[KnownItem]:
    """The part that a file may hold: within its bounds, of items that others can find by a key of theirs or of a tail."""
    found = []
    for item in items:
        facts = tuple(
            EntityFact(relation=fact.relation, tail=fact.tail, keys=tuple(filter(_is_key, fact.keys))[:MOST_KEYS])
            for fact in item.facts
            if _is_text(fact.relation) and (not fact.tail or _is_text(fact.tail))
        )[:MOST_FACTS]
        keys = tuple(filter(_is_key, item.keys))[:MOST_KEYS]
        if facts and (keys or any(fact.keys for fact in facts)):
            found.append(KnownItem(keys=keys, facts=facts))
    return found


def write_facts(path: Path, published: PublishedFacts) -> None:
    """Write what `read_facts` reads; mode 0644, for it is public.

    Raises:
        InputError: there is more of it than is read.
        StorageError: it cannot be written.
    """
    count = sum(len(item.facts) for item in published.items)
    if count > MOST_FACTS_OF_ALL or len(published.items) > MOST_DECLARED:
        found = f"{count:,} facts of {len(published.items):,} items, at most {MOST_FACTS_OF_ALL:,} of {MOST_DECLARED:,} are read"
        raise InputError(found, where=str(path), do="publish a smaller graph")
    with whole_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        head = {"form": FORM, "platform": published.platform, "items": len(published.items)}
        file.write(json.dumps(head) + "\n")
        for item in published.items:
            facts = [[fact.relation, fact.tail, *fact.keys] for fact in item.facts]
            file.write(json.dumps({"keys": item.keys, "facts": facts}, ensure_ascii=False) + "\n")


def read_facts(path: Path) -> PublishedFacts:
    """What another platform has published.

    Raises:
        InputError: the file cannot be read, or is not what `write_facts` writes.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            platform, count = _head(_line(file.readline(_LONGEST_LINE + 1), f"{where}, line 1"), where)
            items: list[KnownItem] = []
            total = 0
            while line := file.readline(_LONGEST_LINE + 1):
                place = f"{where}, line {len(items) + 2}"
                if len(items) == count:
                    raise InputError(f"there are more than the {count} items that it names", where=place, do=_REWRITTEN)
                items.append(_item(_line(line, place), place))
                total += len(items[-1].facts)
                if total > MOST_FACTS_OF_ALL:
                    raise InputError(f"it holds more than {MOST_FACTS_OF_ALL:,} facts", where=place, do=_REWRITTEN)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where, do="check `elsewhere` in the platform file") from None
    if len(items) != count:
        raise InputError(f"it holds {len(items)} of the {count} items that it names", where=where, do=_REWRITTEN)
    return PublishedFacts(platform=platform, items=items)


def _line(raw: bytes, where: str) -> dict[str, Any]:
    if len(raw) > _LONGEST_LINE or not raw.endswith(b"\n"):
        raise InputError(f"a line is longer than {_LONGEST_LINE} bytes, or cut short", where=where, do=_REWRITTEN)
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputError("the line is no JSON in UTF-8", where=where, do=_REWRITTEN) from None
    if not isinstance(found, dict):
        raise InputError("the line is no JSON object", where=where, do=_REWRITTEN)
    return found


def _head(found: dict[str, Any], where: str) -> tuple[str, int]:
    if found.keys() != {"form", "platform", "items"} or type(found["form"]) is not int:
        raise InputError("these are no facts of a platform", where=where, do=_REWRITTEN)
    if found["form"] != FORM:
        raise InputError(f"the facts are of form {found['form']}, this version reads {FORM}", where=where, do="update Fedfuse")
    platform, items = found["platform"], found["items"]
    if not isinstance(platform, str) or not re.fullmatch(NAME, platform):
        raise InputError("its platform has no name that a platform may have", where=where, do=_REWRITTEN)
    if type(items) is not int or not 0 <= items <= MOST_DECLARED:
        raise InputError(f"the number of its items is none from 0 to {MOST_DECLARED:,}", where=where, do=_REWRITTEN)
    return platform, items


def _item(found: dict[str, Any], where: str) -> KnownItem:
    keys, facts = found.get("keys"), found.get("facts")
    if found.keys() != {"keys", "facts"} or not isinstance(facts, list) or len(facts) > MOST_FACTS:
        raise InputError(f"the line is no item with keys and at most {MOST_FACTS} facts", where=where, do=_REWRITTEN)
    return KnownItem(keys=_keys(keys, where), facts=tuple(_fact(fact, where) for fact in facts))


def _fact(found: Any, where: str) -> EntityFact:
    if not isinstance(found, list) or len(found) < 2 or not _is_text(found[0]) or not (found[1] == "" or _is_text(found[1])):
        raise InputError(
            f"a fact is no relation and tail of at most {LONGEST} letters each, without control characters",
            where=where,
            do=_REWRITTEN,
        )
    return EntityFact(relation=found[0], tail=found[1], keys=_keys(found[2:], where))


def _keys(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > MOST_KEYS or not all(map(_is_key, found)):
        raise InputError(f"keys are no list of at most {MOST_KEYS}, each as in 'isbn:9780306406157'", where=where, do=_REWRITTEN)
    return tuple(found)


def _is_text(found: Any) -> bool:
    return isinstance(found, str) and 0 < len(found) <= LONGEST and _JOINERS.sub("", found).isprintable()


def _is_key(found: Any) -> bool:
    return _is_text(found) and _KEY.fullmatch(found) is not None
