"""Bytes from another party: what goes in comes out, and whatever else arrives is one kind of error, quickly."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.secagg.enrolment import Dealing, Enrolled
from client.secagg.participant import Active
from shared.base.errors import ProtocolError
from shared.secagg import codec, messages, roster
from shared.secagg.codec import VERSION, decode, encode, version_of


@dataclass(frozen=True)
class Inner:
    value: int


@dataclass(frozen=True)
class Everything:
    tag: ClassVar[int] = 200

    number: int
    yes: bool
    ratio: float
    name: str
    raw: bytes
    many: tuple[int, ...]
    inner: Inner
    inners: tuple[Inner, ...]
    maybe: Inner | None


values = st.builds(
    Everything,
    number=st.integers(0, 2**32 - 1),
    yes=st.booleans(),
    ratio=st.floats(allow_nan=False),
    name=st.text(max_size=5),
    raw=st.binary(max_size=9),
    many=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
    inner=st.builds(Inner, st.integers(0, 9)),
    inners=st.lists(st.builds(Inner, st.integers(0, 9)), max_size=3).map(tuple),
    maybe=st.none() | st.builds(Inner, st.integers(0, 9)),
)


@given(values)
def test_what_goes_in_comes_out(value: Everything) -> None:
    assert decode(Everything, encode(value)) == value


@given(values, st.integers(0, 200), st.integers(1, 255))
def test_one_changed_byte_is_another_value_or_an_error(value: Everything, at: int, flip: int) -> None:
    data = bytearray(encode(value))
    data[at % len(data)] ^= flip
    try:
        found = decode(Everything, bytes(data))
    except ProtocolError:
        return
    assert type(found) is Everything
    assert encode(found) == bytes(data)  # one value, one text


@given(values, st.integers(1, 30))
def test_a_message_cut_short_or_with_more_behind_is_refused(value: Everything, count: int) -> None:
    data = encode(value)
    for changed in (data[:-count], data + bytes(count)):
        with pytest.raises(ProtocolError):
            decode(Everything, changed)


def known(module: Any) -> list[type[Any]]:
    return [thing for thing in vars(module).values() if isinstance(thing, type) and "tag" in vars(thing)]


KINDS = sorted(
    {*known(messages), *known(roster), Enrolled, Dealing, Active},
    key=lambda kind: kind.tag,
)


def test_every_kind_has_a_tag_of_its_own() -> None:
    assert len(KINDS) > 12
    assert len({kind.tag for kind in KINDS}) == len(KINDS)
    assert all(0 < kind.tag < 256 for kind in KINDS)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_junk_is_one_kind_of_error(kind: type[Any], junk: bytes) -> None:
    for data in (junk, b"FS\x01" + bytes([kind.tag]) + junk):
        try:
            found = decode(kind, data)
        except ProtocolError:
            continue
        assert type(found) is kind


def test_a_short_message_does_not_ask_for_much_memory() -> None:
    head = b"FS\x01" + bytes([messages.Confirm.tag]) + struct.pack("<I", 1)
    bombs = [
        head + struct.pack("<I", 2**32 - 1) + bytes(8),
        b"FS\x01" + bytes([messages.Unmasked.tag]) + struct.pack("<I", 2**31),
    ]
    tracemalloc.start()
    try:
        for kind, bomb in zip((messages.Confirm, messages.Unmasked), bombs, strict=True):
            with pytest.raises(ProtocolError):
                decode(kind, bomb)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_messages_and_states_come_back_whole_and_cannot_be_taken_for_one_another(world: Callable[..., Any]) -> None:
    made = world(4, rounds=2)
    states: list[Any] = [made.state(0)]
    work = made.round()
    request = work.mask_for(0)
    answer = made.ask_mask(0, request)
    states.append(made.state(0))
    everything = [*states, request, answer, work.confirm(), made.coordinator.roster, made.coordinator.deal_for(1)]
    for message in everything:
        data = encode(message)
        assert decode(type(message), data) == message
        for other in KINDS:
            if other is not type(message):
                with pytest.raises(ProtocolError, match="not a"):
                    decode(other, data)


def test_no_secret_is_shown(world: Callable[..., Any], fresh: Callable[..., Any]) -> None:
    made = fresh(3)
    enrolled = made.state(1)
    dealt = world(3)
    dealing = dealt.state(1)
    dealt.play()
    active = dealt.active(1)
    assert active.masked is not None
    shown = " ".join(repr(state) for state in (enrolled, dealing, active, made.identities[1]))
    secrets = [enrolled.secrets, enrolled.sealing, dealing.kept, active.secrets, active.shares, active.masked.words]
    for secret in secrets:
        assert repr(secret)[2:20] not in shown and secret.hex()[:16] not in shown


MASK = messages.Mask(round=1, present=(0, 1), parcels=(), length=1, bits=1)
MARK = bytes(32)


@pytest.mark.parametrize(
    ("good", "name", "held", "beyond"),
    [
        (MASK, "bits", (1, 32), (0, 33)),
        (MASK, "length", (1, messages.MOST_WORDS), (0, messages.MOST_WORDS + 1)),
        (MASK, "present", (tuple(range(messages.MOST)),), (tuple(range(messages.MOST + 1)),)),
        (messages.Before(), "told", ((), (MARK,) * messages.MOST), ((MARK,) * (messages.MOST + 1), (MARK, MARK[1:]))),
        (messages.Before(), "based", (b"",), (MARK,)),
        (messages.Before(since=1, based=MARK), "based", (MARK,), (b"", MARK[1:], MARK + MARK)),
        (messages.Masked(consent=bytes(64), words=b""), "consent", (bytes(64),), (bytes(63), bytes(65))),
        (messages.Confirmed(signature=bytes(64)), "signature", (bytes(64),), (bytes(63), bytes(65))),
        (messages.Signed(number=0, signature=bytes(64)), "signature", (bytes(64),), (bytes(63), bytes(65))),
    ],
)
def test_a_message_has_bounds(good: Any, name: str, held: tuple[Any, ...], beyond: tuple[Any, ...]) -> None:
    for value in held:
        assert getattr(replace(good, **{name: value}), name) == value
    for value in beyond:
        with pytest.raises(ProtocolError):
            replace(good, **{name: value})


def test_what_was_before_a_round_is_in_its_digest() -> None:
    other = bytes([1]) * 32
    all_of_it = [
        messages.Before(told=told, since=since, based=based)
        for told in ((), (MARK,), (other,), (MARK, other), (other, MARK))
        for since, based in ((0, b""), (1, MARK), (2, MARK), (1, other))
    ]
    assert len({one.digest for one in all_of_it}) == len(all_of_it)


@dataclass(frozen=True)
class Marks:
    tag: ClassVar[int] = 201

    many: tuple[bool, ...]


def test_no_more_items_are_made_than_there_are_bytes_and_no_more_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(Marks((True,) * 5))
    assert decode(Marks, whole) == Marks((True,) * 5)
    with pytest.raises(ProtocolError, match="5 items in 4 bytes"):
        decode(Marks, whole[:-1])
    monkeypatch.setattr(codec, "MOST_ITEMS", 5)
    assert decode(Marks, whole) == Marks((True,) * 5)
    with pytest.raises(ProtocolError, match="6 items in 6 bytes"):
        decode(Marks, encode(Marks((True,) * 6)))


def test_a_message_is_as_large_as_is_said_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Marks((False,) * 9))
    monkeypatch.setattr(codec, "LARGEST", len(data))
    assert decode(Marks, data) == Marks((False,) * 9)
    monkeypatch.setattr(codec, "LARGEST", len(data) - 1)
    with pytest.raises(ProtocolError, match=f"a message of {len(data)} bytes"):
        decode(Marks, data)


def test_what_is_wrong_with_a_message_is_said() -> None:
    data = encode(Marks((True,)))
    for changed, why in (
        (data + b"\0\0", "Marks: 2 bytes too many"),
        (data[:-3], "the message ends 2 bytes early"),
        (data[:-1] + b"\2", "a truth value that is neither"),
        (data[:3] + b"\0" + data[4:], f"not a Marks of version {VERSION}"),
    ):
        with pytest.raises(ProtocolError, match=why):
            decode(Marks, changed)


@pytest.mark.parametrize(
    ("data", "version"),
    [(b"FS\x07\x01", 7), (b"FS\x07\x01more", 7), (b"FS\x07", None), (b"FS", None), (b"", None), (b"FT\x07\x01", None)],
)
def test_a_message_of_another_version_says_of_which(data: bytes, version: int | None) -> None:
    assert version_of(data) == version
