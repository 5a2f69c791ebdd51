"""Messages: what goes in comes out, and what another party may not say is refused."""

from __future__ import annotations

import ast
import io
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save

import shared
from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.protocol.flower_records import answer_from, record_bytes, record_of_bytes, request_from, to_record
from shared.protocol.messages import (
    MAX_BYTES,
    MAX_PARAMETERS,
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Personalise,
    Personalised,
    Phase,
    Quote,
    Quoted,
    Reason,
    Refusal,
    Secured,
    Train,
    Update,
)
from tests.support.qualities import quality_of

ARRAYS = {"head.lora_A": np.arange(6, dtype=np.float32).reshape(2, 3), "head.lora_B": np.ones((3, 2), np.float32)}
REQUESTS = [
    Join(run="run", settings=Settings()),
    Train(run="run", settings=Settings(), round=3, factors=Factors.B, adapter=ARRAYS),
    Evaluate(run="run", settings=Settings(), round=0, label=Label.BEFORE, adapter=ARRAYS),
    Personalise(run="run", settings=Settings(), round=10, adapter=ARRAYS),
    Quote(run="run", settings=Settings()),
]
ANSWERS = [
    Joined(
        run="run",
        platform="shop",
        users=9,
        items=4,
        budget=math.inf,
        delta=1e-5,
        planned_epsilon=math.inf,
        noise_multiplier=0.0,
        signal_to_noise=math.inf,
    ),
    Quoted(
        run="run",
        platform="shop",
        users=9,
        epsilon=math.inf,
        delta=1e-5,
        shown=True,
        left=math.inf,
        left_after=math.inf,
        noise_multiplier=0.0,
        preference_noise=0.5,
        taste_noise=0.0,
        trust=b"trust",
    ),
    Update(run="run", platform="shop", round=1, users=9, epsilon=0.5, ledger="a" * 64, seconds=1.5, change=ARRAYS),
    Metrics(
        run="run",
        platform="shop",
        round=1,
        label=Label.FEDERATED,
        users=9,
        quality=quality_of({"ndcg@10": 0.1, "hr@10": 0.2}),
        exact=False,
        epsilon=0.5,
        ledger="",
        seconds=0.1,
    ),
    Personalised(run="run", platform="shop", round=10, users=9, chosen=True, epsilon=7.5, ledger="b" * 64, seconds=3.0),
    Refusal(run="run", platform="shop", round=2, reason=Reason.BUDGET),
]


def same(a: Any, b: Any) -> bool:
    for name in a.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, dict):
            if left.keys() != right.keys() or not all((left[key] == right[key]).all() for key in left):
                return False
        elif left != right or type(left) is not type(right):
            return False
    return type(a) is type(b)


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: m.kind)
def test_requests_come_back(message: Any) -> None:
    assert same(request_from(to_record(message)), message)
    assert record_bytes(to_record(message)) > 0
    with pytest.raises(ProtocolError):
        answer_from(to_record(message))


@pytest.mark.parametrize("message", ANSWERS, ids=lambda m: m.kind)
def test_answers_come_back(message: Any) -> None:
    assert same(answer_from(to_record(message)), message)
    with pytest.raises(ProtocolError):
        request_from(to_record(message))


NOTHING: list[dict[str, Any]] = [{}, {"head.lora_A": np.zeros((0, 3), np.float32)}]


@pytest.mark.parametrize("arrays", NOTHING, ids=["no arrays", "arrays of nothing"])
@pytest.mark.parametrize("message", [m for m in [*REQUESTS, *ANSWERS] if hasattr(m, "adapter") or hasattr(m, "change")])
def test_an_adapter_without_a_parameter_is_refused(message: Any, arrays: dict[str, Any]) -> None:
    name = "adapter" if hasattr(message, "adapter") else "change"
    with pytest.raises(ProtocolError, match=rf"{message.kind}\.{name} holds 0 parameters"):
        replace(message, **{name: arrays})


def test_an_adapter_is_bounded_over_all_its_arrays_together() -> None:
    train = next(message for message in REQUESTS if isinstance(message, Train))
    half = np.broadcast_to(np.float32(0), (MAX_PARAMETERS // 2,))
    assert replace(train, adapter={"a": half, "b": half}).adapter["a"] is half
    with pytest.raises(ProtocolError, match=f"holds {MAX_PARAMETERS + 1} parameters"):
        replace(train, adapter={"a": half, "b": half, "c": np.zeros(1, np.float32)})


def test_what_is_no_adapter_is_bounded_by_its_bytes() -> None:
    summed = Secured(run="run", platform="shop", round=1, phase=Phase.DEAL, body=b"")
    assert len(replace(summed, body=bytes(MAX_BYTES)).body) == MAX_BYTES
    with pytest.raises(ProtocolError, match=rf"secured\.body holds {MAX_BYTES + 1} bytes"):
        replace(summed, body=bytes(MAX_BYTES + 1))


junk = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=12), st.booleans(), st.binary(max_size=12))


@given(st.sampled_from([*REQUESTS, *ANSWERS]), st.data())
def test_a_field_that_is_junk_is_refused_or_harmless(message: Any, data: st.DataObject) -> None:
    record = to_record(message)
    header = dict(record["fedfuse"])
    key = data.draw(st.sampled_from(sorted(header)))
    header[key] = data.draw(junk)
    record["fedfuse"] = ConfigRecord(header)
    decode = request_from if message in REQUESTS else answer_from
    try:
        found = decode(record)
    except ProtocolError:
        return
    assert type(found) is type(message)


@pytest.mark.parametrize(
    "how", ["no header", "other version", "unknown kind", "missing", "extra", "extra record", "pickle", "float64", "nothing"]
)
def test_malformed(how: str) -> None:
    record = to_record(REQUESTS[1])
    header = dict(record["fedfuse"])
    if how == "no header":
        del record["fedfuse"]
    elif how == "other version":
        header["protocol"] = 99
    elif how == "unknown kind":
        header["kind"] = "exec"
    elif how == "missing":
        del header["round"]
    elif how == "extra":
        header["rows"] = "u17"
    elif how == "extra record":
        record["more"] = ArrayRecord({"x": Array(np.ones(1, np.float32))})
    elif how == "pickle":
        array = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"\x80\x04cos\nsystem\n")
        record["adapter"] = ArrayRecord({"head.lora_A": array})
    elif how == "float64":
        record["adapter"] = ArrayRecord({"head.lora_A": Array(np.ones((2, 2)))})
    elif how == "nothing":
        record = RecordDict()
    if "fedfuse" in record:
        record["fedfuse"] = ConfigRecord(header)
    with pytest.raises(ProtocolError):
        request_from(record)


@pytest.mark.parametrize(
    "values",
    [
        {"platform": "Shop"},
        {"platform": "a" * 64},
        {"round": -1},
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"ledger": "xyz"},
        {"seconds": math.inf},
        {"run": "../x"},
    ],
)
def test_values_out_of_range(values: dict[str, Any]) -> None:
    update: dict[str, Any] = {
        "run": "run",
        "platform": "shop",
        "round": 1,
        "users": 9,
        "epsilon": 0.5,
        "ledger": "",
        "seconds": 1.0,
        "change": ARRAYS,
    }
    with pytest.raises(ProtocolError):
        Update(**{**update, **values})


class TestOnTheWire:
    """The same through Flower's own bytes."""

    def over_the_wire(self, record: RecordDict) -> RecordDict:
        data = recorddict_to_proto(record).SerializeToString()
        return recorddict_from_proto(type(recorddict_to_proto(record)).FromString(data))

    @pytest.mark.parametrize("message", [*REQUESTS, *ANSWERS], ids=lambda m: m.kind)
    def test_messages_come_back(self, message: Any) -> None:
        decode = request_from if message in REQUESTS else answer_from
        assert same(decode(self.over_the_wire(to_record(message))), message)

    @settings(deadline=None)
    @given(
        arrays=st.dictionaries(
            st.text(min_size=1, max_size=9),
            arrays(np.float32, array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32)),
            min_size=1,
            max_size=4,
        ),
        seconds=st.floats(0, 1e9),
        users=st.integers(0, 2**53 - 1),
    )
    def test_arrays_come_back_bit_by_bit(self, arrays: dict[str, Any], seconds: float, users: int) -> None:
        update = Update(run="r", platform="p", round=0, users=users, epsilon=math.inf, ledger="", seconds=seconds, change=arrays)
        back = answer_from(self.over_the_wire(to_record(update)))
        assert isinstance(back, Update)
        assert (back.users, back.seconds, back.epsilon) == (users, seconds, math.inf)
        assert set(back.change) == set(arrays)
        for name, array in arrays.items():
            assert back.change[name].tobytes() == array.tobytes()
            assert back.change[name].shape == array.shape

    @given(part=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_damaged_array_bytes_are_an_error_or_other_numbers(self, part: float, flip: int) -> None:
        record = to_record(REQUESTS[1])
        whole = record["adapter"]["bytes"]
        data = bytearray(whole.data)
        data[int(part * len(data))] ^= flip
        record["adapter"] = ArrayRecord(
            {"bytes": Array(dtype=whole.dtype, shape=whole.shape, stype="numpy.ndarray", data=bytes(data))}
        )
        try:
            found = request_from(record)
        except ProtocolError:
            return
        assert isinstance(found, Train)
        assert all(array.dtype == np.float32 for array in found.adapter.values())

    def test_a_long_table_of_contents_is_not_parsed(self) -> None:
        record = to_record(REQUESTS[1])
        record["adapter"] = record_of_bytes((1 << 30).to_bytes(8, "little") + b" " * 64)
        with pytest.raises(ProtocolError):
            request_from(record)


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


class TestNoPickle:
    @pytest.mark.parametrize("how", ["object array", "bare pickle", "archive"])
    def test_a_pickle_in_an_array_is_refused_and_never_run(self, tmp_path: Path, how: str) -> None:
        canary, buffer = tmp_path / "run", io.BytesIO()
        bomb = _Bomb(str(canary))
        if how == "object array":
            np.save(buffer, np.array([bomb], object), allow_pickle=True)
        elif how == "bare pickle":
            buffer.write(pickle.dumps(bomb))
        else:
            np.savez(buffer, x=np.array([bomb], object))
        record = to_record(REQUESTS[1])
        array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())
        record["adapter"] = ArrayRecord({"bytes": array})
        with pytest.raises(ProtocolError):
            request_from(record)
        assert not canary.exists()
        # The bomb is a real one: whoever unpickles it, runs it.
        pickle.loads(pickle.dumps(bomb)).close()
        assert canary.exists()

    def test_no_module_of_the_product_can_unpickle(self) -> None:
        root = Path(shared.__file__).parents[1]
        modules = [
            path
            for package in ("shared", "client", "server", "strategies", "simulations")
            for path in (root / package).rglob("*.py")
        ]
        assert len(modules) > 50
        for path in modules:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.partition(".")[0] for name in names} & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}, (
                    path
                )
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert called not in ("torch.load", "torch.save"), path
                if called in ("np.load", "numpy.load"):
                    assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), path


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<i4", "<f2", "?", "<c8", "S3"])
def test_only_plain_float32_is_taken(dtype: str) -> None:
    record = to_record(REQUESTS[1])
    record["adapter"] = ArrayRecord({"bytes": Array(np.ones((2, 3)).astype(dtype))})
    with pytest.raises(ProtocolError):
        request_from(record)


@pytest.mark.parametrize("dtype", ["<f8", "<i4", "<f2", "?"])
def test_only_float32_is_taken_out_of_safetensors(dtype: str) -> None:
    record = to_record(REQUESTS[1])
    tensors = {"x": np.ones((2, 3), np.float32)}
    record["adapter"] = record_of_bytes(save(tensors))
    assert isinstance(request_from(record), Train)
    record["adapter"] = record_of_bytes(save({"x": tensors["x"].astype(dtype)}))
    with pytest.raises(ProtocolError, match="float32"):
        request_from(record)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["above", "below"])
def test_a_number_that_no_float_holds(value: int) -> None:
    record = to_record(ANSWERS[1])
    header = dict(record["fedfuse"])
    record["fedfuse"] = ConfigRecord({**header, "epsilon": value})
    with pytest.raises(ProtocolError):
        answer_from(record)


def test_an_adapter_is_not_printed() -> None:
    assert "lora" not in repr(REQUESTS[1])
    assert "lora" not in repr(ANSWERS[1])
