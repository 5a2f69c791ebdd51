"""Frames: what goes in comes out, and whatever else comes is one error with little memory."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from client.messenger.wire import MAX_BODY, MAX_HEADER, WIRE, Frame, Hangup, pack_record, receive, send, unpack_record
from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import Factors, Train

HEAD = struct.Struct(">7sBIQ")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def through(pair: tuple[socket.socket, socket.socket], frame: Frame) -> Frame:
    ours, theirs = pair
    thread = threading.Thread(target=send, args=(ours, frame))
    thread.start()
    got = receive(theirs, seconds=10.0)
    thread.join()
    return got


def test_a_message_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    adapter = {f"layer.{n}.lora_A": np.random.default_rng(n).normal(size=(4, 300 * n)).astype(np.float32) for n in range(1, 6)}
    request = Train(run="r", settings=Settings(rounds=7), round=3, factors=Factors.B, adapter=adapter)
    got = request_from(unpack_record(through(pair, pack_record("request", to_record(request)))))
    assert isinstance(got, Train)
    assert (got.run, got.settings, got.round, got.factors) == ("r", Settings(rounds=7), 3, Factors.B)
    for name, value in adapter.items():
        np.testing.assert_array_equal(got.adapter[name], value)


scalars = st.one_of(
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.one_of(st.binary(max_size=20), st.binary(min_size=300, max_size=400)),
    st.booleans(),
)
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from([np.float32, np.uint32, np.uint64, np.int64, np.uint8, np.float64]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(0, 9),
)


@settings(deadline=None, max_examples=60)
@given(
    configs=st.dictionaries(names, st.dictionaries(names, scalars, max_size=3), max_size=3),
    tables=st.dictionaries(names, st.dictionaries(names, arrays, max_size=3), max_size=3),
)
def test_any_record_of_scalars_and_arrays_comes_back(configs: dict[str, Any], tables: dict[str, Any]) -> None:
    """New kinds of message need nothing here, whatever their fields are."""
    record = RecordDict({name: ConfigRecord(values) for name, values in configs.items()})
    for name, values in tables.items():
        if name not in configs:
            record[name] = ArrayRecord({key: Array(value) for key, value in values.items()})
    got = unpack_record(pack_record("request", record))
    assert set(got) == set(record)
    for name, value in record.items():
        if isinstance(value, ConfigRecord):
            assert dict(got[name]) == dict(value)
        else:
            assert set(got[name]) == set(value)
            for key, array in value.items():
                ours, theirs = array.numpy(), got[name][key].numpy()
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_is_carried(value: float) -> None:
    """Privacy turned off is an infinite epsilon, which JSON does not have."""
    frame = pack_record("answer", RecordDict({"fedfuse": ConfigRecord({"epsilon": value, "list": [1.0, value]})}))
    assert "Infinity" not in json.dumps(dict(frame.header))
    got = unpack_record(frame)["fedfuse"]
    assert (got["epsilon"], got["list"]) == (value, [1.0, value])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
        HEAD.pack(b"FEDFUSE", WIRE + 1, 2, 0) + b"{}",
        HEAD.pack(b"FEDFUSE", WIRE, MAX_HEADER + 1, 0),
        HEAD.pack(b"FEDFUSE", WIRE, 2, MAX_BODY + 1) + b"{}",
        HEAD.pack(b"FEDFUSE", WIRE, 2, 2**64 - 1) + b"{}",
        HEAD.pack(b"FEDFUSE", WIRE, 4, 0) + b"\xff\xfe{}",
        HEAD.pack(b"FEDFUSE", WIRE, 4, 0) + b"[{}]",
        HEAD.pack(b"FEDFUSE", WIRE, 20000, 0) + b"[" * 20000,
        HEAD.pack(b"FEDFUSE", WIRE, 6000, 0) + b"9" * 6000,
    ],
    ids=["http", "other layout", "long header", "long body", "huge body", "not utf-8", "a list", "nested", "a huge number"],
)
def test_what_is_no_frame(pair: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ours, theirs = pair
    ours.sendall(sent)
    with pytest.raises(ProtocolError):
        receive(theirs, seconds=1.0)


def test_a_frame_that_is_announced_and_never_comes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    tracemalloc.start()
    try:
        ours.sendall(HEAD.pack(b"FEDFUSE", WIRE, 2, MAX_BODY) + b"{}" + b"x")
        began = time.monotonic()
        with pytest.raises(Hangup, match=r"too slow|timed out"):
            receive(theirs, seconds=0.3)
        assert time.monotonic() - began < 20.0
        ours.close()
        with pytest.raises(Hangup):
            receive(theirs, seconds=1.0)
    finally:
        tracemalloc.stop()


def test_one_byte_at_a_time_does_not_stretch_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stop = threading.Event()

    def drip() -> None:
        for byte in HEAD.pack(b"FEDFUSE", WIRE, 1000, 0) + b" " * 1000:
            if stop.wait(0.05):
                return
            ours.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Hangup):
        receive(theirs, seconds=0.5)
    assert time.monotonic() - began < 20.0
    stop.set()
    thread.join()


def frame_of(header: Any, body: bytes = b"") -> Frame:
    return Frame(header=header, body=body)


@pytest.mark.parametrize(
    "frame",
    [
        frame_of({"type": "request"}),
        frame_of({"type": "request", "scalars": 3, "arrays": []}),
        frame_of({"type": "request", "scalars": {"a": {"b": None}}, "arrays": []}),
        frame_of({"type": "request", "scalars": {"a": {"b": {"bytes": "%%%"}}}, "arrays": []}),
        frame_of({"type": "request", "scalars": {"a": {"b": {"x": 1, "y": 2}}}, "arrays": []}),
        frame_of({"type": "request", "scalars": {"a": {}}, "arrays": ["a"]}),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, save({"b/c": np.ones(2, np.float32)})),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, save({"b": np.ones(2, np.float32)})),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, b"\x80\x04\x95pickle of some kind."),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, save({"a/b": np.ones(9, np.float32)})[:-3]),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, (1 << 62).to_bytes(8, "little") + b"{}"),
        frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, b"\x01"),
    ],
)
def test_frames_that_hold_no_record(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        unpack_record(frame)


def test_a_table_of_contents_is_no_memory_bomb() -> None:
    """A few megabytes of safetensors header would become hundreds of megabytes of objects."""
    entries = {f"a/{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    header = json.dumps(entries).encode()
    body = len(header).to_bytes(8, "little") + header
    assert len(body) > 1 << 22
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="table of contents"):
        unpack_record(frame_of({"type": "request", "scalars": {}, "arrays": ["a"]}, body))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(body)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_changed_bytes_are_an_error_or_a_record(data: st.DataObject) -> None:
    """Bits flipped anywhere in a valid frame: the reader answers with a record or with its one kind of error."""
    adapter = {"x.lora_A": np.arange(6, dtype=np.float32).reshape(2, 3)}
    frame = pack_record("request", to_record(Train(run="r", settings=Settings(), round=1, factors=Factors.A, adapter=adapter)))
    raw = bytearray(json.dumps(dict(frame.header)).encode() + b"\0\0" + frame.body)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    header, _, body = bytes(raw).partition(b"\0\0")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(HEAD.pack(b"FEDFUSE", WIRE, len(header), len(body)) + header + body)
        try:
            request_from(unpack_record(receive(theirs, seconds=5.0)))
        except ProtocolError:
            return
