"""Platforms that come late, leave, answer too slowly or are asked by turns: a federation of tiny platforms, and scripted ones."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import assume, given
from hypothesis import strategies as st

from client.app import app
from client.config.platform_file import load
from client.messenger import worker_link as link
from client.worker.request_handler import Worker
from server.monitoring.run_events import Event, Kind, Outcome
from server.run.attendance import Attendance
from server.run.exchange import Exchange
from server.run.federation import run_federation
from shared.base.errors import FedfuseError
from shared.base.settings import Settings, build
from shared.ledger.audit import audit_run
from shared.protocol.messages import Answer, Join, Reason, Request, Train, Update
from simulations.in_process_grid import InProcessGrid
from strategies.phase_report import Member
from tests.server.run.test_federation import Scripted

Make = Callable[..., Settings]
Write = Callable[..., Path]


class Doors(InProcessGrid):
    """A grid whose nodes come and go: those in `shut` are not there."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.shut: set[int] = set()

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node not in self.shut]

    def push_messages(self, messages: Any) -> list[str]:
        there = set(self.get_node_ids())
        return super().push_messages([message for message in messages if message.metadata.dst_node_id in there])


class Bench:
    """A run over handlers, whose nodes a test lets come and go."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out, self.told = settings, out, list[Event]()
        self.keys: list[str] = []

    def run(
        self, *platforms: Any, late: int = 0, on: Callable[[Event, Doors], None] | None = None, workers: int = 1, **over: Any
    ) -> Outcome:
        nodes = {}
        for number, platform in enumerate(platforms, start=2):
            key = f"attendance-{id(self)}-{number}"
            self.keys.append(key)
            link.register(key, link.Direct(platform))
            nodes[number] = {"link": key}
        with Doors(app=app, nodes=nodes, workers=workers) as grid:
            grid.shut = set(range(2 + len(platforms) - late, 2 + len(platforms)))

            def tell(event: Event) -> None:
                self.told.append(event)
                if on is not None:
                    on(event, grid)

            values: dict[str, Any] = {"nodes": len(platforms) - late, "export": _no_export, "wait": 5.0, **over}
            return run_federation(grid=grid, settings=self.settings, run="run", out=self.out, events=tell, **values)

    def of(self, kind: Kind) -> list[tuple[str, int]]:
        return [(event.platform, event.round) for event in self.told if event.kind is kind]


def _no_export(adapter: Any, settings: Settings, folder: Path) -> None:
    (folder / "model.txt").write_text("x")


@pytest.fixture
def bench(tiny_settings: Make, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**over: Any) -> Bench:
        made.append(Bench(tiny_settings(**{"rounds": 8, "reply_timeout": 20.0, **over}), tmp_path / f"run{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        for key in each.keys:
            link.forget(key)


def at(round_: int, do: Callable[[Doors], None]) -> Callable[[Event, Doors], None]:
    """Do it once that round is over."""

    def on(event: Event, doors: Doors) -> None:
        if event.kind is Kind.ROUND and event.round == round_:
            do(doors)

    return on


def test_one_joins_at_round_five_one_leaves_and_one_is_too_slow(
    write_platform: Write, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers, real training: what a round lacked is missing from its sum, and from nothing else."""
    made = Bench(tiny_settings(rounds=7, reply_timeout=9000.0, training={"local_steps": 1}), tmp_path / "run")
    workers = []
    for seed, name in enumerate(("books", "leaver", "slow", "zlate")):
        file = load(write_platform(name, seed=seed, users=12, declared=15))
        state = made.out / "state" / name
        ledger = made.out / "ledger" / f"{name}.jsonl"
        workers.append(Worker(file, state=state, ledger=ledger, simulation=True, device=torch.device("cpu")))
    begun, over = threading.Event(), threading.Event()
    knocked, ready = threading.Event(), threading.Event()

    class Late:
        def handle(self, request: Request) -> Answer:
            knocked.set()
            try:
                return workers[3].handle(request)
            finally:
                ready.set()

    class Slow:
        def handle(self, request: Request) -> Answer:
            if isinstance(request, Train) and request.round == 2:
                begun.set()
                over.wait(600)
            return workers[2].handle(request)

    class Impatient(Exchange):
        """The deadline of round 2 falls when everybody but the slow one has answered, however fast this machine is."""

        def _sweep(self) -> Iterator[Message]:
            yield from super()._sweep()
            if begun.is_set() and not over.is_set() and self.silent == [4]:
                self._end = time.monotonic()

    monkeypatch.setattr("server.run.dispatch.Exchange", Impatient)

    def on(event: Event, doors: Doors) -> None:
        if event.kind is Kind.SILENT:
            over.set()
        if event.kind is Kind.ROUND and event.round == 3:
            doors.shut.add(3)
        if event.kind is Kind.ROUND and event.round == 4:
            doors.shut.discard(5)
        if event.kind is Kind.ROUND and knocked.is_set():
            ready.wait(600)  # to prepare may take longer than all rounds of so small platforms

    try:
        outcome = made.run(workers[0], workers[1], Slow(), Late(), late=1, on=on, workers=2)
    finally:
        for key in made.keys:
            link.forget(key)
        for worker in workers:
            worker.close()
    assert outcome.rounds == 7
    # Two threads: while one waits for the slow one, the other looks whether the late one is ready.
    assert {name: tally.rounds for name, tally in outcome.tallies.items()} == {
        "books": 7,
        "leaver": 3,
        "slow": 6,
        "zlate": outcome.tallies["zlate"].rounds,
    }
    assert made.of(Kind.SILENT) == [("slow", 2)] and made.of(Kind.LEFT) == [("leaver", 3)]
    ((_, joined),) = [entry for entry in made.of(Kind.JOINED) if entry[0] == "zlate"]
    assert joined >= 4 and outcome.tallies["zlate"].rounds == 7 - joined
    assert outcome.tallies["zlate"].before is None and outcome.tallies["zlate"].federated is not None
    assert outcome.tallies["leaver"].before is not None and outcome.tallies["leaver"].federated is None
    assert audit_run(made.out).ok


class TestComingAndGoing:
    def test_a_late_platform_is_in_the_sum_from_its_first_round(self, bench: Callable[..., Bench]) -> None:
        made, late = bench(), Scripted("late", step=3.0)
        outcome = made.run(Scripted("a"), late, late=1, on=at(4, lambda doors: doors.shut.clear()))
        assert [key for key in late.asked if isinstance(key, int)] == [5, 6, 7, 8]
        assert outcome.tallies["late"].rounds == 4
        from shared.model.adapter import initial

        start = initial(made.settings)
        moved = float(np.mean([(outcome.adapter[name] - start[name]).mean() for name in start]))
        assert moved == pytest.approx(4 * 1.0 + 4 * 2.0, abs=1e-4)

    def test_one_that_comes_back_joins_again_and_keeps_its_tally(self, bench: Callable[..., Bench]) -> None:
        made, shaky = bench(), Scripted("shaky")

        def on(event: Event, doors: Doors) -> None:
            at(2, lambda doors: doors.shut.add(3))(event, doors)
            at(5, lambda doors: doors.shut.clear())(event, doors)

        outcome = made.run(Scripted("a"), shaky, on=on)
        assert [key for key in shaky.asked if isinstance(key, int)] == [1, 2, 6, 7, 8]
        assert shaky.asked.count("join") == 2
        assert outcome.tallies["shaky"].rounds == 5
        assert made.of(Kind.LEFT) == [("shaky", 2)]

    def test_a_platform_may_come_back_with_another_node(self, bench: Callable[..., Bench]) -> None:
        made = bench()
        again = Scripted("a")

        def on(event: Event, doors: Doors) -> None:
            if event.kind is Kind.ROUND and event.round == 3:
                doors.shut = {2}

        outcome = made.run(Scripted("a"), Scripted("b"), again, late=1, on=on)
        assert outcome.tallies["a"].rounds == 8 and [key for key in again.asked if isinstance(key, int)] == [4, 5, 6, 7, 8]

    def test_a_second_node_of_one_platform_stays_out_and_stops_nobody(self, bench: Callable[..., Bench]) -> None:
        made, twin = bench(), Scripted("a", step=100.0)
        outcome = made.run(Scripted("a"), twin, late=1, on=at(2, lambda doors: doors.shut.clear()))
        assert twin.asked == ["join"] and outcome.rounds == 8
        assert any("which another node speaks for" in event.text for event in made.told)

    def test_who_refused_is_not_asked_every_round(self, bench: Callable[..., Bench]) -> None:
        made = bench()
        first, late = Scripted("b", script={"join": Reason.NOISE}), Scripted("c", script={"join": Reason.SETTINGS})
        outcome = made.run(Scripted("a"), first, late, late=1, on=at(2, lambda doors: doors.shut.clear()))
        assert first.asked == ["join"] and late.asked == ["join"] and set(outcome.tallies) == {"a"}

    def test_who_is_out_of_budget_is_not_asked_to_join_again(self, bench: Callable[..., Bench]) -> None:
        made, spent = bench(), Scripted("b", script={3: Reason.BUDGET})
        made.run(Scripted("a"), spent)
        assert spent.asked.count("join") == 1 and 4 not in spent.asked

    def test_who_fails_to_join_is_asked_again_but_not_at_once(self, bench: Callable[..., Bench]) -> None:
        made, broken = bench(), Scripted("b", script={"join": RuntimeError("u17")})
        made.run(Scripted("a"), broken)
        assert broken.asked == ["join", "join"]  # at the start, and once more between rounds; then it has a minute's rest

    def test_slow_preparation_holds_no_round_up(self, bench: Callable[..., Bench]) -> None:
        made = bench(rounds=6)
        begun: list[int] = []
        enough, ready = threading.Event(), threading.Event()

        class Preparing(Scripted):
            def handle(self, request: Request) -> Answer:
                if not isinstance(request, Join):
                    return super().handle(request)
                begun.append(1)
                assert enough.wait(60)  # two rounds go by meanwhile
                answer = super().handle(request)
                ready.set()
                return answer

        class Steady(Scripted):
            def handle(self, request: Request) -> Answer:
                if isinstance(request, Train) and request.round == 4:
                    enough.set()
                if isinstance(request, Train) and request.round == 5:
                    assert ready.wait(60)
                return super().handle(request)

        late = Preparing("late")
        outcome = made.run(Steady("a"), late, late=1, on=at(2, lambda doors: doors.shut.clear()), workers=2)
        assert len(begun) == 1  # not asked again while it prepares
        assert outcome.tallies["a"].rounds == 6 and 1 <= outcome.tallies["late"].rounds <= 2

    def test_everybody_is_away_for_a_while(self, bench: Callable[..., Bench]) -> None:
        made = bench(rounds=4)
        opened: list[float] = []

        def on(event: Event, doors: Doors) -> None:
            if event.kind is Kind.ROUND and event.round == 2:
                doors.shut = {2}
                opened.append(time.monotonic())
            if event.kind is Kind.LEFT:
                # Nobody is left to wait for, so the node is let in from outside.
                threading.Timer(0.3, doors.shut.clear).start()

        outcome = made.run(Scripted("a"), on=on)
        assert outcome.rounds == 4 and outcome.tallies["a"].rounds == 4

    def test_nobody_comes_back(self, bench: Callable[..., Bench]) -> None:
        made = bench(rounds=4)
        with pytest.raises(FedfuseError, match="no platform is left"):
            made.run(Scripted("a"), on=at(2, lambda doors: doors.shut.add(2)), wait=0.2)


class TestParticipation:
    @pytest.mark.parametrize(("part", "asked"), [(0.5, 2), (0.3, 1), (0.25, 1), (0.75, 3), (1.0, 4)])
    def test_a_round_asks_that_part(self, bench: Callable[..., Bench], part: float, asked: int) -> None:
        made = bench(server={"participation": part})
        platforms = [Scripted(name) for name in "abcd"]
        outcome = made.run(*platforms)
        per_round = Counter(key for platform in platforms for key in platform.asked if isinstance(key, int))
        assert per_round == dict.fromkeys(range(1, 9), asked)
        assert sum(tally.rounds for tally in outcome.tallies.values()) == 8 * asked
        # Everybody evaluates, and over the rounds more than one is asked.
        assert all(platform.asked.count("evaluate") == 2 for platform in platforms)
        # Nobody more often than a platform plans for.
        turns = [sum(isinstance(key, int) for key in platform.asked) for platform in platforms]
        assert all(1 <= turn <= made.settings.rounds_each for turn in turns)

    def test_the_choice_repeats_by_seed_and_round(self, bench: Callable[..., Bench]) -> None:
        def choice(**over: Any) -> list[list[object]]:
            made = bench(server={"participation": 0.5}, **over)
            platforms = [Scripted(name) for name in "abcdef"]
            made.run(*platforms)
            return [[key for key in platform.asked if isinstance(key, int)] for platform in platforms]

        assert choice() == choice() != choice(seed=1)

    def test_fewer_than_the_strategy_combines_are_an_error_at_the_start(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="trimmed", server={"participation": 0.5}, rounds=3)
        with pytest.raises(FedfuseError, match="would ask 2 of 5 platforms, and combines no fewer than 3"):
            made.run(*(Scripted(name) for name in "abcde"))

    @given(platforms=st.integers(1, 9), part=st.floats(0.2, 1.0), rounds=st.integers(1, 40), seed=st.integers(0, 3))
    def test_no_plan_is_exceeded(self, platforms: int, part: float, rounds: int, seed: int) -> None:
        values = {"privacy": {"noise": "local"}, "strategy": "fedavg", "server": {"participation": part}}
        settings = build({**values, "rounds": rounds, "seed": seed}, where="here")
        assume(math.floor(part * platforms) >= 1)
        attendance = Attendance(
            grid=None,
            settings=settings,
            run="r",
            least=1,
            say=lambda *_, **__: None,
            entered=lambda *_: None,  # type: ignore[arg-type]
        )
        attendance.members = {node: Member(node=node, platform=f"p{node}", users=9, rank=None) for node in range(platforms)}
        asked = Counter(node for number in range(1, rounds + 1) for node in attendance.asked(number))
        assert max(asked.values()) <= settings.rounds_each

    def test_who_was_not_asked_has_no_say(self, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer that nobody asked for is not in the sum, whoever sends it."""
        made = bench(server={"participation": 0.5}, rounds=1)
        from strategies.base import AdapterStrategy

        told: list[Any] = []
        vet = AdapterStrategy._vet

        def forged(self: Any, server_round: int, message: Message, kind: Any) -> Any:
            if kind is Update and len(self.members) == 1:
                (asked,) = self.members
                message.metadata.__dict__["_src_node_id"] = 5 - asked  # the other one of nodes 2 and 3
                told.append(vet(self, server_round, message, kind))
                message.metadata.__dict__["_src_node_id"] = asked
            return vet(self, server_round, message, kind)

        monkeypatch.setattr(AdapterStrategy, "_vet", forged)
        outcome = made.run(Scripted("a"), Scripted("b"))
        assert told == [None] and sum(tally.rounds for tally in outcome.tallies.values()) == 1


def test_too_few_for_a_robust_combiner_are_refused_at_start(bench: Callable[..., Bench]) -> None:
    made = bench(strategy="ffa+krum")
    with pytest.raises(FedfuseError, match="no fewer than 5") as caught:
        made.run(Scripted("a"), Scripted("b"), Scripted("c"))
    assert "krum" in caught.value.where and "server.faulty" in caught.value.do
