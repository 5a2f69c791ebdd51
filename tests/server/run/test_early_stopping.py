"""When training has come to its end: on noise alone, never on a steady rise, and the same whoever decides and however often."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.evaluation.private_metrics import metric_sums, noised_quality
from client.privacy.noise_sources import SeededNoise
from client.privacy.release_plan import metrics_mechanism
from server.monitoring.run_events import Tally
from server.run.early_stopping import (
    CERTAINTY,
    Evaluation,
    ReleasedMean,
    early_stop,
    known_variance,
    plateau_of,
    plateau_words,
    released_evaluations,
    rise_between,
)
from shared.base.settings import Settings
from shared.protocol.messages import Joined
from shared.protocol.quality import NDCG
from tests.support.edge_tables import table

NAMES = ("books", "movies", "music")
Sizes = st.lists(st.integers(1, 1_000_000), min_size=1, max_size=3)


def settings(**over: Any) -> Settings:
    return Settings(**{"rounds": 40, "evaluate_every": 2, "patience": 3, **over})


def tally(name: str, figures: dict[int, float], *, users: int = 500, budget: float = 8.0) -> Tally:
    joined = Joined(
        run="run",
        platform=name,
        users=users,
        items=9,
        budget=budget,
        delta=1e-5,
        planned_epsilon=7.0,
        noise_multiplier=1.0,
        signal_to_noise=2.0,
    )
    return Tally(joined=joined, figures=figures)


def flat(*means: float, variance: float = 0.0) -> dict[int, Evaluation]:
    """One platform's evaluations after rounds 0, 2, 4 and so on."""
    return {2 * at: {"shop": ReleasedMean(mean=mean, users=500, variance=variance)} for at, mean in enumerate(means)}


def since(evaluations: dict[int, Evaluation]) -> tuple[int, int]:
    found = plateau_of(evaluations)
    return found.evaluations, found.best


def test_the_known_variance_is_the_mechanisms_own() -> None:
    with table(known_variance) as row:
        row("no noise, all users read", "0")
        assert known_variance(0.3, users=10_000, noise_multiplier=0.0) == 0
        row("no noise, a sample read", "the sample's variance")
        assert known_variance(0.3, users=40_000, noise_multiplier=0.0) == pytest.approx(0.75 * 0.21 / 10_000)
        row("a mean of 0 or 1", "the noise's variance")
        for mean in (0.0, 1.0):
            assert known_variance(mean, users=10**6, noise_multiplier=10.0) == pytest.approx(400 * (1 + mean) / 10**8)
        row("twice the users, all read", "a quarter")
        few, many = (known_variance(0.3, users=users, noise_multiplier=10.0) for users in (500, 1000))
        assert few == pytest.approx(4 * many)


@pytest.mark.parametrize(("users", "noise"), [(400, 10.0), (400, 1.0), (40_000, 10.0)])
def test_it_is_what_released_figures_show(users: int, noise: float) -> None:
    """The oracle is the platform's own mechanism, over and over: its noise is neither larger nor much smaller than claimed."""
    random = SeededNoise(0, "evaluate")
    ranks = 1.0 + np.random.default_rng(0).permutation(users) % 30
    candidates = np.full(users, 30)
    asked = settings(privacy={"metrics_noise_multiplier": noise})
    mechanism = metrics_mechanism(asked, users=users, group_size=1, private=True)
    drawn = []
    for _ in range(300):
        sample = mechanism.sample(users, random)
        drawn.append(noised_quality(metric_sums(ranks[sample], candidates[sample]), mechanism, random)[NDCG])
    claimed = known_variance(float(np.mean(drawn)), users=users, noise_multiplier=noise)
    # A metric's variance over users is bounded, not known: a sample's part may be smaller than is claimed.
    assert (0.35 if users > 10_000 else 0.75) * claimed < np.var(drawn) < 1.3 * claimed


def test_a_rise_is_weighed_as_the_global_figure_is() -> None:
    with table(rise_between) as row:
        one = {"a": ReleasedMean(mean=0.2, users=300, variance=0.01), "b": ReleasedMean(mean=0.4, users=100, variance=0.04)}
        row("no platform in both", "None")
        assert rise_between(one, {"c": one["a"]}) is None and rise_between({}, {}) is None
        row("the same figures", "a difference of 0, which is no improvement, whatever the noise is")
        for variance in (0.0, 0.01):
            same = {"a": replace(one["a"], variance=variance)}
            found = rise_between(same, same)
            assert found is not None and found.difference == 0 and not found.improvement
        row("figures without noise", "any rise is an improvement")
        exact = rise_between(*(flat(mean)[0] for mean in (0.2, math.nextafter(0.2, 1))))
        assert exact is not None and exact.noise == 0 and exact.improvement
    later = {"a": replace(one["a"], mean=0.3), "b": replace(one["b"], mean=0.3), "new": one["a"]}
    found = rise_between(one, later)
    assert found is not None
    assert found.difference == pytest.approx(0.75 * 0.1 - 0.25 * 0.1)
    assert found.noise == pytest.approx(CERTAINTY * math.sqrt(0.75**2 * 0.02 + 0.25**2 * 0.08))


def test_evaluations_without_an_improvement_are_counted() -> None:
    noise = (0.1 / CERTAINTY) ** 2 / 2  # a rise of 0.1 is within it, barely
    with table(plateau_of) as row:
        row("nothing", "0 evaluations since round 0")
        assert since({}) == (0, 0)
        row("one evaluation", "0 since its round")
        assert since({4: flat(0.5)[0]}) == (0, 4)
        row("each beyond noise above the one before", "0 since the last")
        assert since(flat(0.1, 0.25, 0.4, variance=noise)) == (0, 4)
        row("a rise within noise, and again, together beyond it", "0 since the second")
        assert since(flat(0.1, 0.19, variance=noise)) == (1, 0)
        assert since(flat(0.1, 0.19, 0.28, variance=noise)) == (0, 4)
        row("one that has no platform in common with the best", "counting begins anew with it")
        assert since({**flat(0.5, 0.4), 4: {"other": ReleasedMean(mean=0.1, users=5, variance=0.0)}}) == (0, 4)
        row("evaluations that nobody answered", "not counted")
        assert since({**flat(0.5, 0.4), 4: {}}) == (1, 0)


@pytest.mark.parametrize(
    ("given", "means", "round_", "over"),
    [
        ("patience = 0", (0.5, 0.4, 0.4, 0.4), 6, {"patience": 0}),
        ("the last round", (0.5, 0.4, 0.4, 0.4), 40, {}),
        ("a round that was not evaluated", (0.5, 0.4, 0.4, 0.4), 7, {}),
        ("fewer evaluations since the best one than patience", (0.5, 0.4, 0.4), 4, {}),
        ("as many", (0.5, 0.4, 0.4, 0.4), 6, {}),
    ],
)
def test_it_ends_a_run_that_is_patient(given: str, means: tuple[float, ...], round_: int, over: dict[str, Any]) -> None:
    tallies = {"shop": tally("shop", {2 * at: mean for at, mean in enumerate(means)})}
    found = early_stop(tallies, settings(**over), round_=round_)
    assert (found is not None) == (given == "as many")
    if found is not None:
        assert str(found) == (
            "stopped after round 6 of 40: no improvement beyond noise for 3 evaluations, since before the first round"
        )


def test_the_tables_rows_are_the_cases_above() -> None:
    with table(early_stop) as row:
        for mark in test_it_ends_a_run_that_is_patient.pytestmark:  # type: ignore[attr-defined]
            for given, *_ in mark.args[1]:
                row(given, "an `EarlyStop`" if given == "as many" else "None")


@given(Sizes, st.floats(1, 50), st.integers(0, 2**32 - 1))
def test_noise_alone_ends_it(sizes: list[int], multiplier: float, seed: int) -> None:
    """Figures that are the same but for the known noise: patience of 3 is over long before the 40th evaluation."""
    random = np.random.default_rng(seed)
    asked = settings(rounds=100, evaluate_every=1, privacy={"metrics_noise_multiplier": multiplier})
    tallies = {}
    for name, users in zip(NAMES, sizes, strict=False):
        spread = math.sqrt(known_variance(0.2, users=users, noise_multiplier=multiplier))
        figures = {at: float(np.clip(0.2 + random.normal(0, spread), 0, 1)) for at in range(41)}
        tallies[name] = tally(name, figures, users=users)
    ended = []
    for round_ in range(41):
        so_far = {
            name: replace(one, figures={at: mean for at, mean in one.figures.items() if at <= round_})
            for name, one in tallies.items()
        }
        ended.append(early_stop(so_far, asked, round_=round_) is not None)
    assert any(ended)


def test_it_mostly_ends_at_the_first_occasion() -> None:
    random, ended = np.random.default_rng(0), []
    variance = known_variance(0.2, users=2000, noise_multiplier=10.0)
    for _ in range(500):
        means = 0.2 + random.normal(0, math.sqrt(variance), 4)
        ended.append(plateau_of(flat(*means, variance=variance)).evaluations == 3)
    # Three comparisons with one and the same figure, each wrong once in twenty.
    assert 0.85 < np.mean(ended) < 0.95


@given(Sizes, st.floats(0.05, 5), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_steady_improvement_never_ends_it(sizes: list[int], multiplier: float, seed: int, patience: int) -> None:
    """Each evaluation above the one before by more than the noise that is claimed of both."""
    random = np.random.default_rng(seed)
    evaluations: dict[int, Evaluation] = {}
    mean = 0.0
    for at in range(12):
        here = {
            name: ReleasedMean(mean=mean, users=users, variance=known_variance(0.5, users=users, noise_multiplier=multiplier))
            for name, users in zip(NAMES, sizes, strict=False)
        }
        evaluations[at] = here
        claimed = rise_between(here, here)
        assert claimed is not None
        mean += claimed.noise * float(random.uniform(1.0001, 3)) + 1e-9
        assert plateau_of(evaluations).evaluations == 0 < patience


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15), st.integers(1, 4), st.randoms())
def test_whoever_has_the_figures_decides_the_same(means: list[float], patience: int, random: Any) -> None:
    """It reads the history alone: not its order in a file, nor what was decided before, and what is over stays over."""
    asked = settings(patience=patience, privacy={"metrics_noise_multiplier": 0.5})
    figures = list(enumerate(means))
    straight = early_stop({"shop": tally("shop", dict(figures))}, asked, round_=len(means) - 1)
    random.shuffle(figures)
    assert early_stop({"shop": tally("shop", dict(figures))}, asked, round_=len(means) - 1) == straight


def test_a_platform_without_privacy_has_no_noise_and_a_larger_one_has_less() -> None:
    tallies = {
        "exact": tally("exact", {0: 0.2}, budget=math.inf),
        "small": tally("small", {0: 0.2}),
        "large": tally("large", {0: 0.2}, users=5000),
    }
    found = released_evaluations(tallies, settings())[0]
    assert found["exact"].variance == 0 < found["large"].variance < found["small"].variance


@pytest.mark.parametrize(
    ("means", "over", "said"),
    [
        ((0.1, 0.9), {}, "; NDCG@10 +0.8000, beyond the noise of "),
        ((0.5, 0.4), {}, "; NDCG@10 -0.1000 since before the first round, within the noise of "),
        ((0.1, 0.9, 0.8), {}, "; NDCG@10 -0.1000 since round 2, within the noise of "),
        ((0.5,), {}, ""),
        ((0.1, 0.9), {"patience": 0}, ""),
    ],
)
def test_what_is_said_of_an_evaluation(means: tuple[float, ...], over: dict[str, Any], said: str) -> None:
    words = plateau_words({"shop": tally("shop", {2 * at: mean for at, mean in enumerate(means)})}, settings(**over))
    assert words.startswith(said) and bool(words) == bool(said)
    assert words.endswith(": 1 of 3 in a row") == ("within" in said)
