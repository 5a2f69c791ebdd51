"""Texts as token ids: what each source may say of an item or a user, within a budget of tokens.

Pieces are tokenised once and joined as ids. A text that is too long is not cut blindly at its end: every source
has its share, in a declared order of importance, and what one leaves unused goes to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from client.compute.feature_cache import Ids
    from shared.model.backbone import PlainTokenizer


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one source says: its token ids and the most tokens it may take, None for all that is left.

    Args:
        parts: Whether it is of parts ("occupation: writer. town: Porto"), which are kept whole where they are cut.
    """

    ids: Ids
    share: int | None = None
    parts: bool = False


class Texts:
    """Tokenises texts and joins pieces to sequences `[CLS] ... [SEP]` of at most so many tokens.

    Args:
        longest: Positions that the backbone has; no sequence is longer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | PlainTokenizer, *, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._begin, self._end = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)
        self._stop, self._colon = (int(self.tokenise([mark], most=1)[0][0]) for mark in ".:")

    def tokenise(self, texts: Sequence[str], *, most: int) -> list[Ids]:
        """Token ids of each text without special tokens, at most `most` each, int32."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=True,
            max_length=most,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]

    def join(self, pieces: Sequence[Piece], *, most: int) -> Ids:
        """One sequence from pieces in their order of importance.

        A piece with a share is cut to it; the piece without one takes what the others leave. The order of
        importance is the order in the text, so the most important tokens come first.
        """
        room = min(most, self._longest) - 2
        reserved = sum(min(len(piece.ids), piece.share) for piece in pieces if piece.share is not None)
        parts = [np.asarray([self._begin], np.int32)]
        for piece in pieces:
            allowed = max(0, room - reserved) if piece.share is None else min(piece.share, room)
            taken = self.cut(piece.ids, allowed) if piece.parts else piece.ids[:allowed]
            if piece.share is not None:
                reserved -= min(len(piece.ids), piece.share)
            room -= len(taken)
            parts.append(taken)
        parts.append(np.asarray([self._end], np.int32))
        return np.concatenate(parts)

    def cut(self, ids: Ids, most: int) -> Ids:
        """The parts of a text that fit, each whole; of a long value its beginning, and never a key without its value.

        The part in which the cut falls is left out, unless it has more than half of the tokens: then what fits of it is kept,
        if that is more than its key.
        """
        if len(ids) <= most:
            return ids
        ends = np.flatnonzero(ids[:most] == self._stop) + 1
        whole = int(ends[-1]) if len(ends) else 0
        rest = ids[whole:most]
        keys = np.flatnonzero(rest == self._colon)
        value = len(rest) - (int(keys[-1]) + 1 if len(keys) else 0)
        return ids[:most] if len(rest) > most // 2 and value > 0 else ids[:whole]

    def words(self, ids: Ids) -> str:
        """The sequence as a person reads it."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
