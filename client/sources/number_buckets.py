"""Numbers as words and as coordinates, by declared public bounds."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from client.config.source_schema import NumberRange
from client.sources.cell_values import as_numbers
from client.sources.cleaning import Cleaning
from client.sources.ids import as_ids

_SCALES = {
    2: ("low", "high"),
    3: ("low", "medium", "high"),
    4: ("very low", "low", "high", "very high"),
    5: ("very low", "low", "medium", "high", "very high"),
}


@dataclass(frozen=True, kw_only=True)
class Bucketed:
    """A number column after its bounds were applied.

    Args:
        words: The bucket's word, null where the number is missing.
        coordinates: Float64 in [0, 1], null where the number is missing.
    """

    words: pl.Series
    coordinates: pl.Series


def bucket_words(bounds: NumberRange) -> tuple[str, ...]:
    """A word per bucket, from the lowest: as declared, else a scale.

    >>> bucket_words(NumberRange(min=0, max=9, buckets=3)), bucket_words(NumberRange(min=0, max=9, buckets=8))[:2]
    (('low', 'medium', 'high'), ('1 of 8', '2 of 8'))
    """
    if bounds.words is not None:
        return bounds.words
    count = bounds.buckets or 5
    return _SCALES.get(count) or tuple(f"{number} of {count}" for number in range(1, count + 1))


def bucketed(column: pl.Series, bounds: NumberRange, cleaning: Cleaning, *, name: str, decimal: str = ".") -> Bucketed:
    """Numbers to words and coordinates; what is no number or out of bounds is left out and counted, its row stays.

    >>> bounds, cleaning = NumberRange(min=0, max=10, words=("few", "many")), Cleaning(source="s", kind="items", where="")
    >>> got = bucketed(pl.Series([0, 10, 4, 11]), bounds, cleaning, name="n")
    >>> got.words.to_list(), got.coordinates.to_list()
    (['few', 'many', 'few', None], [0.0, 1.0, 0.4, None])
    """
    numbers = as_numbers(column, decimal=decimal)
    unparsable = as_ids(column).is_not_null() & ~numbers.is_finite().fill_null(False)
    cleaning.lose(f"{name}: no number (row kept)", int(unparsable.sum()))
    outside = numbers.is_finite() & ((numbers < bounds.min) | (numbers > bounds.max))
    cleaning.lose(f"{name}: outside {bounds.min:g} to {bounds.max:g} (row kept)", int(outside.sum()))
    inside = numbers.is_finite().fill_null(False) & ~outside.fill_null(True)
    given = int(unparsable.sum()) + int(numbers.is_finite().sum())
    if given and not inside.any():
        cleaning.warn(
            f"no cell of {name!r} is a number from {bounds.min:g} to {bounds.max:g}, so it says nothing: look at `min` and "
            "`max`, and at how numbers are written (decimal = ',', no currency, no separators of thousands)"
        )
    # Halves, for the difference of two finite bounds may be infinite.
    above, width = numbers.set(~inside, None) / 2 - bounds.min / 2, bounds.max / 2 - bounds.min / 2
    words = bucket_words(bounds)
    # Multiplied before it is divided, so that a number on the edge of two buckets is in the upper one.
    places = (above * len(words) / width).floor().clip(0, len(words) - 1).cast(pl.UInt32)
    return Bucketed(words=pl.Series(words, dtype=pl.String).gather(places), coordinates=(above / width).clip(0, 1))
