"""How times are written that can mean two things, such as 03/04/2021: what a platform file may say, from all that a column holds.

For people alone: what is read follows from the platform file, and no row decides it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from client.sources.cell_values import PLAUSIBLE_FROM, PLAUSIBLE_UNTIL, as_times

_FORM = re.compile(
    r"^\d{1,4}(?P<cut>[-/. ])\d{1,2}(?P=cut)\d{1,4}"
    r"(?:(?P<behind>,? |T|,? at )\d{1,2}:\d\d(?P<seconds>:\d\d)?(?P<part>\.\d+)?"
    r"(?P<half> ?[AaPp][Mm])?(?P<zone> ?[+-]\d\d:?\d\d)?)?$"
)
_ORDERS = ("%d{}%m{}%Y", "%m{}%d{}%Y", "%Y{}%m{}%d", "%Y{}%d{}%m", "%d{}%m{}%y", "%m{}%d{}%y", "%y{}%m{}%d")
_LOOKED_AT = 20_000


@dataclass(frozen=True, kw_only=True)
class LikelyFormats:
    """Formats that read more of a column's times than any other, and equally many.

    Args:
        formats: As `time_format` takes them, none where no format is known that reads most; of several the values do not tell
            which is meant.
        read, of: How many of the times each reads.
    """

    formats: tuple[str, ...]
    read: int
    of: int

    def words(self) -> str:
        """The line of the platform file."""
        first, *others = (f'time_format = "{one}"' for one in self.formats)
        most = "" if self.read == self.of else f", which reads {self.read:,} of {self.of:,}"
        if not others:
            return f"{first}{most}"
        return f"{first}, or {' or '.join(others)}{most}: the values do not tell which is meant, whoever exported them knows"


def likely_formats(cells: pl.Series) -> LikelyFormats:
    """The formats of some times as texts, null where there is none.

    >>> likely_formats(pl.Series(["03/04/2021", "13/02/2021"])).formats, likely_formats(pl.Series(["03/04/2021"])).formats
    (('%d/%m/%Y',), ('%d/%m/%Y', '%m/%d/%Y'))
    """
    texts = cells.drop_nulls().str.strip_chars()
    shown = texts.head(_LOOKED_AT)
    found: dict[str, int] = {}
    shapes = pl.DataFrame({"example": shown, "shape": shown.str.replace_all(r"\d+", "0")})
    for example in shapes.unique("shape", keep="first", maintain_order=True)["example"].head(5):
        form = _FORM.match(example)
        for time_format in _formats(form) if form else ():
            if time_format not in found:
                found[time_format] = _read(shown, time_format)
    most = max(found.values(), default=0)
    if 2 * most <= len(shown):
        return LikelyFormats(formats=(), read=0, of=len(shown))
    best = [one for one, read in found.items() if read == most]
    # Years of two digits are written first by few, who are meant where nothing else is.
    usual = [one for one in best if not one.startswith("%y")]
    return LikelyFormats(formats=tuple(usual or best), read=most, of=len(shown))


def _formats(form: re.Match[str]) -> list[str]:
    """What a text may be written in, by its separators and what is behind the date."""
    clock = ""
    if form["behind"] is not None:
        hour = "%I" if form["half"] else "%H"
        clock = f"{form['behind']}{hour}:%M{':%S' if form['seconds'] else ''}{'%.f' if form['part'] else ''}"
        clock += (" " if form["half"].startswith(" ") else "") + "%p" if form["half"] else ""
        clock += (" " if form["zone"].startswith(" ") else "") + "%z" if form["zone"] else ""
    return [order.format(form["cut"], form["cut"]) + clock for order in _ORDERS]


def _read(cells: pl.Series, time_format: str) -> int:
    return int(as_times(cells, time_format).is_between(PLAUSIBLE_FROM, PLAUSIBLE_UNTIL, closed="left").sum())
