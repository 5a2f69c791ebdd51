"""A run's events become the counters and the log lines that an operator watches."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from client.worker.telemetry import WorkerMetrics
from server.monitoring.run_events import Event, Kind
from server.monitoring.telemetry import RunMetrics, log_events, together
from shared.base.logs import Lines
from shared.protocol.messages import Reason
from tests.server.conftest import tally_of


class Watched:
    """Metrics with a clock that is set by hand."""

    def __init__(self) -> None:
        self.registry, self.now = CollectorRegistry(), 100.0
        self.metrics = RunMetrics(self.registry, clock=lambda: self.now)

    def tell(self, kind: Kind, round_: int = 0, **more: object) -> None:
        self.metrics(Event(kind=kind, round=round_, text="x", **more))  # type: ignore[arg-type]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_rounds_and_their_time(watched: Watched) -> None:
    for round_, took in [(1, 4.0), (2, 20.0)]:
        watched.now += took
        watched.tell(Kind.ROUND, round_)
    watched.now += 3.0
    watched.tell(Kind.EVALUATED, 2)
    assert watched.value("fedfuse_rounds_total") == 2 and watched.value("fedfuse_round") == 2
    assert watched.value("fedfuse_phase_seconds_sum", phase="train") == 24.0
    assert watched.value("fedfuse_phase_seconds_bucket", phase="train", le="5.0") == 1
    assert watched.value("fedfuse_phase_seconds_sum", phase="evaluate") == 3.0


def test_the_last_round_is_that_which_is_over_whatever_became_of_it(watched: Watched) -> None:
    """A resumed run begins where it was, and a lost round is over; neither is a round that this process has finished."""
    rounds = []
    for kind, round_ in (
        (Kind.RESUMED, 4),
        (Kind.ROUND, 5),
        (Kind.LOST, 6),
        (Kind.LATE, 2),
        (Kind.EVALUATED, 9),
        (Kind.WAITING, 9),
    ):
        watched.tell(kind, round_)
        rounds.append(watched.value("fedfuse_round"))
    assert rounds == [4, 5, 6, 6, 6, 6] and watched.value("fedfuse_rounds_total") == 1


def test_publishing_has_its_moment_and_its_time(watched: Watched) -> None:
    watched.tell(Kind.ROUND, 1)
    assert watched.value("fedfuse_published_timestamp_seconds") == 0
    watched.now += 7.0
    before = time.time()
    watched.tell(Kind.PUBLISHED, 1)
    assert watched.value("fedfuse_phase_seconds_sum", phase="publish") == 7.0
    assert before <= (watched.value("fedfuse_published_timestamp_seconds") or 0) <= time.time()


@pytest.mark.parametrize("kind", Kind)
def test_what_became_of_an_answer_is_counted_from_nought_and_nothing_else_is(watched: Watched, kind: Kind) -> None:
    answers = (Kind.ANSWERED, Kind.REFUSED, Kind.FAILED, Kind.SILENT, Kind.DROPPED, Kind.LATE)
    assert watched.value("fedfuse_answers_total", outcome=str(kind)) == (0 if kind in answers else None)
    watched.tell(kind, platform="shop")
    assert watched.value("fedfuse_answers_total", outcome=str(kind)) == (1 if kind in answers else None)
    reasons = [watched.value("fedfuse_refusals_total", reason=str(reason)) for reason in Reason]
    assert reasons == [0] * len(Reason)  # the platform's word was not among it


def test_platforms_come_and_go(watched: Watched) -> None:
    for name in ("shop", "video", "shop"):
        watched.tell(Kind.JOINED, platform=name)
    assert watched.value("fedfuse_platforms") == 2
    watched.tell(Kind.LEFT, platform="shop")
    assert watched.value("fedfuse_platforms") == 1 and watched.value("fedfuse_platforms_left_total") == 1


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_counted_from_nought(watched: Watched, tmp_path: Path, reason: Reason) -> None:
    """An alarm on the increase of a series that first appears as 1 never goes off."""
    WorkerMetrics(worker := CollectorRegistry(), state=tmp_path, budget=8.0)
    for registry in (watched.registry, worker):
        assert registry.get_sample_value("fedfuse_refusals_total", {"reason": str(reason)}) == 0.0


def test_refusals_by_reason(watched: Watched) -> None:
    for reason in (Reason.BUDGET, Reason.BUDGET, Reason.ROUND):
        watched.tell(Kind.REFUSED, reason=reason)
    watched.tell(Kind.ANSWERED)
    watched.tell(Kind.SILENT)
    assert watched.value("fedfuse_refusals_total", reason="budget") == 2
    assert watched.value("fedfuse_refusals_total", reason="round") == 1
    assert watched.value("fedfuse_answers_total", outcome="refused") == 3
    assert watched.value("fedfuse_answers_total", outcome="answered") == 1
    assert watched.value("fedfuse_answers_total", outcome="failed") == 0


def test_bytes_are_counted_once(watched: Watched) -> None:
    for up in (100, 250, 250, 200, 400):  # a tally that went back is none that can be subtracted
        watched.tell(Kind.ROUND, 1, tallies={"shop": tally_of("shop", bytes_up=up, bytes_down=10 * up)})
    assert watched.value("fedfuse_bytes_total", platform="shop", direction="up") == 400
    assert watched.value("fedfuse_bytes_total", platform="shop", direction="down") == 4000


def test_epsilon_may_be_infinite(watched: Watched) -> None:
    watched.tell(Kind.ROUND, 1, tallies={"shop": tally_of("shop", epsilon=math.inf), "video": tally_of("video", epsilon=2.5)})
    assert watched.value("fedfuse_epsilon", platform="shop") == math.inf
    assert watched.value("fedfuse_epsilon", platform="video") == 2.5


def test_a_node_that_never_joined_makes_no_series(watched: Watched) -> None:
    """Its name is its own word: a million of them must not fill the coordinator's memory."""
    before = len(list(watched.registry.collect())), sum(len(family.samples) for family in watched.registry.collect())
    for number in range(1000):
        watched.tell(Kind.REFUSED, platform=f"somebody-{number}", reason=Reason.FAILED)
        watched.tell(Kind.DROPPED, platform=f"somebody-{number}")
    after = len(list(watched.registry.collect())), sum(len(family.samples) for family in watched.registry.collect())
    assert after[0] == before[0] and after[1] <= before[1] + 2


@pytest.mark.parametrize("kind", Kind)
def test_what_an_operator_has_to_look_at_is_a_warning(stream: io.StringIO, kind: Kind) -> None:
    log_events("spring")(Event(kind=kind, round=0, text="x"))
    level = json.loads(stream.getvalue())["level"]
    trouble = (Kind.REFUSED, Kind.FAILED, Kind.SILENT, Kind.DROPPED, Kind.LEFT, Kind.ABANDONED, Kind.LOST)
    assert level == ("warning" if kind in trouble else "debug" if kind is Kind.ANSWERED else "info")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines("server"))
    log = logging.getLogger("fedfuse.run")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield stream
    log.removeHandler(handler)
    log.setLevel(level)


def test_every_event_is_a_line(stream: io.StringIO) -> None:
    watch = together(None, log_events("spring"), None)
    watch(Event(kind=Kind.REFUSED, round=3, text="shop: budget\nand more", platform="shop", reason=Reason.BUDGET))
    watch(Event(kind=Kind.ROUND, round=3, text="round 3 of 10 is done"))
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["run"], first["round"], first["platform"], first["event"]) == ("spring", 3, "shop", "refused")
    assert (first["level"], first["message"]) == ("warning", "shop: budget\nand more")
    assert (second["level"], second["event"], second["platform"]) == ("info", "round", None)


def test_one_watcher_tells_all() -> None:
    seen: list[str] = []
    watch = together(lambda event: seen.append("a"), None, lambda event: seen.append("b"))
    watch(Event(kind=Kind.ROUND, round=1, text=""))
    assert seen == ["a", "b"]
