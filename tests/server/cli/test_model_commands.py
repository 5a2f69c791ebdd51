"""`fedfuse publish`, `models`, `pull`, `settings` and `strategies`: every word and number that they print, and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment.folder import CoordinatorFolder
from server.operators.acting import log_of
from server.operators.rights import Verb
from server.registry.pull import pull_model
from server.registry.registry import Registry
from server.registry.store import open_store
from shared.base.allowed_values import allowed_words
from shared.base.settings import Settings, flatten, setting_fields
from shared.registry.signing import Signer
from strategies.composition import strategy_cards, under_secure_sum
from strategies.strategy_card import Role
from tests.server.conftest import tally_of
from tests.support.called_command import called
from tests.support.printed import tidy

MakeRun = Callable[..., Path]
Keys = Callable[[str], tuple[Signer, Path]]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def publish(keys: Keys, registry: Path) -> Callable[..., Any]:
    """Calls the command with the private key of that name."""

    def call(run: Path, *words: object, by: str = "coordinator") -> Any:
        return called("publish", run, registry, "--key", keys(by)[1].with_suffix(".key"), *words)

    return call


class TestPublishing:
    def test_in_words(self, publish: Callable[..., Any], make_run: MakeRun, keys: Keys, registry: Path) -> None:
        signer, _ = keys("coordinator")
        done = publish(make_run("spring"))
        assert done.returncode == 0, done.stderr
        (manifest,) = Registry(open_store(str(registry)), [signer.public]).versions()
        size = f"{manifest.size / 1024:,.0f} KiB"
        assert done.stdout == f"version 1 (spring) is published: {size}, signed by {signer.public.fingerprint[:16]}\n"
        again = json.loads(publish(make_run("summer", seed=2), "--name", "warm", "--json").stdout)
        newest, _ = Registry(open_store(str(registry)), [signer.public]).versions()
        assert again == {"version": 2, "name": "warm", "sha256": newest.sha256}

    def test_a_key_that_changes(self, publish: Callable[..., Any], make_run: MakeRun, keys: Keys) -> None:
        """Whoever signed before is named, or the versions before are nobody's."""
        assert publish(make_run("spring")).returncode == 0
        run = make_run("summer", seed=2)
        assert publish(run, by="successor").returncode != 0
        assert publish(run, "--trust", keys("coordinator")[1], by="successor").returncode == 0

    def test_a_run_of_anybody_s_own_is_in_no_log_and_has_no_note(self, publish: Callable[..., Any], make_run: MakeRun) -> None:
        run = make_run("spring")
        assert publish(run).returncode == 0 and not (run / "published.json").exists()

    @pytest.mark.parametrize("place", ["run", "model", "key"])
    def test_what_is_a_coordinator_s_is_in_its_log(
        self, coordinator: CoordinatorFolder, make_run: MakeRun, publish: Callable[..., Any], registry: Path, place: str
    ) -> None:
        run = make_run("spring")
        if place == "key":
            done = called("publish", run, registry, "--key", coordinator.model_key, "--name", "warm")
        else:
            coordinator.run("spring").parent.mkdir()
            run = Path(shutil.move(run, coordinator.run("spring")))
            done = publish(run / "model" if place == "model" else run, "--name", "warm")
        assert done.returncode == 0, done.stderr
        last = log_of(coordinator).actions[-1]
        assert (last.verb, last.of, dict(last.details)) == (Verb.PUBLISH, "spring", {"registry": str(registry), "name": "warm"})
        assert json.loads((run / "published.json").read_text())["version"] == 1


class TestTheList:
    def test_of_nothing(self, registry: Path) -> None:
        assert called("models", registry).stdout == f"no model is published in {registry}\n"
        assert json.loads(called("models", registry, "--json").stdout) == {"checked": False, "versions": []}

    def test_the_newest_is_first(self, publish: Callable[..., Any], make_run: MakeRun, keys: Keys, registry: Path) -> None:
        signer, public = keys("coordinator")
        at_bound = {name: tally_of(name) for name in ("a" * 19, "b" * 19)}
        beyond = {name: tally_of(name) for name in ("a" * 20, "b" * 19)}
        publish(make_run("spring", tallies=at_bound))
        publish(make_run("summer", seed=2, tallies=beyond))
        second, first = Registry(open_store(str(registry)), [signer.public]).versions()
        rows = [
            ["2", "summer", second.origin.created, "fedavg", "10", "2 platforms", f"{second.size / 1024:,.0f}"],
            ["1", "spring", first.origin.created, "fedavg", "10", ", ".join(at_bound), f"{first.size / 1024:,.0f}"],
        ]
        for words, title in (
            (["--trust", public], "models"),
            ([], "models (no signature was looked at: name a key with --trust)"),
        ):
            shown = tidy(called("models", registry, *words).stdout).splitlines()
            assert shown[0].strip() == title
            assert [line.split() for line in shown[1:]] == [
                ["version", "name", "trained", "strategy", "rounds", "platforms", "KiB", "signed", "by"],
                *([*" ".join(row).split(), signer.public.fingerprint[:16]] for row in rows),
            ]
            # Numbers end where their heads end, words begin where theirs begin.
            for head, cells in (("version", ["2", "1"]), ("rounds", ["10", "10"]), ("KiB", [rows[0][6], rows[1][6]])):
                end = shown[1].index(head) + len(head)
                assert [line[:end].split()[-1] for line in shown[2:]] == cells
            for head, cells in (("name", ["summer", "spring"]), ("platforms", ["2 platforms", rows[1][5]])):
                begin = shown[1].index(head)
                assert all(line[begin:].startswith(cell) for line, cell in zip(shown[2:], cells, strict=True))
        for words, checked in (([], False), (["--trust", public], True)):
            assert json.loads(called("models", registry, "--json", *words).stdout) == {
                "checked": checked,
                "versions": [
                    {
                        "version": one.version,
                        "sha256": one.sha256,
                        "signer": signer.public.fingerprint,
                        "bytes": one.size,
                        **one.origin.model_dump(mode="json"),
                    }
                    for one in (second, first)
                ],
            }
        assert called("models", registry, "--trust", keys("stranger")[1]).returncode != 0


class TestPulling:
    def test_in_words(self, publish: Callable[..., Any], make_run: MakeRun, keys: Keys, registry: Path, tmp_path: Path) -> None:
        signer, public = keys("coordinator")
        publish(make_run("spring"))
        (manifest,) = Registry(open_store(str(registry)), [signer.public]).versions()
        out = tmp_path / "model"
        size = f"{len(manifest.files)} files, {manifest.size / 1024:,.0f} KiB, every hash right"
        signed = f"signed by {signer.public.fingerprint[:16]}"
        for words, said in (
            (["--trust", public], f"{size}, {signed}: {out}"),
            (["--trust", public], f"{size}, {signed}; it was here already: {out}"),
            (["--unsigned"], f"{size}, no signature was looked at; it was here already: {out}"),
        ):
            done = called("pull", registry, "--out", out, *words)
            assert done.returncode == 0 and done.stdout == f"version 1 (spring): {said}\n", done.stderr

    def test_a_run_s_own_copy(self, make_run: MakeRun, tmp_path: Path) -> None:
        done = called("pull", make_run("spring"), "--unsigned", "--out", tmp_path / "model")
        assert done.returncode == 0 and done.stdout.startswith("the model of run spring: ")

    def test_of_several_versions_one(
        self, publish: Callable[..., Any], make_run: MakeRun, registry: Path, tmp_path: Path
    ) -> None:
        for number, name in enumerate(("spring", "summer")):
            publish(make_run(name, seed=number))
        for number, (words, title) in enumerate(
            (([], "2 (summer)"), (["--model", "1"], "1 (spring)"), (["--model", "spring"], "1 "))
        ):
            done = called("pull", registry, "--unsigned", "--out", tmp_path / f"m{number}", *words)
            assert done.stdout.startswith(f"version {title}"), done.stderr

    def test_as_json(self, publish: Callable[..., Any], make_run: MakeRun, keys: Keys, registry: Path, tmp_path: Path) -> None:
        publish(make_run("spring", simulation=True), "--as-simulation")
        signer, public = keys("coordinator")
        words = ["pull", registry, "--trust", public, "--out", tmp_path / "model"]
        values = json.loads(called(*words, "--json").stdout)
        pulled = pull_model(str(registry), tmp_path / "other", trusted=[signer.public])
        assert values == {
            "folder": str(tmp_path / "model"),
            "version": 1,
            "name": "spring",
            "signer": signer.public.fingerprint,
            "fresh": True,
            "backbone_here": True,
            "unpromised": list(pulled.unpromised),
            "files": {one.name: one.sha256 for one in pulled.manifest.files},
        }
        assert pulled.unpromised
        again = json.loads(called(*words, "--json").stdout)
        assert again == {**values, "fresh": False}
        shown = called(*words).stdout.splitlines()
        assert shown[1:] == [f"NOTHING IS PROMISED to the users behind it: {why}" for why in pulled.unpromised]

    def test_without_the_backbone_it_is_said(
        self, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: str
    ) -> None:
        run = make_run("spring")
        monkeypatch.setattr("server.registry.pull._backbone_here", lambda *_: False)
        out = tmp_path / "model"
        shown = called("pull", run, "--unsigned", "--out", out).stdout.splitlines()
        assert shown[1:] == [f"its backbone {tiny_bert!r} could not be checked here: get it, its weights' SHA-256 is in {out}"]
        assert json.loads(called("pull", run, "--unsigned", "--out", out, "--json").stdout)["backbone_here"] is False


class TestReferences:
    def test_settings(self) -> None:
        fields, defaults = setting_fields(), flatten(Settings())
        listed = json.loads(called("settings", "--json").stdout)
        assert list(listed) == list(fields)
        for key, field in fields.items():
            allowed = allowed_words(field).replace("`", "")
            assert listed[key] == {"default": defaults[key], "allowed": allowed, "for": field.description or ""}
        shown = tidy(called("settings").stdout)
        assert shown.splitlines()[0].split() == ["setting", "default", "may", "be", "for"]
        rows = [line for line in shown.splitlines()[1:] if line[:2].strip()]  # the others go on with a text
        lines = {line.split()[0]: line for line in rows}
        assert list(lines) == list(fields)  # each whole, on a line of its own
        for key, default in (
            ("rounds", str(defaults["rounds"])),
            ("simulation", "false"),
            ("privacy.epsilon", "(each platform's"),
        ):
            assert lines[key].split()[1:][: len(default.split())] == default.split()

    def test_strategies(self) -> None:
        cards = strategy_cards()
        assert json.loads(called("strategies", "--json").stdout) == [
            {
                "name": card.name,
                "role": card.role.value,
                "when": card.when,
                "trusts": card.trusts,
                "sends": card.sends,
                "secure_sum": under_secure_sum(card),
            }
            for card in cards
        ]
        shown = tidy(called("strategies").stdout).splitlines()
        assert shown[-1].startswith("Join one of each kind with '+'")
        heads = [at for at, line in enumerate(shown) if line.split() == ["name", "use", "it", "for", "secure", "sum"]]
        assert len(heads) == len(set(Role) & {card.role for card in cards})
        titles = [shown[at - 1].strip() for at in heads]
        assert titles[0] == "without training" and titles[-1] == "after the last round" and len(set(titles)) == len(titles)
        names = [
            line.split()[0] for line in shown if line.split()[0] in {card.name for card in cards} and line.endswith(("yes", "no"))
        ]
        by_role = [card.name for role in (Role.UNTRAINED, Role.UPDATES, Role.COMBINING, Role.OPTIMIZER, Role.AFTERWARDS)
                   for card in cards if card.role is role]  # fmt: skip
        assert [name for name in names if name in by_role] == [name for name in by_role if name in names]
        for card in cards:
            (line,) = [line for line in shown if line.split()[0] == card.name and card.text[:20] in line]
            assert line.split()[-1] == ("yes" if under_secure_sum(card) else "no"), line
