"""A coordinator that asks platforms different questions in one round: what they answer is not summed, and nothing is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from shared.base.settings import Settings
from shared.protocol.messages import Count, Factors, Sum
from shared.protocol.question import question_of
from shared.secagg.masks import MaskFrame
from shared.secagg.messages import Before
from tests.shared.secagg.conftest import QUESTION
from tests.shared.secagg.test_attacks import OTHER, Server

Make = Callable[..., Any]


class TestModelInconsistency:
    """Platform 0 is asked with the model, all others with one at which their vectors are zero (Pasquini et al. 2022)."""

    def attack(self, world: Make, **over: Any) -> Server:
        made = world(5, **over)
        made.vectors[1:] = 0
        server = Server(made)
        for number in range(5):
            assert server.ask_mask(number, question=QUESTION if number == 0 else OTHER)
        for number in range(5):
            assert server.ask_unmask(number, range(5))
        return server

    def test_it_reads_nothing(self, world: Make) -> None:
        """Not even the sum of those that were asked alike: platform 0 still owes them its half of their masks."""
        assert self.attack(world).bared() == []

    def test_masks_that_bind_no_question_give_the_vector_away(self, world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def without(self: MaskFrame, one: int, other: int) -> bytes:
            return self._numbers() + bytes((min(one, other), max(one, other)))

        monkeypatch.setattr(MaskFrame, "pair", without)
        server = self.attack(world)
        assert server.bared() == [{0, 1, 2, 3, 4}]  # the sum of five, of which four are zero
        np.testing.assert_array_equal(server.world.total(range(5)), server.world.vectors[0])

    def test_one_question_is_summed(self, world: Make) -> None:
        server = Server(world(5))
        for number in range(5):
            server.ask_mask(number, question=OTHER)
        for number in range(5):
            server.ask_unmask(number, range(5))
        assert server.bared() == [{0, 1, 2, 3, 4}]

    def test_an_honest_coordinators_sum_is_spoilt_by_whoever_was_asked_otherwise(self, world: Make) -> None:
        """Its own self masks are of its question, too: it decodes noise, and no part of what it should not have."""
        made = world(4, length=2000)
        work = made.round()
        for number in range(4):
            work.masked(number, made.ask_mask(number, work.mask_for(number), question=QUESTION if number else OTHER))
        for number in range(4):
            work.unmasked(number, made.ask_unmask(number, work.unmask_for(number)))
        for among in ([0], [1, 2, 3], range(4)):
            assert (work.sum() == made.total(among)).mean() < 0.01

    def test_what_platforms_were_told_before_is_of_the_question(self) -> None:
        settings_ = Settings()
        count = Count(run="run", settings=settings_, body=b"")
        sum_ = Sum(
            run="run", settings=settings_, round=1, factors=Factors.BOTH, adapter={"head.lora_A": np.ones((2, 3), "f4")}, body=b""
        )
        others = [
            question_of(count),
            question_of(sum_, before=Before(told=(bytes(32),))),
            question_of(sum_, before=Before(told=(bytes(32), bytes(32)))),
            question_of(sum_, before=Before(since=1, based=bytes(32))),
            question_of(sum_, before=Before(since=2, based=bytes(32))),
            question_of(sum_, before=Before(since=1, based=b"x" * 32)),
            *(
                question_of(replace(sum_, **change))
                for change in (
                    {"run": "other"},
                    {"round": 2},
                    {"factors": Factors.A},
                    {"settings": Settings(seed=1)},
                    {"adapter": {"head.lora_B": np.ones((2, 3), "f4")}},
                    {"adapter": {"head.lora_A": np.ones((3, 2), "f4")}},
                    {"adapter": {"head.lora_A": np.nextafter(np.ones((2, 3), "f4"), np.float32(2))}},
                    {"adapter": {"head.lora_A": np.ones((2, 3), "f4"), "head.lora_B": np.ones((2, 3), "f4")}},
                )
            ),
        ]
        assert len({question_of(sum_), *others}) == len(others) + 1
        assert question_of(replace(sum_, body=b"masks")) == question_of(sum_)
        assert {field.name for field in fields(Sum)} == {"run", "settings", "round", "factors", "adapter", "body"}
        assert {field.name for field in fields(Count)} == {"run", "settings", "body"}
