"""The coordinator's messages, phase by phase: whom each asks, what is made of the answers, and whom a sum still waits for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType
from numpy.typing import NDArray

from client.secagg.persistent_participant import PersistentParticipant, Register, identity_of
from shared.base.settings import Settings, build
from shared.preferences.summed_preferences import PreferenceQuestion
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import Answer, Count, Phase, Prefer, Reason, Refusal, Secure, Secured, Sum, Summed
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.noise_agreement import Agreement, batch_of, number_of, pooled, terms_of
from shared.secagg.roster import Advert
from shared.secagg.shared_catalogues import DeclaredCatalogue, Popularity, Taken
from strategies.base import Member, lifetime_of
from strategies.composition import named
from strategies.optimizers import ServerOptimizer
from strategies.secure_sum.encoded_items import Encoded
from strategies.secure_sum.flower_phases import Phases
from strategies.secure_sum.protocol import Abandoned, Enrolment, SumCoordinator
from tests.strategies.contract import RUN, identify

ITEMS = 3
QUESTION = PreferenceQuestion(items=np.arange(ITEMS, dtype=np.uint64))
ADAPTER = {"head.lora_A": np.zeros((2, 3), np.float32), "head.lora_B": np.zeros((4, 2), np.float32)}


class AskedPlatforms:
    """Platforms p0, p1, ... with real parts in the sum, in this process; platform n has n + 1 times `places` in its vectors.

    Args:
        catalogues: One letter a platform: those with one letter have one catalogue.
    """

    def __init__(self, root: Path, settings: Settings, catalogues: str = "aabb") -> None:
        self.root, self.settings = root, settings
        self.register = Register(root / ".identities")
        self.users = [10 * (at + 1) for at in range(len(catalogues))]
        self.declared = [
            DeclaredCatalogue(digest=letter.encode() * 32, items=2 + ord(letter) - ord("a"), users=users)
            for letter, users in zip(catalogues, self.users, strict=True)
        ]
        enrolment = Enrolment(terms_of(settings, RUN))
        for at in range(len(catalogues)):
            self.register.add(f"p{at}", identity_of(root / f"p{at}", make=True))
            enrolment.add(decode(Advert, self.part(at).advert()), platform=f"p{at}")
        agreement = Agreement(
            noise_multiplier=2.0,
            preference_noise=3.0,
            batch=batch_of(enrolment.entries, settings.training),
            catalogues=pooled(enrolment.entries, colluders=settings.secure.colluders),
        )
        self.members = {f"p{at}": Member(node=100 + at, platform=f"p{at}", users=users) for at, users in enumerate(self.users)}
        self.strategy = named("secure-sum")(settings=settings, run=RUN)
        self.phases = Phases(
            strategy=self.strategy,
            coordinator=SumCoordinator(enrolment.close(encode(agreement))),
            members=self.members,
        )

    def part(self, at: int) -> PersistentParticipant:
        return PersistentParticipant(
            run=RUN, settings=self.settings, platform=f"p{at}", path=self.root / f"p{at}" / "run.secure",
            identity=identity_of(self.root / f"p{at}", make=False), peers=self.register.peers, declared=self.declared[at],
            known=False,
        )  # fmt: skip

    def answer(self, at: int, message: Message) -> Answer:
        request, part = request_from(message.content), self.part(at)
        who = {"run": RUN, "platform": f"p{at}"}
        if isinstance(request, Secure):
            body = {
                Phase.DEAL: lambda: part.deal(
                    request.body, need=2.0, preference_need=3.0, taste_need=0.0, batch=1.0, dimensions={}
                ),
                Phase.CONFIRM: lambda: part.confirm(request.body),
                Phase.UNMASK: lambda: part.unmask(request.body),
                Phase.POPULARITY: lambda: [part.take(decode(Popularity, request.body)), encode(Taken())][1],
            }[request.phase]()
            return Secured(**who, round=request.round, phase=request.phase, body=body)
        assert isinstance(request, Sum | Count | Prefer)
        asked = part.asked(request, finished=-1)
        size = asked.request.length
        match request:
            case Sum():
                point = part.point(asked, dimension=size)
            case Count():
                point = part.popularity_point(asked)
            case Prefer():
                point = part.preference_point(asked, dimension=size, of=request.of)
        vector = np.rint((at + 1) * places(size) * point.scale).astype(np.int64)
        return Summed(
            **who, round=getattr(request, "round", 0), users=self.users[at], epsilon=1.0, ledger="", seconds=0.1,
            body=asked.known or part.mask(asked, point.wrap(vector)),
        )  # fmt: skip

    def replies(self, messages: Iterable[Message], *, but: Collection[int] = ()) -> Iterator[Message]:
        """Everybody's that is asked, but those platforms'."""
        for message in messages:
            at = message.metadata.dst_node_id - 100
            if at not in but:
                yield Message(to_record(self.answer(at, message)), reply_to=message)

    def set_up(self) -> AskedPlatforms:
        self.phases.dealt(self.replies(self.phases.deal()))
        assert not self.phases.report.drops
        self.phases.coordinator.settle()
        return self

    def vectors(self, messages: Iterable[Message], *, but: Collection[int] = ()) -> None:
        self.phases.masked(self.replies(messages, but=but))
        assert not self.phases.report.drops

    def finish(self) -> None:
        self.phases.close()
        if not self.phases.work.whole:
            self.phases.confirmed(self.replies(self.phases.confirm()))
        self.phases.unmasked(self.replies(self.phases.unmask()))

    def before(self, server_round: int) -> secagg.Before:
        """What platforms are told in a round, and all alike, on which its vectors depend."""
        asked = [decode(secagg.Mask, request_from(one.content).body) for one in self.phases.mask(server_round, ADAPTER)]  # type: ignore[union-attr]
        assert all(mask.before == asked[0].before for mask in asked)
        return asked[0].before


def places(size: int) -> NDArray[np.float64]:
    """No two places of a vector are alike."""
    return np.arange(1, size + 1) / size


def summed(among: Iterable[int], size: int) -> Any:
    """Those platforms' sum, of which each has rounded its part."""
    return pytest.approx(sum(at + 1 for at in among) * places(size), abs=1e-2)


@pytest.fixture
def summing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AskedPlatforms]:
    identify(monkeypatch)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def make(catalogues: str = "aabb", bank_steps: int = 1, **secure: Any) -> AskedPlatforms:
        values = {"threshold": 0.5, "colluders": 0, "phase_timeout": 7.0, **secure}
        run = {"strategy": "secure-sum", "rounds": 5, "reply_timeout": 20.0, "training": {"bank_steps": bank_steps}}
        settings = build({**run, "secure": values}, where="test")
        return AskedPlatforms(tmp_path, settings, catalogues).set_up()

    return make


def names(messages: Iterable[Message]) -> list[str]:
    return [f"p{message.metadata.dst_node_id - 100}" for message in messages]


@pytest.mark.parametrize(
    ("lost", "owners", "users"),
    [((), None, 100), ((3,), None, 60), ((), {0, 2}, 40), ((0,), {0, 2}, 30), ((), (), 0), ((), {3}, 40)],
)
def test_a_sum_of_what_users_like_is_of_the_users_of_those_that_are_in_it_and_have_an_item(
    summing: Any, lost: tuple[int, ...], owners: Collection[int] | None, users: int
) -> None:
    made = summing("abcd")
    made.vectors(made.phases.prefer(QUESTION, lists=b""), but=lost)
    made.finish()
    found, there = made.phases.preferences(owners), set(range(4)) - set(lost)
    assert found.vector == summed(there, ITEMS)
    assert found.users == users
    # Every survivor adds its share, of which those of the honest alone are the noise that was agreed on.
    point = made.phases.point
    assert found.noise**2 == pytest.approx(len(there) * point.noise**2 / point.honest)
    assert point.noise > 0


class TestPopularities:
    def test_each_catalogue_has_its_own_sum(self, summing: Any) -> None:
        made = summing("abab")
        made.vectors(made.phases.count())
        made.finish()
        found = made.phases.popularities()
        assert np.concatenate([one.values for one in found]) == summed(range(4), 5)
        assert [len(one.values) for one in found] == [2, 3]
        point = made.phases.point
        assert [one.noise for one in found] == [pytest.approx(point.noise * math.sqrt(4 / point.honest))] * 2

    @pytest.mark.parametrize(("lost", "holds"), [((), True), ((4, 5), True), ((4,), False), ((5,), False)])
    def test_none_is_unmasked_that_is_one_platforms(self, summing: Any, lost: tuple[int, ...], holds: bool) -> None:
        """No platform would unmask it, and each would have to be asked to find out."""
        made = summing("aaaabb")
        made.vectors(made.phases.count(), but=lost)
        if holds:
            made.phases.close()
            assert made.phases.closed
            return
        with pytest.raises(Abandoned, match="1 platforms with catalogue 6262"):
            made.phases.close()
        assert not made.phases.closed and made.phases.missing == {f"p{at}" for at in lost}

    def test_it_is_only_that_sum_which_needs_owners(self, summing: Any) -> None:
        made = summing("aabb")
        made.vectors(made.phases.prefer(QUESTION, lists=b""), but=[3])
        made.phases.close()
        assert made.phases.closed

    def test_those_are_told_who_have_one_and_whoever_says_so_has_it(self, summing: Any) -> None:
        made = summing("aabb")
        told = Popularity(counts=np.zeros(2, "<f4").tobytes(), noise=1.0)
        asked = list(made.phases.tell({"p0": told, "p1": told}))
        assert names(asked) == ["p0", "p1"]
        assert made.phases.told(made.replies(asked, but=[0])) == {"p1"}
        nonsense = Secured(run=RUN, platform="p0", round=0, phase=Phase.POPULARITY, body=b"?")
        assert made.phases.told([Message(to_record(nonsense), reply_to=asked[0])]) == set()
        assert [drop.platform for drop in made.phases.report.drops] == ["p0"]


def test_a_sum_waits_for_those_whose_answer_it_lacks(summing: Any) -> None:
    made = summing("abcde")
    phases = made.phases
    asked = list(phases.mask(1, ADAPTER))
    assert phases.missing == {"p0", "p1", "p2", "p3", "p4"}
    made.vectors(asked, but=[1, 3])
    assert phases.missing == {"p1", "p3"} and not phases.closed
    assert names(phases.again()) == ["p1", "p3"]
    made.vectors(phases.again(), but=[1])
    assert phases.missing == {"p1"}
    phases.close()
    # Somebody is missing, so the list is signed first; then the shares are asked for.
    assert phases.missing == {"p0", "p2", "p3", "p4"}
    votes = phases.coordinator.roster.quorum.votes
    assert 1 < votes < 4
    confirming = list(phases.confirm())
    for at, message in enumerate(confirming[:votes], start=1):
        assert phases.missing == set(names(confirming[at - 1 :])), at
        phases.confirmed(made.replies([message]))
    assert names(phases.confirm()) == names(confirming[votes:])
    assert phases.missing == {"p0", "p2", "p3", "p4"}
    phases.unmasked(made.replies(phases.unmask(), but=[0]))
    assert phases.missing == {"p0"} and names(phases.unmask()) == ["p0"]
    assert phases.gradient_sum() == summed([0, 2, 3, 4], 14)
    assert phases.missing == set()


def test_where_nobody_is_missing_no_list_is_signed(summing: Any) -> None:
    made = summing("ab")
    made.vectors(made.phases.mask(1, ADAPTER))
    made.phases.close()
    assert made.phases.missing == {"p0", "p1"} and names(made.phases.unmask()) == ["p0", "p1"]


def test_whoever_nobody_speaks_for_is_not_asked(summing: Any) -> None:
    made = summing("abc")
    del made.members["p1"]
    assert names(made.phases.deal()) == ["p0", "p2"]
    assert names(made.phases.mask(1, ADAPTER)) == ["p0", "p2"]
    assert names(made.phases.tell({"p0": Popularity(counts=b"", noise=0.0), "p1": Popularity(counts=b"", noise=0.0)})) == ["p0"]


@pytest.mark.parametrize(("timeout", "quick"), [(7.0, 7.0), (30.0, 20.0)])
def test_training_is_waited_for_longest_and_no_phase_longer_than_an_answer(summing: Any, timeout: float, quick: float) -> None:
    made = summing("abc", phase_timeout=timeout)
    phases = made.phases
    training = list(phases.mask(1, ADAPTER))
    made.vectors(training, but=[2])
    phases.close()
    confirming = list(phases.confirm())
    phases.confirmed(made.replies(confirming))
    assert phases.quick == quick
    for messages, kind, seconds in (
        (phases.deal(), MessageType.QUERY, quick),
        (training, MessageType.TRAIN, 20.0),
        (confirming, MessageType.QUERY, quick),
        (phases.unmask(), MessageType.QUERY, quick),
    ):
        for message in messages:
            where = message.metadata
            assert (where.message_type, where.ttl) == (kind, lifetime_of(seconds))
            assert where.group_id == f"secure-{where.dst_node_id - 100}"


def test_what_all_are_sent_alike_is_held_once(summing: Any) -> None:
    made = summing("abc")
    first = list(made.phases.mask(1, ADAPTER))
    bodies = [message.content["body"] for message in first]
    assert len({id(body) for body in bodies}) == 3  # each with the shares that are for it alone
    shared: list[NDArray[Any]] = [message.content["adapter"] for message in first]
    assert len({id(part) for part in shared}) == 1
    made.vectors(first)
    again = list(made.phases.mask(2, ADAPTER))
    assert len({id(message.content["body"]) for message in again}) == 1  # the shares have arrived


def test_answers_that_cannot_be_used_are_left_out_each_with_its_reason(summing: Any) -> None:
    made = summing("abcdef")
    asked = list(made.phases.mask(1, ADAPTER))
    good = [made.answer(at, message) for at, message in enumerate(asked)]
    changed: list[Any] = [
        good[0],
        Error(code=7),
        Refusal(run=RUN, platform="p2", round=1, reason=Reason.BUDGET),
        Secured(run=RUN, platform="p3", round=1, phase=Phase.DEAL, body=b""),
        good[0],  # p0's, from p4's node
        Summed(run="other", platform="p5", round=1, users=60, epsilon=1.0, ledger="", seconds=0.1, body=b""),
    ]
    replies = [
        Message(each if isinstance(each, Error) else to_record(each), reply_to=message)
        for each, message in zip(changed, asked, strict=True)
    ]
    del made.members["p0"]
    made.members["q"] = Member(node=100, platform="q", users=1)  # on no roster
    made.phases.masked(replies)
    report = made.phases.report
    assert not report.updates and {node: one.reason for node, one in report.refusals.items()} == {102: Reason.BUDGET}
    reasons = {drop.node: (drop.platform, drop.reason) for drop in report.drops}
    assert sorted(reasons) == [100, 101, 103, 104, 105]
    assert reasons[101] == ("p1", "error 7")
    assert reasons[103] == ("p3", f"answered with 'secured' of 'p3' in run {RUN!r}")
    assert reasons[104] == ("p4", f"answered with 'summed' of 'p0' in run {RUN!r}")
    assert reasons[105] == ("p5", "answered with 'summed' of 'p5' in run 'other'")
    assert made.phases.missing == {"p0", "p1", "p2", "p3", "p4", "p5"}


@pytest.mark.parametrize(("change", "why"), [({"round": 2}, "answers round 2 for 20 users"), ({"users": 21}, "for 21 users")])
def test_a_vector_of_another_round_or_for_other_users_is_not_added(summing: Any, change: dict[str, int], why: str) -> None:
    made = summing("abc")
    asked = list(made.phases.mask(1, ADAPTER))
    made.phases.masked([Message(to_record(replace(made.answer(1, asked[1]), **change)), reply_to=asked[1])])
    (drop,) = made.phases.report.drops
    assert (drop.node, drop.platform) == (101, "p1") and why in drop.reason
    assert not made.phases.work.survivors
    made.vectors(made.phases.again())
    assert [receipt.platform for receipt in made.phases.report.updates] == ["p0", "p1", "p2"]


def test_the_step_is_taken_with_the_mean_over_the_users_that_are_in_the_sum(
    summing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.composition.StepOnSums", lambda settings: ServerOptimizer(settings.server))
    made = summing("abcd")
    made.vectors(made.phases.mask(1, ADAPTER), but=[2])
    made.finish()
    gone = made.settings.training.batch([made.users[at] for at in (0, 1, 3)])
    total = (1 + 2 + 4) * places(14)
    change = {"head.lora_A": -total[:6].reshape(2, 3) / gone, "head.lora_B": -total[6:].reshape(4, 2) / gone}
    wanted = ServerOptimizer(made.settings.server).step(ADAPTER, change)
    found = made.phases.step()
    assert list(found) == list(made.phases.layout()) == list(ADAPTER)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-2 / gone)
        assert np.abs(array).min() > 0.1 / gone
    for wrong in (np.inf, np.nan):
        stepped = {**wanted, "head.lora_B": np.array([0, wrong])}
        monkeypatch.setattr(made.strategy, "step", lambda adapter, change, stepped=stepped: stepped)
        with pytest.raises(Abandoned, match="round 1 would drive the adapter out of the range"):
            made.phases.step()


class TestItemsVectors:
    """Of an earlier round, for those that have them; with them a round is asked otherwise, so that no two are mixed."""

    def test_they_serve_for_some_rounds_and_then_are_made_anew(self, summing: Any) -> None:
        made = summing("abc", bank_steps=3)
        found = []
        for server_round in range(1, 6):
            found.append(made.before(server_round))
            assert made.before(server_round) == found[-1]  # whoever is asked again is asked the same
            made.vectors(made.phases.again())
            made.finish()
        assert [before.since for before in found] == [0, number_of(1), number_of(1), 0, number_of(4)]
        assert found[0].based == found[3].based == b"" and found[1].based == found[2].based != found[4].based

    @pytest.mark.parametrize(("there", "serve"), [("p0 p1 p2", False), ("p0 p2", True)])
    def test_not_if_one_is_asked_that_has_none(self, summing: Any, there: str, serve: bool) -> None:
        made = summing("abc", bank_steps=3)
        made.vectors(made.phases.mask(1, ADAPTER), but=[1])
        made.finish()
        for name in set(made.members) - set(there.split()):
            del made.members[name]
        assert bool(made.before(2).since) is serve

    def test_another_kind_of_sum_changes_nothing_of_them(self, summing: Any) -> None:
        made = summing("abc", bank_steps=3)
        pairs = replace(QUESTION, direction=np.full(ITEMS, ITEMS**-0.5, np.float32))
        made.phases.encoded = known = Encoded(round=1, since=1, question=b"q", holders=(0, 1, 2))
        made.vectors(made.phases.prefer(pairs, lists=b""), but=[2])
        made.finish()
        assert made.phases.encoded == known

    def test_what_platforms_were_told_goes_with_every_question(self, summing: Any) -> None:
        made = summing("abc", bank_steps=3)
        known = [Popularity(counts=np.full(2, value, "<f4").tobytes(), noise=1.0) for value in (1.0, 2.0)]
        made.phases.known = tuple(known)
        assert made.before(1).told == made.before(1).told == tuple(one.digest for one in known)
