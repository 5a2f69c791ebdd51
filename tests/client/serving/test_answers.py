"""What is answered: the lists of the command, reasons that add up, events that count at once and after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from client.recommender.lists.recommended import ListRules
from client.recommender.serving.recommend import recommend_items
from client.serving import api, messages
from client.serving.live_people import EventMeaning
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError
from tests.client.serving.conftest import Served

Start = Callable[..., Served]


def items_of(answer: Any) -> list[str]:
    return [one["item"] for one in answer["items"]]


def test_a_list_is_that_of_the_command(served: Served) -> None:
    command = recommend_items(served.file, user="u3", rules=ListRules(top=5), cache=served.file.state / "trunk")
    assert served.post("/recommend", user="u3", top=5)["items"] == json.loads(json.dumps([asdict(one) for one in command]))


def test_while_it_serves_a_product_takes_no_threads_of_its_own(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []

    @contextmanager
    def limited(*, limits: int) -> Iterator[None]:
        at_work.append(limits)
        yield
        at_work.clear()

    monkeypatch.setattr(api, "threadpool_limits", limited)
    with served.client:
        assert at_work == [1]
    assert not at_work


@pytest.mark.parametrize("name", ["own", "global", "fused"])
def test_every_model_answers_and_every_account_adds_up(start: Start, model: Path, name: str) -> None:
    served = start(model)
    answer = served.post("/recommend", user="u3", model=name, sources=True, history=True, diversity=0.3)
    assert answer["model"] == name and len(answer["items"]) == 10 and answer["history"]
    for one in answer["items"]:
        score = Decimal(str(one["score"]))
        assert sum(Decimal(str(value)) for value in one["parts"].values()) == score
        shares = [*(share["adds"] for share in one["from_history"]), one["further_history"], one["besides_history"]]
        assert sum(Decimal(str(value)) for value in shares) == score
        again = served.post("/explain", user="u3", model=name, item=one["item"])
        assert again["score"] == one["score"] and again["parts"] == one["parts"] and again["of"] <= 24


def test_what_a_source_brings_is_what_is_missing_without_it(served: Served) -> None:
    answer = served.post("/recommend", user="u3", top=4, sources=True)
    together = next(one for one in answer["sources"] if one["name"] == "liked together")
    mean = sum(one["parts"].get("liked together", 0.0) for one in answer["items"]) / 4
    assert together["adds"] == pytest.approx(mean, abs=2e-6) and together["brings"] > 0


def test_the_rank_of_the_first_is_1(served: Served) -> None:
    answer = served.post("/recommend", user="u3")
    ranks = [served.post("/explain", user="u3", item=one["item"])["rank"] for one in answer["items"]]
    assert ranks == list(range(1, 11))


def test_likes_and_similar(served: Served) -> None:
    liked = served.post("/recommend", like=["i2", "i5"], top=3)
    assert not {"i2", "i5"} & set(items_of(liked)) and "film" in liked["items"][0]["because"]
    similar = served.post("/similar", item="i2", top=3)
    assert "i2" not in items_of(similar)
    assert all("popularity" not in one["parts"] for one in similar["items"])


def test_rules(served: Served) -> None:
    filters = [{"attribute": "category", "any_of": ["comedy"]}, {"attribute": "price", "at_most": 30}]
    answer = served.post("/recommend", user="u3", filters=filters, seen=True, top=24)
    assert set(items_of(answer)) == {f"i{number}" for number in range(0, 15, 3)}
    capped = served.post("/recommend", user="u3", caps={"category": 1}, seen=True, top=24)
    assert len(items_of(capped)) == 2


def test_an_event_counts_from_the_next_answer_on(served: Served) -> None:
    before = served.post("/recommend", user="u3", top=24)
    first, last = items_of(before)[0], items_of(before)[-1]
    assert served.post("/events", events=[{"user": "u3", "item": first, "liked": False}]) == {"accepted": 1}
    assert items_of(served.post("/recommend", user="u3", top=24)) == [one for one in items_of(before) if one != first]
    served.post("/events", events=[{"user": "u3", "item": last}])
    after = served.post("/recommend", user="u3", top=24, history=True)
    assert after["history"][0]["item"] == last and last not in items_of(after)
    assert any(share["item"] == last for one in after["items"] for share in one["from_history"])


def test_somebody_who_was_in_no_table_becomes_known(served: Served) -> None:
    before = served.post("/recommend", user="stranger")
    assert "popular" in before["note"]
    served.post("/events", events=[{"user": "stranger", "item": "i4"}, {"user": "stranger", "item": "i7"}])
    after = served.post("/recommend", user="stranger")
    assert not after["note"] and items_of(after) != items_of(before)
    # As if they were asked for by what they like, but that the order of events is one of time.
    assert {"i4", "i7"} & {share["item"] for one in after["items"] for share in one["from_history"]}


def test_a_restart_has_the_events(start: Start) -> None:
    first = start()
    first.post("/events", events=[{"user": "u3", "item": "i4"}, {"user": "stranger", "item": "i7"}])
    said = [first.post("/recommend", user=user) for user in ("u3", "stranger", "u5")]
    first.answers.close()
    again = start()
    assert [again.post("/recommend", user=user) for user in ("u3", "stranger", "u5")] == said


def test_an_event_that_the_sources_have_by_now_counts_once(start: Start) -> None:
    first = start()
    item = items_of(first.post("/recommend", user="u3"))[0]
    first.post("/events", events=[{"user": "u3", "item": item}])
    first.answers.close()
    source = Path(first.file.sources["events"].path[0])  # type: ignore[index]
    source.write_text(source.read_text() + f"u3,{item},1800000000\n")
    again = start()
    history = [one["item"] for one in again.post("/recommend", user="u3", history=True)["history"]]
    assert history.count(item) == 1 and history[0] == item


def test_events_are_all_taken_in_or_none(served: Served) -> None:
    before = served.post("/recommend", user="u3")
    answer = served.client.post(
        "/events", json={"events": [{"user": "u3", "item": items_of(before)[0]}, {"user": "u9", "item": "nothing"}]}
    )
    assert answer.status_code == 404 and "events[1]" in answer.json()["found"]
    assert served.post("/recommend", user="u3") == before


def test_many_at_once(served: Served) -> None:
    """Events of one user and lists of others, together: no list is of anybody else, and no event is lost."""
    expected = {f"u{number}": served.post("/recommend", user=f"u{number}") for number in range(4, 12)}

    def turn(number: int) -> bool:
        served.post("/events", events=[{"user": f"new{number % 4}", "item": f"i{number % 24}"}])
        user = f"u{4 + number % 8}"
        return bool(served.post("/recommend", user=user) == expected[user])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(turn, range(48)))
    for number in range(4):
        history = served.post("/recommend", user=f"new{number}", history=True)["history"]
        assert {one["item"] for one in history} == {f"i{place % 24}" for place in range(48) if place % 4 == number}


def test_what_an_event_means(served: Served) -> None:
    meaning = EventMeaning(weights={"buy": 3.0, "view": 0.0}, threshold=None)
    assert meaning.liked(event="BUY", value=None, liked=None) and not meaning.liked(event="view", value=None, liked=None)
    assert meaning.liked(event=None, value=None, liked=True)
    with pytest.raises(InputError, match="none of the platform file"):
        meaning.liked(event="return", value=None, liked=None)
    stars = EventMeaning(threshold=4.0)
    assert stars.liked(event=None, value=4.0, liked=None) and not stars.liked(event=None, value=3.5, liked=None)
    with pytest.raises(InputError, match="value is missing"):
        stars.liked(event=None, value=None, liked=None)


def test_answers_are_what_the_description_says(start: Start, model: Path) -> None:
    served = start(model)
    asked = [
        ("/recommend", {"user": "u3", "sources": True, "history": True}, messages.ListAnswer),
        ("/similar", {"item": "i3"}, messages.ListAnswer),
        ("/explain", {"user": "u3", "item": "i3"}, messages.ExplainAnswer),
        ("/items", {"text": "FILM 1"}, messages.ItemsAnswer),
        ("/events", {"events": [{"user": "u3", "item": "i3"}]}, messages.EventsAnswer),
    ]
    for path, body, kind in asked:
        values = served.post(path, **body)
        assert kind.model_validate(values, extra="forbid").model_dump() == values | (
            {} if path != "/similar" else {"sources": [], "history": []}
        )
    for path, kind in (
        ("/platform", messages.PlatformAnswer),
        ("/users", messages.UsersAnswer),
        ("/healthz", messages.HealthAnswer),
    ):
        kind.model_validate(served.client.get(path).json(), extra="forbid")
    described = served.client.get("/openapi.json").json()["paths"]
    assert set(described) == {"/recommend", "/similar", "/explain", "/events", "/items", "/platform", "/users", "/healthz"}
    assert served.client.get("/platform").json()["items"] == 24
    told = served.client.get("/users").json()["users"]
    assert len(told) == len(set(told)) == 8 and set(told) <= set(read_tables(served.file).user_ids)
