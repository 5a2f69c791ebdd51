"""Social ties: who names whom as a friend."""

from __future__ import annotations

import numpy as np
import polars as pl

from client.platform_file import SocialSource
from client.sources.cleaning import UNKNOWN_USER, Cleaning
from client.sources.interactions import keyed
from client.sources.numbering import Numbering, offsets
from client.sources.rows import Wanted, read_source
from client.tables import SourceReport, Ties

DUPLICATE = "duplicate (user, friend)"
SELF = "user as own friend"


def read_social(source: SocialSource, cleaning: Cleaning, users: Numbering) -> tuple[Ties, SourceReport]:
    """Ties between users that both have interactions, in the order of the file.

    Raises:
        InputError: the source cannot be read or no row is usable.
    """
    asked = [Wanted(name=role, column=source.column(role), key=True) for role in ("user", "friend")]
    frame = keyed(read_source(source, cleaning, asked).frame, cleaning, ("user", "friend"))
    frame = cleaning.keep(frame, pl.col("user") != pl.col("friend"), otherwise=SELF)
    frame = frame.with_columns(users.numbers(frame["user"]).alias("user"), users.numbers(frame["friend"]).alias("friend"))
    frame = cleaning.keep(frame, pl.col("user").is_not_null() & pl.col("friend").is_not_null(), otherwise=UNKNOWN_USER)
    kept = frame.unique(["user", "friend"], keep="first", maintain_order=True).sort("user", maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - kept.height)
    ties = Ties(
        offsets=offsets(kept["user"], len(users)),
        friend=kept["friend"].to_numpy().astype(np.int32),
        influence=source.influence,
        friends=source.friends,
    )
    return ties, cleaning.report(kept.height)
