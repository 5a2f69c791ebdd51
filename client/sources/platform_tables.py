"""A platform's sources, read and cleaned: the only place where its files and databases are opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from client.config.platform_file import PlatformFile
from client.config.source_schema import (
    CatalogueFile,
    InteractionsSource,
    ItemsSource,
    KnowledgeSource,
    ProfilesSource,
    ReviewsSource,
    SocialSource,
    VectorsSource,
)
from client.sources.cleaning import Cleaning
from client.sources.entity_facts import KnownItem, PublishedFacts, publishable
from client.sources.kinds.catalogue import described_items, read_catalogue
from client.sources.kinds.interactions import merge_interactions, read_interactions
from client.sources.kinds.items import Described, read_items
from client.sources.kinds.knowledge import read_knowledge
from client.sources.kinds.profiles import read_profiles
from client.sources.kinds.reviews import read_reviews
from client.sources.kinds.social import read_social
from client.sources.kinds.vectors import read_vectors
from client.sources.numbering import Numbering
from client.sources.readers.table_scan import reading
from client.sources.row_texts import coordinates
from client.sources.source_rows import place
from client.sources.tables import Notes, SourceReport, Tables, Ties, Vectors
from shared.base.errors import InputError

__all__ = ["read_public_facts", "read_tables", "require_items", "require_usable"]

_Arguments = ParamSpec("_Arguments")
_Source = TypeVar("_Source")
_Read = TypeVar("_Read")


def read_tables(platform: PlatformFile, *, lenient: bool = False) -> Tables:
    """Read every source of a platform.

    Args:
        lenient: Whether a source of users' rows may be empty; else that is an error, which tells of a wrong separator, say.

    The catalogue is what the item sources list, or the declared list of ids. Where neither is declared it is what was
    interacted with (`Tables.catalogue_public` is False then, and the tables are for simulations alone). Users are those with an
    interaction.

    Returns:
        Users and items numbered from 0, in the order of `user_ids` and `item_ids`; interactions as arrays sorted by user and
        then by time (`client/sources/tables.py` has shapes and dtypes); texts, vectors, notes and ties by the source's name; a
        report of each source.

    Guarantees:
        What the tables hold of a user depends on the platform file, the public tables and that user's own rows; and, of
        friends, on whether whom they name has interactions. What they hold of items depends on public tables alone, if the
        catalogue is declared.

    Raises:
        InputError: a source cannot be read, lacks a column, is empty, or keeps no row after cleaning.

    | given | result |
    |---|---|
    | a source without a row | `InputError`; with `lenient`, nobody |
    | an item that the catalogue does not list | the row is left out, and counted in the report |
    | a row without a user or an item | left out, and counted |
    | the ids `7` and `7.0` | one user, unless `[ids]` says otherwise |
    | the same row twice | counts once |
    """
    cleanings = _cleanings(platform, lenient=lenient)
    described = _read_described(platform, cleanings)
    reports: dict[str, SourceReport] = {name: table.report for name, table in described.items()}
    catalogue, listed = _declared_catalogue(platform, described)

    met = {
        name: _in_words(cleanings[name], read_interactions, source)
        for name, source in platform.sources.items()
        if isinstance(source, InteractionsSource)
    }
    items, users, interactions, merged = merge_interactions(list(met.values()), catalogue)
    reports |= dict(zip(met, merged, strict=True))

    titles, keys = _titles_and_keys(described, items)
    item_text: dict[str, list[str]] = {}
    item_elsewhere: dict[str, Sequence[str]] = {}
    item_attributes: dict[str, list[str]] = {}
    item_vectors: dict[str, Vectors] = {}
    for name, table in reversed(described.items()):
        # In reverse, so that the first source that has a value gives it.
        places = items.numbers(table.ids)
        item_text = {name: items.texts(places, table.texts), **item_text}
        for attribute, values in table.attributes.items():
            found = items.texts(places, values)
            so_far = item_attributes.get(attribute, found)
            item_attributes[attribute] = [given or before for given, before in zip(found, so_far, strict=True)]
        numbers = coordinates(table.coordinates, places, items)
        if numbers is not None:
            item_vectors[name] = numbers

    user_text: dict[str, list[str]] = {}
    user_vectors: dict[str, Vectors] = {}
    notes: dict[str, Notes] = {}
    ties: dict[str, Ties] = {}
    public: dict[str, list[str]] = {}
    for name, source in platform.sources.items():
        cleaning = cleanings[name]
        if isinstance(source, ProfilesSource):
            user_text[name], numbers, reports[name] = _in_words(cleaning, read_profiles, source, users)
            if numbers is not None:
                user_vectors[name] = numbers
        elif isinstance(source, ReviewsSource):
            reviewed = _in_words(cleaning, read_reviews, source, users, items)
            notes[name], reports[name] = reviewed.notes, reviewed.report
            if reviewed.item_texts is not None:
                public[name] = reviewed.item_texts
        elif isinstance(source, SocialSource):
            ties[name], reports[name] = _in_words(cleaning, read_social, source, users)
        elif isinstance(source, KnowledgeSource):
            known = _in_words(cleaning, read_knowledge, source, items, titles, keys, platform=platform.name)
            item_text[name], reports[name] = known.texts, known.report
            if any(known.elsewhere):
                item_elsewhere[name] = known.elsewhere
        elif isinstance(source, VectorsSource):
            owner, vectors, reports[name] = _in_words(cleaning, read_vectors, source, users, items)
            (user_vectors if owner == "user" else item_vectors)[name] = vectors

    return Tables(
        platform=platform.name,
        item_ids=items.ids,
        item_titles=titles,
        item_keys=keys,
        item_text={**item_text, **public},
        user_ids=users.ids,
        interactions=interactions,
        item_elsewhere=item_elsewhere,
        item_attributes=item_attributes,
        item_vectors=item_vectors,
        user_text=user_text,
        notes=notes,
        user_vectors=user_vectors,
        ties=ties,
        reports=[*([listed] if listed else []), *(reports[name] for name in platform.sources)],
        catalogue_public=catalogue is not None,
    )


def read_public_facts(platform: PlatformFile) -> PublishedFacts:
    """What the platform publishes of its items (`publish` of a source of kind `knowledge`); public tables alone are opened.

    Raises:
        InputError: no source is to be published, or a public table cannot be read.
        PrivacyError: which items there are comes from users' rows.
    """
    platform.require_catalogue()
    sources = {
        name: source for name, source in platform.sources.items() if isinstance(source, KnowledgeSource) and source.publish
    }
    if not sources:
        raise InputError(
            "no source of kind 'knowledge' is to be published", where=str(platform.path), do="say publish = true in one of them"
        )
    cleanings = _cleanings(platform)
    described = _read_described(platform, cleanings)
    items, _ = _declared_catalogue(platform, described)
    assert items is not None
    titles, keys = _titles_and_keys(described, items)
    of_sources = []
    for name, source in sources.items():
        # What others have told is theirs to publish, and their files need not be there.
        alone = source.model_copy(update={"elsewhere": None})
        of_sources.append(_in_words(cleanings[name], read_knowledge, alone, items, titles, keys).facts)
    joined = [
        KnownItem(
            keys=tuple(dict.fromkeys(key for one in several for key in one.keys)),
            facts=tuple(dict.fromkeys(fact for one in several for fact in one.facts)),
        )
        for several in zip(*of_sources, strict=True)
    ]
    return PublishedFacts(platform=platform.name, items=publishable(joined))


def _cleanings(platform: PlatformFile, *, lenient: bool = False) -> dict[str, Cleaning]:
    return {
        name: Cleaning(
            source=name,
            kind=source.kind,
            where=f"{place(source)} ({platform.path}, [sources.{name}])",
            lenient=lenient and not isinstance(source, ItemsSource | KnowledgeSource),
            rules=platform.ids,
        )
        for name, source in platform.sources.items()
    }


def _read_described(platform: PlatformFile, cleanings: Mapping[str, Cleaning]) -> dict[str, Described]:
    return {
        name: _in_words(cleanings[name], read_items, source)
        for name, source in platform.sources.items()
        if isinstance(source, ItemsSource)
    }


def _declared_catalogue(
    platform: PlatformFile, described: Mapping[str, Described]
) -> tuple[Numbering | None, SourceReport | None]:
    """The items that public tables list, None where none does; and what reading a list gave."""
    if isinstance(platform.catalogue, CatalogueFile):
        return read_catalogue(platform.catalogue, where=str(platform.path), rules=platform.ids)
    return described_items(list(described.values())) if described else None, None


def _titles_and_keys(described: Mapping[str, Described], items: Numbering) -> tuple[list[str], list[str]]:
    """Of each item its title, or id, and its public key, or '': the first source that has one gives it."""
    titles, keys = list(items.ids), [""] * len(items)
    for table in reversed(list(described.values())):
        places = items.numbers(table.ids)
        titles = [given or so_far for given, so_far in zip(items.texts(places, table.titles), titles, strict=True)]
        keys = [given or so_far for given, so_far in zip(items.texts(places, table.keys), keys, strict=True)]
    return titles, keys


def require_usable(tables: Tables, *, where: str) -> None:
    """Check what would make a platform useless; for its own people, before it joins anything.

    Args:
        where: The platform file.

    Raises:
        InputError: there is nobody to learn from.
    """
    if not tables.interactions.positive.any():
        said = _said(tables)
        general = "look at `threshold` and `events` of the interactions source: they say what counts as positive"
        raise InputError("no user has a positive interaction", where=where, do="; ".join([*said, general]))


def require_items(tables: Tables, *, where: str) -> None:
    """Check that there is something to choose from.

    Raises:
        InputError: the catalogue has fewer than two items.
    """
    if tables.items < 2:
        do = "; ".join([*_said(tables), "a recommender needs two at least"])
        raise InputError(f"the catalogue has {tables.items} item", where=where, do=do)


def _said(tables: Tables) -> list[str]:
    """What reading the interactions has said, which is more often the cause than what came of it."""
    return [f"source '{one.source}': {text}" for one in tables.reports if one.kind == "interactions" for text in one.warnings]


def _in_words(
    cleaning: Cleaning,
    read: Callable[Concatenate[_Source, Cleaning, _Arguments], _Read],
    source: _Source,
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Read:
    """What a kind's reader makes of a source; whatever it meets is answered with the source's name and place."""
    with reading(cleaning.where):
        return read(source, cleaning, *args, **kwargs)
