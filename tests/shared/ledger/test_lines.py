"""The ledger's format: what is written can be read, and nothing else can."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import FedfuseError, PrivacyError, StorageError
from shared.ledger.chained_line import GENESIS, canonical_json
from shared.ledger.format import MAX_LINE, Entry, Header, IntegerEntry, Ledger, entry_of, seal_line
from shared.ledger.reading import parse_ledger, read_ledger
from shared.privacy.integers import Integers
from shared.privacy.releases import ReleaseKind
from shared.privacy.spent import Method

TIME = "2030-01-02T03:04:05Z"


def header(**changes: Any) -> Header:
    return Header(**{"version": 2, "platform": "movies", "budget": 8.0, "delta": 1e-5, "created": TIME, **changes})


def entry(seq: int, previous: str, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "seq": seq,
        "time": TIME,
        "run": "spring",
        "round": seq,
        "kind": ReleaseKind.TRAIN,
        "noise_multiplier": 2.0,
        "sample_rate": 0.1,
        "steps": 20,
        "group_size": 1,
        "epsilon": 0.5 * seq,
        "delta": 1e-5,
        "accountant": Method.OPACUS_PRV,
        "previous": previous,
        "question": "5" * 64,
    }
    return Entry(**{**values, **changes})


UNSIGNED = (("identity", ""), ("signature", ""))
"""What lines of a version that is not signed leave out."""


def sealed(values: dict[str, Any]) -> tuple[str, bytes]:
    """A line as the format says, written apart from the code under test, so that it may hold anything."""
    plain = {k: "inf" if v == math.inf else v for k, v in values.items() if k != "hash" and (k, v) not in UNSIGNED}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest, json.dumps({**plain, "hash": digest}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def chain(*changes: dict[str, Any], head: dict[str, Any] | None = None) -> list[bytes]:
    """The lines of a ledger whose entries differ from the usual by `changes`, every hash correct."""
    previous, line = sealed({**asdict(header()), **(head or {})})
    lines = [line]
    for seq, change in enumerate(changes, start=1):
        previous, line = sealed({**asdict(entry(seq, previous)), **change})
        lines.append(line)
    return lines


WHOLE = chain({}, {"kind": ReleaseKind.POPULARITY, "sample_rate": 1.0, "steps": 1}, {"group_size": 3})


def test_the_writer_and_the_format_agree() -> None:
    for line in (header(), header(budget=math.inf), entry(1, GENESIS), entry(1, GENESIS, epsilon=math.inf)):
        assert seal_line(line) == sealed(asdict(line))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "movies.jsonl"
    path.write_bytes(b"".join(WHOLE))
    ledger = read_ledger(path)
    assert (ledger.header.platform, ledger.header.budget, ledger.header.delta) == ("movies", 8.0, 1e-5)
    assert [(r.kind, r.steps, r.group_size) for r in ledger.releases] == [
        ("train", 20, 1),
        ("popularity", 1, 1),
        ("train", 20, 3),
    ]
    assert ledger.epsilon == 1.5
    assert ledger.head == json.loads(WHOLE[-1])["hash"]
    assert ledger.private


def test_a_round_is_a_number_that_every_reader_of_json_has_exactly() -> None:
    (last,) = parse_ledger(b"".join(chain({"round": 2**53})), where="x").entries
    assert last.round == 2**53
    with pytest.raises(StorageError, match="round"):
        parse_ledger(b"".join(chain({"round": 2**53 + 1})), where="x")


INTEGERS = {"reach": 2100.5, "dimension": 36_864, "failure": 2.0**-64, "honest": 12}


def test_a_line_of_the_secure_sum_says_what_the_integers_are() -> None:
    made = IntegerEntry(**asdict(entry(1, GENESIS)), integers=Integers(**INTEGERS))
    assert seal_line(made) == sealed({**asdict(made), "integers": INTEGERS})
    plain, integer = parse_ledger(b"".join(chain({}, {"integers": INTEGERS})), where="x").entries
    assert (plain.release.integers, integer.release.integers) == (None, Integers(**INTEGERS))
    assert replace(integer.release, integers=None) == plain.release
    for line in (plain, integer):
        rest = {
            name: getattr(line, name)
            for name in ("seq", "time", "run", "round", "epsilon", "delta", "accountant", "previous", "question")
        }
        assert entry_of(line.release, **rest, hash=line.hash) == line


@pytest.mark.parametrize(
    "integers",
    [
        None,
        [],
        {},
        {**INTEGERS, "more": 1},
        {name: value for name, value in INTEGERS.items() if name != "failure"},
        {**INTEGERS, "reach": 0.0},
        {**INTEGERS, "reach": 3},
        {**INTEGERS, "reach": "inf"},
        {**INTEGERS, "dimension": 1e3},
        {**INTEGERS, "dimension": 1 << 40},
        {**INTEGERS, "failure": 1.0},
        {**INTEGERS, "honest": True},
        {**INTEGERS, "honest": 0},
    ],
)
def test_the_integers_of_a_line_are_checked(integers: Any) -> None:
    with pytest.raises(StorageError, match="line 2"):
        parse_ledger(b"".join(chain({"integers": integers})), where="x")


def test_a_line_that_lost_its_integers_is_an_altered_one() -> None:
    lines = chain({"integers": INTEGERS})
    values = {key: value for key, value in json.loads(lines[1]).items() if key != "integers"}
    with pytest.raises(PrivacyError, match="altered"):
        parse_ledger(lines[0] + canonical_json(values) + b"\n", where="x")


def test_an_empty_ledger_has_spent_nothing() -> None:
    ledger = parse_ledger(WHOLE[0], where="x")
    assert (ledger.entries, ledger.epsilon, ledger.head) == ((), 0.0, ledger.header.hash)


def test_no_privacy_is_written_as_a_word() -> None:
    lines = chain({"epsilon": math.inf, "noise_multiplier": 0.0, "accountant": Method.NONE}, head={"budget": math.inf})
    assert b'"budget":"inf"' in lines[0] and b'"epsilon":"inf"' in lines[1]
    ledger = parse_ledger(b"".join(lines), where="x")
    assert ledger.epsilon == math.inf and not ledger.private and ledger.releases[0].exact


@settings(max_examples=300)
@given(st.integers(0, len(b"".join(WHOLE)) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, difference: int) -> None:
    content = bytearray(b"".join(WHOLE))
    content[position] ^= difference
    with pytest.raises((PrivacyError, StorageError)):
        parse_ledger(bytes(content), where="x")


@pytest.mark.parametrize("gone", range(len(WHOLE) - 1))
def test_any_removed_line_is_noticed_but_the_last(gone: int) -> None:
    with pytest.raises((PrivacyError, StorageError)):
        parse_ledger(b"".join(WHOLE[:gone] + WHOLE[gone + 1 :]), where="x")


def test_a_cut_end_is_seen_only_by_whoever_holds_the_head() -> None:
    whole, cut = parse_ledger(b"".join(WHOLE), where="x"), parse_ledger(b"".join(WHOLE[:-1]), where="x")
    assert whole.head not in [cut.header.hash, *(e.hash for e in cut.entries)]


def test_lines_cannot_be_swapped_doubled_or_taken_from_another_ledger() -> None:
    for lines in (
        [WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3]],
        [*WHOLE, WHOLE[3]],
        [WHOLE[0], WHOLE[0]],
        [*chain(head={"platform": "music"}), *WHOLE[1:]],
    ):
        with pytest.raises((PrivacyError, StorageError)):
            parse_ledger(b"".join(lines), where="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise_multiplier": 20.0}, "hash"),
        ({"epsilon": 0.1}, "hash"),
        ({"steps": 1}, "hash"),
        ({"group_size": 1}, "hash"),
    ],
)
def test_a_figure_changed_without_its_hash_is_an_alteration(change: dict[str, Any], said: str) -> None:
    values = {**json.loads(WHOLE[3]), **change}
    with pytest.raises(PrivacyError, match=said) as caught:
        parse_ledger(b"".join([*WHOLE[:3], canonical_json(values) + b"\n"]), where="a.jsonl")
    assert "line 4" in caught.value.where


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 9.0},  # above the budget
        {"delta": 1e-6},  # not the header's
        {"seq": 7},
        {"previous": GENESIS},
    ],
)
def test_a_forger_who_can_hash_still_cannot_break_the_rules(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="x, line 2") as caught:
        parse_ledger(b"".join(chain(change)), where="x")
    assert caught.value.do


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": 2.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": "inf"},
        {"group_size": 0},
        {"kind": "gossip"},
        {"kind": ["train"]},
        {"accountant": "me"},
        {"run": "../etc"},
        {"round": -1},
        {"round": True},
        {"time": "yesterday"},
        {"time": "2030-1-2T03:04:05Z"},
        {"epsilon": -1.0},
        {"epsilon": None},
        {"delta": "x"},
    ],
)
def test_values_of_another_type_or_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="line 2"):
        parse_ledger(b"".join(chain(change)), where="x")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"version": True},
        {"platform": "Movies!"},
        {"budget": 0.0},
        {"budget": -1.0},
        {"budget": "much"},
        {"delta": 0.0},
        {"delta": 1.0},
        {"unit": "one row"},
        {"seq": 1},
        {"previous": "1" * 64},
        {"created": ""},
    ],
)
def test_headers_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises((PrivacyError, StorageError), match="line 1"):
        parse_ledger(b"".join(chain(head=change)), where="x")


def test_a_finite_epsilon_without_privacy_would_look_like_a_promise() -> None:
    with pytest.raises(PrivacyError, match="privacy is off"):
        parse_ledger(b"".join(chain({}, head={"budget": math.inf})), where="x")


@pytest.mark.parametrize(
    "spelling",
    [
        lambda line: line.replace(b'"steps":20', b'"steps": 20'),
        lambda line: line.replace(b'"steps":20', b'"steps":20,"steps":20'),
        lambda line: line.replace(b'"noise_multiplier":2.0', b'"noise_multiplier":2.00'),
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: line.replace(b"spring", b"\\u0073pring"),
        lambda line: line.replace(b'"epsilon":0.5', b'"epsilon":NaN'),
        lambda line: line.replace(b'"epsilon":0.5', b'"epsilon":1e999'),
        lambda line: line.replace(b'"steps":20', b'"steps":' + b"9" * 1500),
        lambda line: line[:-2] + b',"note":"hello"}\n',
        lambda line: b"[" * 1500 + b"\n",
        lambda line: b"{}\n",
        lambda line: b"3\n",
        lambda line: b"\n",
        lambda line: b" " * MAX_LINE + line,
    ],
)
def test_there_is_one_spelling(spelling: Any) -> None:
    first, second, *_ = WHOLE
    changed = spelling(second)
    assert changed != second
    with pytest.raises((PrivacyError, StorageError), match="line 2"):
        parse_ledger(first + changed, where="x")


@pytest.mark.parametrize("cut", [0, 1, 100, len(WHOLE[0]) - 1, len(WHOLE[0]) + 30, len(b"".join(WHOLE)) - 1])
def test_a_torn_end_is_not_a_ledger(cut: int) -> None:
    content = b"".join(WHOLE)[:cut]
    with pytest.raises(StorageError, match=r"middle of a line|empty") as caught:
        parse_ledger(content, where="x")
    assert caught.value.where == f"x, line {content.count(bytes([10])) + 1}"


def test_a_missing_file_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_ledger(tmp_path / "none.jsonl")
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a reader that loads it all would run out of memory
    with pytest.raises(StorageError):
        read_ledger(big)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(
    st.binary(max_size=400)
    | st.dictionaries(st.sampled_from(sorted(json.loads(WHOLE[0]))), json_like, min_size=9, max_size=9).map(
        lambda values: json.dumps(values).encode() + b"\n"
    )
    | st.dictionaries(st.sampled_from(sorted(json.loads(WHOLE[1]))), json_like, min_size=14, max_size=14).map(
        lambda values: WHOLE[0] + json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    )
    | st.tuples(st.sampled_from(sorted(json.loads(WHOLE[1]))), json_like).map(lambda pair: b"".join(chain({pair[0]: pair[1]})))
)
def test_bytes_give_a_ledger_or_an_error_of_ours(content: bytes) -> None:
    try:
        assert isinstance(parse_ledger(content, where="x"), Ledger)
    except FedfuseError as error:
        assert "x" in error.where


def test_the_hash_covers_every_field() -> None:
    first = entry(1, GENESIS)
    digests = {seal_line(replace(first, **{name: value}))[0] for name, value in _others().items()}
    assert len(digests | {seal_line(first)[0]}) == len(_others()) + 1


def _others() -> dict[str, Any]:
    return {
        "seq": 2,
        "time": "2031-01-02T03:04:05Z",
        "run": "autumn",
        "round": 9,
        "kind": ReleaseKind.EVALUATE,
        "noise_multiplier": 3.0,
        "sample_rate": 0.2,
        "steps": 21,
        "group_size": 2,
        "epsilon": 0.6,
        "delta": 1e-6,
        "accountant": Method.OPACUS_RDP,
        "previous": "1" * 64,
    }
