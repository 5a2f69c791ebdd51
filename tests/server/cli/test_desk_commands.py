"""Who may operate a coordinator, who takes part in its federation, and its certificates: what is said, refused and logged."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment.approved_platforms import Platforms
from server.deployment.authority_rotation import trusted_bundle
from server.deployment.certificates import Certificates
from server.deployment.flower_control import Unreachable
from server.deployment.folder import CoordinatorFolder
from server.operators.acting import log_of
from server.operators.operator_log import OperatorAction
from server.operators.rights import Right, Verb
from shared.protocol.authorities import authorities_digest
from shared.protocol.fingerprint_words import shown_fingerprint
from shared.protocol.invitation import Application, fingerprint_of, fingerprint_of_authorities, parse_invitation
from tests.server.deployment.test_provisioning import application
from tests.support.called_command import called
from tests.support.control_double import ControlDouble
from tests.support.printed import tidy

OTHER = "0000-0000-0000-0000-0000-0000-0000-0000"


def last(coordinator: CoordinatorFolder) -> OperatorAction:
    return log_of(coordinator).actions[-1]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key that nobody has added yet."""
    assert called("server", "operator", "key", tmp_path / "alice.key").returncode == 0
    return tmp_path / "alice.key"


def fingerprint_in(said: str) -> str:
    return next(word for word in said.replace(":", " ").split() if word.count("-") == 7)


class TestOperators:
    def test_a_key_is_made_once(self, tmp_path: Path) -> None:
        file, public = tmp_path / "bob.key", tmp_path / "bob.key.pub"
        said = called("server", "operator", "key", file)
        assert said.returncode == 0 and stat.S_IMODE(file.stat().st_mode) == 0o600
        first, second = said.stdout.splitlines()
        assert first == f"{file} is yours alone; hand over {public}"
        assert second == f"fingerprint {shown_fingerprint(fingerprint_in(second))}: read it to the operator who adds you"
        for gone in (None, file):
            if gone is not None:
                gone.unlink()
            again = called("server", "operator", "key", file)
            assert again.returncode == 3 and "a key is there already" in again.stderr and file.exists() is (gone is None)

    def test_the_fingerprint_that_is_shown_is_the_key_s_and_is_compared(
        self, coordinator: CoordinatorFolder, key: Path, tmp_path: Path
    ) -> None:
        words = ["server", "operator", "add", "alice", "--key", f"{key}.pub", "--server", coordinator.folder, "--may", "run"]
        before = log_of(coordinator).head
        for more, terminal, said in (
            ([], None, "nobody is at a terminal"),
            (["--fingerprint", OTHER], None, f"and --fingerprint says {OTHER}"),
            (["--fingerprint", OTHER], "y\n", "ask alice again"),
            ([], "n\n", "nothing was written: the fingerprint was not compared"),
        ):
            refused = called(*words, *more, terminal=terminal)
            assert refused.returncode == 3 and said in refused.stderr, refused.stderr
            assert refused.stdout.startswith(f"alice: fingerprint {shown_fingerprint(fingerprint_in(refused.stdout))}\n")
            assert log_of(coordinator).head == before
        found = fingerprint_in(refused.stdout)
        for number, (more, terminal) in enumerate(((["--fingerprint", found], None), (["--yes"], None), ([], "y\n"))):
            done = called(*words[:3], f"name{number}", *words[4:], *more, terminal=terminal)
            assert done.returncode == (0 if number == 0 else 3), done.stderr  # a key is one operator's
            assert number or done.stdout.splitlines()[-1] == "name0 may: run"
        assert (last(coordinator).verb, last(coordinator).of) == (Verb.ADD_OPERATOR, "name0")
        assert last(coordinator).details["fingerprint"] == found

    @pytest.mark.parametrize("how", ["--yes", "terminal"])
    def test_whoever_compares_says_so(self, coordinator: CoordinatorFolder, key: Path, how: str) -> None:
        more, terminal = ([how], None) if how == "--yes" else ([], "y\n")
        words = ["server", "operator", "add", "alice", "--key", f"{key}.pub", "--server", coordinator.folder, "--may", "all"]
        done = called(*words, *more, terminal=terminal)
        assert done.returncode == 0 and "alice may: all" in done.stdout.splitlines()[-1]
        assert ("have you compared it with alice?" in done.stdout) is (how == "terminal")

    def test_the_list_says_who_may_what(self, coordinator: CoordinatorFolder, key: Path, tmp_path: Path) -> None:
        at = ("--server", coordinator.folder)
        called("server", "operator", "key", tmp_path / "bob.key")
        for name, rights in (("alice", "run,invite"), ("bob", "all")):
            added = ("--key", f"{tmp_path / name}.key.pub", "--may", rights, "--yes")
            assert called("server", "operator", "add", name, *added, *at).returncode == 0
        gone = called("server", "operator", "remove", "bob", *at)
        assert (gone.returncode, gone.stdout) == (0, "bob is no operator any more\n")
        assert (last(coordinator).verb, last(coordinator).of) == (Verb.REMOVE_OPERATOR, "bob")
        listed = json.loads(called("server", "operator", "list", "--json", *at).stdout)
        assert [(one["name"], one["may"], one["removed"] is None) for one in listed] == [
            ("owner", [str(right) for right in Right], True),
            ("alice", ["invite", "run"], True),
            ("bob", [], False),
        ]
        shown = tidy(called("server", "operator", "list", *at).stdout).splitlines()
        assert shown[0].split() == ["operator", "may", "since", "fingerprint"]
        rows = [line.split() for line in shown[1:4]]
        by = {one["name"]: one for one in listed}
        removed = f"removed {by['bob']['removed']}".split()
        assert rows == [
            ["owner", "all", *by["owner"]["since"].split(), by["owner"]["fingerprint"]],
            ["alice", "invite,run", *by["alice"]["since"].split(), by["alice"]["fingerprint"]],
            ["bob", *removed, *by["bob"]["since"].split(), by["bob"]["fingerprint"]],
        ]
        assert shown[4:] == [f"{right:<12} {right.meaning}" for right in Right]
        assert called("invite", "shop", "--as", tmp_path / "bob.key", *at).returncode == 6


class TestTheLog:
    def test_its_end_is_shown(self, coordinator: CoordinatorFolder) -> None:
        at = ("--server", coordinator.folder)
        for number in range(20):
            assert called("invite", f"shop{number}", *at).returncode == 0
        log = log_of(coordinator)
        assert len(log.actions) == 21
        for words, count in (([], 20), (["--last", 0], 21), (["--last", 1], 1), (["--last", 3], 3), (["--last", 99], 21)):
            shown = json.loads(called("log", *words, "--json", *at).stdout)
            assert shown == {"head": log.head, "actions": [one.to_json() for one in log.actions[-count:]]}
            lines = tidy(called("log", *words, *at).stdout).splitlines()
            assert lines[0].split() == ["#", "when", "who", "what", "of", "details"] and lines[-1] == f"head {log.head}"
            assert len(lines) == count + 2
            of = f"shop19  fingerprint {log.actions[-1].details['fingerprint']}"
            assert lines[-2].split() == f"20 {log.actions[-1].time} owner invite {of}".split()
        # Numbers end below one another.
        column = [line[:3] for line in called("log", *at).stdout.splitlines() if line[:3].strip(" #").isdigit()]
        assert column == [f"{number:>3}" for number in range(1, 21)]

    def test_what_was_asked_is_answered(self, coordinator: CoordinatorFolder, key: Path) -> None:
        at = ("--server", coordinator.folder)
        called("server", "operator", "add", "alice", "--key", f"{key}.pub", "--may", "run", "--yes", *at)
        head = log_of(coordinator).head
        holds = "it holds: 2 actions, each signed by who then had the right"
        for words, said in (([], False), (["--verify"], True), (["--head", f" {head.upper()} "], True), (["--head", head], True)):
            found = called("log", *words, *at)
            assert found.returncode == 0 and (holds in found.stdout) is said
        # Their public key is in the log, and not what a person compares.
        assert key.with_name("alice.key.pub").read_text().split()[1] not in found.stdout and "may run" in found.stdout
        for words in (["--head", "ab" * 32], ["--head", "ab" * 32, "--verify"], ["--head", "ab" * 32, "--json"]):
            lost = called("log", *words, *at)
            assert lost.returncode == 5 and "no action has the head that was written down" in lost.stderr
            assert "it holds" not in lost.stdout and "actions" not in lost.stdout

    def test_a_list_that_says_more_is_found_where_it_is_asked_for(self, coordinator: CoordinatorFolder, tmp_path: Path) -> None:
        at = ("--server", coordinator.folder)
        Platforms(coordinator.platforms).approve(application(tmp_path, "stranger"))
        for words, code in (([], 0), (["--verify"], 5), (["--head", log_of(coordinator).head], 5)):
            assert called("log", *words, *at).returncode == code


class Control(ControlDouble):
    """A coordinator's server that registers whom it is told to."""

    def __init__(self, seen: dict[str, Any] | None) -> None:
        self._seen = seen
        self.registered: list[str] = []

    def nodes(self) -> list[Any]:
        return []

    def register(self, key: bytes, name: str) -> int:
        self.registered.append(name)
        return 4711

    def seen(self) -> dict[str, Any]:
        if self._seen is None:
            raise Unreachable("the coordinator's server does not answer")
        return self._seen


class TestPlatforms:
    def test_a_new_coordinator_says_how_to_go_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "a place"
        made = called("init", "server", folder, "--host", "fed.example.org", "--name", "spring", "--port", 8123)
        assert made.returncode == 0 and made.stdout.splitlines() == [
            "federation spring: platforms will connect to fed.example.org:8123",
            f"start it:          fedfuse server start '{folder}'        (or '{folder}/start.sh')",
            f"invite platforms:  fedfuse invite shop --server '{folder}' > shop.invitation",
        ]
        values = (folder / "server.toml").read_text()
        assert "control_port = 8001 " in values and 'listen = "0.0.0.0"' in values
        default = called("init", "server", tmp_path / "b", "--host", "h")
        assert default.stdout.splitlines()[0] == "federation federation: platforms will connect to h:8000"

    def test_an_invitation_is_what_is_printed_and_its_fingerprint_beside_it(self, coordinator: CoordinatorFolder) -> None:
        invited = called("invite", "shop", "--server", coordinator.folder)
        made = parse_invitation(invited.stdout, where="a test")
        assert invited.returncode == 0 and invited.stdout == made.text()
        assert invited.stderr == (
            f"fingerprint {shown_fingerprint(made.fingerprint)}: read it to the platform's people when they ask\n"
        )
        assert (last(coordinator).verb, last(coordinator).of) == (Verb.INVITE, "shop")
        assert dict(last(coordinator).details) == {"fingerprint": made.fingerprint}

    def applied(self, folder: Path, **over: Any) -> tuple[Path, Application]:
        asked = application(folder, "shop", **over)
        (folder / "application.toml").write_text(asked.text())
        return folder / "application.toml", asked

    def test_an_application_for_another_federation_is_refused(self, coordinator: CoordinatorFolder, tmp_path: Path) -> None:
        path, _ = self.applied(tmp_path, federation="autumn")
        refused = called("approve", "shop", path, "--yes", "--server", coordinator.folder)
        assert refused.returncode == 3 and "is for federation 'autumn', this is 'spring'" in refused.stderr
        assert not Platforms(coordinator.platforms).all() and refused.stdout == ""

    def test_an_application_of_another_platform_is_refused(self, coordinator: CoordinatorFolder, tmp_path: Path) -> None:
        path, _ = self.applied(tmp_path)
        refused = called("approve", "video", path, "--yes", "--server", coordinator.folder)
        assert refused.returncode == 3 and "the application is of 'shop', not of 'video'" in refused.stderr
        assert not Platforms(coordinator.platforms).all() and refused.stdout == ""

    @pytest.mark.parametrize(("more", "terminal", "enters"), [
        ([], None, False), ([], "n\n", False), ([], "y\n", True), (["--yes"], None, True), (["--replace", OTHER], None, False),
        (["--replace", "its own"], None, True), (["--fingerprint", "its own"], None, True),
        (["--fingerprint", OTHER], "y\n", False),
    ])  # fmt: skip
    def test_nobody_enters_whose_fingerprint_was_not_compared(
        self, coordinator: CoordinatorFolder, tmp_path: Path, more: list[str], terminal: str | None, enters: bool
    ) -> None:
        path, asked = self.applied(tmp_path)
        said = [asked.fingerprint if word == "its own" else word for word in more]
        done = called("approve", "shop", path, *said, "--server", coordinator.folder, terminal=terminal)
        assert done.stdout.startswith(f"shop: fingerprint {shown_fingerprint(asked.fingerprint)}\n")
        assert (done.returncode, len(Platforms(coordinator.platforms).approved())) == ((0, 1) if enters else (3, 0)), done.stderr
        assert (last(coordinator).verb is Verb.APPROVE) is enters
        assert enters or "the platform's people" in done.stderr or "compare it" in done.stderr

    @pytest.mark.parametrize("runs", [False, True])
    def test_it_is_registered_where_the_server_runs(
        self, coordinator: CoordinatorFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
    ) -> None:
        control = Control({})
        if runs:
            monkeypatch.setattr("server.deployment.supernode_sync.Control", control)
        path, asked = self.applied(tmp_path)
        done = called("approve", "shop", path, "--yes", "--server", coordinator.folder)
        state = "registered" if runs else "it will be registered when the server starts"
        assert done.stdout.splitlines()[-1] == f"shop is approved; {state}"
        assert control.registered == (["shop"] if runs else [])
        (one,) = Platforms(coordinator.platforms).approved()
        assert dict(last(coordinator).details) == {"fingerprint": asked.fingerprint, "node": one.fingerprint}

    def test_what_was_replaced_and_what_was_shut_out_is_in_the_log(self, coordinator: CoordinatorFolder, tmp_path: Path) -> None:
        at = ("--server", coordinator.folder)
        first, _ = self.applied(tmp_path / "first")
        called("approve", "shop", first, "--yes", *at)
        (old,) = Platforms(coordinator.platforms).approved()
        second, asked = self.applied(tmp_path / "second")
        assert called("approve", "shop", second, "--yes", *at).returncode == 3
        assert called("approve", "shop", second, "--replace", asked.fingerprint, *at).returncode == 0
        assert last(coordinator).details["replaced"] == old.fingerprint
        (new,) = Platforms(coordinator.platforms).approved()
        gone = called("revoke", "shop", *at)
        assert (gone.returncode, gone.stdout) == (0, "shop is revoked\n") and not Platforms(coordinator.platforms).approved()
        assert dict(last(coordinator).details) == {"fingerprint": fingerprint_of(new.identity), "node": new.fingerprint}
        assert called("revoke", "shop", *at).returncode == 3 and called("revoke", "news", *at).returncode == 3

    def test_the_status_in_words_and_as_json(self, approved: CoordinatorFolder) -> None:
        at = ("--server", approved.folder)
        values = json.loads(called("status", "--json", *at).stdout)
        assert [one["name"] for one in values["platforms"]] == ["news", "shop", "video"]
        shown = tidy(called("status", *at).stdout).splitlines()
        assert shown[:2] == [
            "federation spring at fed.example.org:8000: the server does not answer",
            " platform  standing  connection  rounds  ε of budget  last trouble",
        ]
        assert shown[2:5] == [f" {name:<8}  approved  unknown          0            -  -" for name in ("news", "shop", "video")]
        assert shown[5] == f"number {values['number']} of all that are approved: platforms compare it (fedfuse client trust)"


class TestTheServer:
    def test_it_is_started_on_its_folder(self, coordinator: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[CoordinatorFolder] = []
        logs: list[object] = []
        monkeypatch.setattr("server.deployment.superlink.serve_superlink", served.append)
        monkeypatch.setattr("shared.base.logs.configure_as_told", lambda *words, **more: logs.append((words, more)))
        assert called("server", "start", coordinator.folder).returncode == 0 and served == [coordinator]
        assert logs == [(("server",), {"flower": True})]  # Flower's own lines are in the same log

    @pytest.mark.parametrize(("down", "days", "code"), [(False, 30, 0), (True, 30, 1), (False, -1, 5), (False, 400, 0)])
    def test_it_is_healthy_where_it_answers_and_its_certificate_holds(
        self, coordinator: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, down: bool, days: int, code: int
    ) -> None:
        control = Control(None if down else {})
        monkeypatch.setattr("server.deployment.flower_control.Control", control)
        coordinator.certificates.issue(coordinator.file.host, days=days)
        found = called("server", "health", coordinator.folder)
        assert found.returncode == code, found.stderr
        assert code or found.stdout == f"healthy; the certificate holds for {days} days\n"

    def test_its_certificate_is_renewed(self, coordinator: CoordinatorFolder) -> None:
        for words, days in (([], 365), (["--days", 1], 1), (["--days", 30], 30)):
            before = coordinator.certificates.server.read_bytes()
            done = called("server", "renew", coordinator.folder, *words)
            assert done.returncode == 0 and coordinator.certificates.server.read_bytes() != before
            assert done.stdout == f"a certificate for fed.example.org, for {days} days; restart the server to use it\n"
            assert round(coordinator.certificates.days_left(), 2) == pytest.approx(days, abs=0.02)
            assert last(coordinator).details["days"] == str(days)
        assert called("server", "renew", coordinator.folder, "--days", 0).returncode == 2

    def test_a_page_that_was_stopped_says_so(self, coordinator: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        told: dict[str, Any] = {}

        def serve(api: object, listener: Any, *, token: str, hosts: Any) -> None:
            told.update(place=listener.getsockname(), token=token, hosts=set(hosts))
            listener.close()

        monkeypatch.setattr("shared.pages.local_server.serve", serve)
        for _ in range(2):  # its folder and its token may be there
            done = called("server", "ui", coordinator.folder, "--port", 0)
            assert done.returncode == 0, done.stderr
            host, port = told["place"]
            path = coordinator.state / "ui.token"
            assert host == "127.0.0.1" and told["token"] == path.read_text().strip() and f"127.0.0.1:{port}" in told["hosts"]
            first, second = done.stdout.splitlines()
            assert (first, second) == (f"federation spring at http://{host}:{port}; the token is in {path}", "stopped")
            assert stat.S_IMODE(coordinator.state.stat().st_mode) == 0o700
        for port in (-1, 65536):
            assert called("server", "ui", coordinator.folder, "--port", port).returncode == 2


class TestANewAuthority:
    """What platforms know is what the server saw of them."""

    @pytest.fixture
    def control(self, approved: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> Control:
        made = Control({})
        monkeypatch.setattr("server.deployment.flower_control.Control", made)
        monkeypatch.setattr("server.deployment.authority_rotation._shows", lambda *_: True)
        return made

    def knows(self, approved: CoordinatorFolder, *names: str) -> dict[str, Any]:
        digest = authorities_digest(trusted_bundle(approved.certificates))
        return {"news": {}, "shop": {"authorities": "another"}, **{name: {"authorities": digest} for name in names}}

    @pytest.fixture
    def step(self, approved: CoordinatorFolder) -> Callable[..., Any]:
        return lambda *words: called("server", "authority", words[0], approved.folder, *words[1:])

    def test_each_step_says_what_is_next(self, approved: CoordinatorFolder, control: Control, step: Callable[..., Any]) -> None:
        def shown(certificates: Certificates) -> str:
            return f"platforms get: {fingerprint_of_authorities(trusted_bundle(certificates))}"

        none = "one authority; a new one: fedfuse server authority begin"
        begun = "begun; when the platforms know both: fedfuse server authority switch"
        switched = "switched; start the server again, then: fedfuse server authority finish"
        first = approved.certificates.authority.read_text()
        assert step("status").stdout.splitlines() == [shown(approved.certificates), none]
        control._seen = self.knows(approved, "news", "shop", "video")
        done = step("begin")
        assert done.stdout.splitlines() == [shown(approved.certificates), "not yet known to: news, shop, video", begun]
        for names, late in ((("shop",), "news, video"), (("news", "shop"), "video"), (("news", "video"), "shop")):
            control._seen = self.knows(approved, *names)
            assert step("status").stdout.splitlines()[1] == f"not yet known to: {late}"
            refused = step("switch")
            assert refused.returncode == 3 and f"have not said that they know the new authority: {late}" in refused.stderr
            assert approved.certificates.authority.read_text() == first
        called("revoke", "shop", "--server", approved.folder)  # who is shut out is not waited for
        assert step("status").stdout.splitlines()[1:] == ["all approved platforms know both", begun]
        done = step("switch", "--days", 30)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [shown(approved.certificates), switched]
        assert approved.certificates.authority.read_text() != first
        assert round(approved.certificates.days_left()) == 30
        details = {"authority": fingerprint_of_authorities(approved.certificates.authority.read_text()), "days": "30"}
        assert {name: text for name, text in last(approved).details.items() if text} == details
        assert step("finish").stdout.splitlines() == [shown(approved.certificates), none]
        verbs = [Verb.AUTHORITY_BEGIN, Verb.AUTHORITY_SWITCH, Verb.REVOKE, Verb.AUTHORITY_FINISH]
        assert [one.verb for one in log_of(approved).actions if one.verb in verbs] == [verbs[0], verbs[2], verbs[1], verbs[3]]

    def test_whoever_switches_anyway_is_not_asked(
        self, approved: CoordinatorFolder, control: Control, step: Callable[..., Any]
    ) -> None:
        step("begin")
        control._seen = None
        status = step("status")
        assert status.returncode == 0 and status.stdout.splitlines()[1] == (
            "who knows both is not known: the coordinator's server does not answer"
        )
        assert step("switch").returncode == 1
        assert step("switch", "--anyway").returncode == 0 and round(approved.certificates.days_left()) == 365
        assert last(approved).details["anyway"] == "yes"

    @pytest.mark.parametrize(("steps", "said"), [
        (["switch"], "no rotation was begun"), (["finish"], "no rotation was switched"), (["begin", "finish"], "was switched"),
        (["begin", "switch", "begin"], "the rotation before is not finished"), (["begin", "switch", "switch"], "was begun"),
    ])  # fmt: skip
    def test_no_step_is_left_out(self, control: Control, step: Callable[..., Any], steps: list[str], said: str) -> None:
        for word in steps[:-1]:
            assert step(word, *(["--anyway"] if word == "switch" else [])).returncode == 0
        control._seen = None  # the stage is looked at first
        refused = step(steps[-1])
        assert refused.returncode == 3 and said in refused.stderr, refused.stderr
        assert step("switch", "--days", 0).returncode == 2


@pytest.mark.parametrize("group", [["server"], ["server", "operator"], ["audit"], ["ledger"]])
def test_a_group_without_a_command_says_which_there_are(group: list[str]) -> None:
    said = called(*group)
    assert "Usage" in said.stdout + said.stderr and "Commands" in said.stdout + said.stderr and "Traceback" not in said.stderr


def test_nothing_shows_that_a_folder_was_restored(coordinator: CoordinatorFolder) -> None:
    refused = called("server", "restored", coordinator.folder)
    assert refused.returncode == 3 and "nothing shows that the log had come further" in refused.stderr
    assert last(coordinator).verb is Verb.BEGIN
