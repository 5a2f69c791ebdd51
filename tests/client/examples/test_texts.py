"""Token budgets: never too long, shares kept, and what one source leaves goes to the next."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from client.examples.texts import Piece, Texts
from shared.model.backbone import load_backbone

pieces = st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(0, 12)), max_size=6)


def texts_of(backbone: str) -> Texts:
    return Texts(load_backbone(backbone).tokenizer, longest=64)


@given(parts=pieces, most=st.integers(4, 100))
@settings(deadline=None, max_examples=100)
def test_join_keeps_every_budget(tiny_bert: str, parts: list[tuple[int, int | None]], most: int) -> None:
    made = [Piece(ids=np.full(length, 10 + at, np.int32), share=share) for at, (length, share) in enumerate(parts)]
    ids = texts_of(tiny_bert).join(made, most=most)
    room = min(most, 64) - 2
    assert len(ids) <= room + 2
    counts = {at: int((ids == 10 + at).sum()) for at in range(len(parts))}
    for at, (length, share) in enumerate(parts):
        assert counts[at] <= (length if share is None else min(length, share))
    asked = sum(length if share is None else min(length, share) for length, share in parts)
    # Nothing is cut while there is room.
    assert sum(counts.values()) == min(asked, room)


@given(parts=pieces, most=st.integers(4, 100))
@settings(deadline=None, max_examples=100)
def test_a_share_is_kept_for_its_piece(tiny_bert: str, parts: list[tuple[int, int | None]], most: int) -> None:
    made = [Piece(ids=np.full(length, 10 + at, np.int32), share=share) for at, (length, share) in enumerate(parts)]
    ids = texts_of(tiny_bert).join(made, most=most)
    left = min(most, 64) - 2
    for at, (length, share) in enumerate(parts):
        if share is not None:
            # Nothing takes it away but the shares of more important pieces, however long the piece without a share is.
            assert int((ids == 10 + at).sum()) == min(length, share, left)
            left -= min(length, share, left)


@given(parts=pieces, most=st.integers(4, 100))
@settings(deadline=None, max_examples=50)
def test_join_keeps_order_and_marks_both_ends(tiny_bert: str, parts: list[tuple[int, int | None]], most: int) -> None:
    made = [Piece(ids=np.full(length, 10 + at, np.int32), share=share) for at, (length, share) in enumerate(parts)]
    texts = texts_of(tiny_bert)
    ids = texts.join(made, most=most)
    tokenizer = load_backbone(tiny_bert).tokenizer
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert ids.dtype == np.int32
    assert sorted(ids[1:-1]) == ids[1:-1].tolist()


def test_of_a_piece_its_beginning_is_kept(tiny_bert: str) -> None:
    piece = Piece(ids=np.arange(20, 40, dtype=np.int32), share=3)
    assert texts_of(tiny_bert).join([piece], most=30)[1:-1].tolist() == [20, 21, 22]


def test_what_a_share_leaves_flows_on(tiny_bert: str) -> None:
    short, long = Piece(ids=np.full(1, 11, np.int32), share=8), Piece(ids=np.full(30, 12, np.int32))
    assert texts_of(tiny_bert).join([short, long], most=12)[1:-1].tolist() == [11] + [12] * 9


def test_the_most_important_comes_first_and_is_cut_last(tiny_bert: str) -> None:
    first, second = Piece(ids=np.full(4, 11, np.int32), share=4), Piece(ids=np.full(9, 12, np.int32))
    ids = texts_of(tiny_bert).join([first, second], most=8)
    assert ids[1:-1].tolist() == [11] * 4 + [12] * 2


@given(st.lists(st.text(max_size=30), max_size=4), st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_any_text_is_read(tiny_bert: str, written: list[str], most: int) -> None:
    texts = texts_of(tiny_bert)
    tokenizer = load_backbone(tiny_bert).tokenizer
    found = texts.tokenise(written, most=most)
    assert len(found) == len(written)
    for ids, text in zip(found, written, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"][:most]


def test_words_come_back(tiny_bert: str) -> None:
    texts = texts_of(tiny_bert)
    assert texts.words(texts.join([Piece(ids=texts.tokenise(["jazz river"], most=9)[0])], most=9)) == "jazz river"
    assert texts.tokenise([], most=3) == []
    assert len(texts.tokenise(["a b c d e f"], most=3)[0]) == 3


def test_parts_are_kept_whole_and_no_key_is_without_its_value(tiny_bert: str) -> None:
    texts = Texts(load_backbone("minilm").tokenizer, longest=512)
    (ids,) = texts.tokenise(["woman. age: in mid-life. occupation: writer. town: Porto"], most=512)
    cuts = [texts.words(texts.cut(ids, most)) for most in range(len(ids) + 1)]
    assert not [cut for cut in cuts if cut.endswith((":", "age", "occupation", "town"))]
    assert cuts[-1] == "woman. age : in mid - life. occupation : writer. town : porto" and "woman." in cuts
    assert all(len(texts.cut(ids, most)) <= most for most in range(len(ids) + 1))
    # Of one long value its beginning is more than nothing.
    (ids,) = texts.tokenise(["about: " + "very " * 40], most=512)
    assert len(texts.cut(ids, 10)) == 10
