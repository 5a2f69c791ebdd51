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
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Split
from client.sources.tables import Tables

_SHOWN = 3  # newest items of one friend


class Friends:
    """Whose items a user's text may show.

    Args:
        split: Gives the friends' training histories; a friend's held-out item is never shown.
    """

    def __init__(self, tables: Tables, split: Split) -> None:
        self._split = split
        self._serving: dict[int, list[int]] = {}
        self._training: dict[int, list[int]] = {}
        self.group_size = 1
        for ties in tables.ties.values():
            asked = [ties.friend[ties.offsets[user] : ties.offsets[user + 1]][: ties.friends] for user in range(tables.users)]
            for user, named in enumerate(asked):
                self._serving.setdefault(user, []).extend(int(friend) for friend in named if friend >= 0)
            if ties.influence:
                self.group_size += ties.influence + ties.friends
                for user, friends in _granted(asked, tables, ties.influence).items():
                    self._training.setdefault(user, []).extend(friends)

    def shown(self, user: int, *, serving: bool) -> NDArray[np.int32]:
        """Items of the user's friends, newest first, int32."""
        friends = (self._serving if serving else self._training).get(user, [])
        parts = [self._split.train[friend][::-1][:_SHOWN] for friend in friends]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def speakers(self, user: int) -> list[int]:
        """The friends whose histories enter the user's training examples."""
        return list(self._training.get(user, []))


def _granted(asked: Sequence[NDArray[np.int32]], tables: Tables, influence: int) -> dict[int, list[int]]:
    """User -> the friends who speak for them: each friend takes the first `influence` of those who ask."""
    askers: dict[int, list[int]] = {}
    for user, friends in enumerate(asked):
        for friend in friends:
            if friend >= 0 and friend != user:
                askers.setdefault(int(friend), []).append(user)
    granted: dict[int, set[int]] = {}
    for friend, users in askers.items():
        for user in sorted(users, key=lambda user: _rank(tables, user, friend))[:influence]:
            granted.setdefault(user, set()).add(friend)
    # In the user's own order: any other would let strangers reorder their text.
    return {user: [int(friend) for friend in asked[user] if friend in friends] for user, friends in granted.items()}


def _rank(tables: Tables, user: int, friend: int) -> bytes:
    # Of the pair alone, so that nobody else's presence moves it.
    return hashlib.sha256(f"{tables.user_ids[user]}\0{tables.user_ids[friend]}".encode()).digest()
