"""Sends the messages of a phase to the members of a run, and books what comes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from server.monitoring.refusal_words import flower_error_words, refusal_words
from server.monitoring.run_events import Kind
from server.run.attendance import Attendance
from server.run.exchange import Exchange
from server.run.receipt_book import ReceiptBook
from server.run.run_record import RunRecord
from shared.protocol.flower_records import record_bytes, with_receipt
from shared.protocol.messages import Reason
from strategies.phase_report import RoundReport


class Dispatch:
    """Sends messages to the members of a run and takes in their answers.

    Args:
        receipts: Gets every answer of a member.
        timeout: Seconds that the answers of a phase are waited for.
    """

    def __init__(self, grid: Grid, *, attendance: Attendance, record: RunRecord, receipts: ReceiptBook, timeout: float) -> None:
        self._grid, self._attendance, self._record, self._timeout = grid, attendance, record, timeout
        self._receipts = receipts

    def send(
        self, messages: Iterable[Message], *, names: Mapping[int, str] | None = None, timeout: float | None = None
    ) -> Exchange:
        """Send them, and count their bytes.

        Args:
            messages: May be an iterator: then each is made as it is sent.
            names: Node -> platform; by default the members of now.
            timeout: Seconds that answers are waited for; by default those of a round.
        """
        if names is None:
            names = {node: member.platform for node, member in self._attendance.members.items()}
        return Exchange(self._grid, self._counted(messages, names), timeout=self._timeout if timeout is None else timeout)

    def _counted(self, messages: Iterable[Message], names: Mapping[int, str]) -> Iterator[Message]:
        for message in messages:
            name = names[message.metadata.dst_node_id]
            receipt = self._receipts.last(name)
            if receipt:
                message.content = with_receipt(message.content, receipt)  # a copy: platforms may share one record
            self._record.add(name, down=record_bytes(message.content))
            yield message

    def answers(self, exchange: Exchange, *, told: int | None = None) -> Iterator[Message]:
        """An exchange's answers, their bytes counted.

        Args:
            told: Round of the events that report the answers; None reports none.
        """
        for message in exchange.replies():
            member = self._attendance.members.get(message.metadata.src_node_id)
            if member is not None:
                self._record.add(member.platform, up=record_bytes(message.content))
                self._receipts.enter(message, member.platform)
                if told is not None:
                    self._record.say(Kind.ANSWERED, f"{member.platform} answered", platform=member.platform, round_=told)
            yield message
            del message

    def book(self, exchange: Exchange, report: RoundReport, round_: int) -> None:
        """Put what came of an exchange into the tallies. A platform without budget is not asked again.

        Args:
            report: What was made of the answers.
        """
        members = self._attendance.members
        for receipt in report.updates:
            self._record.credit(receipt, counted=True)
        for node, refusal in report.refusals.items():
            if node not in members:
                continue  # it has left already, in an earlier phase of this round
            name = members[node].platform
            self._record.refused(name, refusal.reason, round_=round_)
            if refusal.reason is Reason.BUDGET:
                self._attendance.dismiss(node)
                text = f"{name} has no budget left: the run goes on without it"
                self._record.say(Kind.LEFT, text, platform=name, round_=round_)
        unheard = [(drop.node, Kind.DROPPED, drop.reason) for drop in report.drops]
        unheard += [(node, Kind.FAILED, flower_error_words(code)) for node, code in exchange.errors.items()]
        unheard += [(node, Kind.SILENT, "no answer in time") for node in exchange.silent]
        for node, kind, reason in unheard:
            if node in members:
                self._record.failed(members[node].platform, kind, reason, round_=round_)
        if exchange.late:
            self._record.say(Kind.LATE, f"{exchange.late} answers to an earlier round were discarded", round_=round_)

    def missing(self, exchange: Exchange, report: RoundReport) -> str:
        """Who did not answer as asked, and why, in one line for a person."""
        named = {node: member.platform for node, member in self._attendance.members.items()}

        def called(node: int) -> str:
            return named.get(node) or self._attendance.called(node)

        parts = [f"{called(node)}: {flower_error_words(code)}" for node, code in exchange.errors.items()]
        parts += [f"{called(node)}: no answer" for node in exchange.silent]
        parts += [f"{called(node)}: {refusal_words(refusal.reason)}" for node, refusal in report.refusals.items()]
        return "; ".join(parts)
