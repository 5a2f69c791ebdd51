"""Friends' histories in a user's text, with bounded influence.

A friend's line makes one person touch several examples, so it costs privacy. The bound is enforced here and the
accountant uses the group size that follows.

A user's data are their rows: their history, and the rows in which *they* name friends. Others who name them keep the
name when they are removed, but nothing speaks under it any more. In training, each user asks the first m people they
name (`friends`) to speak in their example, and each person speaks for at most k of those who ask (`influence`), chosen
by a fixed pseudo-random rank of the pair. Removing user v then changes:

- v's own example;
- the at most k examples in which v spoke;
- for each of the at most m people whom v asked, at most one example that gets the place v had.

Nobody else's list of asked people moves, because v's name keeps its place in it. So at most 1 + k + m examples
change: `group_size`. In serving (evaluation and recommendations, which stay on the platform) there is no bound on
who speaks. With `influence = 0` friends do not enter training at all, and the group size is 1.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Split, entry_rows
from client.sources.tables import Tables, Ties

_SHOWN = 3  # newest items of one friend


class Friends:
    """Whose items a user's text may show.

    Args:
        split: Gives the friends' training histories; a friend's held-out item is never shown.
    """

    def __init__(self, tables: Tables, split: Split) -> None:
        self._split, self._ties = split, list(tables.ties.values())
        self._granted = [_granted(ties, tables) if ties.influence else None for ties in self._ties]
        self.group_size = 1 + sum(ties.influence + ties.friends for ties in self._ties if ties.influence)

    def shown(self, user: int, *, serving: bool) -> NDArray[np.int32]:
        """Items of the user's friends, newest first, int32."""
        parts = [self._split.train[friend][::-1][:_SHOWN] for friend in (self._asked(user) if serving else self.speakers(user))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def speakers(self, user: int) -> list[int]:
        """The friends whose histories enter the user's training examples."""
        found: list[int] = []
        for ties, granted in zip(self._ties, self._granted, strict=True):
            if granted is not None:
                rows = _asked(ties, user)
                found += ties.friend[rows][granted[rows]].tolist()
        return found

    def _asked(self, user: int) -> list[int]:
        friends = [ties.friend[_asked(ties, user)] for ties in self._ties]
        return [int(friend) for named in friends for friend in named if friend >= 0]


def _asked(ties: Ties, user: int) -> slice:
    """Rows of the people whom a user asks: the first that they name."""
    begin, end = int(ties.offsets[user]), int(ties.offsets[user + 1])
    return slice(begin, min(end, begin + ties.friends))


def _granted(ties: Ties, tables: Tables) -> NDArray[np.bool_]:
    """Which of the rows speak, bool (rows,): each friend for the first `influence` of those who ask."""
    user = entry_rows(ties.offsets)
    asked = np.arange(len(user)) - ties.offsets[user] < ties.friends
    rows = np.flatnonzero(asked & (ties.friend >= 0) & (ties.friend != user))
    rows = rows[np.argsort(ties.friend[rows], kind="stable")]
    granted = np.zeros(len(user), np.bool_)
    granted[rows] = True
    _, begins, counts = np.unique(ties.friend[rows], return_index=True, return_counts=True)
    for begin, count in zip(begins, counts, strict=True):
        if count > ties.influence:
            # Of the pair alone, so that nobody else's presence moves it.
            askers = sorted(
                rows[begin : begin + count].tolist(), key=lambda row: _rank(tables, int(user[row]), int(ties.friend[row]))
            )
            granted[askers[ties.influence :]] = False
    return granted


def _rank(tables: Tables, user: int, friend: int) -> bytes:
    return hashlib.sha256(f"{tables.user_ids[user]}\0{tables.user_ids[friend]}".encode()).digest()
