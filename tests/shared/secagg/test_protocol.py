"""The whole protocol among honest parties: the sum is exact, whoever is lost, and a round below its threshold is given up."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.base.errors import OutOfOrder, ProtocolError
from shared.secagg.masks import MaskFrame
from shared.secagg.messages import Masked, Unmasked
from shared.secagg.roster import SumTerms
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Abandoned, Enrolment

Make = Callable[..., Any]
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("bits", [1, 18, 32])
def test_nobody_is_lost(world: Make, n: int, bits: int) -> None:
    made = world(n, bits=bits)
    np.testing.assert_array_equal(made.play(1), made.total(range(n)))
    np.testing.assert_array_equal(made.play(2), made.total(range(n)))


@quick
@given(data=st.data(), n=st.integers(3, 8))
def test_the_sum_of_the_survivors_is_exact_whoever_is_lost_in_any_phase(world: Make, data: st.DataObject, n: int) -> None:
    made = world(n, threshold=0.5)
    quorum = made.coordinator.roster.quorum
    for round_ in (1, 2):
        order = data.draw(st.permutations(range(n)))
        lost = data.draw(st.integers(0, n - quorum.threshold))
        # All that are lost in a round together leave the threshold.
        late = data.draw(st.integers(0, n - quorum.threshold - lost))
        unconfirmed = data.draw(st.integers(0, late))
        gone, rest = order[:lost], order[lost:]
        total = made.play(round_, lost=gone, unconfirmed=rest[:unconfirmed], silent=rest[unconfirmed:late])
        np.testing.assert_array_equal(total, made.total(set(range(n)) - set(gone)))


@quick
@given(data=st.data())
def test_the_same_on_a_ring(ring: None, world: Make, data: st.DataObject) -> None:
    made = world(12, threshold=0.8, colluders=1)
    quorum = made.coordinator.roster.quorum
    assert not quorum.complete
    lost = data.draw(st.sets(st.integers(0, 11), max_size=2))
    silent = data.draw(st.sets(st.integers(0, 11), max_size=2 - len(lost))) - lost
    alive = set(range(12)) - lost
    enough = all(len(set(made.coordinator.roster.holders(number)) & (alive - silent)) >= quorum.shares for number in range(12))
    if enough:
        np.testing.assert_array_equal(made.play(1, lost=lost, silent=silent), made.total(alive))
    else:
        with pytest.raises(Abandoned):
            made.play(1, lost=lost, silent=silent)


def test_those_who_did_not_deal_are_not_masked_with(fresh: Make) -> None:
    made = fresh(6, threshold=0.5)
    made.deal(among=[0, 1, 2, 4, 5])
    assert made.coordinator.session.present == (0, 1, 2, 4, 5)
    np.testing.assert_array_equal(made.play(1), made.total([0, 1, 2, 4, 5]))
    np.testing.assert_array_equal(made.play(2, lost=[5]), made.total([0, 1, 2, 4]))


def test_too_few_dealt(fresh: Make) -> None:
    with pytest.raises(Abandoned, match="dealt"):
        fresh(6, threshold=0.7).deal(among=[0, 1, 2, 3])


@pytest.mark.parametrize("phase", ["lost", "unconfirmed", "silent"])
def test_below_the_threshold_the_round_is_given_up_and_the_next_one_goes_on(world: Make, phase: str) -> None:
    made = world(6, threshold=0.7)
    assert made.coordinator.roster.quorum.threshold == 5
    gone: dict[str, list[int]] = {"lost": [2], phase: [2, 0, 1]} if phase == "lost" else {"lost": [2], phase: [0, 1, 3]}
    with pytest.raises(Abandoned) as caught:
        made.play(1, **gone)
    # An operator has to know whose machine to look at.
    said, entries = caught.value.found, made.coordinator.roster.entries
    named = set(said.rpartition("none came from ")[2].split(", "))
    assert (
        {entries[number].platform for number in gone[phase]}
        <= named
        <= {entries[number].platform for number in {*gone[phase], *gone["lost"]}}
    )
    np.testing.assert_array_equal(made.play(2, lost=[3]), made.total([0, 1, 2, 4, 5]))


def test_one_that_was_lost_comes_back(world: Make) -> None:
    """Even one that was not there when the shares were delivered."""
    made = world(5, rounds=3, threshold=0.6)
    made.play(1, lost=[4])
    np.testing.assert_array_equal(made.play(2, lost=[0]), made.total([1, 2, 3, 4]))
    np.testing.assert_array_equal(made.play(3), made.total(range(5)))


def test_a_vector_of_another_length_in_every_round(world: Make) -> None:
    made = world(3, rounds=2)
    made.play(1)
    made.length, made.bits = 70_000, 7
    made.vectors = np.random.default_rng(1).integers(0, 128, (3, made.length), dtype=np.uint32)
    np.testing.assert_array_equal(made.play(2), made.total(range(3)))


class TestRepeatedQuestions:
    def test_the_same_question_has_the_same_answer(self, world: Make) -> None:
        made = world(4, threshold=0.5)
        work = made.round(1)
        first = made.ask_mask(0, work.mask_for(0))
        assert made.ask_mask(0, work.mask_for(0)) == first
        for number in range(3):
            work.masked(number, made.ask_mask(number, work.mask_for(number)))
        confirmed = [made.ask_confirm(number, work.confirm()) for number in range(3)]
        assert made.ask_confirm(0, work.confirm()) == confirmed[0]
        for number in range(3):
            work.confirmed(number, confirmed[number])
        shares = made.ask_unmask(0, work.unmask_for(0))
        assert made.ask_unmask(0, work.unmask_for(0)) == shares

    def test_shares_are_dealt_once_and_given_again_word_for_word(self, fresh: Make) -> None:
        made = fresh(3)
        dealing, answer = made.state(0).deal(made.coordinator.deal_for(0), peers=made.peers, entropy=bytes)
        assert dealing.deal(made.coordinator.deal_for(0)) == answer
        other = fresh(2)
        with pytest.raises(OutOfOrder):
            dealing.deal(other.coordinator.deal_for(0))

    def test_a_coordinator_that_comes_back_goes_on_with_the_session(self, world: Make) -> None:
        from strategies.secure_sum.protocol import SumCoordinator

        made = world(5, rounds=2, threshold=0.6)
        made.play(1, lost=[4])
        old = made.coordinator
        closed = Enrolment.Closed(roster=old.roster, adverts=old.adverts)
        made.coordinator = SumCoordinator(closed, mail=old.mail, present=old.session.present, consents=old.consents)
        np.testing.assert_array_equal(made.play(2), made.total(range(5)))


class TestFaultyPlatforms:
    """One platform that says nonsense does not spoil the round for the others."""

    def test_wrong_shares_are_noticed_and_worked_around(self, world: Make) -> None:
        made = world(6, threshold=0.5)
        work = made.round()
        for number in range(5):
            work.masked(number, made.ask_mask(number, work.mask_for(number)))
        for number in work.survivors:
            work.confirmed(number, made.ask_confirm(number, work.confirm()))
        for number in work.survivors:
            answer = made.ask_unmask(number, work.unmask_for(number))
            shares = np.frombuffer(answer.shares, "<u4").copy()
            if number == 1:
                shares ^= 1  # still below the prime, nearly surely, and wrong for everybody
            work.unmasked(number, Unmasked(shares=shares.tobytes()))
        np.testing.assert_array_equal(work.sum(), made.total(range(5)))

    def test_too_many_wrong_shares_give_the_round_up_rather_than_a_wrong_sum(self, world: Make) -> None:
        made = world(4, threshold=1.0)
        work = made.round()
        for number in range(4):
            work.masked(number, made.ask_mask(number, work.mask_for(number)))
        for number in range(4):
            answer = made.ask_unmask(number, work.unmask_for(number))
            shares = np.frombuffer(answer.shares, "<u4").copy()
            shares[:9] ^= int(number == 3)
            work.unmasked(number, Unmasked(shares=shares.tobytes()))
        with pytest.raises(Abandoned, match="fit"):
            work.sum()

    def test_answers_of_the_wrong_size_add_nothing(self, world: Make) -> None:
        made = world(4, threshold=0.5)
        work = made.round()
        good = made.ask_mask(0, work.mask_for(0))
        for bad in (
            Masked(consent=good.consent, words=bytes(good.words)[:-1]),
            Masked(consent=good.consent, words=bytes(good.words) + b"\0"),
            Masked(consent=bytes(64), words=good.words),
        ):
            with pytest.raises(ProtocolError):
                work.masked(0, bad)
        for number in range(3):
            work.masked(number, made.ask_mask(number, work.mask_for(number)))
        with pytest.raises(ProtocolError, match="second"):
            work.masked(0, good)
        for number in work.survivors:
            with pytest.raises(ProtocolError):
                work.confirmed(number, made.ask_confirm((number + 1) % 3, work.confirm()))
            work.confirmed(number, made.ask_confirm(number, work.confirm()))
        for number in work.survivors:
            answer = made.ask_unmask(number, work.unmask_for(number))
            with pytest.raises(ProtocolError):
                work.unmasked(number, Unmasked(shares=answer.shares[:-36]))
            work.unmasked(number, answer)
        with pytest.raises(ProtocolError):
            work.unmasked(3, answer)
        np.testing.assert_array_equal(work.sum(), made.total(range(3)))

    def test_a_platform_that_deals_nonsense_is_one_holder_less(self, fresh: Make) -> None:
        made = fresh(5, threshold=0.6)
        for number in range(5):
            state, answer = made.state(number).deal(made.coordinator.deal_for(number), peers=made.peers, entropy=bytes)
            if number == 2:
                answer = type(answer)(sealed=(bytes(len(answer.sealed[0])), *answer.sealed[1:]))
            made.keep(number, state)
            made.coordinator.dealt(number, answer)
        made.coordinator.settle()
        np.testing.assert_array_equal(made.play(1), made.total(range(5)))
        np.testing.assert_array_equal(made.play(2, lost=[2]), made.total([0, 1, 3, 4]))

    def test_keys_of_another_run_or_platform_are_not_enrolled(self, fresh: Make) -> None:
        made, other = fresh(2), fresh(2, run="other", seed=1)
        enrolment = Enrolment(made.terms)
        advert = made.state(0).advert
        with pytest.raises(ProtocolError):
            enrolment.add(advert, platform="p01")
        with pytest.raises(ProtocolError):
            enrolment.add(other.state(0).advert, platform="p00")
        enrolment.add(advert, platform="p00")
        enrolment.add(advert, platform="p00")
        with pytest.raises(ProtocolError, match="two sets"):
            enrolment.add(fresh(2, seed=1).state(0).advert, platform="p00")


def test_a_masked_vector_says_nothing_to_the_eye(world: Make) -> None:
    """Chi-square of the bytes of what 4 platforms send for the vector zero, and against each other."""
    made = world(4, bits=32, length=20_000)
    made.vectors = np.zeros((4, 20_000), np.uint32)
    work = made.round()
    sent = [np.frombuffer(made.ask_mask(number, work.mask_for(number)).words, np.uint8) for number in range(4)]
    for row in (*sent, sent[0] ^ sent[1], sent[0] + sent[1] + sent[2]):
        counts = np.bincount(row, minlength=256)
        expected = len(row) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_the_coordinators_memory_does_not_grow_with_the_number_of_platforms(fresh: Make) -> None:
    """A vector of 400 KB: ten platforms' or fifty platforms', the peak is a few vectors and no more."""
    peaks = []
    for n in (5, 40):
        made = fresh(n, rounds=1, length=100_000, bits=18)
        made.deal()
        work = Round(made.coordinator, MaskFrame(round=1, length=made.length, bits=made.bits, question=bytes(32)))
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(n):
                answer = made.ask_mask(number, work.mask_for(number), question=work.frame.question)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                work.masked(number, answer)
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
                made.disk[number] = b""  # the platforms' own memory is not the coordinator's
                del answer
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 2 * 4 * made.length
    assert max(peaks) < 5 * 4 * made.length


def test_terms_are_those_that_platforms_were_told(fresh: Make) -> None:
    made = fresh(3)
    told = SumTerms(run="run", rounds=2, threshold=0.9, colluders=0)
    from dataclasses import replace

    state = replace(made.state(0), terms=told)
    with pytest.raises(ProtocolError, match="terms"):
        state.deal(made.coordinator.deal_for(0), peers=made.peers, entropy=bytes)
