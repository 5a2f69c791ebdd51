"""Neighbours under the secure sum: as `test_neighbours.py`, for deployed platforms whose answers are masked."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.privacy import mechanism as mechanisms
from client.privacy.bounded_sum import BoundedSum
from client.privacy.failure_guard import raising
from client.run import popularity_prior, run_context
from client.run import secure_session as summing
from client.secagg.persistent_participant import identity_of
from client.worker.request_handler import Worker
from shared.base.errors import StorageError
from shared.base.settings import Settings, flatten, unflatten
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial
from shared.protocol.messages import Answer, Factors, Phase, Request, Secured, Summed, Train
from tests.client.run.test_secure_session import Federation
from tests.support.neighbours import EVERYTHING, LAST, LIKES, PLAIN, Released, Told, User, World, compare, held_noise

Make = Callable[..., Settings]
OTHERS = World(users={name: User(items=LIKES[at % 2 :]) for at, name in enumerate("vwxyz")})


class Deployed(Federation):
    """Three deployed platforms, of which the first is watched."""

    def __init__(self, worlds: list[World], settings: Settings, root: Path, released: list[Released]) -> None:
        self.released, self.seen, self.answers = released, list[Released](), list[Answer]()
        paths = [world.write(root / f"p{at}", backbone=settings.model.backbone) for at, world in enumerate(worlds)]
        for at, path in enumerate(paths):
            path.write_text(path.read_text().replace('name = "shop"', f'name = "p{at}"'))
        self.root = root
        known = {}
        for at in range(len(paths)):
            (root / "state" / f"p{at}").mkdir(parents=True)
            known[f"p{at}"] = base64.b64encode(identity_of(root / "state" / f"p{at}", make=True).public).decode()
        for path in paths:
            text = "\n".join(f'{name} = "{key}"' for name, key in known.items())
            path.write_text(path.read_text() + f"[federation.identities]\n{text}\n")
        super().__init__(paths, settings, root)

    def open(self, at: int) -> Worker:
        name = self.files[at].name
        return Worker(self.files[at], state=self.root / "state" / name, ledger=self.ledger(at), device=torch.device("cpu"))

    def ask(self, at: int, request: Request) -> Answer:
        before = len(self.released)
        answer = super().ask(at, request)
        if at == 0:
            self.answers.append(answer)
            self.seen += self.released[before:]
        return answer


def played(worlds: list[World], settings: Settings, root: Path) -> Told:
    """All that the first platform did in a run of two rounds."""
    with held_noise() as released:
        made = Deployed(worlds, settings, root, released)
        try:
            adapter = dict(initial(settings))
            made.set_up()
            found = made.play_popularity()
            for at in range(len(worlds)):
                assert isinstance(made.tell(at, found, 1.0), Secured)
            factors = Factors.A if settings.strategy == "fedsa" else Factors.BOTH
            for round_ in (1, 2):
                made.play(round_, adapter, factors)
            made.ask(0, Train(run="run", settings=settings, round=2, factors=factors, adapter=adapter))
            made.secure(0, Phase.UNMASK, 2, Dull())
        finally:
            made.close()
        return Told(answers=made.answers, released=made.seen, charges=read_ledger(made.ledger(0)).entries)


class Dull:
    """Bytes that are no message."""

    tag = 250


@pytest.fixture
def play(tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Told, Told]]:
    import tests.client.run.test_secure_session as module

    encode = module.encode
    monkeypatch.setattr(module, "encode", lambda message: b"dull" if isinstance(message, Dull) else encode(message))

    def run(world: World, gone: str, **over: Any) -> tuple[Told, Told]:
        base = tiny_settings(
            simulation=False,
            strategy=over.pop("strategy", "secure-sum"),
            privacy={"generator": "secure", "epsilon": None, "noise": "distributed"},
            training={"sample_rate": 1.0, "views": 1, "compile": "off"},
            server={"minimum_platforms": 3},
        )
        settings = unflatten({**flatten(base), **over}, where="test")
        return (
            played([world, OTHERS, OTHERS], settings, tmp_path / "with"),
            played([world.without(gone), OTHERS, OTHERS], settings, tmp_path / "without"),
        )

    return run


def masked(answer: Answer, name: str) -> bool:
    """Fields that hold masks, keys and sealed shares, drawn anew in each world, and the ledger's lines that name such a body."""
    return name in ("body", "keys", "trust") or (isinstance(answer, Summed) and name in ("ledger", "signature"))


@pytest.mark.parametrize(
    ("world", "strategy"), [(PLAIN, "secure-sum"), (EVERYTHING, "secure-sum"), (EVERYTHING, "fedsa"), (LAST, "secure-sum")]
)
def test_neighbours_cannot_be_told_apart(play: Any, world: World, strategy: str) -> None:
    here, there = play(world, "a", strategy=strategy)
    compare(here, there, skip=masked)
    assert [str(entry.kind) for entry in here.charges] == ["popularity", "train", "train"]
    assert sum(isinstance(answer, Summed) for answer in here.answers) == 3


def not_clipped(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(mechanisms.Mechanism, "weights", lambda self, squared: torch.ones_like(squared))


def counts_unbounded(patched: pytest.MonkeyPatch) -> None:
    real = popularity_prior.bounded_counts

    def doubled(*args: Any, **facts: Any) -> BoundedSum:
        total = real(*args, **facts)
        return BoundedSum(parts={name: 30 * part for name, part in total.parts.items()}, bound=1.0)

    patched.setattr(popularity_prior, "bounded_counts", doubled)


def share_too_small(patched: pytest.MonkeyPatch) -> None:
    """The platform charges for twice the noise of the sum that was agreed on."""
    real = summing.round_release
    patched.setattr(
        summing,
        "round_release",
        lambda *args, **facts: replace(real(*args, **facts), noise_multiplier=2 * real(*args, **facts).noise_multiplier),
    )


def what_stays_is_not_charged(patched: pytest.MonkeyPatch) -> None:
    """The part that stays is left out of the vector whose length is accounted."""
    real = summing.round_release
    patched.setattr(summing, "round_release", lambda *args, **facts: real(*args, **{**facts, "local": 0}))


def a_failure_is_refused(patched: pytest.MonkeyPatch) -> None:
    real = popularity_prior.bounded_counts

    def failing(split: Any, *args: Any, **facts: Any) -> BoundedSum:
        if split.users == 5:
            raise StorageError("u is one too many")
        return real(split, *args, **facts)

    patched.setattr(popularity_prior, "bounded_counts", failing)
    real_init = run_context.RunContext.__init__
    patched.setattr(run_context.RunContext, "__init__", lambda self, **facts: real_init(self, **{**facts, "guard": raising}))


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], World, str]] = {
    "gradients not clipped": (not_clipped, PLAIN, "secure-sum"),
    "popularities thirty times as long": (counts_unbounded, PLAIN, "secure-sum"),
    "a noise share too small": (share_too_small, PLAIN, "secure-sum"),
    "what stays is not charged": (what_stays_is_not_charged, EVERYTHING, "fedsa"),
    "a failure is refused": (a_failure_is_refused, PLAIN, "secure-sum"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(play: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    plant, world, strategy = FAULTS[fault]
    with monkeypatch.context() as patched:
        plant(patched)
        over = {"training.clip": 1e-3} if fault == "gradients not clipped" else {}
        with pytest.raises(AssertionError):
            compare(*play(world, "a", strategy=strategy, **over), skip=masked)
