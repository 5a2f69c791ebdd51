"""What a deployment survives: real processes on this machine, really killed. Minutes each; run by name.

In all of them: the run goes on from its last finished round, no charge is lost, none is made twice for one release, and the
final model equals that of a run in this process in which the rounds simply had those participants.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.seeded import Seeded, seeded
from tests.deploy.stage import Stage, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Make = Callable[[str], Path]


def test_a_supernode_is_killed_in_every_phase(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee", "cat"]) as made:
        made.start()
        settings = made.settings(rounds=9, reply_timeout=150.0)
        thread = made.launch("run", settings)
        strike(made, "ant", "begin", "join", 0)  # while it joins
        strike(made, "bee", "begin", "evaluate", 0)  # while it evaluates
        strike(made, "cat", "begin", "train", 2)  # while it trains
        strike(made, "cat", "end", "train", 5)  # when it has trained, and before its answer is there
        made.finish(thread)
        rounds = made.require_same("run", settings)
        print({round_: sorted(came) for round_, came in rounds.items()})
        assert any(len(came) < 3 for came in rounds.values())  # the kills were noticed
        assert rounds[9] == set(made.names)  # and everybody came back


def strike(made: Seeded, name: str, what: str, kind: str, round_: int) -> None:
    """Kill that platform's SuperNode at that moment; the others wait until it is back, so that there is a run to come back to."""
    made.await_line(name, what, kind, round_, seconds=600.0)
    made.kill_node(name)
    other = next(one for one in made.names if one != name)
    with made.held(other):
        # Flower may still call it online, until it has noticed; a SuperNode that serves again is what counts.
        until(lambda: not made.node_runs(name), f"{name}'s SuperNode is gone", made.stage.logs)
        until(lambda: made.node_runs(name), f"{name}'s SuperNode is back", made.stage.logs, seconds=300.0)


def test_the_serverapp_is_killed(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"]) as made:
        made.start()
        settings = made.settings(rounds=4)
        thread = made.launch("run", settings)
        for round_ in (1, 3):
            made.await_line("ant", "begin", "train", round_)
            (server,) = [one for one in stage.find("flwr-serverapp") if "--token" in one.cmdline()]
            server.kill()
        made.finish(thread)
        assert sum(event["kind"] == "restart" for event in made.heard) == 2
        assert [event["text"] for event in stage.events("run") if event["kind"] == "resumed"]
        assert set(map(frozenset, made.require_same("run", settings).values())) == {frozenset(made.names)}


def test_the_superlink_is_killed(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"]) as made:
        made.start()
        settings = made.settings(rounds=4)
        thread = made.launch("run", settings)
        made.await_line("bee", "begin", "train", 2)
        os.killpg(stage.processes["server"].pid, signal.SIGKILL)
        stage.processes["server"].wait(30)  # as long as nobody has waited for it, it counts as running
        until(lambda: not [one for one in stage.find("flwr-serverapp") if one.is_running()], "the ServerApp has gone", stage.logs)
        stage.serve()
        made.finish(thread)
        assert set(map(frozenset, made.require_same("run", settings).values())) == {frozenset(made.names)}


def test_a_worker_is_killed_while_it_trains(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=2.0) as made:
        made.start()
        settings = made.settings(rounds=3)
        thread = made.launch("run", settings)
        made.await_line("bee", "begin", "train", 1)
        stage.processes["bee-worker"].kill()
        made.start_worker("bee")
        made.await_line("bee", "end", "train", 1)
        with made.paused("bee"):
            made.await_line("bee", "step", "train", 2)
            assert made.charged("bee", "run").count(("train", 2)) == 1
            stage.processes["bee-worker"].kill()
        made.start_worker("bee")
        made.finish(thread)
        assert set(map(frozenset, made.require_same("run", settings).values())) == {frozenset(made.names)}


def test_a_slow_platform_misses_its_deadline_and_goes_on(stage: Stage, small_shop: Make) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=0.0) as made:
        made.slow["bee"] = 25.0
        made.start()
        # Longer than a worker takes to start on a busy machine: what is not in time here is so on purpose.
        settings = made.settings(rounds=3, reply_timeout=80.0)
        thread = made.launch("run", settings)
        made.await_line("bee", "begin", "train", 1)
        stage.processes["bee-worker"].kill()
        made.slow["bee"] = 110.0
        made.start_worker("bee")
        made.await_line("ant", "begin", "train", 2)
        stage.processes["bee-worker"].kill()
        made.slow["bee"] = 0.0
        made.start_worker("bee")
        made.finish(thread)
        rounds = made.require_same("run", settings)
        assert rounds[1] == {"ant"} and rounds[3] == {"ant", "bee"}


@pytest.mark.parametrize("how", ["nan", "shape", "large"])
def test_an_update_that_cannot_be_right(stage: Stage, small_shop: Make, how: str) -> None:
    with seeded(stage, small_shop, ["ant", "bee"], seconds=0.0) as made:
        made.hostile["bee"] = how
        made.start()
        settings = made.settings(rounds=3)
        made.finish(made.launch("run", settings))
        rounds = made.require_same("run", settings)
        assert rounds == {1: {"ant", "bee"}, 2: {"ant"}, 3: {"ant", "bee"}}
        assert any(event["kind"] == "dropped" and event["platform"] == "bee" for event in stage.events("run"))
