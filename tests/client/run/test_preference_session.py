"""Sums of preferences as a platform answers them: what it refuses, what it remembers, and what a crash costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.run.preference_session import SecurePreferences
from client.secagg.persistent_participant import PersistentParticipant
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.preferences.item_index import declared_items, item_hashes, parse_items
from shared.preferences.platform_lists import PlatformLists
from shared.preferences.popularity_axis import declared_direction
from shared.preferences.sum_kind import SumKind
from shared.protocol.messages import (
    Answer,
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Personalise,
    Prefer,
    Preferred,
    Reason,
    Refusal,
    Sum,
    Summed,
    Train,
)
from shared.protocol.question import question_of, sum_number
from shared.secagg.codec import encode
from shared.secagg.masks import MaskFrame
from shared.secagg.shared_catalogues import catalogue_digest
from strategies.secure_sum.masked_sum import Round
from tests.client.run.test_secure_session import Federation

Write = Callable[..., Path]
Make = Callable[..., Settings]
IDS = [f"i{item}" for item in range(12)]
HASHES = np.unique(item_hashes([""] * 12, IDS, catalogue=catalogue_digest(IDS)))


class Preferring(Federation):
    """Platforms of one catalogue, but for the last, which has another."""

    @property
    def lists(self) -> list[np.ndarray]:
        return [parse_items(self.expect(Joined, at, self.join_request).item_list) for at in range(len(self.files))]

    @property
    def join_request(self) -> Join:
        return Join(run="run", settings=self.settings)

    def wanted(
        self, items: np.ndarray = HASHES, *, of: SumKind = SumKind.PREFERENCES, lists: bytes | None = None, body: bytes = b""
    ) -> Prefer:
        found = PlatformLists.of(self.lists).text() if lists is None else lists
        axis = (
            declared_direction(np.full(len(items), max(len(items), 1) ** -0.5, np.float32)) if of is SumKind.PREFERENCES else b""
        )
        chosen = declared_items(items)
        return Prefer(run="run", settings=self.settings, items=chosen, of=of, axis=axis, lists=found, body=body)

    def asked_with_masks(self, request: Prefer, at: int, **over: Any) -> Prefer:
        dimension = request.size
        point = self.agreement.preference_point(dimension=dimension, of=request.of, roster=self.coordinator.roster)
        frame = MaskFrame(round=sum_number(request), length=dimension, bits=point.bits, question=question_of(request))
        return replace(request, body=encode(Round(self.coordinator, replace(frame, **over)).mask_for(at)))

    def kinds(self, at: int) -> list[str]:
        path = self.ledger(at)
        return [str(entry.kind) for entry in read_ledger(path).entries] if path.exists() else []


@pytest.fixture
def made(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> Iterator[Callable[..., Preferring]]:
    opened: list[Preferring] = []

    def make(noise: str = "distributed", platforms: int = 3, **over: Any) -> Preferring:
        paths = [write_platform(f"p{at}", seed=at) for at in range(platforms)]
        paths.append(write_platform("q", items=14, seed=9))
        values = {"strategy": "preferences", "rounds": 0, "privacy": {"noise": noise}, "preferences": {"items": 12}, **over}
        found = Preferring(paths, tiny_settings(**values), tmp_path)
        opened.append(found)
        if found.settings.distributed:
            found.set_up()
        return found

    yield make
    for one in opened:
        one.close()


def refused(answer: Answer, reason: Reason) -> bool:
    return isinstance(answer, Refusal) and answer.reason is reason


class TestLocal:
    def test_the_same_question_has_the_same_answer_and_one_charge(self, made: Any) -> None:
        platform = made("local", platforms=1)
        first = platform.expect(Preferred, 0, platform.wanted(lists=b""))
        platform.restart(0)
        again = platform.expect(Preferred, 0, platform.wanted(lists=b""))
        assert np.array_equal(first.sums["preferences"], again.sums["preferences"])
        assert (first.ledger, first.epsilon) == (again.ledger, again.epsilon)
        assert platform.kinds(0) == ["preferences"]

    def test_another_question_is_out_of_order(self, made: Any) -> None:
        platform = made("local", platforms=1)
        platform.expect(Preferred, 0, platform.wanted(of=SumKind.LIKES, lists=b""))
        assert refused(platform.ask(0, platform.wanted(HASHES[:5], of=SumKind.LIKES, lists=b"")), Reason.ROUND)
        platform.expect(Preferred, 0, platform.wanted(lists=b""))
        for other in (platform.wanted(HASHES[:5], lists=b""), platform.wanted(of=SumKind.LIKES, lists=b"")):
            assert refused(platform.ask(0, other), Reason.ROUND)
        assert platform.kinds(0) == ["popularity", "preferences"]

    @pytest.mark.parametrize("items", [HASHES[:0], np.append(HASHES, np.uint64(2**63))])
    def test_no_or_too_many_items_are_refused(self, made: Any, items: np.ndarray) -> None:
        platform = made("local", platforms=1)
        assert refused(platform.ask(0, platform.wanted(np.unique(items), lists=b"")), Reason.MESSAGE)
        assert platform.kinds(0) == []

    @pytest.mark.parametrize(
        "axis",
        [
            b"",
            np.full(11, 11**-0.5, "<f4").tobytes(),
            np.zeros(12, "<f4").tobytes(),
            np.full(12, 1e30, "<f4").tobytes(),
            np.full(12, np.nan, "<f4").tobytes(),
            np.append(np.full(11, 12**-0.5, "<f4"), np.float32(-(12**-0.5))).tobytes(),
        ],
    )
    def test_an_axis_that_is_no_direction_is_refused(self, made: Any, axis: bytes) -> None:
        platform = made("local", platforms=1)
        assert refused(platform.ask(0, replace(platform.wanted(lists=b""), axis=axis)), Reason.MESSAGE)
        assert platform.kinds(0) == []

    def test_single_items_have_no_axis(self, made: Any) -> None:
        platform = made("local", platforms=1)
        axis = platform.wanted(lists=b"").axis
        assert refused(platform.ask(0, replace(platform.wanted(of=SumKind.LIKES, lists=b""), axis=axis)), Reason.MESSAGE)
        assert platform.kinds(0) == []

    def test_another_axis_is_another_question(self, made: Any) -> None:
        platform = made("local", platforms=1)
        request = platform.wanted(lists=b"")
        platform.expect(Preferred, 0, request)
        other = declared_direction(np.eye(12, dtype=np.float32)[0])
        assert refused(platform.ask(0, replace(request, axis=other)), Reason.ROUND)
        assert platform.kinds(0) == ["preferences"]

    def test_items_that_it_does_not_have_cost_nothing_and_tell_nothing(self, made: Any) -> None:
        platform = made("local", platforms=1)
        answer = platform.expect(Preferred, 0, platform.wanted(np.array([1, 2], np.uint64), lists=b""))
        assert not answer.sums["preferences"].any() and platform.kinds(0) == []

    def test_masks_are_not_for_such_a_run(self, made: Any) -> None:
        platform = made("local", platforms=1)
        assert refused(platform.ask(0, platform.wanted(lists=b"x")), Reason.MESSAGE)
        assert refused(platform.ask(0, platform.wanted(lists=b"", body=b"x")), Reason.MESSAGE)

    def test_no_run_without_preferences_answers(self, made: Any) -> None:
        platform = made("local", platforms=1, strategy="fedavg", rounds=1, preferences={"items": 0})
        assert refused(platform.ask(0, platform.wanted(lists=b"")), Reason.MESSAGE)

    def test_they_come_before_training_and_not_after(self, made: Any) -> None:
        from shared.model.adapter import initial

        platform = made("local", platforms=1, strategy="fedavg", rounds=1)
        adapter, settings = initial(platform.settings), platform.settings
        platform.ask(0, platform.join_request)
        platform.expect(Preferred, 0, platform.wanted(lists=b""))
        platform.ask(0, Train(run="run", settings=settings, round=1, factors=Factors.BOTH, adapter=adapter))
        assert platform.kinds(0) == ["popularity", "preferences", "train"]
        assert refused(platform.ask(0, platform.wanted(lists=b"")), Reason.ROUND)

    def test_a_run_that_trains_nothing_answers_nothing_of_training(self, made: Any) -> None:
        from shared.model.adapter import initial

        platform = made("local", platforms=1)
        adapter, run = initial(platform.settings), {"run": "run", "settings": platform.settings}
        platform.ask(0, platform.join_request)
        for request in (
            Train(**run, round=1, factors=Factors.BOTH, adapter=adapter),
            Evaluate(**run, round=0, label=Label.BEFORE, adapter=adapter),
            Personalise(**run, round=0, adapter=adapter),
        ):
            assert refused(platform.ask(0, request), Reason.MESSAGE)

    def test_a_platform_that_keeps_its_users_out_joins_no_run_of_preferences_alone(self, made: Any) -> None:
        platform = made("local", platforms=1)
        for path in platform.paths:
            path.write_text(path.read_text().replace("[privacy]", "[federation]\npreferences = false\n[privacy]"))
        from client.config.platform_file import load

        with pytest.raises(Exception, match="preferences"):
            load(platform.paths[0]).federation.require_settings(platform.settings, users=40)


class TestSecure:
    def test_the_same_question_has_the_same_answer_and_one_charge(self, made: Any) -> None:
        platform = made()
        request = platform.asked_with_masks(platform.wanted(), 0)
        first = platform.expect(Summed, 0, request)
        platform.restart(0)
        assert platform.expect(Summed, 0, request).body == first.body
        assert platform.kinds(0) == ["preferences"]

    def test_an_item_that_only_one_has_is_refused(self, made: Any) -> None:
        platform = made()
        alone = np.setdiff1d(platform.lists[3], HASHES)[:3]
        for items in (alone, np.unique(np.append(HASHES[:5], alone[:1]))):
            assert refused(platform.ask(3, platform.asked_with_masks(platform.wanted(items), 3)), Reason.MESSAGE)
        assert platform.kinds(3) == []

    def test_lists_that_platforms_did_not_sign_are_refused(self, made: Any) -> None:
        platform = made()
        lists = platform.lists
        invented = [lists[3], lists[1], lists[2], lists[3]]
        request = platform.wanted(lists[3][:4], lists=PlatformLists.of(invented).text())
        assert refused(platform.ask(3, platform.asked_with_masks(request, 3)), Reason.MESSAGE)
        for bad in (b"", b"\0\0\0\0", PlatformLists.of(lists[:2]).text(), PlatformLists.of(lists).text()[:-1]):
            assert refused(platform.ask(3, platform.asked_with_masks(platform.wanted(lists=bad), 3)), Reason.MESSAGE)

    def test_without_the_check_one_platform_stands_alone(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PersistentParticipant, "require_shared", lambda *facts: None)
        platform = made()
        alone = np.setdiff1d(platform.lists[3], HASHES)[:3]
        assert isinstance(platform.ask(3, platform.asked_with_masks(platform.wanted(alone), 3)), Summed)

    def test_who_has_none_of_the_items_adds_noise_and_pays_nothing(self, made: Any) -> None:
        platform = made()
        platform.expect(Summed, 3, platform.asked_with_masks(platform.wanted(), 3))
        assert platform.kinds(3) == []

    def test_less_noise_than_planned_is_refused(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        platform = made()
        real = SecurePreferences.prefer
        request = platform.asked_with_masks(platform.wanted(), 0)
        session = platform.workers[0]._session
        monkeypatch.setattr(session.run, "plan", replace(session.run.plan, preference_noise=99.0))
        assert refused(platform.ask(0, request), Reason.SETTINGS)
        assert real is SecurePreferences.prefer and platform.kinds(0) == []

    def test_too_little_agreed_noise_is_not_dealt_under(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from shared.secagg.noise_agreement import Agreement

        real = Agreement.__init__
        monkeypatch.setattr(Agreement, "__init__", lambda self, **facts: real(self, **{**facts, "preference_noise": 0.1}))
        with pytest.raises(AssertionError, match="noise multiplier of preferences"):
            made()

    @pytest.mark.parametrize("change", [{"length": 77}, {"bits": 9}, {"round": 5}, {"round": 3}])
    def test_masks_of_another_shape_or_sum_are_refused(self, made: Any, change: dict[str, int]) -> None:
        platform = made()
        answer = platform.ask(0, platform.asked_with_masks(platform.wanted(), 0, **change))
        assert isinstance(answer, Refusal) and platform.kinds(0) == []

    def test_an_older_memory_gives_no_second_answer(self, made: Any) -> None:
        platform = made()
        path = platform.root / "state" / "p0" / "runs" / "run.secure"
        old = path.read_bytes()
        request = platform.asked_with_masks(platform.wanted(), 0)
        platform.expect(Summed, 0, request)
        platform.workers[0].close()
        path.write_bytes(old)
        platform.restart(0)
        assert refused(platform.ask(0, request), Reason.ROUND)
        assert platform.kinds(0) == ["preferences"]

    def test_a_sum_of_training_is_not_asked_for_in_its_place(self, made: Any) -> None:
        from shared.model.adapter import initial

        platform = made()
        body = platform.asked_with_masks(platform.wanted(), 0).body
        adapter = initial(platform.settings)
        request = Sum(run="run", settings=platform.settings, round=0, factors=Factors.BOTH, adapter=adapter, body=body)
        assert isinstance(platform.ask(0, request), Refusal) and platform.kinds(0) == []


def test_without_privacy_it_is_exact_and_says_so(made: Any) -> None:
    platform = made("local", platforms=1, privacy={"noise": "local", "epsilon": math.inf})
    joined = platform.expect(Joined, 0, platform.join_request)
    assert joined.preference_noise == 0.0 and joined.planned_epsilon == math.inf
    answer = platform.expect(Preferred, 0, platform.wanted(of=SumKind.LIKES, lists=b""))
    assert (answer.sums["likes"] >= 0).all() and answer.sums["likes"].any() and answer.epsilon == math.inf
