"""What an audit holds against a ledger's figures, each to the last difference that is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from shared.ledger import checks
from shared.ledger.checks import OTHER, SAME, arithmetic_problems, order_problems, prefix_problems, witness_problems
from shared.ledger.evidence import Witness
from shared.ledger.format import Header, entry_of
from shared.ledger.summary import LedgerSummary, Named
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method, Spent

TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=3.0, sample_rate=0.1, steps=5)
INSIDE, BEYOND = 0.999, 1.001


def ledger(*recorded: float, budget: float = 8.0, by: Method = Method.OPACUS_PRV) -> LedgerSummary:
    made = LedgerSummary(header=Header(platform="shop", budget=budget, delta=1e-5, created="2030-01-02T03:04:05Z"))
    for number, epsilon in enumerate(recorded, start=1):
        made.take(
            entry_of(
                TRAIN, seq=number, time="2030-01-02T03:04:05Z", run="spring", round=number, epsilon=epsilon, delta=1e-5,
                accountant=by, previous="",
            )
        )  # fmt: skip
    return made


def spent(epsilon: float, *, tight: bool = True, by: Method = Method.PRV) -> Spent:
    return Spent(epsilon=epsilon, accountant=by, tight=tight)


def found(problems: Any) -> list[str]:
    return [problem.split(" epsilon ")[0] for problem in problems]


@pytest.mark.parametrize("by", [Method.OPACUS_PRV, Method.OPACUS_RDP, Method.DP_ACCOUNTING_PLD])
def test_a_record_is_what_its_own_accountant_says_and_not_below_a_tight_other(by: Method) -> None:
    def problems(own: float, other: float, *, tight: bool = True) -> list[str]:
        one, another = spent(own), spent(other, tight=tight)
        opacus, pld = (another, one) if by is Method.DP_ACCOUNTING_PLD else (one, another)
        return list(arithmetic_problems(ledger(4.0, by=by), opacus, pld))

    for sign in (1, -1):
        assert problems(4.0 * (1 + sign * INSIDE * SAME), 4.0) == []
        (said,) = problems(4.0 * (1 + sign * BEYOND * SAME * 1.1), 4.0)
        assert said.startswith(f"recorded epsilon 4 ({by}); its entries give 4")
    assert problems(4.0, 4.0 / (1 - OTHER) * 0.9999) == []
    (said,) = problems(4.0, 4.0 / (1 - OTHER) * 1.0001)
    assert "recorded epsilon 4 is below 4.08" in said
    assert problems(4.0, 7.0, tight=False) == [] == problems(4.0, 1.0)  # a loose bound, or a smaller one, refutes nothing


def test_a_budget_is_held_by_the_smaller_figure() -> None:
    for opacus, pld, above in ((4.0, 4.0, False), (4.0, 4.0001, False), (4.0001, 4.0, False), (4.0001, 4.0001, True)):
        said = list(arithmetic_problems(ledger(4.0, budget=4.0), spent(opacus), spent(pld)))
        assert any("above the budget of 4" in one for one in said) is above, (opacus, pld)
    assert list(arithmetic_problems(ledger(), spent(9.0), spent(9.0))) == []  # nothing was charged
    assert list(arithmetic_problems(ledger(4.0, budget=math.inf), spent(9.0), spent(9.0))) == []


@pytest.mark.parametrize(
    ("renyi", "opacus", "pld", "wrong"),
    [
        (5.0, 5.0, 5.0, 0),
        (5.0, 5.0 * (1 + INSIDE * SAME), 5.0, 0),
        (5.0, 5.0 * (1 + 2 * SAME), 5.0, 1),
        (5.0, 5.0, 5.0 * (1 + INSIDE * OTHER), 0),
        (5.0, 5.0, 5.0 * (1 + BEYOND * OTHER), 1),  # as far from Opacus it still is within what two may differ
        (5.0, 4.0, 4.0 / (1 - INSIDE * OTHER), 0),
        (5.0, 4.0, 4.0 / (1 - 2 * OTHER), 1),
        (5.0, 4.0 / (1 - 2 * OTHER), 4.0, 1),
        (1.0, 0.001, 0.0029, 0),
        (1.0, 0.001, 0.0031, 1),
        (math.inf, 7.0, 1.0, 0),
        (1.0, math.inf, 1.0, 0),
    ],
)
def test_three_accountants_may_differ_by_so_much(renyi: float, opacus: float, pld: float, wrong: int) -> None:
    assert len(list(order_problems(spent(renyi), spent(opacus), spent(pld)))) == wrong
    # Of a loose figure nothing is expected but that Opacus keeps to its own bound.
    loose = list(order_problems(spent(renyi), spent(opacus, tight=False), spent(pld, tight=False)))
    assert len(loose) == (math.isfinite(renyi) and math.isfinite(opacus) and opacus > renyi * (1 + SAME))


class Steps:
    """An accountant that counts steps, each at a price of its own."""

    def __init__(self, price: float) -> None:
        self.price = price

    def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
        assert delta == 1e-5
        return spent(self.price * sum(release.steps for release in releases))


def test_what_was_recorded_on_the_way_is_not_below_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first charge, the fourth and so on."""
    monkeypatch.setattr(checks, "family", lambda by: Steps(2.0 if by is Method.DP_ACCOUNTING_PLD else 1.0))
    true = [5.0 * count for count in range(1, 7)]
    assert list(prefix_problems(ledger(*true))) == []
    assert list(prefix_problems(ledger(*(2 * value for value in true)))) == []
    for at, named in ((0, "line 2 records epsilon"), (3, "line 5 records epsilon")):
        lied = [value * (1 - 2 * SAME) if place == at else value for place, value in enumerate(true)]
        (said,) = prefix_problems(ledger(*lied))
        assert said.startswith(named) and f"the entries up to it give {true[at]:.6g}" in said
        assert list(prefix_problems(ledger(*lied, budget=math.inf))) == []
        nearly = [value * (1 - INSIDE * SAME) if place == at else value for place, value in enumerate(true)]
        assert list(prefix_problems(ledger(*nearly))) == []
    # The last charge is `arithmetic_problems`' own.
    assert list(prefix_problems(ledger(1.0))) == [] and len(list(prefix_problems(ledger(1.0, 10.0)))) == 1
    # Each is counted as it was recorded.
    assert list(prefix_problems(ledger(10.0, 20.0, by=Method.DP_ACCOUNTING_PLD))) == []
    assert len(list(prefix_problems(ledger(9.0, 20.0, by=Method.DP_ACCOUNTING_PLD)))) == 1


def heads(*which: int, **facts: Any) -> list[Witness]:
    return [Witness(platform="shop", head=f"{one:064x}", source=f"answer {one}", **facts) for one in which]


def test_who_says_another_epsilon_at_a_head_is_named() -> None:
    made = ledger(1.0, 2.0)
    made.named = {f"{2:064x}": Named(line=2, epsilon=2.0, charges=2)}
    for epsilon, wrong in ((2.0, 0), (None, 0), (2.0 * (1 + INSIDE * SAME), 0), (2.0 * (1 - 2 * SAME), 1), (1.0, 1), (0.0, 1)):
        said = list(witness_problems(made, heads(2, epsilon=epsilon)))
        assert len(said) == wrong
        assert all(one.startswith("answer 2 says epsilon") and one.endswith("the ledger says 2 there") for one in said)


@pytest.mark.parametrize("missing", [0, 1, 5, 6, 9])
def test_five_heads_that_are_missing_are_named_and_the_others_counted(missing: int) -> None:
    made = ledger(1.0)
    made.named = {f"{99:064x}": Named(line=1, epsilon=1.0, charges=1)}
    said = list(witness_problems(made, heads(*range(missing), 99)))
    cut = [f"the ledger was cut or rewritten: the head of answer {at} is not in its chain" for at in range(min(missing, 5))]
    assert said == cut + [f"and {missing - 5} more heads that are not in its chain"] * (missing > 5)
