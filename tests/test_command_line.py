"""The command as a person types it: help that teaches, and one clear message for every mistake."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.base.settings import Settings
from shared.base.version import VERSION
from shared.protocol.keys import ed25519_line, make_ed25519
from tests.support.called_command import called

Write = Callable[..., Path]
Make = Callable[..., Settings]
ROOT = Path(__file__).parents[1]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def text(self) -> str:
        return " ".join((self.out + self.err).split())


@pytest.fixture
def call() -> Callable[..., Result]:
    def run(*words: object) -> Result:
        done = called(*words)
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def tiny(tiny_bert: str) -> list[str]:
    """Options of a run of a second."""
    values = {
        "model.layers": 1,
        "model.rank": 2,
        "training.sample_rate": 0.5,
        "training.local_steps": 2,
        "model.user_tokens": 24,
        "model.item_tokens": 12,
    }
    options = ["--rounds", "1", "--epsilon", "50", "--backbone", tiny_bert]
    return options + [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def refused(result: Result, *words: str) -> None:
    """One message, a non-zero exit code, no traceback."""
    assert result.code != 0, result.text
    assert "Traceback" not in result.text
    for word in words:
        assert word in result.text, result.text


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["simulate"],
        ["world"],
        ["world", "new"],
        ["check"],
        ["recommend"],
        ["evaluate"],
        ["audit"],
        ["audit", "check"],
        ["ledger", "show"],
        ["ledger", "verify"],
        ["ledger", "export"],
        ["pull"],
        ["models"],
        ["publish"],
        ["strategies"],
    ],
)
def test_help_teaches(call: Callable[..., Result], command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.code == 0
    assert "Usage" in result.out
    assert len(result.text) > 150


def test_help_is_quick_and_loads_no_model() -> None:
    code = "import sys, fedfuse; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'polars')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_can_be_refused_at_once_is_refused_before_torch_is_loaded(write_platform: Write, tmp_path: Path) -> None:
    """That a run folder is not empty was said after the ten seconds that torch and Flower take to load."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    world = write_platform().parent
    code = (
        "import sys; sys.argv = ['fedfuse', *sys.argv[1:]]\nimport fedfuse\n"
        "try:\n    fedfuse.main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    for arguments in (
        [str(world), "--out", str(tmp_path / "run")],
        [str(tmp_path / "gone")],
        ["--resume", str(tmp_path / "run")],
    ):
        found = subprocess.run([sys.executable, "-c", code, "simulate", *arguments], capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["3", "False"], found.stderr


def test_check_plans_without_the_libraries_that_take_seconds_to_load(write_platform: Write) -> None:
    slow = ("torch", "transformers", "opacus", "dp_accounting", "scipy.stats", "scipy.signal")
    code = (
        f"import sys, fedfuse; sys.argv = ['fedfuse', 'check', {str(write_platform())!r}]\n"
        "try: fedfuse.main()\n"
        f"finally: print([name for name in {slow} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert "noise at most" in done.stdout and done.stderr.strip().endswith("[]"), (done.stdout, done.stderr)


class TestRuns:
    def test_simulate_check_audit_pull_recommend(
        self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path
    ) -> None:
        world, out = write_platform().parent, tmp_path / "run"
        result = call("simulate", world, "--out", out, "--json", *tiny)
        assert result.code == 0, result.text
        assert json.loads(result.out)["platforms"]["shop"]["federated"]["ndcg@10"] >= 0
        audited = call("audit", out, "--json")
        assert audited.code == 0
        assert json.loads(audited.out)
        pulled = call("pull", out, "--unsigned", "--out", tmp_path / "model", "--json")
        assert pulled.code == 0
        assert "adapter_model.safetensors" in json.loads(pulled.out)["files"]
        best = call(
            "recommend", "--model", tmp_path / "model", "--platform", world / "shop.toml", "--user", "u1", "--top", 3, "--json"
        )
        assert best.code == 0, best.text
        assert len(json.loads(best.out)) == 3
        assert call("recommend", "--model", tmp_path / "model", "--platform", world / "shop.toml", "--user", "u1").code == 0
        self.publish_list_and_pull(call, out, tmp_path)
        ledger = out / "ledger" / "shop.jsonl"
        self.audit_as_an_auditor(call, out, ledger, tmp_path)
        ledger.write_bytes(ledger.read_bytes().replace(b'"steps":2', b'"steps":1'))
        broken = call("audit", out)
        assert broken.code == 1
        assert "Traceback" not in broken.text

    def audit_as_an_auditor(self, call: Callable[..., Result], out: Path, ledger: Path, tmp_path: Path) -> None:
        """One ledger, against each thing that somebody outside may hold, and against nothing."""
        alone = call("audit", ledger)
        assert alone.code == 2 and "a removed tail would not be seen" in alone.out.replace("\n", " ")
        shown = json.loads(call("ledger", "show", ledger, "--json").out)
        assert shown["platform"] == "shop" and shown["version"] == 3 and shown["answers"] >= 2
        assert call("ledger", "show", ledger).code == 0 and call("ledger", "verify", ledger).code == 0
        held = [["--head", shown["head"]], ["--receipts", out / "receipts.jsonl"], ["--model", tmp_path / "model"]]
        for option in held:
            assert call("audit", ledger, *option).code == 0, option
        more = call("audit", ledger, "--head", shown["head"], "--curve", "--plan", "--group", "2", "--json")
        assert more.code == 0 and set(json.loads(more.out)["what_if"]["plans"]) == {"shop"}
        assert call("audit", ledger, "--head", shown["head"], "--plan", "--person", "shop").code == 0
        assert call("audit", ledger, "--head", shown["head"], "--run", "nobody").code == 2
        cut = tmp_path / "cut.jsonl"
        assert call("ledger", "export", ledger, "--out", cut).code == 0
        cut.write_bytes(b"".join(cut.read_bytes().splitlines(keepends=True)[:-2]))
        for option in held:
            found = call("audit", cut, *option, "--json")
            assert found.code == 1 and "cut or rewritten" in str(json.loads(found.out)["problems"]), option
        assert call("ledger", "verify", cut).code == 0  # it is whole in itself
        assert call("audit", cut).code == 2
        for option in (["--head", "abc"], ["--receipts", ledger], ["--receipts", cut / "x"], ["--model", tmp_path / "none"]):
            found = call("audit", ledger, *option, "--json")
            assert (found.code, json.loads(found.out)["verdict"]) == (2, "cannot tell"), option

    def publish_list_and_pull(self, call: Callable[..., Result], out: Path, tmp_path: Path) -> None:
        from shared.registry.signing import make_key_pair

        key, public, registry = tmp_path / "model.key", tmp_path / "model.pub", tmp_path / "registry"
        fingerprint = make_key_pair(key, public).fingerprint
        assert "no model is published" in call("models", registry).out
        refused(call("publish", tmp_path / "nowhere", registry, "--key", key), "training.json")
        refused(call("publish", out, registry, "--key", public), "private key")
        refused(
            call("publish", out, registry, "--key", key), "promises nothing", "simulation", "seed", "exact", "--as-simulation"
        )
        assert "no model is published" in call("models", registry).out
        published = call("publish", out, registry, "--key", key, "--name", "spring", "--as-simulation", "--json")
        assert published.code == 0, published.text
        assert json.loads(published.out)["version"] == 1
        listed = json.loads(call("models", registry, "--trust", public, "--json").out)
        (version,) = listed["versions"]
        assert listed["checked"]
        assert (version["name"], version["platforms"], version["signer"]) == ("spring", ["shop"], fingerprint)
        assert "spring" in call("models", registry).out and "no signature was looked at" in call("models", registry).text
        refused(call("pull", registry, "--out", tmp_path / "p"), "whose signature", "--trust")
        taken = call("pull", registry, "--trust", public, "--out", tmp_path / "p")
        assert taken.code == 0 and fingerprint[:16] in taken.text and "version 1 (spring)" in taken.text
        assert "it was here already" in call("pull", registry, "--trust", public, "--out", tmp_path / "p").text
        loose = call("pull", registry, "--unsigned", "--out", tmp_path / "q")
        assert loose.code == 0 and "no signature was looked at" in loose.text and "NOTHING IS PROMISED" in loose.text
        card = (tmp_path / "p" / "README.md").read_text()
        assert card.split("---\n")[2].startswith(
            "**NOTHING IS PROMISED to the users behind this model: it comes from a simulation"
        )
        assert "differential privacy for" not in card
        assert "popularity" in card and "train" in card and "| shop |" in card  # from the ledger that is here

    def test_the_table_names_every_stage(
        self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path
    ) -> None:
        result = call("simulate", write_platform().parent, "--out", tmp_path / "run", *tiny)
        assert result.code == 0, result.text
        for word in ("before", "federated", "NDCG@10", "ε of budget", "shop", "times the noise"):
            assert word in result.text

    def test_check_shows_rows_texts_and_forecast_and_changes_nothing(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path
    ) -> None:
        path = write_platform(users=60, declared=5000)
        (path.parent / "shop-events.csv").open("a").write(",i1,1700000000\nu1,nowhere,1700000000\n")
        before = sorted(str(file) for file in tmp_path.rglob("*"))
        report = json.loads(call("check", path, "--json").out)
        assert report["users"]["declared"] == 5000
        assert report["sources"][0]["dropped"] or report["sources"][1]["dropped"]
        assert len(report["examples"]) == 2
        assert report["forecast"]["possible"]
        shown = call("check", path)
        assert shown.code == 0
        for word in ("left out, and why", "as text", "forecast", "nothing was trained"):
            assert word in shown.text
        assert sorted(str(file) for file in tmp_path.rglob("*")) == before

    def test_check_of_a_world_shows_every_platform_and_what_they_have_in_common(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path
    ) -> None:
        world = write_platform(users=20).parent
        write_platform("video", users=20)
        found = json.loads(call("check", world, "--json").out)
        assert [one["platform"] for one in found["platforms"]] == ["shop", "video"]
        assert set(found["items_in_common"]) == {"shop, video"}
        shown = call("check", world)
        assert shown.code == 0 and shown.out.count("forecast") == 2 and "items in common: shop, video" in shown.text
        (tmp_path / "empty").mkdir()
        assert "no platform file" in call("check", tmp_path / "empty").text

    def test_check_of_a_world_reads_what_can_be_read_and_names_all_that_cannot(
        self, call: Callable[..., Result], write_platform: Write
    ) -> None:
        """It ended at the first file, so that each of the others was found by a further call."""
        world = write_platform("alpha", users=20).parent
        for name in ("beta", "gamma"):
            path = write_platform(name, users=20)
            path.write_text(path.read_text().replace(f"{name}-events.csv", f"{name}-gone.csv"))
        write_platform("zeta", users=20)
        found = call("check", world)
        assert found.code == 3 and found.out.count("forecast") == 2 and "zeta: 20 users" in found.text
        assert all(word in found.err for word in ("2 platforms", "beta.toml", "beta-gone.csv", "gamma.toml", "gamma-gone.csv"))
        error = json.loads(call("check", world, "--json").out)["error"]
        assert error["exit_code"] == 3 and "gamma-gone.csv" in error["it_says"]
        (world / "gamma.toml").unlink()
        assert "the file does not exist" in call("check", world).err

    def test_check_speaks_of_small_numbers_and_of_users_who_are_far_more_than_declared(
        self, call: Callable[..., Result], write_platform: Write
    ) -> None:
        found = call("check", write_platform(users=60, declared=20, privacy="epsilon = 0.0001\ndelta = 1e-5"))
        assert "epsilon 0.0001 of the 0.0001 left" in found.text and "signal to noise at most 0.0 " not in found.text
        assert "users = 20 is declared, and 60 have interactions" in found.text
        assert found.code == 0 and "decided of all its platforms together" in found.text and "fedfuse check FOLDER" in found.text
        assert "have interactions: noise" not in call("check", write_platform("other", users=60, declared=60)).text

    def test_check_says_what_was_made_alike_and_what_events_and_times_are(
        self, call: Callable[..., Result], write_platform: Write
    ) -> None:
        keys = "[sources.more]\nkind = 'interactions'\npath = 'more.csv'\nevents = { buy = 1.0 }\n"
        rows = "user,item,event,timestamp\n1.0,i1,BUY,5\n2.0,i2,look,6\n\\\\N,i3,buy,7\n".replace("\\\\", "\\")
        path = write_platform(extra=keys, files={"more.csv": rows})
        report = json.loads(call("check", path, "--json").out)
        (more,) = (one for one in report["sources"] if one["source"] == "more")
        assert more["changed"] == {
            "user: whole numbers written with a decimal point": 2,
            "user: read as missing (`missing` says which)": 1,
        }
        assert [(one["event"], one["rows"], one["weight"]) for one in more["events"]] == [("BUY", 1, 1.0), ("look", 1, None)]
        assert more["times"] is None and report["sources"][0]["times"]["first"].startswith("2023-11")
        shown = call("check", path)
        for words in (
            "whole numbers written",
            "events of more: BUY 1 x 1; look 1 x no weight",
            "times of events: used, 2023-11-14",
        ):
            assert words in shown.text, shown.text
        for words in ("'look' (1 rows)", 'columns = { time = "timestamp" }'):
            assert words in shown.text
        assert not report["weights_differ"] and "weights differ" not in shown.text
        path.write_text(path.read_text().replace("buy = 1.0", "buy = 3.0"))
        assert "weights differ: what has one above 0 is liked" in call("check", path).text

    def test_ids_are_shown_whole_and_without_pictures(
        self, call: Callable[..., Result], write_platform: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = "catalogue-of-2024:book:" + "x" * 60
        rows = "user,item,time\n" + "".join(
            f"u{user},{item},5\n" for user in range(9) for item in (f"{long}1", f"{long}2", "urn:book:3")
        )
        path = write_platform()
        (path.parent / "shop-events.csv").write_text(rows)
        (path.parent / "shop-items.csv").write_text(
            f"item,title\n{long}1,One :heart: [red]1[/red]\n{long}2,Two\nurn:book:3,Three\n"
        )
        found = call("recommend", "--platform", path, "--like", "urn:book:3", "--top", "2")
        assert found.code == 0, found.text
        lines = found.out.splitlines()
        head = next(line for line in lines if "item" in line and "score" in line)
        columns = [line[head.index("item") : head.index("title")].strip() for line in lines]
        assert {f"{long}1", f"{long}2"} <= {"".join(columns[at : at + 3])[: len(long) + 1] for at in range(len(columns))}
        assert "One :heart: [red]1[/red]" in found.text
        assert "urn:book:3" in call("check", path).text + found.text

    @pytest.mark.parametrize(
        ("privacy", "words"),
        [
            ("epsilon = 8.0\ndelta = 0.03", "delta = 0.03 is not below 1/users = 0.025"),
            ("epsilon = 21.0\ndelta = 1e-3", "epsilon = 21 is above 20"),
        ],
    )
    def test_a_budget_that_promises_little_is_a_warning_everywhere(
        self, call: Callable[..., Result], write_platform: Write, privacy: str, words: str, tmp_path: Path
    ) -> None:
        path = write_platform(privacy=privacy)
        assert words in call("check", path).text
        report = json.loads(call("check", path, "--json").out)
        assert any(words in warning for warning in report["warnings"])
        assert words in call("evaluate", path).err
        out = tmp_path / "run"
        assert words in call("simulate", path.parent, "--out", out).text
        assert any(words in one for one in json.loads((out / "metrics.json").read_text())["warnings"]["shop"])

    def test_check_fails_where_the_planned_run_would_be_refused(self, call: Callable[..., Result], write_platform: Write) -> None:
        path = write_platform(extra="[federation]\npreferences = false\n")
        found = call("check", path, "--json")
        assert found.code == 4 and json.loads(found.out)["forecast"]["possible"] is False
        assert "would be refused" in call("check", path).text

    @pytest.mark.parametrize(
        ("planned", "little"),
        [("strategy = 'preferences'\n", 0.002), ("rounds = 3\nprivacy.noise = 'distributed'\n", 3.0)],
    )
    def test_check_of_a_world_fails_where_its_run_would_be_refused(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path, planned: str, little: float
    ) -> None:
        """That all platforms together would release noise was a warning of each, and the exit code 0."""
        tiny = "training.sample_rate = 0.5\nmodel.rank = 1\nmodel.layers = 1\n"
        (tmp_path / "settings.toml").write_text(planned + tiny)
        found = []
        for number, epsilon in enumerate((little, 50.0)):
            privacy = f"epsilon = {epsilon}\ndelta = 1e-5"
            world = write_platform(folder=tmp_path / f"world{number}", users=30, privacy=privacy).parent
            path = write_platform("video", folder=world, users=20, seed=2, privacy=privacy)
            checked = call("check", world, "--config", tmp_path / "settings.toml")
            run = call("simulate", world, "--config", tmp_path / "settings.toml", "--out", tmp_path / f"run{number}")
            assert checked.code == run.code
            found.append(checked.code)
            as_json = json.loads(call("check", world, "--config", tmp_path / "settings.toml", "--json").out)
            assert (as_json["refused"] or "") in run.text and bool(as_json["refused"]) == (run.code != 0)
            assert (" would be noise: " in run.text) == (run.code != 0)
            assert "decided of all its platforms together" not in checked.text
            # One of its platforms alone decides nothing.
            assert call("check", path, "--config", tmp_path / "settings.toml").code == 0
        assert found == [4, 0]

    def test_check_says_who_is_probably_a_remark(self, call: Callable[..., Result], write_platform: Write) -> None:
        path = write_platform()
        with (path.parent / "shop-events.csv").open("a") as events:
            events.write("# half of them,i1,1700000000\n")
        assert "'# half of them': if that is a remark of the export" in call("check", path).text

    def test_check_fails_where_a_deployed_platforms_own_terms_refuse(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path
    ) -> None:
        key = ed25519_line(make_ed25519(tmp_path / "key").public_key())
        path = write_platform(extra=f'[federation]\ncoordinator = "{key}"\nminimum_participants = 3\n')
        found = call("check", path)
        assert found.code == 0 and "a run with default settings would be refused" in found.text
        for platforms, code in ((2, 4), (3, 0)):
            (tmp_path / "run.toml").write_text(f'strategy = "preferences"\n[server]\nminimum_platforms = {platforms}\n')
            found = call("check", path, "--config", tmp_path / "run.toml")
            assert found.code == code and ("minimum_participants" in found.text) == (code == 4)
            assert "default settings" not in found.text

    def test_settings_say_what_each_may_be(self, call: Callable[..., Result]) -> None:
        found = json.loads(call("settings", "--json").out)
        assert found["rounds"] == {"default": 10, "allowed": "whole number, 0 to 10,000", "for": found["rounds"]["for"]}
        assert found["training.objective"]["allowed"] == '"softmax" or "click"' and all(one["for"] for one in found.values())
        shown = call("settings").out
        assert "may be" in shown and "true or false" in shown and "False" not in shown

    def test_strategies(self, call: Callable[..., Result]) -> None:
        assert {card["name"] for card in json.loads(call("strategies", "--json").out)} >= {"fedavg", "ffa"}
        assert "trusts" in call("strategies").text

    def test_world_new(self, call: Callable[..., Result], tmp_path: Path) -> None:
        assert call("world", "new", tmp_path / "w", "--scale", "0.1").code == 0
        assert {path.name for path in (tmp_path / "w").glob("*.toml")} == {"shop.toml", "corner.toml", "video.toml", "news.toml"}

    def test_one_platform_and_a_user_without_history_are_fine(
        self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path
    ) -> None:
        extra = '[sources.people]\nkind = "profiles"\npath = "p.csv"\ntext = ["job"]\n'
        path = write_platform(extra=extra, files={"p.csv": "user,job\nu1,cook\nnobody,film\n"})
        assert call("simulate", path.parent, "--out", tmp_path / "run", *tiny).code == 0


class TestTheDoor:
    def test_bare_it_teaches(self, call: Callable[..., Result]) -> None:
        for words in ((), ("world",)):
            result = call(*words)
            assert "Usage" in result.out and "error:" not in result.text

    def test_short_help_and_version(self, call: Callable[..., Result]) -> None:
        assert "--resume" in call("simulate", "-h").out
        assert call("--version").out.strip() == f"fedfuse {VERSION}"
        assert "Exit codes" in call("-h").out

    def test_help_fills_the_terminals_lines(self, call: Callable[..., Result]) -> None:
        """Each line of a docstring was one, and a narrower terminal put a few words of it on the next."""
        text = call("check", "--help").out
        begin = text.index("Of a world, every platform's")
        lines = [line.strip() for line in text[begin:].partition("\u256d")[0].splitlines() if line.strip()]
        widest = max(map(len, lines))
        assert widest > 170  # of 200 columns
        # The first word of a line did not fit on the one before.
        for line, following in itertools.pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) >= widest, line
        examples = call("recommend", "--help").out
        assert " fedfuse recommend --platform shop.toml --like 978-0306406157" in examples

    def test_a_misspelt_command_is_answered_once(self, call: Callable[..., Result]) -> None:
        result = call("simulat")
        refused(result, "'simulate'")
        assert result.err.count("Did you mean") == 1

    def test_an_option_is_answered_with_one_that_is_like_it_or_with_none(self, call: Callable[..., Result]) -> None:
        assert "Did you mean '--rounds'?" in call("simulate", "--round").err
        refused(call("simulate", "--no-alone"), "No such option '--no-alone'.")
        assert "Did you mean" not in call("simulate", "--no-alone").err

    def test_words_in_brackets_are_shown(self, call: Callable[..., Result]) -> None:
        refused(call("check", "x[settings]:book:y.toml"), "x[settings]:book:y.toml")

    def test_an_error_is_json_for_machines(self, call: Callable[..., Result]) -> None:
        result = call("check", "nowhere.toml", "--json")
        error = json.loads(result.out)["error"]
        assert error["exit_code"] == result.code == 3 and "nowhere.toml" in error["where"] and error["do"]
        assert json.loads(call("simulate", "--json", "--rounds", "many").out)["error"]["exit_code"] == 2

    def test_the_setting_that_was_meant_is_named(self, call: Callable[..., Result]) -> None:
        refused(call("simulate", "--set", "training.lr=1"), "did you mean training.learning_rate?")


class TestBadInput:
    def edit(self, path: Path, old: str, new: str) -> Path:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('path = "shop-events.csv"', 'path = "gone.csv"', ["gone.csv"]),
            ('path = "shop-events.csv"', 'path = "shop-events.csv"\ncolumns = { user = "nobody" }', ["nobody", "user"]),
            ('name = "shop"', 'name = "shop', ["TOML", "shop.toml"]),
            ("users = 40", "users = 40\ncolour = 3", ["colour"]),
            ("users = 40", "users = 0", ["users"]),
            ("epsilon = 50.0", "epsilon = -1.0", ["epsilon"]),
            ("epsilon = 50.0", "epsilon = 0.0", ["epsilon"]),
            ('kind = "interactions"', 'kind = "interaction"', ["interaction"]),
            ('path = "shop-events.csv"', 'path = "${NO_SUCH_VARIABLE}/x.csv"', ["NO_SUCH_VARIABLE"]),
        ],
    )
    def test_platform_files(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path, old: str, new: str, words: list[str]
    ) -> None:
        path = self.edit(write_platform(), old, new)
        refused(call("check", path), *words)
        refused(call("simulate", path.parent, "--out", tmp_path / "run"), *words)

    def test_a_catalogue_of_users_rows_is_warned_of(self, call: Callable[..., Result], write_platform: Write) -> None:
        path = write_platform()
        path.write_text(path.read_text().replace("epsilon = 50.0", "epsilon = 20.0"))
        assert json.loads(call("check", path, "--json").out)["warnings"] == []
        path.write_text(path.read_text().split("[sources.items]")[0])
        (warning,) = json.loads(call("check", path, "--json").out)["warnings"]
        assert "users' rows" in warning and "[catalogue] path" in warning
        shown = " ".join(call("check", path).out.split())
        assert "warning:" in shown and "[catalogue] path" in shown

    @pytest.mark.parametrize(
        ("content", "words"),
        [("", ["shop-events.csv"]), ("user,item,time\n", ["events"]), ("user,item,time\n,i1,1\n,i2,2\n", ["events"])],
    )
    def test_sources_that_give_nothing(
        self, call: Callable[..., Result], write_platform: Write, content: str, words: list[str]
    ) -> None:
        path = write_platform()
        (path.parent / "shop-events.csv").write_text(content)
        refused(call("check", path), *words)

    def test_one_item(self, call: Callable[..., Result], write_platform: Write, tmp_path: Path) -> None:
        path = write_platform()
        (path.parent / "shop-items.csv").write_text("item,title\ni1,jazz\n")
        refused(call("simulate", path.parent, "--out", tmp_path / "run"), "item", "two")

    def test_nobody_likes_anything(self, call: Callable[..., Result], write_platform: Write) -> None:
        path = self.edit(
            write_platform(),
            'path = "shop-events.csv"',
            'path = "shop-events.csv"\ncolumns = { value = "time" }\nthreshold = 1e12',
        )
        refused(call("check", path), "positive", "threshold")

    def test_duplicate_platform_names(self, call: Callable[..., Result], write_platform: Write, tmp_path: Path) -> None:
        path = write_platform()
        (path.parent / "copy.toml").write_text(path.read_text())
        refused(call("simulate", path.parent, "--out", tmp_path / "run"), "shop", "copy.toml")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--rounds", "0"], ["rounds"]),
            (["--rounds", "many"], ["rounds"]),
            (["--epsilon", "0"], ["epsilon"]),
            (["--epsilon", "-3"], ["epsilon"]),
            (["--epsilon", "nan"], ["epsilon"]),
            (["--epsilon", "lots"], ["epsilon"]),
            (["--backbone", "./nowhere"], ["backbone", "nowhere"]),
            (["--strategy", "magic"], ["magic", "fedavg"]),
            (["--engine", "steam"], ["steam", "process", "ray"]),
            (["--noise", "loud"], ["loud", "local", "distributed"]),
            (["--set", "training.speed=9"], ["training.speed"]),
            (["--set", "nonsense"], ["nonsense"]),
            (["--config", "/no/such/file.toml"], ["/no/such/file.toml"]),
            (["--resume", "nowhere"], ["no run to resume"]),
            (["--nonsense"], ["nonsense"]),
        ],
    )
    def test_options(
        self,
        call: Callable[..., Result],
        write_platform: Write,
        options: list[str],
        words: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(call("simulate", write_platform().parent, *options), *words)

    def test_rays_engine_without_ray(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`pip install fedfuse` does not bring it; it is said before anything is read or written."""
        monkeypatch.setattr("simulations.commands.find_spec", lambda name: None)
        words = ("simulate", write_platform().parent, "--out", tmp_path / "run", "--engine", "ray")
        refused(call(*words), "Ray is not installed", "fedfuse[simulation]")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("world", ["nowhere", "."])
    def test_no_world(self, call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: str) -> None:
        monkeypatch.chdir(tmp_path)
        refused(call("simulate", world), "platform file")

    def test_corrupt_backbone(self, call: Callable[..., Result], write_platform: Write, tiny_bert: str, tmp_path: Path) -> None:
        broken = tmp_path / "bert"
        broken.mkdir()
        for path in Path(tiny_bert).iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        (broken / "model.safetensors").write_bytes(b"not a model")
        refused(
            call("simulate", write_platform().parent, "--out", tmp_path / "run", "--backbone", broken, "--rounds", "1"),
            "backbone",
        )

    def test_disk_full(
        self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import errno

        from shared.base import atomic_files as durable

        world, out = write_platform().parent, tmp_path / "run"
        real, calls = durable.os.fsync, []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 12:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(durable.os, "fsync", full)
            refused(call("simulate", world, "--out", out, *tiny), "No space left")
        # Nothing already written is damaged: with space again, the run goes on.
        again = call("simulate", "--resume", out)
        assert again.code == 0, again.text
        assert call("audit", out).code == 0

    def test_budget_too_small(self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path) -> None:
        options = [word if word != "50" else "0.2" for word in tiny]
        refused(call("simulate", write_platform().parent, "--out", tmp_path / "run", *options), "epsilon")

    def test_audit_pull_and_recommend_of_nothing(
        self, call: Callable[..., Result], write_platform: Write, tmp_path: Path
    ) -> None:
        for place in (tmp_path / "nowhere", tmp_path):
            found = call("audit", place)
            assert (found.code, "cannot tell" in found.text) == (2, True) and "Traceback" not in found.text
        refused(call("pull", tmp_path, "--unsigned", "--out", tmp_path / "m"), "manifest")
        refused(call("pull", tmp_path, "--out", tmp_path / "m"), "--trust", "--unsigned")
        refused(call("recommend", "--model", tmp_path, "--platform", write_platform(), "--user", "u1"), "model")

    def test_unknown_user(self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path) -> None:
        path = write_platform()
        call("simulate", path.parent, "--out", tmp_path / "run", *tiny)
        found = call("recommend", "--model", tmp_path / "run" / "model", "--platform", path, "--user", "ghost", "--json")
        assert found.code == 0 and "ghost" in found.text and len(json.loads(found.out)) > 0

    def test_control_c(
        self, call: Callable[..., Result], write_platform: Write, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from client.privacy.mechanism import Mechanism

        world, out = write_platform().parent, tmp_path / "run"

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Mechanism, "privatise", interrupt)
            result = call("simulate", world, "--out", out, *tiny)
        refused(result, "--resume")
        assert result.code == 130
        refused(call("simulate", "--resume", out, "--rounds", "7"), "rounds: 1 -> 7")
        refused(call("simulate", "--resume", out, "--out", tmp_path / "other"), "--out")
        again = call("simulate", "--resume", out)
        assert again.code == 0, again.text
        audited = json.loads(call("audit", out, "--json").out)
        assert audited["ok"]
