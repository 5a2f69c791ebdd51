"""Items by their attributes: which have a category, a price or another value that a person asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]

_FILTER = re.compile(r"\s*(?P<name>[^=<>!]+?)\s*(?P<sign>!=|<=|>=|=)\s*(?P<value>.*?)\s*", re.DOTALL)
_CAP = re.compile(r"\s*(?P<name>[^=]+?)\s*=\s*(?P<most>[0-9]{1,4})\s*")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class AttributeFilter:
    """What an item's attribute must be.

    Args:
        attribute: Its name.
        any_of: The item has one of these values, whatever their capital letters; empty: any.
        none_of: The item has none of these.
        at_least, at_most: Its value is a number in these bounds; None: without bound.
    """

    attribute: str
    any_of: Sequence[str] = ()
    none_of: Sequence[str] = ()
    at_least: float | None = None
    at_most: float | None = None

    @classmethod
    def parsed(cls, text: str) -> AttributeFilter:
        """A filter as it is typed: `category=Drama|Comedy`, `category!=Horror`, `year>=1990`, `price<=20`.

        Raises:
            InputError: it is none.

        >>> AttributeFilter.parsed("year >= 1990").at_least
        1990.0
        """
        found = _FILTER.fullmatch(text)
        if found is None or not found["value"]:
            raise InputError(
                f"{text!r} is no filter", where="--filter", do="write NAME=VALUE, NAME!=VALUE, NAME<=NUMBER or NAME>=NUMBER"
            )
        name, sign, value = found["name"], found["sign"], found["value"]
        if sign in ("=", "!="):
            values = [one.strip() for one in value.split("|") if one.strip()]
            return cls(attribute=name, any_of=values) if sign == "=" else cls(attribute=name, none_of=values)
        number = _as_number(value)
        if math.isnan(number):
            raise InputError(f"{value!r} is no number", where=f"--filter {text}", do="compare with a number, as in price<=20")
        return cls(attribute=name, at_least=number) if sign == ">=" else cls(attribute=name, at_most=number)


def parsed_cap(text: str) -> tuple[str, int]:
    """A cap as it is typed, `category=2`: attribute, and how many items of one value a list holds at most.

    Raises:
        InputError: it is none.
    """
    found = _CAP.fullmatch(text)
    if found is None or not int(found["most"]):
        raise InputError(f"{text!r} is no cap", where="--cap", do="write NAME=NUMBER, as in category=2")
    return found["name"], int(found["most"])


class ItemAttributes:
    """The attributes of a catalogue; each is read the first time that it is asked for.

    Args:
        values: Attribute -> one value per item, '' where there is none; several values are separated by commas.
        items: Of the catalogue.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], items: int) -> None:
        self._values, self._items = values, items
        self._places: dict[str, Mapping[str, Numbers]] = {}
        self._numbers: dict[str, NDArray[np.float64]] = {}

    @property
    def names(self) -> list[str]:
        """Of the attributes."""
        return list(self._values)

    def of_item(self, item: int) -> dict[str, str]:
        """What is known of an item."""
        return {name: values[item] for name, values in self._values.items() if values[item]}

    def values_of(self, attribute: str, item: int) -> list[str]:
        """An item's values of one attribute, in small letters.

        Raises:
            InputError: there is no such attribute.
        """
        return _split(self._column(attribute)[item])

    def common(self, attribute: str, most: int) -> list[str]:
        """The most frequent values of an attribute, as they are looked up."""
        places = self._index(attribute)
        return sorted(places, key=lambda value: (-len(places[value]), value))[:most]

    def matching(self, filters: Iterable[AttributeFilter]) -> Mask:
        """Which items all filters let through, bool (items,).

        Raises:
            InputError: an attribute is unknown, or one that is compared with a number has none.
        """
        passed = np.ones(self._items, np.bool_)
        for one in filters:
            passed &= self._matching(one)
        return passed

    def _matching(self, wanted: AttributeFilter) -> Mask:
        passed = np.ones(self._items, np.bool_)
        places = self._index(wanted.attribute)
        for values, has in ((wanted.any_of, True), (wanted.none_of, False)):
            if values:
                found = np.zeros(self._items, np.bool_)
                for value in values:
                    found[places.get(value.strip().casefold(), [])] = True
                passed &= found if has else ~found
        if wanted.at_least is not None or wanted.at_most is not None:
            numbers = self._as_numbers(wanted.attribute)
            with np.errstate(invalid="ignore"):
                passed &= numbers >= (-math.inf if wanted.at_least is None else wanted.at_least)
                passed &= numbers <= (math.inf if wanted.at_most is None else wanted.at_most)
        return passed

    def _column(self, attribute: str) -> Sequence[str]:
        if attribute not in self._values:
            named = ", ".join(self.names[:_SHOWN])
            do = (
                f"there are: {named}"
                if named
                else "name columns in `text`, `numbers` or the role `category` of the source of items"
            )
            raise InputError("the items have no such attribute", where=attribute[:100], do=do)
        return self._values[attribute]

    def _index(self, attribute: str) -> Mapping[str, Numbers]:
        if attribute not in self._places:
            found: dict[str, list[int]] = {}
            for item, text in enumerate(self._column(attribute)):
                for value in _split(text):
                    found.setdefault(value, []).append(item)
            self._places[attribute] = {value: np.asarray(items, np.int64) for value, items in found.items()}
        return self._places[attribute]

    def _as_numbers(self, attribute: str) -> NDArray[np.float64]:
        if attribute not in self._numbers:
            numbers = np.fromiter((_as_number(text) for text in self._column(attribute)), np.float64, self._items)
            if self._items and np.isnan(numbers).all():
                raise InputError(
                    "no item has a number there", where=attribute[:100], do="compare another attribute, or use = and !="
                )
            self._numbers[attribute] = numbers
        return self._numbers[attribute]


def _split(text: str) -> list[str]:
    """The values of a text: those between its commas, and where there are several, the whole of it as well."""
    whole = text.strip().casefold()
    if not whole:
        return []
    parts = [part.strip() for part in re.split(r"[,|]", whole)]
    return list(dict.fromkeys([part for part in parts if part] + [whole]))


def _as_number(text: str) -> float:
    """The number that a text is, NaN for none: neither 'inf' nor '1_000' is one."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
