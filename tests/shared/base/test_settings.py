"""Settings: what goes into Flower's flat table comes back, and a bad value names its key."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from shared.base.errors import InputError
from shared.base.settings import EPSILONS, NOISES, Settings, build, flatten, unflatten

valid = st.fixed_dictionaries(
    {},
    optional={
        "rounds": st.integers(1, 99),
        "strategy": st.text(max_size=8),
        "seed": st.integers(0, 2**31 - 1),
        "evaluate_every": st.integers(0, 9),
        "reply_timeout": st.floats(0.1, 1e6),
        "privacy": st.fixed_dictionaries(
            {},
            optional={
                "epsilon": st.one_of(st.none(), st.just(math.inf), st.floats(0.01, 100)),
                "prior_noise_multiplier": st.floats(*NOISES),
            },
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "clip": st.floats(0.01, 9),
                "objective": st.sampled_from(["softmax", "click"]),
                "sample_rate": st.just(0.0) | st.floats(1e-7, 1),
            },
        ),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "rank": st.integers(1, 256),
                "backbone": st.text(max_size=12),
                "fusion": st.sampled_from(["vote", "gated"]),
            },
        ),
    },
)


@given(valid)
def test_flatten_and_back(values: dict[str, Any]) -> None:
    settings = build(values, where="test")
    flat = flatten(settings)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert unflatten(flat, where="test") == settings


@pytest.mark.parametrize(
    ("over", "found"),
    [
        ({"patience": 2}, "counts evaluations between rounds, and there are none: set evaluate_every"),
        ({"patience": 3, "evaluate_every": 3}, "would never end the run: evaluations before the last of 9 rounds are 2"),
        ({"patience": 1, "evaluate_every": 9}, "evaluations before the last of 9 rounds are 0"),
        ({"patience": 1, "evaluate_every": 1, "rounds": 0, "strategy": "preferences"}, "the last of 0 rounds are 0"),
        ({"patience": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_patience_without_evaluations_to_count_is_refused(over: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match="patience") as caught:
        build({"rounds": 9, **over}, where="test")
    assert found in caught.value.found


@pytest.mark.parametrize(("patience", "exact"), [(0, True), (2, False)])
def test_what_decides_is_noised_in_simulations_too(patience: int, exact: bool) -> None:
    over = {"rounds": 9, "evaluate_every": 3, "patience": patience}
    assert build({**over, "simulation": True}, where="test").exact_metrics == exact
    assert not build(over, where="test").exact_metrics
    assert build(over, where="test").evaluations == 4


@given(valid)
def test_the_flat_table_survives_toml_and_json(values: dict[str, Any]) -> None:
    settings = build(values, where="test")
    flat = flatten(settings)
    assert unflatten(tomllib.loads(tomli_w.dumps(flat)), where="test") == settings
    # No NaN and no Infinity token, which are not JSON.
    assert unflatten(json.loads(json.dumps(flat, allow_nan=False)), where="test") == settings


@pytest.mark.parametrize(
    "values",
    [
        {"rounds": 0},
        {"rounds": "many"},
        {"seed": 2**31},
        {"reply_timeout": math.nan},
        {"privacy": {"epsilon": 0}},
        {"privacy": {"epsilon": -1}},
        {"privacy": {"epsilon": math.nan}},
        {"privacy": {"prior_noise_multiplier": 0}},
        {"privacy": {"noise": "shared"}},
        {"colour": 1},
        {"training": {"clip": math.inf}},
        {"training": {"clip": 0}},
        {"training": {"sample_rate": 1.5}},
        {"training": {"sample_rate": 1e-8}},
        {"training": []},
        {"model": {"fusion": "no magic"}},
        {"privacy": {"generator": "seeded"}},
    ],
    ids=str,
)
def test_bad_values_name_their_key(values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        build(values, where="run.toml")
    key, inner = next(iter(values.items()))
    assert key in caught.value.found
    assert next(iter(inner)) in caught.value.found if isinstance(inner, dict) and inner else True
    assert caught.value.where == "run.toml"
    assert caught.value.do


def bounds() -> list[tuple[str, float, float]]:
    """Every number that a coordinator may choose, with the least and the greatest that its type declares."""
    found = []
    for table, model in [("", Settings), *((name, type(value)) for name, value in Settings() if isinstance(value, BaseModel))]:
        for name, field in model.model_fields.items():
            if field.annotation not in (int, float):
                continue
            limits = {kind: getattr(rule, kind) for rule in field.metadata for kind in ("ge", "le", "lt") if hasattr(rule, kind)}
            key = f"{table}.{name}" if table else name
            assert "ge" in limits and ("le" in limits or "lt" in limits), f"{key} has no bounds"
            most = limits["le"] if "le" in limits else limits["lt"] - 1
            found.append((key, limits["ge"], most))
    return found


@pytest.mark.parametrize(("key", "least", "most"), bounds(), ids=lambda part: part if isinstance(part, str) else "")
def test_every_number_has_bounds_and_both_ends_hold(key: str, least: float, most: float) -> None:
    """A coordinator that may choose any number can scale gradients, or noise, to nothing."""
    for end in (least, most):
        # No rounds are what one strategy has, and no other; and patience needs evaluations to count.
        beside: dict[tuple[str, float], dict[str, Any]] = {
            ("rounds", 0): {"strategy": "preferences"},
            ("patience", 9_999): {"rounds": 10_000, "evaluate_every": 1},
        }
        assert flatten(unflatten({key: end, **beside.get((key, end), {})}, where="test"))[key] == end
    below, above = math.nextafter(least, -math.inf), math.nextafter(most, math.inf)
    beyond = (least - 1, most + 1) if isinstance(most, int) else (below, above)
    for value in (*beyond, math.nan, math.inf):
        with pytest.raises(InputError) as caught:
            unflatten({key: value}, where="test")
        assert key in caught.value.found


def test_so_has_a_budget_that_is_no_infinity() -> None:
    for end in EPSILONS:
        assert build({"privacy": {"epsilon": end}}, where="test").privacy.epsilon == end
    for beyond in (math.nextafter(EPSILONS[0], 0), math.nextafter(EPSILONS[1], math.inf), -math.inf, math.nan, 0.0):
        with pytest.raises(InputError, match="epsilon"):
            build({"privacy": {"epsilon": beyond}}, where="test")


@pytest.mark.parametrize(("key", "most"), [("strategy", 100), ("model.backbone", 300), ("model.targets", 300)])
def test_and_every_text(key: str, most: int) -> None:
    assert len(str(flatten(unflatten({key: "x" * most}, where="test"))[key])) == most
    with pytest.raises(InputError, match=key):
        unflatten({key: "x" * (most + 1)}, where="test")


def test_no_text_is_without_bounds() -> None:
    for table in (Settings, *(type(value) for _, value in Settings() if isinstance(value, BaseModel))):
        for name, field in table.model_fields.items():
            if field.annotation is str:
                assert any(getattr(rule, "max_length", None) or getattr(rule, "pattern", None) for rule in field.metadata), name


def test_preferences_alone_have_no_rounds_and_nothing_else_has_none() -> None:
    alone = build({"strategy": "preferences"}, where="test")
    assert not alone.trains and alone.rounds == alone.steps == alone.evaluations == 0
    assert alone.preferences.items > 0 and alone.distributed
    assert Settings().trains and Settings().rounds > 0
    assert not build({"strategy": "preferences", "privacy": {"noise": "local"}}, where="test").distributed
    mapped = build({"strategy": "preferences", "preferences": {"items": 0, "map": 64}}, where="test")
    assert Settings().encodes and mapped.encodes and not mapped.trains and not alone.encodes
    for bad in (
        {"rounds": 0},
        {"strategy": "preferences", "rounds": 3},
        {"strategy": "preferences", "preferences": {"items": 0}},
    ):
        with pytest.raises(InputError):
            build(bad, where="test")


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        build({"rounds": -1, "model": {"rank": 0}, "training": {"views": 99}}, where="run.toml")
    assert all(key in caught.value.found for key in ("rounds", "model.rank", "training.views"))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6), lambda part: st.lists(part, max_size=2)
)
keys = st.one_of(
    st.sampled_from(sorted(flatten(Settings()))), st.text(max_size=6), st.just("model"), st.just("privacy.epsilon.x")
)


@given(st.dictionaries(keys, junk, max_size=4))
def test_a_table_of_junk_is_settings_or_one_error(flat: dict[str, Any]) -> None:
    try:
        settings = unflatten(flat, where="run_config")
    except InputError as error:
        assert error.where == "run_config"
    else:
        assert unflatten(flatten(settings), where="again") == settings


@pytest.mark.parametrize("key", ["model.model.model", "privacy", "training.x.y", ".", ""])
def test_flat_keys_that_are_none(key: str) -> None:
    with pytest.raises(InputError):
        unflatten({key: 1}, where="test")


def test_privacy_is_off_only_when_it_is_said() -> None:
    assert Settings().private
    assert build({"privacy": {"epsilon": 1e6}}, where="test").private
    assert not build({"privacy": {"epsilon": "inf"}}, where="test").private


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.rounds = 3
    with pytest.raises(ValueError, match="frozen"):
        settings.training.clip = 9.0


class TestSampleRate:
    @pytest.mark.parametrize(("users", "expected"), [(1, 0.08), (1000, 80), (12_500, 1000), (100_000, 1000), (10**6, 1000)])
    def test_by_default_follows_from_the_declared_users(self, users: int, expected: float) -> None:
        training = Settings().training
        assert training.batch([users]) == pytest.approx(expected) == pytest.approx(training.rate(users) * users)
        assert 0 < training.rate(users) <= 0.08

    def test_as_it_was_asked_for(self) -> None:
        training = build({"training": {"sample_rate": 0.3}}, where="test").training
        assert training.rate(10) == training.rate(10**7) == 0.3
        assert training.batch([10, 10**7]) == 0.3 * (10 + 10**7)

    def test_of_several_platforms_is_the_sum(self) -> None:
        assert Settings().training.batch([100, 5_000_000, 200, 12_500]) == pytest.approx(8 + 1000 + 16 + 1000)
        assert Settings().training.batch([]) == 0.0
