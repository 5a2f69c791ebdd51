"""A platform that lost its part in the secure sum: no second release for one charge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.secagg.persistent_participant import PersistentParticipant
from shared.model.adapter import initial
from shared.protocol.messages import Count, Join, Joined, Reason, Refusal, Secured
from tests.client.run.test_secure_attacks import correlation
from tests.client.run.test_secure_session import Federation, federation

__all__ = ["federation"]


class TestLostState:
    """The file that says what a platform answered is gone, or an older copy of it is put back."""

    @pytest.fixture
    def made(self, federation: Any) -> Federation:
        made = federation(2, secure={"colluders": 0})
        made.set_up()
        return made

    def path(self, made: Federation) -> Path:
        return made.root / "state" / "p0" / "runs" / "run.secure"

    def lose(self, made: Federation, *, memory: bool = False) -> None:
        made.workers[0].close()
        self.path(made).unlink()
        if memory:
            self.path(made).with_suffix(".safetensors").unlink()
        made.restart(0)

    @pytest.mark.parametrize("memory", [False, True], ids=["memory left", "ledger left"])
    @pytest.mark.parametrize("rounds", [0, 1])
    def test_it_does_not_enrol_again(self, made: Federation, rounds: int, memory: bool) -> None:
        for round_ in range(1, rounds + 1):
            made.play(round_, initial(made.settings))
        before = made.charges(0)
        self.lose(made, memory=memory)
        answer = made.ask(0, Join(run="run", settings=made.settings))
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
        assert "is not there" in str(made.workers[0].failure) or "is gone" in str(made.workers[0].failure)
        assert not self.path(made).exists() and made.charges(0) == before

    def test_another_run_is_open_to_it(self, made: Federation) -> None:
        made.play(1, initial(made.settings))
        self.lose(made)
        made.expect(Joined, 0, Join(run="next", settings=made.settings))

    def test_without_the_checks_one_charge_pays_for_two_releases(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = federation(1, secure={"colluders": 0})
        made.set_up()
        # The charge would name its question, too, and the ledger knows that its answer has left.
        monkeypatch.setattr("client.privacy.ledger_writer.LedgerWriter.left", False)
        monkeypatch.setattr("client.privacy.ledger_writer.LedgerWriter.record_release", lambda self, left, **of: self.head)
        monkeypatch.setattr("client.run.secure_session.charged_question", lambda request, release: "5" * 64)
        adapter = initial(made.settings)
        first, charges = made.play(1, adapter), made.charges(0)
        self.lose(made)
        make, asked = PersistentParticipant.__init__, PersistentParticipant.asked
        monkeypatch.setattr(PersistentParticipant, "__init__", lambda self, **over: make(self, **{**over, "known": False}))
        monkeypatch.setattr(PersistentParticipant, "asked", lambda self, request, *, finished: asked(self, request, finished=-1))
        made.set_up()
        moved = {name: value + 0.1 for name, value in adapter.items()}
        assert correlation(made.play(1, moved), first) < 0.99
        assert made.charges(0) == charges

    def test_an_older_copy_gives_no_second_answer(self, made: Federation) -> None:
        adapter = initial(made.settings)
        old = self.path(made).read_bytes()  # it had dealt
        made.play(1, adapter)
        before = made.charges(0)
        made.workers[0].close()
        self.path(made).write_bytes(old)
        made.restart(0)
        answer = made.sum(0, made.begin(1, adapter), adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert "the answer is not there" in str(made.workers[0].failure)
        assert made.charges(0) == before

    def test_nor_in_round_0(self, federation: Any) -> None:
        made = federation(catalogues=[11, 11], secure={"colluders": 0})
        made.set_up()
        old = self.path(made).read_bytes()
        found = made.play_popularity()
        for at in range(2):
            assert isinstance(made.tell(at, found, 1.0), Secured)
        made.workers[0].close()
        self.path(made).write_bytes(old)
        made.restart(0)
        answer = made.count(0, made.begin_popularity())
        assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert made.charges(0) == [("popularity", 0)]

    def test_a_sum_is_not_asked_for_in_round_0s_place(self, federation: Any) -> None:
        made = federation(catalogues=[11, 11], secure={"colluders": 0})
        made.set_up()
        adapter = initial(made.settings)
        answer = made.sum(0, made.begin(0, adapter), adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert made.charges(0) == []
        assert isinstance(made.ask(0, Count(run="run", settings=made.settings, body=b"")), Refusal)
