"""Profiles: what the platform knows of a user, as text and as numbers within declared bounds."""

from __future__ import annotations

from client.config.source_schema import ProfilesSource
from client.sources.cell_values import as_texts
from client.sources.cleaning import UNKNOWN_USER, Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.interactions import keyed
from client.sources.numbering import Numbering
from client.sources.row_texts import coordinates, further_texts, numbers, sentences, text_name, wanted
from client.sources.source_rows import Table, Wanted, read_source
from client.sources.tables import SourceReport, Vectors

DUPLICATE = "duplicate user"
_NUMBER = "user's number"


def read_profiles(source: ProfilesSource, cleaning: Cleaning, users: Numbering) -> tuple[list[str], Vectors | None, SourceReport]:
    """One text per user, the declared numbers as a vector per user, and the report.

    Raises:
        InputError: the source cannot be read or no row is usable.
    """
    asked = Wanted.ids(source, "user")
    table = read_source(source, cleaning, [*asked, *(want for want in wanted(source) if want.name != "user")])
    frame = keyed(table.frame, cleaning, ("user",))
    frame = frame.with_columns(users.numbers(frame["user"]).alias(_NUMBER))
    known = frame[_NUMBER].is_not_null()
    frame = cleaning.keep_known(frame, known, ids=frame["user"], among=users, otherwise=UNKNOWN_USER)
    kept = frame.unique("user", keep="first", maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - kept.height)

    table = Table(frame=kept, labels=table.labels)
    # A code's word is chosen to be read by itself, without a label: "woman".
    words = [as_texts(as_ids(kept[text_name(name)], cleaning.rules).replace(codes)) for name, codes in source.values.items()]
    others = further_texts(table, source.text, without=(*source.values, *source.numbers))
    bucket_words, places = numbers(table, source.numbers, cleaning, decimal=source.decimal)
    texts = users.texts(kept[_NUMBER], sentences([*words, *bucket_words, *others]))
    return texts, coordinates(places, kept[_NUMBER], users), cleaning.report(kept.height)
