"""What a platform knows of a strategy, and what it refuses to send whatever it is asked."""

from __future__ import annotations

import pytest

from shared.base.errors import ProtocolError
from shared.model.factor_schedule import PLAIN, SCHEMES, personalises, scheme_of
from shared.protocol.messages import Factors


@pytest.mark.parametrize("name", SCHEMES)
def test_every_round_of_a_scheme_is_one_that_it_allows(name: str) -> None:
    scheme = scheme_of(f"median+{name}")
    assert scheme is SCHEMES[name]
    for server_round in range(1, 7):
        scheme.require(scheme.factors(server_round))


@pytest.mark.parametrize("factors", [Factors.B, Factors.BOTH, Factors.R])
def test_b_of_fedsa_is_sent_in_no_round(factors: Factors) -> None:
    with pytest.raises(ProtocolError):
        SCHEMES["fedsa"].require(factors)


@pytest.mark.parametrize("factors", [Factors.A, Factors.B, Factors.BOTH])
def test_an_adapter_with_a_core_has_nothing_else(factors: Factors) -> None:
    with pytest.raises(ProtocolError):
        SCHEMES["fedsb"].require(factors)
    with pytest.raises(ProtocolError):
        PLAIN.require(Factors.R)


@pytest.mark.parametrize("name", ["secure-sum", "fedadam", "magic", ""])
def test_whoever_is_not_in_the_table_trains_both(name: str) -> None:
    assert scheme_of(name) is PLAIN


def test_personalising_is_a_part_of_the_name() -> None:
    assert personalises("ffa+personalise") and personalises("personalise")
    assert not personalises("ffa") and not personalises("personalised")
