"""Messages: what goes in comes out, and what another party may not say is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError, ProtocolError
from shared.messages import (
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Reason,
    Refusal,
    Train,
    Update,
    answer_from,
    bytes_of,
    request_from,
    to_record,
)
from shared.settings import Settings, build, flatten, unflatten

ARRAYS = {"head.lora_A": np.arange(6, dtype=np.float32).reshape(2, 3), "head.lora_B": np.ones((3, 2), np.float32)}
REQUESTS = [
    Join(run="run", settings=Settings()),
    Train(run="run", settings=Settings(), round=3, factors=Factors.B, adapter=ARRAYS),
    Evaluate(run="run", settings=Settings(), round=0, label=Label.BEFORE, adapter=ARRAYS),
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
    Update(run="run", platform="shop", round=1, users=9, epsilon=0.5, ledger="a" * 64, seconds=1.5, change=ARRAYS),
    Metrics(
        run="run",
        platform="shop",
        round=1,
        label=Label.FEDERATED,
        users=9,
        ndcg=0.1,
        hr=0.2,
        auc=0.6,
        exact=False,
        epsilon=0.5,
        ledger="",
        seconds=0.1,
    ),
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
    assert bytes_of(message) > 0
    with pytest.raises(ProtocolError):
        answer_from(to_record(message))


@pytest.mark.parametrize("message", ANSWERS, ids=lambda m: m.kind)
def test_answers_come_back(message: Any) -> None:
    assert same(answer_from(to_record(message)), message)
    with pytest.raises(ProtocolError):
        request_from(to_record(message))


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


class TestSettings:
    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "rounds": st.integers(1, 99),
                "privacy": st.fixed_dictionaries({"epsilon": st.one_of(st.none(), st.just(math.inf), st.floats(0.01, 100))}),
                "training": st.fixed_dictionaries(
                    {"clip": st.floats(0.01, 9), "objective": st.sampled_from(["softmax", "click"])}
                ),
                "model": st.fixed_dictionaries({"rank": st.integers(1, 64)}),
            },
        )
    )
    def test_flatten_and_back(self, values: dict[str, Any]) -> None:
        settings = build(values, where="test")
        flat = flatten(settings)
        assert all(isinstance(value, bool | int | float | str) for value in flat.values())
        assert unflatten(flat, where="test") == settings

    @pytest.mark.parametrize(
        "values",
        [
            {"rounds": 0},
            {"privacy": {"epsilon": 0}},
            {"colour": 1},
            {"training": {"clip": math.inf}},
            {"training": []},
            {"privacy": {"generator": "seeded"}},
        ],
    )
    def test_bad_values_name_their_key(self, values: dict[str, Any]) -> None:
        with pytest.raises(InputError) as caught:
            build(values, where="run.toml")
        assert next(iter(values)) in str(caught.value)
        assert "run.toml" in str(caught.value)

    @pytest.mark.parametrize("key", ["model.model.model", "privacy", "training.x.y"])
    def test_flat_keys_that_are_none(self, key: str) -> None:
        with pytest.raises(InputError):
            unflatten({key: 1}, where="test")
