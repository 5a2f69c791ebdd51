"""A dry run at the coordinator: every platform's answer, who could be in one secure sum, and whether the run would begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.app import app
from client.messenger import worker_link as link
from server.run.quotes import DryRun, QuoteLine, ask_quotes, read_dry_run
from shared.base.errors import FedfuseError
from shared.base.settings import Settings
from shared.protocol.messages import Answer, Quote, Quoted, Reason, Refusal, Request
from shared.secagg.codec import encode
from shared.secagg.identity import Identity
from shared.secagg.trust_statement import TrustStatement
from simulations.in_process_grid import InProcessGrid

Make = Callable[..., Settings]
NAMES = ("books", "music", "news", "series")
IDENTITIES = {name: Identity(name.encode().ljust(32)) for name in NAMES}
PUBLIC = {name: identity.public for name, identity in IDENTITIES.items()}


class Platform:
    """Quotes that it would spend 2 of 8, and knows everybody but some."""

    def __init__(self, name: str, *, strangers: tuple[str, ...] = (), instead: Any = None, **over: Any) -> None:
        self.name, self.strangers, self.instead, self.over = name, strangers, instead, over
        self.asked: list[Request] = []

    def handle(self, request: Request) -> Answer:
        self.asked.append(request)
        if isinstance(self.instead, Exception):
            raise self.instead
        if isinstance(self.instead, Reason):
            return Refusal(run=request.run, platform=self.name, round=0, reason=self.instead)
        known = {name: key for name, key in PUBLIC.items() if name not in self.strangers}
        said = TrustStatement.of(known, run=request.run, platform=self.name, identity=IDENTITIES[self.name])
        answer = Quoted(
            run=request.run, platform=self.name, users=100, epsilon=2.0, delta=1e-5, shown=True, left=8.0, left_after=6.0,
            noise_multiplier=0.5, preference_noise=0.0, taste_noise=0.0, trust=encode(said),
        )  # fmt: skip
        return replace(answer, **self.over)


@pytest.fixture
def ask(tiny_settings: Make) -> Iterator[Callable[..., DryRun]]:
    keys: list[str] = []

    def asked(*platforms: Platform, only: tuple[str, ...] = (), wanted: int | None = None, **over: Any) -> DryRun:
        nodes = {}
        for number, platform in enumerate(platforms, start=2):
            keys.append(f"quotes-{len(keys)}")
            link.register(keys[-1], link.Direct(platform))
            nodes[number] = {"link": keys[-1]}
        settings = tiny_settings(**{"strategy": "secure-sum", "reply_timeout": 10.0, **over})
        with InProcessGrid(app=app, nodes=nodes) as grid:
            return ask_quotes(
                grid=grid, settings=settings, run="dry", say=lambda *_, **__: None, nodes=wanted, wait=0.0 if wanted else 5.0,
                names=lambda: {number: one.name for number, one in enumerate(platforms, start=2)},
                identities=lambda: PUBLIC, only=only,
            )  # fmt: skip

    yield asked
    for key in keys:
        link.forget(key)


def lines(found: DryRun) -> dict[str, tuple[bool, str]]:
    return {line.platform: (line.takes_part, line.why) for line in found.platforms}


def test_everybody_is_asked_and_nothing_but_a_quote(ask: Callable[..., DryRun]) -> None:
    platforms = [Platform(name) for name in NAMES]
    found = ask(*platforms)
    assert found.begins and lines(found) == dict.fromkeys(NAMES, (True, ""))
    assert [(line.epsilon, line.left, line.left_after) for line in found.platforms] == [(2.0, 8.0, 6.0)] * 4
    assert all([type(request) for request in one.asked] == [Quote] for one in platforms)


def test_who_would_not_take_part_says_why(ask: Callable[..., DryRun]) -> None:
    found = ask(
        Platform("books", instead=Reason.BUDGET), Platform("music", instead=ConnectionError()), Platform("news", platform="books")
    )
    whys = lines(found)
    assert whys["books"] == (False, "budget (its privacy budget, or what a run may spend of it, does not carry it)")
    assert "error" in whys["music"][1] and "cannot be used" in whys["news"][1] and whys["series"] == (False, "it is not there")
    assert found.why == "0 platforms would take part, and 3 are needed"


def test_a_newcomer_is_left_out_as_the_run_would(ask: Callable[..., DryRun]) -> None:
    found = ask(*(Platform(name, strangers=("series",)) for name in NAMES[:3]), Platform("series"))
    assert found.begins and [name for name, (part, _) in lines(found).items() if part] == ["books", "music", "news"]
    assert "do not know `series`: run `fedfuse client trust`" in lines(found)["series"][1]
    # Under local noise nobody need know anybody.
    alone = ask(*(Platform(name, strangers=("series",)) for name in NAMES[:3]), Platform("series"), strategy="fedavg")
    assert alone.begins and all(part for part, _ in lines(alone).values())


def test_a_statement_is_the_platforms_own(ask: Callable[..., DryRun]) -> None:
    other = TrustStatement.of(PUBLIC, run="dry", platform="books", identity=IDENTITIES["books"])
    found = ask(*(Platform(name) for name in NAMES[:3]), Platform("series", trust=encode(other)))
    assert "states another platform's trust" in lines(found)["series"][1]


def test_only_some_are_asked(ask: Callable[..., DryRun]) -> None:
    platforms = [Platform(name) for name in NAMES]
    found = ask(*platforms, only=NAMES[:3])
    assert found.begins and set(lines(found)) == set(NAMES[:3]) and platforms[3].asked == []


def test_sums_that_would_be_noise(ask: Callable[..., DryRun]) -> None:
    found = ask(*(Platform(name, noise_multiplier=1e5) for name in NAMES))
    assert not found.begins and "would be noise" in found.why


def test_fewer_than_are_waited_for(ask: Callable[..., DryRun]) -> None:
    with pytest.raises(FedfuseError, match="1 of 2"):
        ask(Platform("books"), wanted=2)


def test_it_is_written_down_and_read_again(tmp_path: Path) -> None:
    line = QuoteLine(platform="books", takes_part=True, users=9, epsilon=math.inf, delta=1e-5, left=None, noise_multiplier=0.0)
    made = DryRun(run="dry", platforms=(line,), why="")
    made.save(tmp_path)
    assert read_dry_run(tmp_path) == made
    with pytest.raises(FedfuseError, match="left no answer"):
        read_dry_run(tmp_path / "none")
