"""Lists: filtered, capped, made unlike, and each score accounted for to the last digit."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import load
from client.recommender.evidence import text_vectors
from client.recommender.lists.diversity import chosen_places, likeness_of, likeness_rows, mean_unlikeness
from client.recommender.lists.explanation import apportioned, explained
from client.recommender.lists.item_attributes import AttributeFilter, ItemAttributes, parsed_cap
from client.recommender.lists.person import Person
from client.recommender.lists.recommended import ListRules, best_of
from client.recommender.platform_model import PREFERENCES, ScorePart
from client.recommender.serving.recommend import recommend_items
from shared.base.errors import InputError

ROWS = "item,title,genre,price,about\n" + "".join(
    f"i{number},film {number},{'Drama|War' if number % 3 else 'Comedy'},{number * 2}.5,by {'ab'[number % 2]}\n"
    for number in range(24)
)
VALUES = {"genre": ["Drama, War", "drama", "", "Comedy"], "price": ["1", "2.5", "n/a", "1e1"]}


@pytest.fixture
def path(write_platform: Callable[..., Path]) -> Path:
    path = write_platform(users=40, items=24, files={"films.csv": ROWS})
    items = 'path = "films.csv"\ncolumns = { category = "genre" }\ntext = ["about"]'
    path.write_text(path.read_text().replace('path = "shop-items.csv"', items))
    return path


@pytest.fixture
def ask(path: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    return lambda **rules: recommend_items(
        load(path), user="u3", rules=ListRules(**{"top": 8, **rules}), cache=tmp_path / "state" / "trunk"
    )


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.integers(0, 6))
def test_rounded_parts_add_up_exactly_and_none_moves_by_a_unit(values: list[float], digits: int) -> None:
    columns = np.array([values, values[::-1], [0.25] * len(values)]).T
    totals = [round(total, digits) for total in columns.sum(0).tolist()]
    found = apportioned(columns, totals, digits)
    for column, total in enumerate(totals):
        assert sum(Decimal(str(one)) for one in found[:, column].tolist()) == Decimal(str(total))
    assert (np.abs(found - columns) <= 1.0001 * 10**-digits).all()


def test_parts_of_another_total_are_not_made_to_fit() -> None:
    with pytest.raises(ValueError, match="away"):
        apportioned(np.array([[0.25, 0.5], [0.25, 0.5]]), [0.5, 1.1], 3)


def test_a_part_that_is_cut_off_is_shared_in_proportion() -> None:
    # By itself the second item of the history speaks against it: the part is 0.6, of items that add 0.9 and, cut off, 0.3.
    cut = ScorePart(name="text", scores=np.array([0.6], np.float32), by_item=lambda items: np.array([[0.9], [0.3]], np.float32))
    (found,) = explained([cut], np.array([0]), [4, 7], [str(item) for item in range(9)])
    assert {one.item: one.adds for one in found.history} == {4: 0.45, 7: 0.15} and found.besides == 0.0


def test_what_speaks_against_an_item_is_told_too() -> None:
    linear = ScorePart(
        name=PREFERENCES, scores=np.array([0.5], np.float32), by_item=lambda items: np.array([[0.75], [-0.25]], np.float32)
    )
    popular = ScorePart(name="popularity", scores=np.array([0.125], np.float32))
    (found,) = explained([linear, popular], np.array([0]), [4, 7], [f"film {item}" for item in range(9)])
    assert [(one.item, one.adds) for one in found.history] == [(4, 0.75), (7, -0.25)] and found.besides == 0.125
    assert found.because == "you liked film 4" and found.score == 0.625


def test_the_sentence_names_two_items_that_carry_alike_and_yields_to_what_carries_more() -> None:
    def sentence(*adds: float, popular: float) -> str:
        score = np.array([sum(adds)], np.float32)
        part = ScorePart(name=PREFERENCES, scores=score, by_item=lambda items: np.array([adds], np.float32).T)
        parts = [part, ScorePart(name="popularity", scores=np.array([popular], np.float32))]
        return explained(parts, np.array([0]), [0, 1, 2], ["A", "B", "C" * 300])[0].because

    assert sentence(0.2, 0.3, 0.1, popular=0.5) == "you liked B and A"
    assert sentence(0.1, 0.9, 0.0, popular=0.0) == "you liked B"
    assert sentence(0.1, 0.1, 0.1, popular=0.9) == "it is popular here"
    assert len(sentence(0.0, 0.0, 1.0, popular=0.0)) < 100


@pytest.mark.parametrize("named", [0, 1, 2, 5])
def test_items_that_are_not_named_are_told_together(named: int) -> None:
    adds = np.array([[0.5, 0.0], [-0.25, 0.125], [0.0625, 0.0]], np.float32)
    part = ScorePart(name=PREFERENCES, scores=adds.sum(0), by_item=lambda items: adds[:, items])
    titles = [f"film {item}" for item in range(9)]
    whole = explained([part], np.array([0, 1]), [4, 7, 8], titles)
    found = explained([part], np.array([0, 1]), [4, 7, 8], titles, named=named)
    for one, every in zip(found, whole, strict=True):
        assert every.further == 0.0 and one.history == every.history[:named]
        assert one.further == sum(share.adds for share in every.history[named:])
    assert whole[0].because == "you liked film 4" and len(whole[0].history) == 3 and len(whole[1].history) == 1


@pytest.mark.parametrize("rules", [{}, {"diversity": 0.4}, {"seen": True}])
def test_every_account_adds_up_to_the_score(ask: Callable[..., list[Any]], rules: dict[str, Any]) -> None:
    for one in ask(**rules):
        score = Decimal(str(one.score))
        assert sum(Decimal(str(value)) for value in one.parts.values()) == score
        shares = [*(share.adds for share in one.from_history), one.further_history, one.besides_history]
        assert sum(Decimal(str(value)) for value in shares) == score


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("genre=drama", [0, 1]),
        ("genre = WAR|comedy", [0, 3]),
        ("genre!=Drama", [2, 3]),
        ("genre=Drama, War", [0]),
        ("genre=drama,war", []),
        ("price<=2.5", [0, 1]),
        ("price>=2.5", [1, 3]),
        ("genre=nothing", []),
    ],
)
def test_filters(text: str, places: list[int]) -> None:
    found = ItemAttributes(VALUES, 4).matching([AttributeFilter.parsed(text)])
    assert np.flatnonzero(found).tolist() == places


@pytest.mark.parametrize("text", ["", "genre", "=x", "price<=cheap", "price<=inf", "price>=1_0", "price<=", "genre="])
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(InputError):
        AttributeFilter.parsed(text)


@pytest.mark.parametrize("text", ["genre", "genre=0", "genre=-1", "genre=x", "genre=99999"])
def test_what_is_no_cap(text: str) -> None:
    with pytest.raises(InputError):
        parsed_cap(text)


def test_an_attribute_that_there_is_not() -> None:
    attributes = ItemAttributes(VALUES, 4)
    with pytest.raises(InputError, match="genre, price"):
        attributes.matching([AttributeFilter.parsed("colour=red")])
    with pytest.raises(InputError, match="no item has a number"):
        attributes.matching([AttributeFilter.parsed("genre>=3")])
    assert attributes.of_item(2) == {"price": "n/a"} and attributes.common("genre", 1) == ["drama"]


def test_filters_and_caps_hold(ask: Callable[..., list[Any]]) -> None:
    every = {one.item: one.attributes for one in ask(top=24)}
    comedies = ask(top=24, filters=[AttributeFilter.parsed("category=comedy"), AttributeFilter.parsed("price<=30")])
    assert {one.item for one in comedies} == {
        item for item, values in every.items() if values["category"] == "Comedy" and float(values["price"]) <= 30
    }
    capped = ask(top=6, caps={"category": 2})
    assert max(Counter(one.attributes["category"] for one in capped).values()) == 2 and len(capped) == 4
    with pytest.raises(InputError, match="no such attribute"):
        ask(caps={"colour": 1})


def test_seen_items_come_only_where_they_are_asked_for(ask: Callable[..., list[Any]]) -> None:
    unseen, every = {one.item for one in ask(top=24)}, {one.item for one in ask(top=24, seen=True)}
    assert len(every) == 24 and unseen < every


def test_diversity_0_is_the_order_of_scores_and_more_of_it_is_more_unlike() -> None:
    random = np.random.default_rng(0)
    vectors = text_vectors([[f"w{word} w{word + 1} x{place}" for place, word in enumerate(random.integers(0, 9, 60))]])
    scores = np.sort(random.random(60).astype(np.float32))[::-1]
    likeness = likeness_of(vectors, np.arange(60))
    rows = likeness_rows(vectors, np.arange(60))
    assert np.allclose([rows(place) for place in range(60)], likeness, atol=1e-6)
    lists = {d: chosen_places(scores, 10, diversity=d, likeness=rows) for d in (0.0, 0.3, 0.7, 1.0)}
    assert lists[0.0] == list(range(10)) and all(found[0] == 0 and len(set(found)) == 10 for found in lists.values())
    apart = [mean_unlikeness(likeness[np.ix_(found, found)]) for found in lists.values()]
    assert min(apart[1:]) > apart[0] + 0.03
    assert mean_unlikeness(np.ones((1, 1), np.float32)) == 0.0


def test_a_cap_that_cannot_be_filled_takes_no_square_of_the_catalogue() -> None:
    """The pool grows to all items then: their cosines with one another were asked for, 37 GB of 100,000."""
    vectors = text_vectors([[f"w{place % 97} w{place % 89}" for place in range(20_000)]])
    tracemalloc.start()
    found = chosen_places(
        np.arange(20_000, 0, -1).astype(np.float32),
        20,
        diversity=0.5,
        likeness=likeness_rows(vectors, np.arange(20_000)),
        caps={"category": 2},
        values=lambda name, place: [str(place % 3)],
    )
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 6 and most < 50e6


def test_mmr_by_hand() -> None:
    likeness = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], np.float32)
    scores = np.array([1.0, 0.9, 0.5], np.float32)  # relevance 1, 0.8, 0
    assert chosen_places(scores, 3, diversity=0.4, likeness=likeness.__getitem__) == [0, 1, 2]  # 0.6 x 0.8 - 0.4 x 0.9 = 0.12 > 0
    assert chosen_places(scores, 3, diversity=0.5, likeness=likeness.__getitem__) == [0, 2, 1]  # 0.5 x 0.8 - 0.5 x 0.9 < 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 30))
def test_the_best_are_those_of_a_whole_sort(values: list[int], most: int) -> None:
    scores = np.array(values, np.float32)
    items = np.arange(0, len(values), 2)
    allowed = np.isin(np.arange(len(values)), items)
    expected = items[np.argsort(-scores[items], kind="stable")[:most]]
    assert best_of(scores, allowed, most).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3000), st.sampled_from([2, 50, 10**6]), st.floats(0, 1), st.integers(1, 30))
def test_the_best_of_many_are_those_of_a_whole_sort(seed: int, count: int, values: int, share: float, most: int) -> None:
    """Of many equal scores, and of fewer allowed items than are asked for."""
    random = np.random.default_rng(seed)
    scores, allowed = random.integers(values, size=count).astype(np.float32) - 1, random.random(count) < share
    items = np.flatnonzero(allowed)
    assert best_of(scores, allowed, most).tolist() == items[np.argsort(-scores[items], kind="stable")[:most]].tolist()


def test_what_was_met_since_is_the_newest_and_only_likes_are_liked() -> None:
    person = Person(number=3, liked=np.array([4, 1, 7], np.int32), met=np.array([1, 4, 7, 9], np.int32), in_order=True)
    after = person.after([(1, True), (2, False), (5, True), (1, True)])
    assert after.liked.tolist() == [4, 7, 5, 1] and after.met.tolist() == [1, 2, 4, 5, 7, 9] and after.number == 3
    assert person.after([]) is person


@pytest.mark.parametrize("wrong", [{"top": 0}, {"diversity": -0.1}, {"diversity": 1.5}, {"diversity": float("nan")}])
def test_rules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ListRules(**wrong)


def test_the_command(path: Path) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(fedfuse.app, ["recommend", "--platform", str(path), "--user", "u3", *words])

    options = ["--diversity", "0.3", "--cap", "category=3", "--filter", "price<=40", "--top", "4"]
    values = json.loads(call(*options, "--json").stdout)
    assert len(values) == 4 and all(one["because"] and one["from_history"] and one["parts"] for one in values)
    shown = call(*options, "--explain")
    assert shown.exit_code == 0 and "carried by" in shown.stdout and f"{values[0]['score']:.6f}" in shown.stdout
    assert isinstance(call("--filter", "colour=red").exception, InputError)
