"""A platform's terms: a run that asks for more than they allow is refused by the worker, whatever the server says."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.config.platform_file import load
from client.worker.request_handler import Worker
from shared.base.errors import InputError, ProtocolError
from shared.base.settings import Settings, settings_digest
from shared.ledger.reading import read_ledger
from shared.protocol.messages import Answer, Join, Joined, Quote, Quoted, Reason, Refusal
from shared.protocol.run_authorization import MAX_TEXT, Warrant, federation_of, parse_warrant
from tests.support.identities import with_identity

Write = Callable[..., Path]
Make = Callable[..., Settings]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " coordinator"


def warrant_of(key: Ed25519PrivateKey, settings: Settings, *, run: str = "run-1", seconds: float = 60.0, **over: Any) -> str:
    made = Warrant(
        federation=federation_of(key.public_key().public_bytes_raw()),
        run=run,
        settings=settings_digest(settings),
        expires=int(time.time() + seconds),
    )
    return replace(made.signed(key), **over).text()


class Bench:
    """A deployed worker on small files."""

    def __init__(self, path: Path, root: Path) -> None:
        self.ledger = root / "ledger.jsonl"
        self.worker = Worker(load(path), state=with_identity(root / "state"), ledger=self.ledger, device=torch.device("cpu"))

    def join(self, settings: Settings, warrant: str = "", run: str = "run-1") -> Answer:
        return self.worker.handle(Join(run=run, settings=settings), warrant)


@pytest.fixture
def bench(write_platform: Write, tiny_bert: str, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(federation: str = "", **over: Any) -> Bench:
        table = f"[federation]\nbackbones = [{json.dumps(tiny_bert)}]\nanswer_step = 0.01\n{federation}\n"
        privacy = over.pop("privacy", "epsilon = 20.0\ndelta = 1e-3")
        path = write_platform(f"shop{len(made)}", privacy=privacy, extra=table, **over)
        made.append(Bench(path, tmp_path / f"state-{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.worker.close()


@pytest.fixture
def deployed(tiny_settings: Make) -> Callable[..., Settings]:
    def make(**over: Any) -> Settings:
        privacy = {"generator": "secure", "epsilon": None, **over.pop("privacy", {})}
        return tiny_settings(**{"simulation": False, "privacy": privacy, **over})

    return make


class TestWarrants:
    def test_the_coordinators_own_run_is_let_in(self, bench: Callable[..., Bench], deployed: Make) -> None:
        made = bench(f'coordinator = "{line(KEY)}"')
        assert isinstance(made.join(deployed(), warrant_of(KEY, deployed())), Joined)

    @pytest.mark.parametrize("how", ["none", "rubbish", "another key", "claimed", "another run", "settings", "expired", "forged"])
    def test_nobody_else_is(self, bench: Callable[..., Bench], deployed: Make, how: str) -> None:
        made, settings = bench(f'coordinator = "{line(KEY)}"'), deployed()
        federation = federation_of(KEY.public_key().public_bytes_raw())
        warrant = {
            "none": "",
            "rubbish": "{]",
            "another key": warrant_of(OTHER, settings),
            "claimed": warrant_of(OTHER, settings, federation=federation),  # another coordinator with this federation's id
            "another run": warrant_of(KEY, settings, run="run-2"),
            "settings": warrant_of(KEY, deployed(rounds=1)),
            "expired": warrant_of(KEY, settings, seconds=-5.0),
            "forged": warrant_of(KEY, settings, expires=int(time.time()) + 10**6),
        }[how]
        answer = made.join(settings, warrant)
        assert isinstance(answer, Refusal) and answer.reason is Reason.WARRANT
        assert not made.ledger.exists()  # nothing was read, nothing charged
        assert made.worker._platform is None

    @pytest.mark.parametrize(
        "text", ["", "null", "[]", "{}", '{"federation": 1}', "x" * (MAX_TEXT + 1), "[" * 2000, '{"signature": "%%"}']
    )
    def test_texts_that_are_no_warrant(self, text: str) -> None:
        with pytest.raises(ProtocolError):
            parse_warrant(text)

    def test_a_warrant_is_one_line_without_a_secret(self, deployed: Make) -> None:
        text = warrant_of(KEY, deployed())
        assert "\n" not in text and text.isascii() and len(text) < MAX_TEXT
        assert KEY.private_bytes_raw().hex() not in text
        assert base64.b64encode(KEY.private_bytes_raw()).decode() not in text
        assert parse_warrant(text).text() == text


TERMS = [
    ("maximum_rounds = 1", {"rounds": 2}, {"rounds": 1}),
    ('strategies = ["fedavg"]', {"strategy": "ffa"}, {"strategy": "fedavg"}),
    ("minimum_participants = 3", {"server": {"minimum_platforms": 2}}, {"server": {"minimum_platforms": 3}}),
    (
        "minimum_noise_multiplier = 4.0",
        {"privacy": {"generator": "secure", "epsilon": None, "prior_noise_multiplier": 3.0}},
        {"privacy": {"generator": "secure", "epsilon": None, "prior_noise_multiplier": 4.0}},
    ),
    (
        "minimum_noise_multiplier = 5.0",
        {"privacy": {"generator": "secure", "epsilon": None, "prior_noise_multiplier": 9.0, "metrics_noise_multiplier": 4.9}},
        {"privacy": {"generator": "secure", "epsilon": None, "prior_noise_multiplier": 9.0, "metrics_noise_multiplier": 5.0}},
    ),
]


@pytest.mark.parametrize(("term", "asks", "agrees"), TERMS, ids=[term[0].split()[0] for term in TERMS])
def test_less_privacy_than_the_file_allows_is_refused(
    bench: Callable[..., Bench], deployed: Make, term: str, asks: dict[str, Any], agrees: dict[str, Any]
) -> None:
    made = bench(term)
    answer = made.join(deployed(**asks))
    assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
    assert term.split()[0] in str(made.worker.failure)
    assert not made.ledger.exists()
    made.worker._file.federation.require_settings(deployed(**agrees), users=40)


def test_a_backbone_that_is_not_named_is_never_loaded(
    bench: Callable[..., Bench], deployed: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator must not make a platform open folders or download models of its choice."""
    monkeypatch.setattr("client.model.prepared_platform.load_backbone", lambda *_: pytest.fail("loaded"))
    made = bench()
    for backbone in ("minilm", "/etc", "somebody/model"):
        answer = made.join(deployed(model={"backbone": backbone}))
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS


def test_a_plan_with_too_little_noise_is_refused(bench: Callable[..., Bench], deployed: Make) -> None:
    settings = deployed(
        privacy={"generator": "secure", "epsilon": None, "prior_noise_multiplier": 99.0, "metrics_noise_multiplier": 99.0}
    )
    made = bench("minimum_noise_multiplier = 90.0")
    answer = made.join(settings)
    assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
    assert "noise multiplier of" in str(made.worker.failure)
    assert read_ledger(made.ledger).entries == ()


def test_one_run_may_not_take_the_whole_budget(bench: Callable[..., Bench], deployed: Make) -> None:
    free, held = bench(), bench("maximum_epsilon_per_run = 8.0")
    loose, tight = free.join(deployed()), held.join(deployed())
    assert isinstance(loose, Joined) and isinstance(tight, Joined)
    assert tight.noise_multiplier > loose.noise_multiplier
    assert tight.planned_epsilon <= 8.0 < loose.planned_epsilon <= 20.0
    assert (tight.budget, loose.budget) == (20.0, 20.0)
    # A second run adds up with the first, and the budget of both still holds.
    second = held.join(deployed(), run="run-2")
    assert isinstance(second, Joined)
    assert tight.planned_epsilon < second.planned_epsilon <= 20.0


class TestQuotes:
    """What a run would cost: as the plan that joining makes, and nothing is written."""

    def quote(self, made: Bench, settings: Settings, run: str = "run-1") -> Answer:
        return made.worker.handle(Quote(run=run, settings=settings))

    @pytest.mark.parametrize("strategy", ["fedavg", "preferences", "secure-sum", "ffa+personalise"])
    def test_it_is_what_joining_plans(self, bench: Callable[..., Bench], deployed: Make, strategy: str) -> None:
        over = {"rounds": 0, "preferences": {"items": 8}} if strategy == "preferences" else {}
        privacy = {"share": 0.5, "noise": "local" if "+" in strategy or strategy == "fedavg" else "distributed"}
        settings = deployed(strategy=strategy, privacy=privacy, **over)
        made = bench(declared=400)
        said = self.quote(made, settings)
        assert isinstance(said, Quoted), made.worker.failure
        assert not made.ledger.exists() and not list((made.ledger.parent / "state-0").glob("runs/*"))
        joined = made.join(settings)
        assert isinstance(joined, Joined), made.worker.failure
        assert (said.noise_multiplier, said.preference_noise) == (joined.noise_multiplier, joined.preference_noise)
        assert said.users == joined.users and said.left == 20.0
        if "+" in strategy:  # what the rounds leave is personalising's
            assert joined.planned_epsilon < said.epsilon == 10.0
        else:
            assert said.epsilon == joined.planned_epsilon and 9.0 < said.epsilon <= 10.0
        assert said.left_after == pytest.approx(20.0 - said.epsilon)
        assert bool(said.trust) == settings.distributed

    def test_what_other_runs_have_spent_is_gone(self, bench: Callable[..., Bench], deployed: Make) -> None:
        settings = deployed(privacy={"share": 0.25})
        made = bench(declared=400)
        assert isinstance(made.join(settings), Joined)  # its popularity is charged
        spent = read_ledger(made.ledger).epsilon
        before = made.ledger.read_bytes()
        said = self.quote(made, settings, run="run-2")
        assert isinstance(said, Quoted), made.worker.failure
        assert said.left == pytest.approx(20.0 - spent) and said.epsilon <= said.left / 4 < 5.0
        assert made.ledger.read_bytes() == before

    def test_a_budget_that_is_not_shown(self, bench: Callable[..., Bench], deployed: Make) -> None:
        said = self.quote(bench("show_budget = false", declared=400), deployed())
        assert isinstance(said, Quoted) and not said.shown and said.left == said.left_after == 0.0 < said.epsilon

    def test_what_would_be_refused_is_refused(self, bench: Callable[..., Bench], deployed: Make) -> None:
        made = bench("maximum_rounds = 1")
        answer = self.quote(made, deployed())
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
        answer = self.quote(bench(), deployed(privacy={"epsilon": 0.01}))
        assert isinstance(answer, Refusal) and answer.reason is Reason.BUDGET
        answer = self.quote(bench(), deployed(privacy={"epsilon": "inf"}))
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
        warranted = bench(f'coordinator = "{line(KEY)}"')
        answer = self.quote(warranted, deployed())
        assert isinstance(answer, Refusal) and answer.reason is Reason.WARRANT


def test_a_budget_need_not_be_shown(bench: Callable[..., Bench], deployed: Make) -> None:
    answer = bench("show_budget = false\nmaximum_epsilon_per_run = 8.0").join(deployed())
    assert isinstance(answer, Joined)
    assert answer.budget == answer.planned_epsilon < 20.0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('coordinator = "ssh-rsa AAAA"', "OpenSSH"),
        ('coordinator = "secret"', "OpenSSH"),
        ("maximum_rounds = 0", "maximum_rounds"),
        ("minimum_noise_multiplier = -1.0", "minimum_noise_multiplier"),
        ("strategies = []", "strategies"),
        ('[federation.identities]\nvideo = "AAAA"', "32 bytes"),
        ('[federation.identities]\n"../x" = "AAAA"', "identities"),
        ("colour = 3", "unknown key 'colour'"),
    ],
)
def test_mistakes_in_the_table_are_named(write_platform: Write, table: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write_platform(extra=f"[federation]\n{table}\n"))


def test_a_simulation_has_no_coordinator_to_distrust(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    path = write_platform(extra=f'[federation]\ncoordinator = "{line(KEY)}"\nmaximum_rounds = 1\n')
    worker = Worker(load(path), state=tmp_path / "s", ledger=tmp_path / "l.jsonl", simulation=True, device=torch.device("cpu"))
    assert isinstance(worker.handle(Join(run="r", settings=tiny_settings())), Joined)
    worker.close()


def test_nor_for_a_taste_map() -> None:
    from client.config.participation_policy import ParticipationPolicy
    from shared.base.errors import PrivacyError
    from shared.base.settings import build

    alone = {"strategy": "preferences", "model": {"backbone": "somebody/model"}}
    policy = ParticipationPolicy()
    policy.require_settings(build(alone, where="test"), users=40)
    with pytest.raises(PrivacyError, match="somebody/model"):
        policy.require_settings(build({**alone, "preferences": {"items": 0, "map": 8}}, where="test"), users=40)
