"""What a run knows of its platforms: counted once, told once, and of the round that it is of."""

from __future__ import annotations

from dataclasses import replace

from server.monitoring.refusal_words import refusal_words
from server.monitoring.run_events import Event, Kind
from server.run.run_record import RunRecord
from shared.protocol.messages import Reason
from strategies.phase_report import Receipt
from strategies.secure_sum.mutual_trust import UntrustedPlatform
from tests.server.conftest import tally_of

JOINED = tally_of("shop").joined


def test_bytes_updates_refusals_and_failures_add_up() -> None:
    told: list[Event] = []
    record = RunRecord(told.append)
    record.enter(JOINED)
    record.add("shop", down=3, up=5)
    record.add("shop", down=4)
    record.add("shop", up=6)
    record.credit(Receipt(platform="shop", users=9, epsilon=0.5, ledger="a", seconds=1.0), counted=True)
    record.credit(Receipt(platform="shop", users=9, epsilon=0.75, ledger="b", seconds=1.0), counted=False)
    tally = record.tallies["shop"]
    assert (tally.bytes_down, tally.bytes_up, tally.rounds, tally.epsilon, tally.ledger) == (7, 11, 1, 0.75, "b")
    record.refused("shop", Reason.BUDGET, round_=2)
    record.refused("shop", Reason.ROUND, round_=4)
    assert record.tallies["shop"].refusals == {2: Reason.BUDGET, 4: Reason.ROUND}
    for at in (5, 6):
        record.failed("shop", Kind.SILENT, "no answer", round_=at)
    assert record.tallies["shop"].failures == 2
    assert [(one.kind, one.round, one.text, one.platform) for one in told] == [
        (Kind.REFUSED, 2, f"shop: {refusal_words(Reason.BUDGET)}", "shop"),
        (Kind.REFUSED, 4, f"shop: {refusal_words(Reason.ROUND)}", "shop"),
        (Kind.SILENT, 5, "shop: no answer", "shop"),
        (Kind.SILENT, 6, "shop: no answer", "shop"),
    ]


def test_who_comes_again_keeps_what_was_counted_and_leaves_no_keys() -> None:
    record = RunRecord(lambda event: None)
    record.enter(replace(JOINED, keys=b"k", item_list=b"i", trust=b"t"))
    record.add("shop", up=5)
    record.enter(replace(JOINED, users=77, keys=b"k"))
    tally = record.tallies["shop"]
    assert (tally.bytes_up, tally.joined.users) == (5, 77)
    assert (tally.joined.keys, tally.joined.item_list, tally.joined.trust) == (b"", b"", b"")


def test_an_event_is_of_the_round_that_is_over_unless_another_is_named() -> None:
    told: list[Event] = []
    record = RunRecord(told.append)
    record.enter(JOINED)
    record.round, record.lost = 5, (2, 4)
    assert record.counted == 3
    record.say(Kind.ROUND, "a")
    record.say(Kind.ROUND, "b", round_=0, with_tallies=True, change=0.5)
    assert [(one.round, one.text, dict(one.tallies), one.change) for one in told] == [
        (5, "a", {}, None),
        (0, "b", record.tallies, 0.5),
    ]
    before = dict(told[1].tallies)
    record.add("shop", up=1)
    assert told[1].tallies == before  # what was told does not change


def test_who_is_left_out_has_no_tally_and_is_told_what_to_do() -> None:
    told: list[Event] = []
    record = RunRecord(told.append)
    record.enter(JOINED)
    one = UntrustedPlatform(platform="shop", unknown_to=("video",))
    record.leave_out(one)
    record.leave_out(one)  # of a run that is resumed
    assert record.tallies == {} and record.left_out == {"shop": one}
    assert [(event.kind, event.text, event.reason) for event in told] == [
        (Kind.LEFT, f"shop is left out: {one}", Reason.PEERS)
    ] * 2
