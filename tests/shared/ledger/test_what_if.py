"""What a ledger's entries come to beyond its own epsilon."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import InputError
from shared.ledger.summary import LedgerSummary, summarise_ledger
from shared.ledger.what_if import DELTAS, compose_person, epsilon_curve, plan_table, spending
from shared.ledger.what_if_report import what_if_report
from shared.privacy.accountants import DP_ACCOUNTING, NUMERICAL, OPACUS, RENYI
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity

ONCE = Release(kind=ReleaseKind.PREFERENCES, noise_multiplier=2.0)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=3.0, sample_rate=0.1, steps=5)
INTEGER = replace(TRAIN, integers=Integers(reach=2000.0, dimension=36_864, failure=2.0**-64, honest=12))


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two platforms of one person, and two runs."""
    folder = tmp_path_factory.mktemp("ledgers")
    paths = {name: folder / f"{name}.jsonl" for name in ("shop", "video")}
    for name, path in paths.items():
        with LedgerWriter.open(
            path, platform=name, budget=8.0, delta=1e-5, identity=Identity(b"i" * 32), accountant=DP_ACCOUNTING
        ) as writer:
            writer.charge(ONCE, run="spring", round=0, question="5" * 64)
            for round_ in (1, 2):
                writer.charge(TRAIN, run="autumn", round=round_, question="5" * 64)
    return paths


@pytest.fixture(scope="module")
def summaries(ledgers: dict[str, Path]) -> list[LedgerSummary]:
    return [summarise_ledger(path) for path in ledgers.values()]


def test_the_curve_falls_and_passes_through_the_ledgers_own_epsilon(summaries: list[LedgerSummary]) -> None:
    curve = epsilon_curve(summaries[0].releases())
    for name in ("renyi", "opacus", "dp_accounting"):
        figures = [getattr(one, name) for one in curve]
        assert figures == sorted(figures) and len(set(figures)) == len(DELTAS)
    at = next(one for one in curve if one.delta == 1e-5)
    assert at.dp_accounting == summaries[0].epsilon and at.epsilon == min(at.renyi, at.opacus, at.dp_accounting)


def test_equal_entries_are_composed_in_aggregate(summaries: list[LedgerSummary]) -> None:
    assert [(one.kind, one.steps) for one in summaries[0].releases()] == [("preferences", 1), ("train", 10)]
    million = [replace(TRAIN, noise_multiplier=500.0, steps=1)] * 1000 + [replace(TRAIN, noise_multiplier=500.0, steps=999_000)]
    assert spending(million, 1e-5) == spending([replace(TRAIN, noise_multiplier=500.0, steps=1_000_000)], 1e-5)


def test_a_person_on_some_platforms_in_some_runs(summaries: list[LedgerSummary]) -> None:
    def epsilon(*which: int, runs: tuple[str, ...] = ()) -> float:
        return spending(compose_person([summaries[at] for at in which], runs=runs), 1e-5).epsilon

    assert epsilon(0) == pytest.approx(DP_ACCOUNTING.epsilon([ONCE, TRAIN, TRAIN], 1e-5).epsilon, rel=0.02)
    assert epsilon(0, runs=("spring",)) == pytest.approx(OPACUS.epsilon([ONCE], 1e-5).epsilon, rel=0.02)
    assert epsilon(0, runs=("spring",)) < epsilon(0) < epsilon(0, 1) < 2 * epsilon(0)
    assert epsilon(0, 1, runs=("autumn",)) < epsilon(0, 1)
    assert epsilon(0, 1, runs=("autumn", "spring")) == epsilon(0, 1)
    with pytest.raises(InputError, match="no run"):
        compose_person(summaries, runs=("winter",))


def test_groups_of_people(summaries: list[LedgerSummary]) -> None:
    """k people at noise z without sampling are one person at noise z / k, exactly: nobody else's example changes."""
    for people in (2, 3, 5):
        for accountant in (RENYI, OPACUS, DP_ACCOUNTING):
            alone = accountant.epsilon([replace(ONCE, noise_multiplier=2.0)], 1e-5).epsilon
            together = accountant.epsilon([replace(ONCE, noise_multiplier=2.0 * people)], 1e-5, people=people).epsilon
            assert together == pytest.approx(alone, rel=0.02)
    figures = [spending(compose_person(summaries), 1e-5, people=people).epsilon for people in (1, 2, 3)]
    assert figures == sorted(figures) and figures[1] > 1.5 * figures[0]
    for wrong in (0, -1):
        with pytest.raises(InputError):
            spending([ONCE], 1e-5, people=wrong)
    assert math.isfinite(spending([replace(INTEGER, noise_multiplier=20.0)], 1e-5, people=16).epsilon)
    with pytest.raises(InputError, match="distributed noise"):
        spending([INTEGER], 1e-5, people=17)
    with pytest.raises(InputError, match="examples at most"):
        spending([ONCE], 1e-5, people=(1 << 20) + 1)


@pytest.mark.parametrize(("noise", "people"), [(1.0, 2), (1.0, 3), (0.7, 3)])
def test_a_family_s_figure_is_that_of_the_exact_gaussian(noise: float, people: int) -> None:
    """At noise that claims about 5 to 8 for one. The triangle of one user in k examples gave infinity here."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu, delta = people / noise, 1e-4
    # Balle and Wang 2018, Theorem 8.
    exact = brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0, 100)
    found = spending([replace(ONCE, noise_multiplier=noise)], delta, people=people)
    assert exact * (1 - 1e-6) <= found.epsilon <= 1.02 * exact


def test_people_whose_friends_are_users_too_pay_for_what_comes_back() -> None:
    """n people in g examples each: at least what n g of their own cost, at most one user in n g examples."""
    release = replace(ONCE, noise_multiplier=20.0, group_size=2)
    own = spending([replace(ONCE, noise_multiplier=20.0)], 1e-5, people=6).epsilon
    one = spending([replace(release, group_size=6)], 1e-5).epsilon
    assert own < spending([release], 1e-5, people=3).epsilon < one


def test_the_integer_mechanism_costs_hardly_more() -> None:
    plain, integer = spending([replace(TRAIN, steps=50)], 1e-5), spending([replace(INTEGER, steps=50)], 1e-5)
    for name in ("renyi", "opacus", "dp_accounting"):
        assert getattr(plain, name) <= getattr(integer, name) < 1.001 * getattr(plain, name) + 1e-6


def test_what_is_left(summaries: list[LedgerSummary]) -> None:
    plan = plan_table(summaries[0], rounds=(1, 10, 100), factors=(0.5, 1.0, 2.0))
    assert plan is not None and plan.template == TRAIN
    assert plan.spent == pytest.approx(summaries[0].epsilon, rel=0.02) and plan.remaining == plan.budget - plan.spent
    for row in plan.epsilon:
        assert list(row) == sorted(row) and row[0] > plan.spent
    for low, high in zip(plan.epsilon, plan.epsilon[1:], strict=False):
        assert all(more > less for more, less in zip(low, high, strict=True))
    after = DP_ACCOUNTING.epsilon([ONCE, TRAIN, TRAIN, replace(TRAIN, steps=50)], 1e-5).epsilon
    assert plan.epsilon[1][1] == pytest.approx(after, rel=1e-6)


def test_what_is_left_is_what_the_platform_itself_will_count(tmp_path: Path) -> None:
    """Its ledger refuses by the accountant that it records with, so that a plan by a tighter one would promise too much."""
    path = tmp_path / "shop.jsonl"
    with LedgerWriter.open(
        path, platform="shop", budget=8.0, delta=1e-5, identity=Identity(b"i" * 32), accountant=NUMERICAL
    ) as writer:
        for _ in range(2):
            recorded = writer.charge(replace(ONCE, noise_multiplier=1.0), run="spring", round=0, question="5" * 64).epsilon
    plan = plan_table(summarise_ledger(path), rounds=(1, 2), factors=(1.0, 50.0))
    assert plan is not None and plan.spent == pytest.approx(recorded, rel=1e-4)
    for noise, row in zip(plan.noise, plan.epsilon, strict=True):
        assert all(after > plan.spent for after in row)
        for rounds, after in zip(plan.rounds, row, strict=True):
            charges = [replace(ONCE, noise_multiplier=1.0)] * 2 + [replace(ONCE, noise_multiplier=noise)] * rounds
            assert after == pytest.approx(NUMERICAL.epsilon(charges, 1e-5).epsilon, rel=1e-4)


def test_what_is_above_the_budget_is_marked_without_a_colour(summaries: list[LedgerSummary]) -> None:
    console = Console(width=200, no_color=True, record=True, file=io.StringIO())
    console.print(what_if_report(summaries, plan=True).render())
    plan = plan_table(summaries[0])
    said = " ".join(console.export_text().split())
    assert plan is not None and "above the budget" in said
    for row in plan.epsilon:
        for value in row:
            assert (f"({value:.4g})" in said) == (value > plan.budget), value


def test_the_report_says_what_was_asked(summaries: list[LedgerSummary]) -> None:
    found = what_if_report(summaries, person="video", runs=["autumn"], people=2, plan=True)
    values = json.loads(json.dumps(found.to_values()))
    assert values["platforms"] == ["video"] and values["people"] == 2 and set(values["plans"]) == {"shop", "video"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.render())
    # RDP and PRV of a group can be many times what PLD gives: nobody may take that for a disagreement.
    assert "the smallest of a line counts. For several people under sampling" in console.export_text()
    assert what_if_report(summaries).total.delta == pytest.approx(2e-5)
    with pytest.raises(InputError, match="no ledger of platform"):
        what_if_report(summaries, person="news")
