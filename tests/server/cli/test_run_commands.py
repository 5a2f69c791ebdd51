"""`fedfuse run`, `runs` and `abort` as people call them: what begins, what is refused, and every word and number that is shown.

The server, and what watches a run, are stood in for: what they do is tested where they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import Launch, record, recorded
from server.operators.acting import log_of
from server.operators.operator_log import OperatorAction
from server.operators.rights import Verb
from server.run.quotes import DryRun, QuoteLine
from server.scheduling.run_list import run_named
from server.scheduling.run_notes import failure_in, note_abort
from server.scheduling.turns import Turn, at_work, live_turns
from shared.base.errors import FedfuseError
from shared.base.settings import build
from tests.server.scheduling.test_run_list import created, played
from tests.support.called_command import called
from tests.support.printed import tidy

WATCHED: list[dict[str, Any]] = [
    {"kind": "joined", "round": 0, "text": "shop joined [5 users]"},
    {"kind": "answered", "round": 1, "text": "shop answered"},
    {"kind": "round", "round": 12, "text": "round 12"},
    {"kind": "away"},
]
Call = Callable[..., Any]


class Watcher:
    """Test double of the server and of the code that watches its runs."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.asked: list[Launch] = []
        self.stopped: list[str] = []
        self.detached: list[tuple[str, int]] = []
        self.state: dict[str, Any] = {"state": "finished", "round": 2, "why": "the model is [here]"}
        self.ends: BaseException | None = None
        self.quotes = DryRun(run="dry", platforms=())
        self.during: Callable[[], object] = lambda: None

    def federate(self, launch: Launch, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        self.launches.append(launch)
        self.during()
        for event in WATCHED:
            tell(event)
        if self.ends is not None:
            raise self.ends
        return self.state

    def ask(self, launch: Launch, tell: Callable[[dict[str, Any]], None]) -> DryRun:
        self.asked.append(launch)
        tell({"kind": "joined", "text": "asks [shop]"})
        tell({"kind": "joined"})
        return self.quotes

    def detach(self, coordinator: CoordinatorFolder, run: str, *, restarts: int) -> int:
        assert all(one.run != run for one in live_turns(coordinator))  # its place in line is the other process's to take
        self.detached.append((run, restarts))
        return 4711


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Watcher:
    made = Watcher()
    monkeypatch.setattr("server.deployment.flower_control.require_server", lambda coordinator: None)
    monkeypatch.setattr("server.deployment.launch.federate_deployed", made.federate)
    monkeypatch.setattr("server.deployment.launch.quotes_of", made.ask)
    monkeypatch.setattr("server.deployment.launch.stop", lambda launch: made.stopped.append(launch.run))
    monkeypatch.setattr("server.scheduling.detached.start_detached", made.detach)
    return made


@pytest.fixture
def call(approved: CoordinatorFolder, watcher: Watcher) -> Call:
    return lambda *words: called(*words, "--server", approved.folder)


def runs_said(coordinator: CoordinatorFolder) -> list[OperatorAction]:
    """What the log has of runs."""
    verbs = (Verb.RUN, Verb.DRY_RUN, Verb.RESUME, Verb.ABORT)
    return [one for one in log_of(coordinator).actions if one.verb in verbs]


class TestWhatBegins:
    def test_by_default(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        done = call("run")
        assert done.returncode == 0, done.stderr
        (launch,) = watcher.launches
        assert launch.settings == build({"strategy": "preferences"}, where="a test")
        assert launch == Launch(coordinator=approved, run=launch.run, settings=launch.settings)
        assert (launch.nodes, launch.wait, launch.round_patience, launch.restarts) == (0, 300.0, 600.0, 5)
        assert launch.run.startswith("spring-2") and run_named(approved, launch.run).state == "stopped"

    def test_every_option_arrives(self, call: Call, watcher: Watcher) -> None:
        values = ["--rounds", 7, "--strategy", "ffa", "--noise", "distributed", "--epsilon", 1.5, "--set", "training.clip=0.25"]
        waits = ["--platforms", 2, "--only", "video, shop,".replace(" ", ""), "--only", "shop", "--wait", 9.5]
        done = call("run", "--name", "r", *values, *waits, "--round-patience", 3.5, "--restarts", 0)
        assert done.returncode == 0, done.stderr
        (launch,) = watcher.launches
        settings = launch.settings
        assert (settings.rounds, settings.strategy, settings.privacy.noise) == (7, "ffa", "distributed")
        assert (settings.privacy.epsilon, settings.training.clip) == (1.5, 0.25)
        assert (launch.run, launch.nodes, launch.only) == ("r", 2, ("shop", "video"))
        assert (launch.wait, launch.round_patience, launch.restarts, launch.start) == (9.5, 3.5, 0, "")

    def test_those_who_are_named_are_waited_for(self, call: Call, watcher: Watcher) -> None:
        assert call("run", "--only", "shop,video").returncode == 0
        assert call("run", "--only", "shop,video", "--platforms", 1, "--name", "r").returncode == 0
        assert [one.nodes for one in watcher.launches] == [2, 1]

    @pytest.mark.parametrize("rights", ["run", "run,publish"])
    def test_it_publishes_where_whoever_runs_it_may(
        self, call: Call, watcher: Watcher, approved: CoordinatorFolder, rights: str
    ) -> None:
        key = approved.folder.parent / "alice.key"
        assert called("server", "operator", "key", key).returncode == 0
        call("server", "operator", "add", "alice", "--key", f"{key}.pub", "--may", rights, "--yes")
        for words in (["--name", "r"], ["--resume", "r"]):
            assert call("run", *words, "--as", key).returncode == 0
        assert [one.publish for one in watcher.launches] == [rights != "run"] * 2
        assert recorded(approved, "r").publish is (rights != "run")

    def test_a_run_is_gone_on_with(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        call("run", "--name", "r", "--rounds", 3, "--only", "shop", "--wait", 4)
        note_abort(approved.run("r"), by="alice")
        assert call("run", "--resume", "r", "--restarts", 1).returncode == 0
        first, again = watcher.launches
        assert (again.run, again.settings, again.only, again.wait) == ("r", first.settings, ("shop",), 4.0)
        assert (first.restarts, again.restarts) == (5, 1)
        assert run_named(approved, "r").state == "stopped"  # and not aborted: the note is gone
        assert [one.verb for one in runs_said(approved)] == [Verb.RUN, Verb.RESUME]

    def test_while_it_is_watched_it_is_at_work(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        found: list[list[str]] = []
        watcher.during = lambda: found.append(at_work(approved))
        assert call("run", "--name", "r").returncode == 0
        assert found == [["r"]] and at_work(approved) == []

    def test_one_that_is_at_work_keeps_another_waiting(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        with Turn(approved, "first", waits=False):
            refused = call("run", "--name", "second")
            assert refused.returncode == 6 and "run first is at work" in refused.stderr and not approved.run("second").exists()
            assert not runs_said(approved)
            assert call("run", "--name", "second", "--queue", "--detach").returncode == 0
        assert not watcher.launches and watcher.detached == [("second", 5)]

    def test_the_log_says_what_was_asked_for(self, call: Call, approved: CoordinatorFolder) -> None:
        call("run", "--name", "plain")
        call("run", "--name", "full", "--rounds", 7, "--epsilon", 1.25, "--only", "shop,video")
        plain, full = (dict(one.details) for one in runs_said(approved))
        assert plain.pop("settings") != full.pop("settings")
        rounds = str(build({"strategy": "preferences"}, where="a test").rounds)
        assert plain == {
            "strategy": "preferences",
            "rounds": rounds,
            "epsilon": "0.25 of what is left",
            "publishes": "no",  # no registry is named
        }
        assert full == {"strategy": "fedavg", "rounds": "7", "epsilon": "1.25", "only": "shop,video", "publishes": "no"}

    @pytest.mark.parametrize(("rights", "publishes"), [("run", "no"), ("run,publish", "yes")])
    def test_the_log_says_whether_a_model_is_published(
        self, call: Call, approved: CoordinatorFolder, rights: str, publishes: str
    ) -> None:
        path, key = approved.folder / "server.toml", approved.folder.parent / "alice.key"
        path.write_text(path.read_text().replace('registry = ""', f'registry = "{approved.folder.parent / "models"}"'))
        called("server", "operator", "key", key)
        call("server", "operator", "add", "alice", "--key", f"{key}.pub", "--may", rights, "--yes")
        assert call("run", "--as", key).returncode == 0
        assert runs_said(approved)[-1].details["publishes"] == publishes


REFUSED: list[tuple[list[object], int, str]] = [
    (["--resume", "r", "--from", "r"], 3, "knows where it began"),
    (["--dry-run", "--resume", "r"], 3, "a dry run is answered at once"),
    (["--dry-run", "--detach"], 3, "a dry run is answered at once"),
    (["--dry-run", "--queue"], 3, "a dry run is answered at once"),
    (["--resume", "gone"], 3, "there is no run 'gone'"),
    (["--from", "gone"], 3, "there is no run 'gone'"),
    (["--epsilon", "inf"], 3, "cannot turn privacy off"),
    (["--set", "simulation=true"], 3, "a deployed run is no simulation"),
    (["--platforms", 1, "--set", "server.minimum_platforms=2"], 1, "1 platforms are waited for, and the settings need 2"),
    (["--only", "shop", "--set", "server.minimum_platforms=2"], 1, "1 platforms are waited for, and the settings need 2"),
    (["--strategy", "fedavgg"], 3, "no strategy is named 'fedavgg'"),
    (["--platforms", 4], 3, "4 platforms are waited for, and 3 are approved: news, shop, video"),
    (["--only", "shop,store,other"], 3, "not approved: other, store"),
    (["--only", "shop", "--platforms", 2], 3, "2 platforms are waited for, and --only names 1"),
    (["--name", "No Name"], 3, "is no name of a run"),
]  # fmt: skip


class TestWhatIsRefused:
    @pytest.mark.parametrize(("words", "code", "said"), REFUSED)
    def test_nothing_is_written_down(
        self, call: Call, watcher: Watcher, approved: CoordinatorFolder, words: list[object], code: int, said: str
    ) -> None:
        refused = call("run", *words)
        assert (refused.returncode, said in refused.stderr) == (code, True), refused.stderr
        assert not watcher.launches and not watcher.asked and not list(approved.folder.glob("runs/*")) and not runs_said(approved)

    def test_at_the_bounds_it_begins(self, call: Call, watcher: Watcher) -> None:
        least = ["--set", "server.minimum_platforms=2"]
        for words in (["--platforms", 3], ["--platforms", 2, *least], ["--only", "shop,video", *least], least):
            assert call("run", "--name", f"r{len(watcher.launches)}", *words).returncode == 0, words
        assert len(watcher.launches) == 4

    def test_a_run_without_platforms(self, coordinator: CoordinatorFolder, watcher: Watcher) -> None:
        refused = called("run", "--server", coordinator.folder)
        assert refused.returncode == 3 and "no platform is approved" in refused.stderr and "fedfuse invite" in refused.stderr
        assert not watcher.launches

    def test_a_platform_that_was_shut_out_is_not_waited_for(
        self, call: Call, watcher: Watcher, approved: CoordinatorFolder
    ) -> None:
        call("revoke", "shop")
        assert "not approved: shop" in call("run", "--only", "shop").stderr
        assert "2 are approved: news, video" in call("run", "--platforms", 3).stderr
        assert call("run", "--platforms", 2).returncode == 0

    def test_without_the_server(self, call: Call, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
        def down(coordinator: CoordinatorFolder) -> None:
            raise FedfuseError("the coordinator's server does not answer")

        monkeypatch.setattr("server.deployment.flower_control.require_server", down)
        assert call("run").returncode == 1 and not watcher.launches

    def test_what_is_done_is_not_done_again(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        launch = planned(approved, "r")
        played(launch, epsilon={}, state="finished", why="version 2")
        refused = call("run", "--resume", "r")
        assert refused.returncode == 3 and "has ended: version 2" in refused.stderr and not watcher.launches
        assert not runs_said(approved)


class TestWhatIsShown:
    def test_in_words(self, call: Call, approved: CoordinatorFolder) -> None:
        done = call("run", "--name", "r")
        assert done.returncode == 0 and done.stderr == ""
        assert tidy(done.stdout).splitlines() == [
            f"run r, folder {approved.run('r')}",
            "round   0  shop joined [5 users]",
            "round  12  round 12",
            "round   0",
            "finished after 2 rounds: the model is [here]",
        ]

    def test_as_json_every_line_is(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        done = call("run", "--name", "r", "--json")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [*WATCHED, watcher.state]
        assert done.stderr == f"run r, folder {approved.run('r')}\n"

    @pytest.mark.parametrize("as_json", [[], ["--json"]])
    def test_one_that_is_incomplete(self, call: Call, watcher: Watcher, as_json: list[str]) -> None:
        watcher.state = {"state": "incomplete", "left_out": {"news": "news: it [trusts] nobody"}}
        done = call("run", *as_json)
        assert done.returncode == 7
        if not as_json:
            assert tidy(done.stdout).splitlines()[-2:] == ["news: it [trusts] nobody", "INCOMPLETE after 0 rounds:"]

    def test_one_that_is_interrupted_is_stopped(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        watcher.ends = KeyboardInterrupt()
        done = call("run", "--name", "r")
        assert (done.returncode, watcher.stopped) == (130, ["r"])
        assert done.stdout.splitlines()[-1] == "stopped; go on with: fedfuse run --resume r"
        assert at_work(approved) == [] and failure_in(approved.run("r")) is None

    def test_one_that_is_given_up_says_why_to_whoever_asks_later(
        self, call: Call, watcher: Watcher, approved: CoordinatorFolder
    ) -> None:
        watcher.ends = FedfuseError("the server did not come back")
        done = call("run", "--name", "r")
        assert done.returncode == 1 and "did not come back" in done.stderr and watcher.stopped == []
        assert failure_in(approved.run("r")) == ("the server did not come back", 1)
        assert at_work(approved) == []

    def test_a_process_of_its_own(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        done = call("run", "--name", "r", "--detach", "--restarts", 2)
        assert done.returncode == 0 and (watcher.launches, watcher.detached) == ([], [("r", 2)])
        assert done.stdout.splitlines() == [
            "run r goes on by itself (process 4711)",
            f"follow it:  fedfuse runs --server {approved.folder} --follow r",
            f"end it:     fedfuse abort r --server {approved.folder}",
        ]
        said = json.loads(call("run", "--resume", "r", "--detach", "--json").stdout)
        assert said == {"run": "r", "process": 4711, "log": str(approved.run("r") / "launcher.log")}
        assert [one.verb for one in runs_said(approved)] == [Verb.RUN, Verb.RESUME]


QUOTED = (
    QuoteLine(platform="news", takes_part=False, why="it is [not] there"),
    QuoteLine(
        platform="shop", takes_part=True, users=40, epsilon=0.5, delta=1e-5, left=8.0, left_after=7.5, noise_multiplier=1.23456
    ),
)


class TestDryRuns:
    def test_one_that_would_begin(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        watcher.quotes = DryRun(run="dry", platforms=QUOTED)
        done = call("run", "--dry-run", "--name", "dry")
        assert done.returncode == 0 and tidy(done.stderr) == "asks [shop]"
        assert tidy(done.stdout) == tidy("""
            platform  takes part  ε it would spend  ε left before  after  noise it needs  why not
            news      no                         -              -      -               -  it is [not] there
            shop      yes                      0.5              8    7.5            1.23
           the run would begin
           nothing was spent, and no ledger was written to
            """)
        (asked,) = watcher.asked
        assert (asked.dry, asked.restarts, watcher.launches) == (True, 0, [])
        assert not approved.run("dry").exists() and [one.verb for one in runs_said(approved)] == [Verb.DRY_RUN]

    def test_one_that_would_not(self, call: Call, watcher: Watcher) -> None:
        watcher.quotes = DryRun(run="dry", platforms=QUOTED, why="too [few]")
        done = call("run", "--dry-run")
        assert done.returncode == 6 and "the run would not begin: too [few]" in done.stdout
        as_json = call("run", "--dry-run", "--json")
        assert as_json.returncode == 6 and json.loads(as_json.stdout) == watcher.quotes.to_json()

    def test_beside_one_that_is_at_work(self, call: Call, watcher: Watcher, approved: CoordinatorFolder) -> None:
        with Turn(approved, "first", waits=False):
            assert call("run", "--dry-run").returncode == 0


def planned(coordinator: CoordinatorFolder, name: str, **values: Any) -> Launch:
    launch = Launch(coordinator=coordinator, run=name, settings=build(values, where="a test"))
    record(launch)
    return launch


class TestTheList:
    def test_of_nothing(self, call: Call) -> None:
        assert call("runs").stdout == "there is no run yet: fedfuse run\n"
        assert json.loads(call("runs", "--json").stdout) == []

    def test_says_of_each_what_became_of_it(self, call: Call, approved: CoordinatorFolder) -> None:
        call("run", "--name", "new", "--rounds", 12, "--epsilon", 1.5)
        created(recorded(approved, "new"), 1.9e9)
        names = {"a" * 14: 0.5, "b" * 14: 0.25}
        most = planned(approved, "most", strategy="fedavg", rounds=10, privacy={"share": 0.5})
        created(most, 1.8e9)
        played(most, epsilon=names, rounds=10)
        (most.folder / "published.json").write_text('{"version": 14}')
        more = planned(approved, "more", strategy="fedavg", rounds=3)
        created(more, 1.7e9)
        played(more, epsilon={"a" * 15: 0.123456, "b" * 14: 0.25}, state="failed", rounds=1)
        done = call("runs")
        assert done.returncode == 0
        assert tidy(done.stdout) == tidy("""
run   state     strategy    rounds  platforms                                 ε planned  ε spent  version  by     began
new   stopped   fedavg     0 of 12                                                  1.5        -        -  owner  2030-03-17 17:46
most  finished  fedavg    10 of 10  aaaaaaaaaaaaaa, bbbbbbbbbbbbbb  50% of what is left      0.5       14  -      2027-01-15 08:00
more  failed    fedavg      1 of 3  2 platforms                     25% of what is left    0.123        -  -      2023-11-14 22:13
            """)

    def test_the_newest_alone(self, call: Call, approved: CoordinatorFolder) -> None:
        for number, name in enumerate(("first", "second", "third")):
            created(planned(approved, name), number + 1.0)
        for last, names in (
            (0, ["third", "second", "first"]),
            (1, ["third"]),
            (2, ["third", "second"]),
            (3, ["third", "second", "first"]),
        ):
            assert [one["run"] for one in json.loads(call("runs", "--last", last, "--json").stdout)] == names
            shown = call("runs", "--last", last).stdout
            assert [name in shown for name in ("first", "second", "third")] == [
                name in names for name in ("first", "second", "third")
            ]
            left = [line for line in shown.splitlines() if "older ones" in line]
            assert left == ([f"and {3 - len(names)} older ones: --last 0"] if len(names) < 3 else [])

    def test_twenty_are_shown(self, call: Call, approved: CoordinatorFolder) -> None:
        for number in range(21):
            created(planned(approved, f"r{number}"), number + 1.0)
        assert len(json.loads(call("runs", "--json").stdout)) == 20

    def test_followed(self, call: Call, approved: CoordinatorFolder) -> None:
        launch = planned(approved, "r", strategy="fedavg", rounds=2)
        played(launch, epsilon={"shop": 1.0}, state="incomplete", why="1 of [2] rounds", code=7)
        done = call("runs", "--follow", "r")
        assert done.returncode == 7
        assert done.stdout.splitlines() == [
            "round   0  shop joined",
            "round   2  round 2",
            "incomplete after 2 rounds: 1 of [2] rounds",
        ]
        as_json = call("runs", "--follow", "r", "--json")
        lines = [json.loads(line) for line in as_json.stdout.splitlines()]
        assert as_json.returncode == 7 and [one.get("kind") for one in lines] == ["joined", "round", None]
        assert lines[-1] == {**run_named(approved, "r").to_json(), "platforms": ["shop"]}


class TestEnding:
    @pytest.mark.parametrize("ends", ["aborted", "finished"])
    def test_it_is_said_how_to_go_on(
        self, call: Call, approved: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, ends: str
    ) -> None:
        launch = planned(approved, "r", strategy="fedavg", rounds=3)
        turn = Turn(approved, "r", waits=False)
        played(launch, epsilon={"shop": 1.0}, state="running", rounds=2)

        def abort(coordinator: CoordinatorFolder, run: str, *, by: str) -> Any:
            assert [one.verb for one in runs_said(approved)] == [Verb.ABORT]  # it is in the log before it is done
            turn.close()
            note_abort(approved.run(run), by=by)
            if ends == "finished":
                played(launch, epsilon={"shop": 1.0}, rounds=3)
            return run_named(coordinator, run)

        monkeypatch.setattr("server.scheduling.aborting.abort_run", abort)
        done = call("abort", "r")
        assert done.returncode == 0, done.stderr
        again = f" after 2 rounds; go on with it: fedfuse run --resume r --server {approved.folder}"
        assert done.stdout == f"run r is {ends}{again if ends == 'aborted' else ' after 3 rounds'}\n"
        (said,) = runs_said(approved)
        assert (said.of, dict(said.details)) == ("r", {"state": "running", "round": "2"})

    def test_what_does_not_go_on_is_not_in_the_log(self, call: Call, approved: CoordinatorFolder) -> None:
        planned(approved, "r")
        refused = call("abort", "r")
        assert refused.returncode == 3 and "run r is not at work: stopped" in refused.stderr and not runs_said(approved)
        assert Platforms(approved.platforms).approved()
