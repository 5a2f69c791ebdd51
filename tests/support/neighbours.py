"""Two platforms that differ by one user, asked the same by a coordinator that may ask anything.

The noise is held equal, and made to be all that leaves: every release is replaced by its noise alone. So whatever is released
says nothing of the rows, and two platforms that keep the promise answer alike, in every field. What they would have released is
compared apart: before the noise it differs by no more than the sensitivity that the ledger was charged for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.config.platform_file import load
from client.privacy import ledger_writer as ledgers
from client.privacy import mechanism as mechanisms
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import SeededNoise
from client.run import preference_session, run_context
from client.run import secure_session as summing
from client.worker.request_handler import Worker
from shared.base.settings import Settings
from shared.ledger.format import Entry
from shared.ledger.reading import read_ledger
from shared.protocol.messages import Answer, Request
from shared.secagg.fixed_point import FixedPoint
from tests.support.identities import with_identity

ROUNDING = 1e-4
"""Part of a sensitivity by which float32 kernels may differ between batches of different users."""


@dataclass(frozen=True, kw_only=True)
class User:
    """What a platform knows of one user.

    Args:
        items: In the order of their times; whether each is liked.
        friends: Names.
        notes: On items, by place in `items`.
    """

    items: Sequence[tuple[int, bool]] = ()
    friends: Sequence[str] = ()
    profile: str = ""
    note: str = ""
    vector: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class World:
    """One platform.

    Args:
        influence: Of the social source; None: there is none.
        listed: Whether a public table lists the items.
    """

    users: dict[str, User] = field(default_factory=dict)
    items: int = 6
    declared: int = 40
    times: bool = True
    influence: int | None = None
    profiles: bool = False
    notes: bool = False
    vectors: bool = False
    listed: bool = True
    epsilon: float = 50.0

    def without(self, name: str) -> World:
        """The neighbour: the same platform, and nobody of that name; who named them still does."""
        from dataclasses import replace

        return replace(self, users={other: user for other, user in self.users.items() if other != name})

    def write(self, folder: Path, *, backbone: str) -> Path:
        """The platform file."""
        folder.mkdir(parents=True)
        words = ("jazz", "rock", "space", "garden", "film", "novel", "river", "city")
        table(
            folder / "items.csv", "item,title", [(f"i{n}", f"{words[n % 8]} {words[3 * n % 7]} {n}") for n in range(self.items)]
        )
        rows = [
            (name, f"i{item}", 5 if liked else 1, *((1_600_000_000 + 100 * at,) if self.times else ()))
            for name, user in self.users.items()
            for at, (item, liked) in enumerate(user.items)
        ]
        table(folder / "events.csv", "user,item,value" + (",time" if self.times else ""), rows)
        text = (
            f'name = "shop"\nusers = {self.declared}\n[privacy]\nepsilon = {self.epsilon}\ndelta = 1e-3\naccept_delta = true\n'
            f"[federation]\nbackbones = [{json.dumps(backbone)}]\nanswer_step = 3600\nminimum_noise_multiplier = 0.0\n"
            "maximum_sample_rate = 1.0\ncolluders = 0\n"
            '[sources.events]\nkind = "interactions"\npath = "events.csv"\nthreshold = 3\n'
        )
        if self.listed:
            text += '[sources.items]\nkind = "items"\npath = "items.csv"\n'
        if self.influence is not None:
            table(folder / "friends.csv", "user,friend", [(n, f) for n, user in self.users.items() for f in user.friends])
            text += f'[sources.ties]\nkind = "social"\npath = "friends.csv"\ninfluence = {self.influence}\nfriends = 2\n'
        if self.profiles:
            table(folder / "people.csv", "user,job", [(n, user.profile) for n, user in self.users.items()])
            text += '[sources.people]\nkind = "profiles"\npath = "people.csv"\ntext = ["job"]\n'
        if self.notes:
            notes = [(n, f"i{item}", user.note) for n, user in self.users.items() if user.note for item, _ in user.items]
            table(folder / "notes.csv", "user,item,text", notes)
            text += '[sources.notes]\nkind = "reviews"\npath = "notes.csv"\n'
        if self.vectors:
            lines = [json.dumps({"user": n, "vector": list(user.vector)}) for n, user in self.users.items() if user.vector]
            (folder / "moods.jsonl").write_text("".join(line + "\n" for line in lines))
            text += '[sources.moods]\nkind = "vectors"\npath = "moods.jsonl"\nwidth = 2\ncolumns = { user = "user" }\n'
        path = folder / "shop.toml"
        path.write_text(text)
        return path


def table(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    """A CSV file."""
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


LIKES = (0, True), (1, True), (2, True), (3, False)
PLAIN = World(users={name: User(items=LIKES[at % 2 :]) for at, name in enumerate("abcde")})

LAST = World(users={"a": User(items=LIKES)})
"""Without its only user nobody is left."""
EVERYTHING = World(
    users={
        name: User(items=LIKES[at % 3 :], friends=("a", "b"), profile="nurse", note="lovely", vector=(0.5, 1.0 * at))
        for at, name in enumerate("abcd")
    },
    influence=1,
    profiles=True,
    notes=True,
    vectors=True,
)


@dataclass(frozen=True, kw_only=True)
class Released:
    """One release: what it would have been before the noise, and the grid it was meant for."""

    vector: NDArray[np.float64]
    point: FixedPoint


class Held(SeededNoise):
    """Everybody is in every sample; everything else is the same in both worlds."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        return np.ones(count, np.bool_)

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        return np.zeros(count, np.int64)


@contextmanager
def held_noise() -> Iterator[list[Released]]:
    """Releases are their noise alone, the same in both worlds; what they would have been is recorded."""
    seen: list[Released] = []
    real_steps, real_local = mechanisms.noised_steps, mechanisms.noised_local

    def steps(vector: NDArray[np.float64], point: FixedPoint, random: Any) -> NDArray[np.int64]:
        seen.append(Released(vector=vector, point=point))
        return real_steps(np.zeros_like(vector), point, random)

    def local(vector: NDArray[np.float64], point: FixedPoint, random: Any) -> NDArray[np.float64]:
        # Part of the vector whose other part was just masked: one release.
        last = seen.pop()
        seen.append(Released(vector=np.concatenate([last.vector, vector]), point=last.point))
        return real_local(np.zeros_like(vector), point, random)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mechanisms, "noised_steps", steps)
        patched.setattr(summing, "noised_steps", steps)
        patched.setattr(preference_session, "noised_steps", steps)
        patched.setattr(summing, "noised_local", local)
        patched.setattr(Mechanism, "sample", lambda self, present, random: np.arange(present))
        patched.setattr(run_context, "generator", lambda settings, platform, purpose, round_, **_: Held(7, purpose, round_))
        patched.setattr(ledgers, "now", lambda: "2030-01-01T00:00:00Z")
        patched.setattr("client.privacy.answer_timing.time.sleep", lambda seconds: None)
        yield seen


@dataclass(frozen=True, kw_only=True)
class Told:
    """All that one platform did."""

    answers: Sequence[Answer]
    released: Sequence[Released]
    charges: Sequence[Entry]


def ask(path: Path, state: Path, requests: Sequence[Request]) -> Told:
    """A deployed worker's answers to the requests, one after the other."""
    with held_noise() as seen:
        worker = Worker(load(path), state=with_identity(state), ledger=state / "ledger.jsonl", device=torch.device("cpu"))
        try:
            answers = [worker.handle(request) for request in requests]
        finally:
            worker.close()
    entries = read_ledger(state / "ledger.jsonl").entries if (state / "ledger.jsonl").exists() else ()
    return Told(answers=answers, released=seen, charges=entries)


def compare(here: Told, there: Told, *, skip: Callable[[Answer, str], bool] = lambda answer, name: False) -> None:
    """Fail where the two platforms can be told apart by more than what was charged.

    Args:
        skip: Fields that are masked, by answer and name.
    """
    assert [type(answer) for answer in here.answers] == [type(answer) for answer in there.answers]
    for one, other in zip(here.answers, there.answers, strict=True):
        for part in fields(one):
            a, b = getattr(one, part.name), getattr(other, part.name)
            if skip(one, part.name):
                assert len(a) == len(b), f"{one.kind}.{part.name} has another size"
            elif isinstance(a, dict):
                assert list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a), (
                    f"{one.kind}.{part.name} differs"
                )
            else:
                assert a == b, f"{one.kind}.{part.name} is {a!r} here and {b!r} there"
    # What left is named in the chain, and differs where it is masked.
    unchained = [[replace(entry, previous="", signature="", hash="") for entry in told.charges] for told in (here, there)]
    assert unchained[0] == unchained[1], "the two ledgers differ"
    paid = [entry for entry in here.charges for _ in range(entry.steps)]
    assert len(here.released) == len(there.released) == len(paid), "something was released that no charge names, or the other way"
    for entry, a, b in zip(paid, here.released, there.released, strict=True):
        assert a.point == b.point
        # The noise that is added is the one that was charged for ...
        integers = entry.release.integers
        assert integers is not None
        assert integers.dimension + integers.local == len(a.vector), "a part of the vector is not accounted for"
        assert entry.noise_multiplier * integers.norm <= a.point.noise_multiplier * a.point.norm * (1 + 1e-9)
        # ... over what one user can do at most.
        moved = float(np.linalg.norm(a.vector - b.vector))
        most = entry.group_size * a.point.clip * (1 + ROUNDING)
        assert moved <= most, (
            f"one user moves a release ({entry.kind}, round {entry.round}) by {moved:.4g}, charged for {most:.4g}"
        )


def neighbours(world: World, gone: str, settings: Settings, requests: Sequence[Request], folder: Path) -> tuple[Told, Told]:
    """What the platform, and the platform without that user, answer."""
    backbone = settings.model.backbone
    return (
        ask(world.write(folder / "with", backbone=backbone), folder / "with-state", requests),
        ask(world.without(gone).write(folder / "without", backbone=backbone), folder / "without-state", requests),
    )


def require_noticed(
    plant: Callable[[pytest.MonkeyPatch], None],
    play: Callable[[], tuple[Told, Told]],
    monkeypatch: pytest.MonkeyPatch,
    **facts: Any,
) -> None:
    """Fail where neighbours look alike although a fault is planted.

    Args:
        facts: Of `compare`.
    """
    with monkeypatch.context() as patched:
        plant(patched)
        here, there = play()
        with pytest.raises(AssertionError):
            compare(here, there, **facts)
