"""The algebra of releases: what can be made, and how equal releases add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError
from shared.privacy.releases import Release, ReleaseKind, merge_releases


def train(**changes: Any) -> Release:
    return Release(**{"kind": ReleaseKind.TRAIN, "noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 20, **changes})


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": -0.1},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": "1"},
        {"noise_multiplier": True},
        {"sample_rate": 0.0},
        {"sample_rate": 1.0000001},
        {"sample_rate": math.nan},
        {"steps": 0},
        {"steps": 1.0},
        {"steps": True},
        {"group_size": 0},
        {"group_size": 2.5},
        {"kind": "train"},
    ],
)
def test_a_bad_value_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        train(**bad)


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    assert type(train(noise_multiplier=2, sample_rate=1).noise_multiplier) is float
    assert train(noise_multiplier=2) == train(noise_multiplier=2.0)


def test_no_noise_can_be_said_and_is_visible() -> None:
    assert train(noise_multiplier=0).exact
    assert not train().exact


releases = st.lists(
    st.builds(
        Release,
        kind=st.sampled_from(ReleaseKind),
        noise_multiplier=st.sampled_from([0.5, 1.0, 2.0]),
        sample_rate=st.sampled_from([0.1, 1.0]),
        steps=st.integers(1, 50),
        group_size=st.integers(1, 3),
    ),
    max_size=12,
)


@given(releases, st.randoms())
def test_merging_keeps_every_step_and_forgets_order_and_kind(some: list[Release], random: Any) -> None:
    merged = merge_releases(some)
    assert sum(s.steps for s in merged) == sum(r.steps for r in some)
    assert len({(s.noise_multiplier, s.sample_rate, s.group_size) for s in merged}) == len(merged)
    shuffled = list(some)
    random.shuffle(shuffled)
    assert merge_releases(shuffled) == merged
    # Steps of different groups, noises or rates never mix.
    for s in merged:
        assert s.steps == sum(
            r.steps
            for r in some
            if (r.noise_multiplier, r.sample_rate, r.group_size) == (s.noise_multiplier, s.sample_rate, s.group_size)
        )
