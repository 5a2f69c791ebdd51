"""The outgoing check: what every kind of answer may hold, and that anything else does not leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config.platform_file import load
from client.privacy.answer_timing import GROWTH, Pace
from client.privacy.egress_check import checked
from client.secagg.enrolment import Enrolled
from shared.base.errors import PrivacyError
from shared.protocol.messages import (
    Answer,
    Joined,
    Metrics,
    Personalised,
    Phase,
    Preferred,
    Quoted,
    Reason,
    Refusal,
    Secured,
    Summed,
    Update,
)
from shared.protocol.quality import METRICS, Quality
from shared.secagg import messages as secagg
from shared.secagg.bit_packing import packed_size
from shared.secagg.codec import encode
from shared.secagg.identity import Identity
from shared.secagg.roster import SumTerms
from shared.secagg.shared_catalogues import Taken
from shared.secagg.trust_statement import TrustStatement

STEP = 4.0
SHAPES = {"one": (2, 3), "two": (5,)}
CATALOGUE, LIST = "a" * 64, b"hashes of items"
OWN, PEER, STRANGER = (Identity(bytes([at]) * 32) for at in (1, 2, 3))
ARRAYS = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def keys(platform: str) -> bytes:
    terms = SumTerms(run="run", rounds=1, threshold=0.5, colluders=0)
    made = Enrolled.enrol(terms, platform=platform, identity=OWN, entropy=lambda count: bytes(range(1, 33)) * (count // 32))
    return encode(made.advert)


def trust(peers: dict[str, Identity], *, run: str = "run", platform: str = "shop") -> bytes:
    public = {name: one.public for name, one in peers.items()}
    return encode(TrustStatement.of(public, run=run, platform=platform, identity=OWN))


def masked(size: int) -> bytes:
    return encode(secagg.Masked(consent=bytes(64), words=bytes(size)))


COMMON: dict[str, Any] = {"run": "run", "platform": "shop"}
MADE: dict[str, Any] = {**COMMON, "round": 1, "users": 12, "epsilon": 1.0, "ledger": "", "seconds": STEP}
COST: dict[str, Any] = {"users": 12, "delta": 1e-5, "noise_multiplier": 1.0}
JOINED = Joined(**COMMON, **COST, items=7, budget=8.0, planned_epsilon=8.0, signal_to_noise=2.0, rank=3)
QUOTED = Quoted(**COMMON, **COST, epsilon=1.0, shown=True, left=3.0, left_after=2.0, preference_noise=0.0, taste_noise=0.0)
UPDATE = Update(**MADE, change=ARRAYS)
PREFERRED = Preferred(**MADE, sums=ARRAYS)
METRICS_ = Metrics(**MADE, label=None, quality=Quality(dict.fromkeys(METRICS, 0.5)), exact=False)  # type: ignore[arg-type]
PERSONALISED = Personalised(**MADE, chosen=True)
SUMMED = Summed(**MADE, body=masked(packed_size(11, 18)))
TAKEN = Secured(**COMMON, round=1, phase=Phase.POPULARITY, body=encode(Taken()))
CONFIRMED = encode(secagg.Confirmed(signature=bytes(64)))
REFUSAL = Refusal(**COMMON, round=1, reason=Reason.NOISE)
ALL = (JOINED, QUOTED, UPDATE, PREFERRED, METRICS_, PERSONALISED, SUMMED, TAKEN, REFUSAL)

Leaves = Callable[..., Answer]


@pytest.fixture
def leaves(write_platform: Callable[..., Path]) -> Leaves:
    platform = load(write_platform(declared=12))

    def made(answer: Any, *, show_budget: bool = True, **over: Any) -> Answer:
        federation = platform.federation.model_copy(update={"show_budget": show_budget})
        facts = {"layout": SHAPES, "rank": 3, "items": 7, "simulation": False, "pace": Pace(step=STEP), "catalogue": CATALOGUE}
        facts |= {"item_list": LIST, "peers": {"peer": PEER.public}, **over}
        return checked(answer, platform=platform.model_copy(update={"federation": federation}), **facts)

    return made


@pytest.mark.parametrize("answer", ALL, ids=lambda one: one.kind)
def test_every_kind_of_answer_leaves_as_it_is_and_under_the_platforms_own_name(leaves: Leaves, answer: Any) -> None:
    assert leaves(answer) is answer
    with pytest.raises(PrivacyError, match="another platform's name"):
        leaves(replace(answer, platform="other"))


@dataclass(frozen=True, kw_only=True)
class Unknown(Personalised):
    """An answer of a kind that is not on the list, with everything that one of the list has."""


def test_nothing_else_leaves(leaves: Leaves) -> None:
    with pytest.raises(PrivacyError, match="type Unknown"):
        leaves(Unknown(**MADE, chosen=True))


@pytest.mark.parametrize("answer", [JOINED, QUOTED, UPDATE, PREFERRED, METRICS_, PERSONALISED, SUMMED], ids=lambda one: one.kind)
@pytest.mark.parametrize("users", [11, 13])
def test_the_number_of_users_is_the_declared_one(leaves: Leaves, answer: Any, users: int) -> None:
    with pytest.raises(PrivacyError, match="number of users"):
        leaves(replace(answer, users=users))


@pytest.mark.parametrize("answer", [UPDATE, PREFERRED, METRICS_, PERSONALISED, SUMMED], ids=lambda one: one.kind)
def test_a_duration_is_one_of_the_public_moments(leaves: Leaves, answer: Any) -> None:
    for at in range(4):
        leaves(replace(answer, seconds=round(STEP * GROWTH**at, 6)))
    for seconds in (STEP - 0.1, STEP + 0.1, STEP * GROWTH + 0.01, 0.0):
        with pytest.raises(PrivacyError, match="timing"):
            leaves(replace(answer, seconds=seconds))


@pytest.mark.parametrize("change", [{"items": 6}, {"rank": 2}, {"catalogue": "b" * 64}, {"item_list": b"other"}, {"keys": b"no"}])
def test_who_joins_says_what_is_public(leaves: Leaves, change: dict[str, Any]) -> None:
    leaves(replace(JOINED, catalogue=CATALOGUE, item_list=LIST, keys=keys("shop")))
    with pytest.raises(PrivacyError):
        leaves(replace(JOINED, **change))


def test_and_gives_its_own_keys(leaves: Leaves) -> None:
    with pytest.raises(PrivacyError, match="another platform's keys"):
        leaves(replace(JOINED, keys=keys("other")))


@pytest.mark.parametrize("answer", [JOINED, QUOTED], ids=lambda one: one.kind)
def test_trust_is_what_the_platform_file_says(leaves: Leaves, answer: Any) -> None:
    for peers in ({}, {"peer": PEER}):
        leaves(replace(answer, trust=trust(peers)))
    for bad in (
        trust({"peer": STRANGER}),
        trust({"peer": PEER, "more": STRANGER}),
        trust({"peer": PEER}, run="another"),
        trust({"peer": PEER}, platform="other"),
        b"no statement",
    ):
        with pytest.raises(PrivacyError):
            leaves(replace(answer, trust=bad))
    with pytest.raises(PrivacyError, match="does not name"):
        leaves(replace(answer, trust=trust({"peer": PEER})), peers=None)


def test_a_budget_is_shown_only_where_the_platform_shows_it(leaves: Leaves) -> None:
    hidden = replace(QUOTED, shown=False, left=0.0, left_after=0.0)
    assert leaves(hidden, show_budget=False) is hidden
    for answer, show in (
        (QUOTED, False),
        (hidden, True),
        (replace(hidden, left=1.0), False),
        (replace(hidden, left_after=1.0), False),
    ):
        with pytest.raises(PrivacyError, match="budget"):
            leaves(answer, show_budget=show)


@pytest.mark.parametrize(("answer", "name"), [(UPDATE, "change"), (PREFERRED, "sums")], ids=["update", "preferred"])
def test_tensors_are_those_of_the_layout_and_finite(leaves: Leaves, answer: Any, name: str) -> None:
    for bad in (
        {"one": ARRAYS["one"]},
        {**ARRAYS, "three": ARRAYS["one"]},
        {**ARRAYS, "one": np.zeros((3, 2), np.float32)},
        *({**ARRAYS, "two": np.array([0, 0, 0, 0, value], np.float32)} for value in (math.nan, math.inf, -math.inf)),
    ):
        with pytest.raises(PrivacyError):
            leaves(replace(answer, **{name: bad}))


def test_metrics_are_exact_in_a_simulation_alone(leaves: Leaves) -> None:
    exact = replace(METRICS_, exact=True)
    assert leaves(exact, simulation=True) is exact and leaves(METRICS_, simulation=True) is METRICS_
    with pytest.raises(PrivacyError, match="exact"):
        leaves(exact)


def test_a_masked_vector_has_the_length_of_what_is_federated(leaves: Leaves) -> None:
    sizes = {packed_size(11, bits) for bits in range(1, 33)}  # 2 x 3 + 5 words
    for size in range(max(sizes) + 3):
        answer = replace(SUMMED, body=masked(size))
        if size in sizes:
            assert leaves(answer) is answer
        else:
            with pytest.raises(PrivacyError, match="length"):
                leaves(answer)


BODIES = {
    Phase.DEAL: encode(secagg.Dealt(sealed=(b"x",))),
    Phase.CONFIRM: CONFIRMED,
    Phase.UNMASK: encode(secagg.Unmasked(shares=bytes(36))),
    Phase.POPULARITY: TAKEN.body,
}


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_of_the_secure_sum_has_its_own_body(leaves: Leaves, phase: Phase) -> None:
    for of, body in {**BODIES, None: b"anything else"}.items():
        answer = replace(TAKEN, phase=phase, body=body)
        if of is phase:
            assert leaves(answer) is answer
        else:
            with pytest.raises(PrivacyError, match="bytes that are no"):
                leaves(answer)
