"""Social ties: who names whom as a friend."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import polars as pl

from client.config.source_schema import SocialSource
from client.sources.cleaning import UNKNOWN_USER, Cleaning
from client.sources.kinds.interactions import keyed
from client.sources.numbering import Numbering, offsets
from client.sources.source_rows import Wanted, read_source
from client.sources.tables import SourceReport, Ties

DUPLICATE = "duplicate (user, friend)"
STRANGER = "friend who is no user here: unusable (row keeps its place)"
SELF = "user as own friend"


def read_social(source: SocialSource, cleaning: Cleaning, users: Numbering) -> tuple[Ties, SourceReport]:
    """Ties of users that have interactions, each user's in a fixed pseudo-random order of the pair.

    A friend without interactions keeps the place, as -1: if places were filled up, one person's removal would move others
    up in the lists of everybody who names them, and their influence would have no bound (`client/examples/friends.py`).

    Raises:
        InputError: the source cannot be read or no row is usable.
    """
    asked = Wanted.ids(source, "user", "friend", explode=source.explode)
    frame = keyed(read_source(source, cleaning, asked).frame, cleaning, ("user", "friend"))
    frame = cleaning.keep(frame, pl.col("user") != pl.col("friend"), otherwise=SELF)
    unique = frame.unique(["user", "friend"], keep="first", maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - unique.height)
    ranks = [sha256(f"{user}\0{friend}".encode()).digest() for user, friend in unique.select("user", "friend").iter_rows()]
    numbered = unique.with_columns(
        users.numbers(unique["user"]).alias("user"),
        users.numbers(unique["friend"]).fill_null(-1).alias("friend"),
        pl.Series("rank", ranks, dtype=pl.Binary),
    )
    known = numbered["user"].is_not_null()
    kept = cleaning.keep_known(numbered, known, ids=unique["user"], among=users, otherwise=UNKNOWN_USER).sort("user", "rank")
    cleaning.lose(STRANGER, int((kept["friend"] < 0).sum()))
    ties = Ties(
        offsets=offsets(kept["user"], len(users)),
        friend=kept["friend"].to_numpy().astype(np.int32),
        influence=source.influence,
        friends=source.friends,
    )
    return ties, cleaning.report(kept.height)
