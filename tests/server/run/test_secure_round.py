"""A run under distributed noise against platforms that are lost, refuse, fail and lie in every phase; no model is needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client.secagg.persistent_participant import PersistentParticipant, Register, identity_of
from server.monitoring.run_events import Event, Kind, Outcome
from server.run.exchange import Exchange
from server.run.secure_round import FOLDER
from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import ExitCode, FedfuseError, InputError, NoisyPlan, OutOfOrder, ProtocolError, StorageError
from shared.base.settings import Settings
from shared.model.adapter import initial, trained
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import (
    Answer,
    Evaluate,
    Join,
    Joined,
    Metrics,
    Phase,
    Reason,
    Refusal,
    Request,
    Secure,
    Secured,
    Sum,
    Summed,
    Train,
)
from shared.secagg.codec import VERSION, decode
from shared.secagg.roster import Advert
from shared.secagg.shared_catalogues import DeclaredCatalogue
from simulations.in_process_grid import InProcessGrid
from strategies.base import NoUpdate
from strategies.optimizers import ServerOptimizer
from tests.support.qualities import quality_of

Make = Callable[..., Settings]


class Platform:
    """A platform with a real part in the secure sum, and `gradient` in every coordinate of every round's sum.

    Args:
        script: (round, phase) -> what it does instead: a `Reason`, an exception, or a change of its answer. The phases are "sum",
            "confirm", "unmask", and with round 0 "join" and "deal".
        knows: Platforms whose identities its people wrote down; None: it finds the others as they join, as in a simulation.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        users: int = 10,
        gradient: float = 0.01,
        need: float = 0.0,
        script: Mapping[Any, Any] | None = None,
        knows: Sequence[str] | None = None,
    ) -> None:
        self.knows = knows
        self.name, self.root, self.users, self.gradient, self.need = name, root, users, gradient, need
        self.script = dict(script or {})
        self.asked: list[tuple[int, str]] = []
        self.vectors: dict[int, np.ndarray] = {}
        self.since: dict[int, int] = {}

    def handle(self, request: Request) -> Answer:
        phase = request.phase.value if isinstance(request, Secure) else request.kind
        key = (getattr(request, "round", 0), phase)
        self.asked.append(key)
        planned = self.script.get(key)
        if isinstance(planned, Reason):
            return Refusal(run=request.run, platform=self.name, round=key[0], reason=planned)
        if isinstance(planned, BaseException):
            raise planned
        try:
            answer = self.answer(request)
        except OutOfOrder:
            return Refusal(run=request.run, platform=self.name, round=key[0], reason=Reason.ROUND)
        except ProtocolError:
            return Refusal(run=request.run, platform=self.name, round=key[0], reason=Reason.MESSAGE)
        return planned(answer) if callable(planned) else answer

    def part(self, request: Request) -> PersistentParticipant:
        """Anew for every message, as after a restart."""
        register = Register(self.root / ".identities")
        identity = identity_of(self.root / self.name, make=True)
        if isinstance(request, Join):
            register.add(self.name, identity)
        path = self.root / self.name / f"{request.run}.secure"
        return PersistentParticipant(
            run=request.run,
            settings=request.settings,
            platform=self.name,
            path=path,
            identity=identity,
            peers=register.peers if self.knows is None else self.peers,
            declared=self.catalogue,
            known=False,
        )

    def peers(self) -> dict[str, bytes]:
        return {name: identity_of(self.root / name, make=True).public for name in self.knows or ()}

    @property
    def catalogue(self) -> DeclaredCatalogue:
        """Its own, which no other platform has."""
        return DeclaredCatalogue(digest=self.name.encode().ljust(32), items=5, users=self.users)

    def answer(self, request: Request) -> Answer:
        who = {"run": request.run, "platform": self.name}
        if isinstance(request, Join):
            return Joined(
                **who, users=self.users, items=5, budget=8.0, delta=1e-5, planned_epsilon=7.0, noise_multiplier=self.need,
                signal_to_noise=2.0, keys=self.part(request).advert(), catalogue=self.catalogue.digest.hex(),
                trust=b"" if self.knows is None else self.part(request).trust(),
            )  # fmt: skip
        if isinstance(request, Evaluate):
            return Metrics(
                **who, round=request.round, label=request.label, users=self.users,
                quality=quality_of({"ndcg@10": 0.1, "hr@10": 0.2}), exact=True,
                epsilon=1.0, ledger="", seconds=0.1,
            )  # fmt: skip
        part = self.part(request)
        if isinstance(request, Secure):
            batch = request.settings.training.sample_rate * self.users
            body = {
                Phase.DEAL: lambda: part.deal(
                    request.body, need=self.need, preference_need=0.0, taste_need=0.0, batch=batch, dimensions={}
                ),
                Phase.CONFIRM: lambda: part.confirm(request.body),
                Phase.UNMASK: lambda: part.unmask(request.body),
            }[request.phase]()
            return Secured(**who, round=request.round, phase=request.phase, body=body)
        assert isinstance(request, Sum)
        return Summed(
            **who, round=request.round, users=self.users, epsilon=float(request.round), ledger="", seconds=0.1,
            body=self.masked(request, part),
        )  # fmt: skip

    def masked(self, request: Sum, part: PersistentParticipant) -> bytes:
        asked = part.asked(request, finished=max(self.vectors, default=-1))
        self.since[request.round] = asked.since
        if asked.known is not None:
            return asked.known
        names = trained(request.adapter, request.factors)
        dimension = sum(math.prod(request.adapter[name].shape) for name in names)
        point = part.point(asked, dimension=dimension)
        value = np.full(dimension, self.gradient)
        rounded = np.rint(value * point.scale).astype(np.int64)
        self.vectors[request.round] = rounded / point.scale
        return part.mask(asked, point.wrap(rounded))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Platform]:
    def platform(name: str, **over: Any) -> Platform:
        return Platform(name, tmp_path / "platforms", **over)

    return platform


@pytest.fixture
def several(make: Callable[..., Platform]) -> Callable[..., list[Platform]]:
    def platforms(count: int = 5, **scripts: Any) -> list[Platform]:
        return [make(f"p{at}", gradient=(at + 1) / 100, users=10 + at, script=scripts.get(f"p{at}")) for at in range(count)]

    return platforms


@pytest.fixture
def federate(tiny_settings: Make, run_linked: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    # One plain step: what the sum came to can be read off the adapter.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing here outlives a power cut
    monkeypatch.setattr("strategies.composition.StepOnSums", lambda settings: ServerOptimizer(settings.server))

    def run(
        *platforms: Platform,
        out: str = "run",
        events: Any = None,
        resume: bool = False,
        identities: Any = None,
        patience: float = 0.0,
        only: Any = (),
        names: Any = None,
        **over: Any,
    ) -> Outcome:
        values = {"strategy": "secure-sum", "rounds": 3, "reply_timeout": 20.0, "secure": {"threshold": 0.6, "colluders": 0}}
        settings = tiny_settings(**{**values, **over})
        more = {"identities": identities, "resume": resume, "wait": 0.2, "patience": patience, "only": only, "names": names}
        return run_linked(platforms, settings, out=out, events=events, **more)

    return run


def step(platforms: list[Platform], round_: int, *, rate: float = 0.5) -> float:
    """What a round moves every trained parameter by, if exactly those platforms are in its sum."""
    total = sum(platform.vectors[round_][0] for platform in platforms)
    return -float(total) / (rate * sum(platform.users for platform in platforms))


def moved(outcome: Outcome, settings: Settings) -> float:
    start = initial(settings)
    changes = np.concatenate([(outcome.adapter[name] - start[name]).ravel() for name in start])
    assert np.ptp(changes) < 1e-5
    return float(changes.mean())


def told(events: list[Event], kind: Kind) -> list[str]:
    return [event.text for event in events if event.kind is kind]


def test_the_step_is_the_mean_over_all_platforms_users(federate: Any, several: Any, tiny_settings: Make) -> None:
    platforms = several(4)
    events: list[Event] = []
    outcome = federate(*platforms, events=events.append)
    wanted = sum(step(platforms, round_) for round_ in (1, 2, 3))
    assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)
    assert [tally.rounds for tally in outcome.tallies.values()] == [3] * 4
    assert len(told(events, Kind.SECURED)) == 1
    # Two phases a round, and one beforehand.
    assert [key for key in platforms[0].asked if key[1] not in ("join", "evaluate")] == [
        (0, "deal"), (1, "sum"), (1, "unmask"), (2, "sum"), (2, "unmask"), (3, "sum"), (3, "unmask")
    ]  # fmt: skip


@pytest.mark.parametrize("how", [Reason.FAILED, RuntimeError("u17"), Reason.BUDGET], ids=["refuses", "fails", "has no budget"])
@pytest.mark.parametrize("phase", ["sum", "confirm", "unmask"])
def test_platforms_that_are_lost_in_any_phase(federate: Any, several: Any, tiny_settings: Make, phase: str, how: Any) -> None:
    """p4 is lost before it sends its vector in round 2, so that there is a list to confirm; p0 is lost in the phase."""
    platforms = several(5, p4={(2, "sum"): Reason.FAILED}, p0={(2, phase): how})
    events: list[Event] = []
    outcome = federate(*platforms, events=events.append)
    second = platforms[1:4] if phase == "sum" else platforms[:4]
    third = platforms[1:] if how is Reason.BUDGET else platforms
    wanted = step(platforms, 1) + step(second, 2) + step(third, 3)
    assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)
    assert outcome.tallies["p4"].rounds == 2
    assert outcome.tallies["p0"].rounds == 3 - (phase == "sum") - (how is Reason.BUDGET)
    assert not told(events, Kind.ABANDONED)


def test_one_that_does_not_deal_takes_no_part(federate: Any, several: Any, tiny_settings: Make) -> None:
    platforms = several(4, p3={(0, "deal"): Reason.FAILED})
    outcome = federate(*platforms)
    assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms[:3], at) for at in (1, 2, 3)), rel=1e-5)
    assert (1, "sum") not in platforms[3].asked
    assert outcome.tallies["p3"].refusals == {0: Reason.FAILED}


@pytest.mark.parametrize("phase", ["sum", "unmask"])
def test_below_the_threshold_a_round_is_given_up_and_its_charges_stand(
    federate: Any, several: Any, tiny_settings: Make, phase: str
) -> None:
    lost = {(2, phase): RuntimeError("gone")}
    platforms = several(5, p0=lost, p1=lost, p2=lost)
    events: list[Event] = []
    outcome = federate(*platforms, events=events.append)
    assert moved(outcome, tiny_settings()) == pytest.approx(step(platforms, 1) + step(platforms, 3), rel=1e-5)
    assert len(told(events, Kind.ABANDONED)) == 1
    assert [tally.rounds for tally in outcome.tallies.values()] == [2] * 5
    assert (outcome.rounds, outcome.lost) == (2, (2,))
    assert len(told(events, Kind.LOST)) == 1 and [event.round for event in events if event.kind is Kind.ROUND] == [1, 3]
    assert (2, "unmask") not in platforms[3].asked if phase == "sum" else (2, "unmask") in platforms[3].asked


def test_what_an_abandoned_round_spent_is_told(federate: Any, several: Any) -> None:
    """The last round is given up: the epsilon that survivors reported in it counts, the round does not."""
    lost = {(3, "unmask"): RuntimeError("gone")}
    outcome = federate(*several(5, p0=lost, p1=lost, p2=lost))
    assert [(tally.rounds, tally.epsilon) for tally in outcome.tallies.values()] == [(2, 1.0)] * 5  # evaluation came after


def test_three_rounds_given_up_end_the_run(federate: Any, several: Any, tmp_path: Path) -> None:
    lost = {(round_, "unmask"): RuntimeError("gone") for round_ in (2, 3, 4)}
    with pytest.raises(NoUpdate, match="in a row"):
        federate(*several(5, p0=lost, p1=lost, p2=lost), rounds=9)
    assert not (tmp_path / "run" / "model").exists()


def test_one_round_that_comes_about_between_them_and_the_run_goes_on(federate: Any, several: Any) -> None:
    lost = {(round_, "unmask"): RuntimeError("gone") for round_ in (1, 2, 4, 5)}
    events: list[Event] = []
    outcome = federate(*several(5, p0=lost, p1=lost, p2=lost), rounds=6, events=events.append)
    assert len(told(events, Kind.ABANDONED)) == 4
    assert {tally.rounds for tally in outcome.tallies.values()} == {2}


def test_without_enough_platforms_nothing_is_asked_or_charged(federate: Any, several: Any) -> None:
    spent = {(2, "sum"): Reason.BUDGET}
    platforms = several(5, p0=spent, p1=spent, p2=spent)
    with pytest.raises(NoUpdate, match="2 platforms of the secure sum are there, 3 are needed"):
        federate(*platforms)
    assert (3, "sum") not in platforms[4].asked


def garbled(answer: Any) -> Any:
    return replace(answer, body=answer.body[:-3] + bytes(3))


def short(answer: Any) -> Any:
    return replace(answer, body=answer.body[:20])


LIES = {
    "garbled": garbled,
    "short": short,
    "another's name": lambda answer: replace(answer, platform="p1"),
    "another round": lambda answer: replace(answer, round=1),
    "another run": lambda answer: replace(answer, run="other"),
    "more users": lambda answer: replace(answer, users=10**6) if isinstance(answer, Summed) else replace(answer, round=9),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_right_is_left_out(federate: Any, several: Any, tiny_settings: Make, lie: str) -> None:
    platforms = several(4, p3={(2, "sum"): LIES[lie] if lie != "garbled" else short})
    outcome = federate(*platforms)
    wanted = step(platforms, 1) + step(platforms[:3], 2) + step(platforms, 3)
    assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)
    assert outcome.tallies["p3"].failures == 1


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_a_lie_in_a_later_phase_spoils_nobodys_round(
    federate: Any, several: Any, tiny_settings: Make, phase: str, lie: str
) -> None:
    platforms = several(5, p4={(1, "sum"): Reason.FAILED}, p0={(1, phase): LIES[lie]})
    outcome = federate(*platforms, rounds=1)
    assert moved(outcome, tiny_settings()) == pytest.approx(step(platforms[:4], 1), rel=1e-5)


def test_keys_that_are_none_leave_their_platform_out(federate: Any, several: Any, tiny_settings: Make) -> None:
    platforms = several(4, p2={(0, "join"): lambda answer: replace(answer, keys=b"junk")})
    outcome = federate(*platforms)
    others = [platforms[0], platforms[1], platforms[3]]
    assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(others, at) for at in (1, 2, 3)), rel=1e-5)


def weakened(field: str) -> Callable[[Any], Any]:
    """What a platform answers whose program does not check its own keys, and whose keys are of small order."""

    def change(answer: Any) -> Any:
        keys = decode(Advert, answer.keys).keys
        value = getattr(keys, field)
        data = answer.keys.replace(value, bytes(len(value)), 1)
        assert data != answer.keys
        return replace(answer, keys=data)

    return change


@pytest.mark.parametrize("field", ["sealing", "masks"])
def test_keys_of_small_order_cost_nobody_else_anything(
    federate: Any, several: Any, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """They would fail on every other platform, after it has paid; the one that sent them is named, and left out."""
    platforms = several(4, p2={(0, "join"): weakened(field)})
    events: list[Event] = []
    outcome = federate(*platforms, events=events.append)
    assert any("'p2' " in text and "small order" in text for text in told(events, Kind.LEFT))
    assert [key for key in platforms[2].asked if key[1] != "join"] == []
    others = [platforms[0], platforms[1], platforms[3]]
    assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(others, at) for at in (1, 2, 3)), rel=1e-5)


def test_an_identity_that_was_not_approved_is_left_out(federate: Any, several: Any, tiny_settings: Make, tmp_path: Path) -> None:
    platforms = several(4)
    known = {one.name: identity_of(tmp_path / "platforms" / one.name, make=True).public for one in platforms}
    events: list[Event] = []
    for one in platforms:
        one.knows = [name for name in known if name != one.name]
    outcome = federate(*platforms, events=events.append, identities=lambda: {**known, "p1": bytes(32)})
    assert any("'p1' was approved with" in text for text in told(events, Kind.LEFT))
    others = [platforms[0], *platforms[2:]]
    assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(others, at) for at in (1, 2, 3)), rel=1e-5)


class TestWhoKnowsWhom:
    """One platform that others do not know keeps nobody else from a run."""

    NAMES = ("p0", "p1", "p2", "p3")

    @pytest.fixture
    def known(self, make: Callable[..., Platform], tmp_path: Path) -> Callable[..., tuple[list[Platform], dict[str, Any]]]:
        def platforms(*unknown: tuple[str, str], **scripts: Any) -> tuple[list[Platform], dict[str, Any]]:
            made = []
            for at, name in enumerate(self.NAMES):
                knows = [other for other in self.NAMES if other != name and (name, other) not in unknown]
                made.append(make(name, knows=knows, users=10 + at, gradient=(at + 1) / 100, script=scripts.get(name)))
            keys = {name: identity_of(tmp_path / "platforms" / name, make=True).public for name in self.NAMES}
            return made, {"identities": lambda: keys}

        return platforms

    NEWCOMER = (("p0", "p3"), ("p2", "p3"))

    def test_a_newcomer_is_left_out_and_it_is_said_what_to_do(
        self, federate: Any, known: Any, tiny_settings: Make, tmp_path: Path
    ) -> None:
        platforms, approved = known(*self.NEWCOMER)
        events: list[Event] = []
        outcome = federate(*platforms, **approved, events=events.append)
        assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms[:3], at) for at in (1, 2, 3)), rel=1e-5)
        assert set(outcome.tallies) == {"p0", "p1", "p2"}
        why = "`p0` and `p2` do not know `p3`: run `fedfuse client trust` on each of these platforms"
        assert told(events, Kind.LEFT) == [f"p3 is left out: {why}"]
        assert [key for key in platforms[3].asked if key[1] != "join"] == []
        card = (tmp_path / "run" / "model" / "README.md").read_text()
        assert f"| left out | p3: {why} |" in card

    def test_a_resumed_run_says_it_again(self, federate: Any, known: Any, tmp_path: Path) -> None:
        platforms, approved = known(*self.NEWCOMER)
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, **approved, events=killed_after(1))
        # Introduced meanwhile, it is on no roster all the same: keys are dealt once.
        for one in platforms:
            one.knows = [name for name in self.NAMES if name != one.name]
        events: list[Event] = []
        outcome = federate(*platforms, **approved, resume=True, events=events.append)
        assert any("`p0` and `p2` do not know `p3`" in text for text in told(events, Kind.LEFT))
        assert set(outcome.tallies) == {"p0", "p1", "p2"} and outcome.rounds == 3
        assert "| left out | p3:" in (tmp_path / "run" / "model" / "README.md").read_text()

    def test_fewer_than_hide_each_other_are_never_asked(self, federate: Any, known: Any) -> None:
        """With one colluder two platforms are too few, whoever else is there and not known."""
        platforms, approved = known(("p0", "p2"), ("p0", "p3"), ("p1", "p2"), ("p1", "p3"))
        with pytest.raises(FedfuseError, match="3 are needed") as caught:
            federate(*platforms, **approved, secure={"threshold": 0.6, "colluders": 1})
        assert caught.value.exit_code is ExitCode.REFUSED and "client trust" in caught.value.where
        assert all(key[1] == "join" for platform in platforms for key in platform.asked)

    @pytest.mark.parametrize(("minimum", "colluders", "least"), [(1, 0, 2), (3, 0, 3), (1, 1, 3), (2, 2, 4)])
    @pytest.mark.parametrize("enough", [True, False])
    def test_a_sum_hides_each_from_the_others_and_has_the_settings_minimum(
        self, federate: Any, known: Any, minimum: int, colluders: int, least: int, enough: bool
    ) -> None:
        """Two whom nobody helps, and one more for each who does; `inside` of four platforms know each other."""
        inside = self.NAMES[: least if enough else least - 1]
        platforms, approved = known(*((a, b) for a in self.NAMES for b in self.NAMES if not {a, b} <= set(inside)))
        over = {"rounds": 1, "server": {"minimum_platforms": minimum}, "secure": {"threshold": 0.6, "colluders": colluders}}
        if enough:
            assert set(federate(*platforms, **approved, **over).tallies) == set(inside)
            return
        with pytest.raises(FedfuseError, match=f"{least} are needed") as caught:
            federate(*platforms, **approved, **over)
        assert caught.value.exit_code is ExitCode.REFUSED
        named = ", ".join(inside) if len(inside) > 1 else "p3"  # where nobody knows anybody, one of four
        assert f"of 4 platforms those in the secure sum would be: {named};" in caught.value.found
        assert "client trust" in caught.value.where and "trust each other" in caught.value.do

    def test_too_few_who_all_know_each_other(self, federate: Any, known: Any) -> None:
        platforms, approved = known()
        with pytest.raises(FedfuseError, match=r"of 2 platforms those .* would be: p0, p1; 3 are needed") as caught:
            federate(*platforms[:2], **approved, secure={"threshold": 0.6, "colluders": 1})
        assert caught.value.exit_code is ExitCode.REFUSED and caught.value.do == "wait for more platforms"
        assert caught.value.where == "secure.colluders = 1, server.minimum_platforms = 1"

    @pytest.mark.parametrize("known_ones", [NEWCOMER, ()])
    def test_who_may_still_come_is_waited_for_where_not_all_know_each_other(
        self, federate: Any, known: Any, known_ones: tuple[tuple[str, str], ...]
    ) -> None:
        platforms, approved = known(*known_ones)
        events: list[Event] = []
        names = {**dict(enumerate(self.NAMES, start=2)), 9: "q9", 8: "q8"}
        federate(*platforms, **approved, names=lambda: names, rounds=1, events=events.append)
        said = [text for text in told(events, Kind.WAITING) if "know each other" in text]
        assert said == (["3 of 4 platforms know each other; q8, q9 may still come"] if known_ones else [])

    def test_whoever_comes_meanwhile_is_in_the_sum(self, federate: Any, known: Any) -> None:
        tries: list[Joined] = []

        def late(answer: Joined) -> Joined:
            tries.append(answer)
            if len(tries) == 1:
                raise RuntimeError("not yet")
            return answer

        platforms, approved = known(*self.NEWCOMER, p1={(0, "join"): late})
        events: list[Event] = []
        names = dict(enumerate(self.NAMES, start=2))
        outcome = federate(*platforms, **approved, names=lambda: names, rounds=1, events=events.append)
        assert len(tries) == 2 and told(events, Kind.WAITING)[-1] == "2 of 4 platforms know each other; p1 may still come"
        assert set(outcome.tallies) == {"p0", "p1", "p2"}

    def test_who_is_named_is_not_left_out_in_silence(self, federate: Any, known: Any) -> None:
        platforms, approved = known(*self.NEWCOMER)
        names = dict(enumerate(self.NAMES, start=2))
        with pytest.raises(FedfuseError, match="have to know each other") as caught:
            federate(*platforms, **approved, names=lambda: names, only=self.NAMES)
        assert caught.value.exit_code is ExitCode.REFUSED
        assert all(key[1] == "join" for platform in platforms for key in platform.asked)

    @pytest.mark.parametrize("how", ["silent", "another's", "another run's", "forged"])
    def test_a_statement_is_the_platforms_own(self, federate: Any, known: Any, how: str) -> None:
        def change(answer: Joined) -> Joined:
            other = platforms[0].part(Join(run="run" if how != "another run's" else "other", settings=settings[0]))
            text = {"silent": b"", "another's": other.trust(), "another run's": other.trust(), "forged": answer.trust[:-1] + b"x"}
            return replace(answer, trust=text[how])

        settings: list[Settings] = []

        platforms, approved = known(p1={(0, "join"): change})
        handle = platforms[1].handle

        def handled(request: Request) -> Answer:
            settings.append(request.settings)
            return handle(request)

        platforms[1].handle = handled  # type: ignore[method-assign]
        events: list[Event] = []
        outcome = federate(*platforms, **approved, events=events.append, rounds=1)
        assert set(outcome.tallies) == {"p0", "p2", "p3"}
        assert any("p1 is left out" in text for text in told(events, Kind.LEFT))


@pytest.mark.parametrize("change", [{"users": 99}, {"items": 6}, {"catalogue": "ab" * 32}])
def test_what_a_platform_says_is_what_it_signed(federate: Any, several: Any, tiny_settings: Make, change: dict[str, Any]) -> None:
    platforms = several(4, p3={(0, "join"): lambda answer: replace(answer, **change)})
    events: list[Event] = []
    outcome = federate(*platforms, events=events.append)
    assert any("p3 is left out" in text and "signed" in text for text in told(events, Kind.LEFT))
    assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms[:3], at) for at in (1, 2, 3)), rel=1e-5)


def weight(record: RecordDict) -> int:
    """Arrays as they travel, and scalars as text."""
    arrays = sum(len(array.data) for part in record.array_records.values() for array in part.values())
    return arrays + sum(len(name) + len(str(value)) for part in record.config_records.values() for name, value in part.items())


def test_every_byte_to_and_from_a_platform_is_counted_as_its_own(
    federate: Any, several: Any, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all phases, also those in which a round goes on without somebody; the oracle weighs messages as they are handed over."""
    sent: dict[int, int] = defaultdict(int)
    phases: set[str] = set()
    push = InProcessGrid.push_messages

    def weighed(grid: InProcessGrid, messages: Any) -> list[str]:
        for message in (messages := list(messages)):
            request = request_from(message.content)
            sent[message.metadata.dst_node_id] += weight(message.content)
            phases.add(request.phase.value if isinstance(request, Secure) else request.kind)
        return push(grid, messages)

    monkeypatch.setattr(InProcessGrid, "push_messages", weighed)
    platforms = several(4, p3={(2, "sum"): Reason.FAILED})
    came: dict[str, int] = defaultdict(int)
    for platform in platforms:

        def answering(request: Request, handle: Any = platform.handle, name: str = platform.name) -> Answer:
            answer = handle(request)
            came[name] += weight(to_record(answer))
            return answer

        platform.handle = answering  # type: ignore[method-assign]
    outcome = federate(*platforms)
    assert phases == {"join", "deal", "sum", "confirm", "unmask", "evaluate"}
    for node, platform in enumerate(platforms, start=2):
        assert outcome.tallies[platform.name].bytes_down == sent[node]
        assert outcome.tallies[platform.name].bytes_up == came[platform.name]


def test_the_noise_is_the_largest_that_anybody_needs(federate: Any, make: Any, tmp_path: Path) -> None:
    told_: list[Event] = []
    federate(make("a", need=0.3, users=200), make("b", need=0.7, users=200), events=told_.append, rounds=1)
    assert "noise multiplier 0.7" in told(told_, Kind.SECURED)[0]


def test_sums_that_would_be_noise_are_not_begun(federate: Any, make: Any) -> None:
    platforms = [make("a", need=90.0), make("b")]
    with pytest.raises(NoisyPlan):
        federate(*platforms)
    assert all(phase in ("join",) for _, phase in platforms[0].asked)


def test_fewer_than_the_settings_minimum_never_make_a_sum(federate: Any, several: Any) -> None:
    platforms = several(5, p0={(1, "sum"): Reason.FAILED})
    events: list[Event] = []
    with pytest.raises(NoUpdate):
        federate(
            *platforms, rounds=1, server={"minimum_platforms": 5}, secure={"threshold": 0.2, "colluders": 0}, events=events.append
        )
        raise NoUpdate("given up")
    assert told(events, Kind.ABANDONED)


@pytest.mark.parametrize("strategy", ["fedavg", "ffa", "rolora", "fedsa", "fedsb", "ffa+fedavgm"])
def test_linear_strategies_restrict_what_is_summed(federate: Any, several: Any, tiny_settings: Make, strategy: str) -> None:
    from shared.model.factor_schedule import scheme_of

    platforms = several(3)
    over = {"strategy": strategy, "privacy": {"noise": "distributed"}, "rounds": 2}
    outcome = federate(*platforms, **over)
    start = initial(tiny_settings(**over))
    cycle = [scheme_of(strategy).factors(round_) for round_ in (1, 2)]
    for name in start:
        change = outcome.adapter[name] - start[name]
        rounds = [at for at, factors in enumerate(cycle, 1) if name in trained(start, factors)]
        if "+" in strategy:
            assert change.any() == bool(rounds)
            continue
        np.testing.assert_allclose(change, sum(step(platforms, at) for at in rounds), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["flora", "exact", "svd", "secure-sum+median", "krum"])
def test_what_needs_single_updates_is_refused_at_the_start(federate: Any, several: Any, strategy: str) -> None:
    platforms = several(3)
    with pytest.raises(InputError, match="secure sum"):
        federate(*platforms, strategy=strategy, privacy={"noise": "distributed"})
    assert platforms[0].asked == []


class TestGivenUpAndTriedAgain:
    """Within the patience a sum that was given up goes on where it was, with the answers that it has."""

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("server.run.secure_round._PAUSES", (0.01, 0.01))

    @staticmethod
    def once(platform: Platform, at: tuple[int, str], failure: Any) -> None:
        """It fails the first time that it is asked, after it has paid for what it is asked."""
        honest = platform.answer

        def answer(request: Request) -> Answer:
            found = honest(request)
            if platform.asked[-1] == at and platform.asked.count(at) == 1:
                raise failure
            return found

        platform.answer = answer  # type: ignore[method-assign]

    @pytest.mark.parametrize("phase", ["sum", "confirm", "unmask"])
    def test_in_every_phase_the_round_counts(
        self, federate: Any, several: Any, tiny_settings: Make, tmp_path: Path, phase: str
    ) -> None:
        platforms = several(5, p4={(2, "sum"): Reason.ROUND}) if phase == "confirm" else several(5)
        for platform in platforms[:3]:
            self.once(platform, (2, phase), RuntimeError("gone"))
        events: list[Event] = []
        outcome = federate(*platforms, events=events.append, patience=20.0)
        second = platforms[:4] if phase == "confirm" else platforms
        wanted = step(platforms, 1) + step(second, 2) + step(platforms, 3)
        assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)
        assert (outcome.rounds, outcome.lost) == (3, ())
        assert not told(events, Kind.ABANDONED) and not told(events, Kind.LOST)
        # Whoever had answered is not asked again.
        assert platforms[3].asked.count((2, phase)) == 1
        assert "| rounds | 3 |" in (tmp_path / "run" / "model" / "README.md").read_text()

    def test_all_of_three(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        platforms = several(3)
        self.once(platforms[1], (3, "sum"), RuntimeError("killed"))
        over = {"secure": {"threshold": 1.0, "colluders": 0}}
        outcome = federate(*platforms, patience=20.0, **over)
        assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms, at) for at in (1, 2, 3)), rel=1e-5)
        assert outcome.lost == ()

    def test_without_return_the_card_says_how_many_rounds_count(self, federate: Any, several: Any, tmp_path: Path) -> None:
        lost = {(3, "sum"): RuntimeError("killed")}
        outcome = federate(*several(3, p0=lost), patience=0.3, secure={"threshold": 1.0, "colluders": 0})
        assert (outcome.rounds, outcome.lost, outcome.open) == (2, (), 3)
        assert (
            "| rounds | 2 of 3 count: the others were given up, or not begun |"
            in (tmp_path / "run" / "model" / "README.md").read_text()
        )

    @pytest.mark.parametrize("phase", ["sum", "unmask"])
    def test_resumed_it_asks_for_the_round_again(
        self, federate: Any, several: Any, tiny_settings: Make, tmp_path: Path, phase: str
    ) -> None:
        """Nobody makes a second vector for it, and in the end every round counts."""
        over = {"rounds": 4, "secure": {"threshold": 1.0, "colluders": 0}}
        platforms = several(3, p0={(2, phase): RuntimeError("killed")})
        first = federate(*platforms, patience=0.3, **over)
        assert (first.rounds, first.lost, first.open) == (1, (), 2)
        assert not any(key[0] > 2 for platform in platforms for key in platform.asked)
        given = [dict(platform.vectors) for platform in platforms]
        platforms[0].script.clear()
        outcome = federate(*platforms, patience=0.3, resume=True, **over)
        assert (outcome.rounds, outcome.lost, outcome.open) == (4, (), 0)
        assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms, at) for at in (1, 2, 3, 4)), rel=1e-5)
        for platform, before in zip(platforms, given, strict=True):
            assert all(platform.vectors[round_] is vector for round_, vector in before.items())
        assert "| rounds | 4 |" in (tmp_path / "run" / "model" / "README.md").read_text()

    def test_lost_rounds_outlive_the_coordinator(self, federate: Any, several: Any) -> None:
        platforms = several(3, p0={(2, "sum"): RuntimeError("killed")})

        def stop(event: Event) -> None:
            if event.kind is Kind.LOST:
                raise KeyboardInterrupt

        over = {"secure": {"threshold": 1.0, "colluders": 0}}
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, events=stop, **over)
        outcome = federate(*platforms, resume=True, **over)
        assert (outcome.rounds, outcome.lost) == (2, (2,))

    @pytest.mark.parametrize("reason", [Reason.BUDGET, Reason.ROUND])
    def test_what_would_be_refused_again_is_not_waited_for(self, federate: Any, several: Any, reason: Reason) -> None:
        platforms = several(3, p0={(3, "sum"): reason})
        outcome = federate(*platforms, patience=600.0, secure={"threshold": 1.0, "colluders": 0})
        assert outcome.lost == (3,) and platforms[0].asked.count((3, "sum")) == 1

    def test_a_run_that_ends_for_missing_platforms_is_incomplete(self, federate: Any, several: Any) -> None:
        lost = {(round_, "unmask"): RuntimeError("gone") for round_ in (2, 3, 4)}
        with pytest.raises(NoUpdate, match="in a row") as caught:
            federate(*several(5, p0=lost, p1=lost, p2=lost), rounds=9)
        assert caught.value.exit_code is ExitCode.INCOMPLETE


class TestItemsEncoded:
    """Items' vectors serve several rounds, while everybody that is asked has those of one and the same question."""

    def test_while_all_are_there(self, federate: Any, several: Any) -> None:
        platforms = several(3)
        federate(*platforms, rounds=5, training={"bank_steps": 3})
        assert [one.since for one in platforms] == [{1: 1, 2: 1, 3: 1, 4: 4, 5: 4}] * 3

    def test_anew_when_one_comes_back(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        platforms = several(4, p3={(2, "sum"): Reason.FAILED})
        outcome = federate(*platforms, rounds=4, training={"bank_steps": 8})
        assert [one.since for one in platforms] == [{1: 1, 2: 1, 3: 3, 4: 3}] * 3 + [{1: 1, 3: 3, 4: 3}]
        wanted = sum(step(platforms, at) for at in (1, 3, 4)) + step(platforms[:3], 2)
        assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)

    def test_anew_when_one_has_forgotten(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        """It refuses the round that goes on with what it does not have, is missed once, and is back in the next."""
        platforms = several(4)
        honest = platforms[3].masked

        def forgetful(request: Sum, part: PersistentParticipant) -> bytes:
            if request.round == 2:
                raise OutOfOrder("its items' vectors are lost")
            return honest(request, part)

        platforms[3].masked = forgetful  # type: ignore[method-assign]
        outcome = federate(*platforms, rounds=3, training={"bank_steps": 8})
        assert platforms[0].since == {1: 1, 2: 1, 3: 3}
        wanted = sum(step(platforms, at) for at in (1, 3)) + step(platforms[:3], 2)
        assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("phase", ["unmask", "evaluate"])
    def test_a_coordinator_that_comes_back_goes_on_with_them(self, federate: Any, several: Any, phase: str) -> None:
        platforms = several(3)

        def stop(event: Event) -> None:
            if phase == "evaluate" and event.kind is Kind.ROUND and event.round == 2:
                raise KeyboardInterrupt

        if phase == "unmask":
            platforms[2].script[(2, "unmask")] = KeyboardInterrupt()
        over = {"rounds": 3, "training": {"bank_steps": 8}}
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, events=stop, **over)
        platforms[2].script.clear()
        federate(*platforms, resume=True, **over)
        assert [one.since for one in platforms] == [{1: 1, 2: 1, 3: 1}] * 3


def killed_after(round_: int) -> Callable[[Event], None]:
    """A listener that ends the coordinator when that round is done."""

    def stop(event: Event) -> None:
        if event.kind is Kind.ROUND and event.round == round_:
            raise KeyboardInterrupt

    return stop


class TestResuming:
    def test_it_gives_the_uninterrupted_result(self, federate: Any, make: Any, tmp_path: Path) -> None:
        def platforms() -> list[Platform]:
            return [make(f"p{at}", gradient=(at + 1) / 100) for at in range(4)]

        straight = federate(*platforms(), out="straight")

        for path in (tmp_path / "platforms").rglob("*.secure"):
            path.unlink()
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms(), events=killed_after(2))
        again = platforms()
        resumed = federate(*again, resume=True)
        assert all((resumed.adapter[name] == straight.adapter[name]).all() for name in straight.adapter)
        assert [key for key in again[0].asked if key[1] not in ("join", "evaluate")] == [(3, "sum"), (3, "unmask")]

    def test_in_the_middle_of_a_round(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        """The coordinator dies after the vectors came: they come again, word for word, and the sum comes about."""
        platforms = several(4)
        platforms[2].script[(2, "unmask")] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms)
        del platforms[2].script[(2, "unmask")]
        outcome = federate(*platforms, resume=True)
        assert moved(outcome, tiny_settings()) == pytest.approx(sum(step(platforms, at) for at in (1, 2, 3)), rel=1e-5)
        assert sum(key == (2, "sum") for key in platforms[0].asked) == 2

    def test_with_other_survivors_the_round_is_given_up(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        platforms = several(4)
        platforms[2].script[(2, "unmask")] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, secure={"threshold": 0.75, "colluders": 0})
        platforms[2].script = {(2, "sum"): Reason.FAILED}
        events: list[Event] = []
        outcome = federate(*platforms, resume=True, events=events.append, secure={"threshold": 0.75, "colluders": 0})
        # Platforms 0 and 1 have answered for the whole list already, and sign no other.
        assert told(events, Kind.ABANDONED)
        assert moved(outcome, tiny_settings()) == pytest.approx(step(platforms, 1) + step(platforms, 3), rel=1e-5)

    def test_a_platform_that_forgot_its_keys_is_left_out(
        self, federate: Any, several: Any, tiny_settings: Make, tmp_path: Path
    ) -> None:
        platforms = several(4)
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, events=killed_after(1))
        next((tmp_path / "platforms" / "p3").glob("*.secure")).unlink()
        outcome = federate(*platforms, resume=True)
        wanted = step(platforms, 1) + sum(step(platforms[:3], at) for at in (2, 3))
        assert moved(outcome, tiny_settings()) == pytest.approx(wanted, rel=1e-5)

    def test_while_shares_are_dealt(self, federate: Any, several: Any, tiny_settings: Make) -> None:
        platforms = several(4)
        platforms[2].script[(0, "deal")] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms)
        platforms[2].script.clear()
        with pytest.raises(InputError, match="checkpoint"):
            federate(*platforms, resume=True)  # nothing was trained yet: there is nothing to resume

    def test_a_damaged_session_is_noticed(self, federate: Any, several: Any, tmp_path: Path) -> None:
        platforms = several(3)
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, events=killed_after(1))
        path = tmp_path / "run" / FOLDER / "session.bin"
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        with pytest.raises(StorageError, match="session"):
            federate(*platforms, resume=True)

    def test_one_of_another_release_is_refused_in_words(self, federate: Any, several: Any, tmp_path: Path) -> None:
        platforms = several(3)
        with pytest.raises(KeyboardInterrupt):
            federate(*platforms, events=killed_after(1))
        path = tmp_path / "run" / FOLDER / "session.bin"
        data = bytearray(read_checked(path))
        data[2] = VERSION - 1
        write_checked(path, bytes(data))
        with pytest.raises(StorageError, match=f"format {VERSION - 1}"):
            federate(*platforms, resume=True)


def test_the_coordinators_folder_holds_no_secret(federate: Any, several: Any, tmp_path: Path) -> None:
    from client.secagg.participant import Active

    federate(*several(3), rounds=2)
    public = b"".join(path.read_bytes() for path in (tmp_path / "run" / FOLDER).iterdir())
    for path in (tmp_path / "platforms").rglob("*.secure"):
        state = decode(Active, path.read_bytes()[32:])
        assert state.secrets[:32] not in public and state.secrets[32:64] not in public
        assert path.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "run" / FOLDER).glob("*.mail"))


def test_a_train_request_is_not_for_these_platforms(federate: Any, several: Any) -> None:
    platforms = several(2)
    federate(*platforms, rounds=1)
    assert not any(phase == Train.kind for _, phase in platforms[0].asked)


def test_nobody_joins(federate: Any, several: Any) -> None:
    with pytest.raises(FedfuseError):
        federate(*several(2, p0={(0, "join"): Reason.SOURCES}, p1={(0, "join"): Reason.SOURCES}))


@pytest.mark.parametrize(("phase", "deadline"), [(7.0, 7.0), (70.0, 20.0)])
def test_phases_without_training_have_a_deadline_of_their_own(
    federate: Any, several: Any, monkeypatch: pytest.MonkeyPatch, phase: float, deadline: float
) -> None:
    waited: list[tuple[str, float, float]] = []

    class Watched(Exchange):
        def __init__(self, grid: Any, messages: Any, *, timeout: float) -> None:
            def seen() -> Any:
                for message in messages:
                    name = request_from(message.content).kind
                    waited.append((name, timeout, message.metadata.ttl))
                    yield message

            super().__init__(grid, seen(), timeout=timeout)

    monkeypatch.setattr("server.run.dispatch.Exchange", Watched)
    federate(*several(4), rounds=1, secure={"threshold": 0.6, "colluders": 0, "phase_timeout": phase})
    assert {(name, timeout) for name, timeout, _ in waited} == {("secure", deadline), ("sum", 20.0), ("evaluate", 20.0)}
    # Flower forgets a request that has expired, and must not while its answer is waited for.
    assert all(lifetime > timeout for _, timeout, lifetime in waited)
