"""The largest set of platforms that know each other, against every set there is; and what is said of the others."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from strategies.secure_sum import mutual_trust
from strategies.secure_sum.mutual_trust import UntrustedPlatform, largest_trusting

NAMES = ("books", "music", "news", "shop", "video", "zoo")


@st.composite
def federations(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, set[str]]]:
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    weights = {name: draw(st.integers(1, 5)) for name in names}
    unknown = {name: set(draw(st.sets(st.sampled_from(names)))) - {name} for name in names}
    return weights, unknown


def acquainted(names: tuple[str, ...], unknown: dict[str, set[str]]) -> bool:
    return not any(other in unknown[name] for name in names for other in names)


@given(federation=federations())
def test_no_larger_set_and_none_with_more_users(federation: tuple[dict[str, int], dict[str, set[str]]]) -> None:
    weights, unknown = federation
    taken, left = largest_trusting(weights, unknown)
    assert acquainted(taken, unknown)
    sets = (some for size in range(len(weights) + 1) for some in combinations(sorted(weights), size))
    best = max((len(some), sum(weights[name] for name in some)) for some in sets if acquainted(some, unknown))
    assert (len(taken), sum(weights[name] for name in taken)) == best
    assert sorted([*taken, *(one.platform for one in left)]) == sorted(weights)
    for one in left:
        assert set(one.unknown_to) == {name for name in taken if one.platform in unknown[name]}
        assert set(one.strangers) == unknown[one.platform] & set(taken)


def test_one_newcomer_among_thousands_costs_nothing_but_itself() -> None:
    names = [f"p{number:04}" for number in range(3000)]
    others = [name for name in names if name != "p1234"]
    taken, (left,) = largest_trusting(dict.fromkeys(names, 9), {name: {"p1234"} for name in others})
    assert list(taken) == others and left.unknown_to == tuple(others)
    assert str(left).startswith("`p0000`, `p0001`, `p0002`, `p0003`, `p0004` and 2994 more do not know `p1234`")


def test_where_the_search_is_cut_short_the_set_is_still_one(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(mutual_trust, "STEPS", 0)
    unknown: dict[str, set[str]] = {"books": {"music"}, "music": {"news"}, "shop": {"books", "news"}}
    taken, _ = largest_trusting(dict.fromkeys(NAMES, 1), unknown)
    assert len(taken) == 4 and not any(other in unknown.get(name, ()) for name in taken for other in taken)


def test_it_says_who_has_to_do_what() -> None:
    one = UntrustedPlatform(platform="series", unknown_to=("books",))
    assert str(one) == "`books` does not know `series`: run `fedfuse client trust` there"
    several = UntrustedPlatform(platform="series", unknown_to=("books", "music"), strangers=("news",))
    assert str(several) == (
        "`books` and `music` do not know `series`: run `fedfuse client trust` on each of these platforms; "
        "`series` does not know `news`: run `fedfuse client trust` on series"
    )
