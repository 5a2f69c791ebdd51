"""What was released, alone: recommendations that no other user's row on this platform has any part in.

A list that is shown in public can tell of the users behind it (Calandrino et al. 2011, "You might also like: privacy risks of
collaborative filtering"). Here a score depends on what was published and on the history (and texts) of the person who asks.
Nothing is chosen by looking at the platform's rows, so every number here is a public rule.

- Items of the release are ordered by the ridge regression of its factors; the ridge is a multiple of the edge of its noise
  (`client/recommender/released_preferences.py`). An item of a history counts half when it is eight items old, where interactions
  have times (films: NDCG@10 .093 instead of .082).
- Released popularity orders what the ridge leaves equal, and is the answer to somebody without a history.
- Words that a released item's text has in common with the history's texts add 0.05 x their cosine, rarer words counting more: a
  public rule as the others. NDCG@10 with 0, 0.05 and 0.1 at epsilon 8 and 2: films dealt to 8 platforms .0915, .0943, .0960 and
  .0554, .0619, .0575; anime dealt to 8 .1597, .1641, .1664 and .1100, .1185, .1222.
- Items that are not in the release come last: it holds the items that most like, and how a cosine of texts compares with a ridge
  score cannot be known without users' rows. Among themselves the adapter's text score orders them, if the model has one, else
  the words, where nothing else reads texts.
- Where a history says nothing to the factors (none of its items is in the release, or there is no release), the text score
  orders all items: cosine / temperature + log released popularity.
- A taste map adds q' M f to cosines of texts (`shared/preferences/taste_map.py`), q the mean of the history's directions with the
  same recency; without an adapter the cosines are q' f.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.recommender.evidence import NOBODY, POOLED, SHARED_TASTE, TEXT, WORDS, ByItem
from client.recommender.histories import Histories, Sparse, one_by_one
from client.recommender.platform_model import PREFERENCES, ScorePart
from client.recommender.released_preferences import ReleasedPreferences
from client.recommender.taste import TasteOnItems
from client.recommender.text_model import TextModel
from shared.base.settings import ModelSettings

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

_HALF_LIFE = 8.0
_TIES = np.float32(1e-4)
_WORDS = np.float32(0.05)
UNRELEASED = "not in the release"


class GlobalModel:
    """The released parts of a model. It has no probabilities: what calibrates them would be other users' rows.

    Args:
        histories: Of the platform's users; a user's scores depend on that user's alone.
        preferences: The release, None for a model without one.
        text: The adapter, None for a model without one.
        taste: The taste map, None for a model without one.
        words: Of the items' texts (`client.recommender.evidence.word_vectors`), which are public; None: they are not looked at.
    """

    calibration: None = None

    def __init__(
        self,
        histories: Histories,
        *,
        preferences: ReleasedPreferences | None,
        text: TextModel | None,
        taste: TasteOnItems | None = None,
        words: Sparse | None = None,
    ) -> None:
        if preferences is None and text is None and taste is None:
            raise ValueError("a model of nothing")
        self._histories, self._preferences, self._text, self._taste, self._words = histories, preferences, text, taste, words
        self._temperature = np.float32(text.temperature if text is not None else ModelSettings().temperature)

    def scores(self, users: Numbers) -> Floats:
        """Scores of all items for some of the platform's users, float32 (n, items)."""
        return self._sum(self._histories, users, users)

    def scores_of(self, histories: Histories) -> Floats:
        """Scores of all items for histories of people who are in no table, float32 (n, items)."""
        users = np.arange(histories.users)
        return self._sum(histories, users, np.full(len(users), NOBODY))

    def parts(self, liked: Histories, *, user: int = NOBODY) -> list[ScorePart]:
        """The parts of the scores for one history; as `PlatformModel.parts`."""
        found = self._parts(liked, np.zeros(1, np.int64), np.full(1, user))
        history = _recent(liked, np.zeros(1, np.int64))
        by_item: dict[str, ByItem] = {}
        if self._preferences is not None:
            by_item[PREFERENCES] = self._preferences.ridge.for_one(history)[1]
        if self._words is not None and self._preferences is not None:
            words, scores, each = self._words, found[WORDS][0], one_by_one(history)

            def shared_words(items: Numbers) -> Floats:
                alike = np.asarray((each @ words @ words[items].T).toarray(), np.float32)
                total = alike.sum(0)
                # They share the part in proportion to their cosines.
                shares: Floats = alike * np.divide(scores[items], total, out=np.zeros_like(total), where=total != 0)
                return shares

            by_item[WORDS] = shared_words
        return [ScorePart(name=name, scores=scores[0], by_item=by_item.get(name)) for name, scores in found.items()]

    def _sum(self, histories: Histories, rows: Numbers, users: Numbers) -> Floats:
        parts = list(self._parts(histories, rows, users).values())
        scores = parts[0].copy()
        for part in parts[1:]:
            scores += part
        return scores

    def _parts(self, histories: Histories, rows: Numbers, users: Numbers) -> dict[str, Floats]:
        """Part -> scores, float32 (n, items)."""
        history = _recent(histories, rows)
        likeness = self._likeness(histories, history, rows, users)
        if self._preferences is None:
            return {name: found / self._temperature for name, found in likeness.items()}
        released, popularity = self._preferences.released, np.maximum(np.nan_to_num(self._preferences.popularity), 0.0)
        popular = np.broadcast_to(popularity / max(float(popularity.max(initial=0.0)), 1e-9), (len(rows), histories.items))
        preferred = np.where(released, self._preferences.ridge.scores(history), np.float32(0.0))
        parts = {PREFERENCES: preferred, POOLED: _TIES * popular.astype(np.float32)}
        lowest = np.where(released, preferred, np.float32(np.inf)).min(1, keepdims=True, initial=0.0)
        parts[UNRELEASED] = np.where(released, np.float32(0.0), np.float32(lowest) - np.float32(1.5)).astype(np.float32)
        if WORDS in likeness:
            words = likeness.pop(WORDS)
            # Beside another reader of texts, how much words say of what is not released was not tried.
            parts[WORDS] = np.where(released, _WORDS, np.float32(not likeness)) * words
            likeness = likeness or {WORDS: words}
        elif not likeness:
            return parts
        for name, found in likeness.items():
            parts.setdefault(name, np.where(released, np.float32(0.0), found))
        # Nothing in the history is in the release: the text decides alone.
        silent = (history @ released.astype(np.float32) == 0) & ((history.getnnz(axis=1) > 0) | (users != NOBODY))
        parts[PREFERENCES][silent] = 0.0
        parts[UNRELEASED][silent] = 0.0
        for name in parts.keys() & {TEXT, SHARED_TASTE, WORDS}:
            parts[name][silent] = likeness[name][silent] / self._temperature if name in likeness else 0.0
        parts[POOLED][silent] = _log_popularity(self._preferences.popularity)
        return parts

    def _likeness(self, histories: Histories, history: Sparse, rows: Numbers, users: Numbers) -> dict[str, Floats]:
        """Part -> how alike texts are, float32 (n, items); none where the model reads no texts."""
        found: dict[str, Floats] = {}
        mean = scipy.sparse.diags(1.0 / np.maximum(history.sum(1).A1, 1e-9)) @ history
        if self._words is not None and self._preferences is not None:
            found[WORDS] = np.asarray((mean @ self._words @ self._words.T).toarray(), np.float32)
        if self._text is not None:
            found[TEXT] = self._text.users(users, [histories.liked[int(row)][::-1] for row in rows]) @ self._text.items.T
            # Of whom nothing is known, nothing is alike.
            found[TEXT][(users == NOBODY) & (histories.liked.lengths()[rows] == 0)] = 0.0
        if self._taste is not None:
            if self._text is None:
                found[TEXT] = self._taste.likeness(mean)
            found[SHARED_TASTE] = self._taste.scores(mean)
        return found


def _recent(histories: Histories, rows: Numbers) -> Sparse:
    return histories.recent(rows, half_life=_HALF_LIFE)


def _log_popularity(popularity: Floats) -> Floats:
    """Logarithm of released popularity, at least half a like; an item that is not released has that, too."""
    logs: Floats = np.log(np.maximum(np.nan_to_num(popularity), 0.5)).astype(np.float32)
    return logs
