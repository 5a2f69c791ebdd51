"""The phases of the secure sum as Flower's messages: what each asks, and what is made of the answers."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.model.adapter import trained
from shared.preferences.summed_preferences import PreferenceQuestion, PreferenceSum
from shared.protocol.flower_records import answer_from, record_of_bytes, to_record
from shared.protocol.messages import Answer, Count, Phase, Prefer, Refusal, Secure, Secured, Sum, Summed
from shared.protocol.question import question_of, sum_number
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.fixed_point import FixedPoint
from shared.secagg.masks import MaskFrame
from shared.secagg.noise_agreement import COUNTS, LAST_SUM, Agreement, number_of, require_owners
from shared.secagg.shared_catalogues import POPULARITY, Popularity, Taken, places
from strategies.averaging import Change
from strategies.base import AdapterStrategy, Drop, Member, RoundReport, lifetime_of, receipt_of
from strategies.optimizers import Adapter
from strategies.secure_sum.encoded_items import Encoded
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Abandoned, SumCoordinator

_BODY = "body"


class Phases:
    """What a secure-sum run asks its platforms, phase by phase.

    Args:
        strategy: Which factors a round trains, and the step that is taken with their sum.
        coordinator: The session and its rounds.
        members: Platform -> the member that speaks for it now.

    `report` says what the last phase brought.
    """

    def __init__(self, *, strategy: AdapterStrategy, coordinator: SumCoordinator, members: Mapping[str, Member]) -> None:
        self._strategy, self._settings, self._run = strategy, strategy.settings, strategy.run
        self.coordinator, self.members = coordinator, members
        self.report = RoundReport()
        self.known: tuple[Popularity, ...] = ()
        """What round 0 summed and platforms were told, in the order of the agreed catalogues; the vectors depend on it."""
        self.encoded: Encoded | None = None
        """Which round's items' vectors serve; the vectors depend on it, too."""
        self._round: Round | None = None
        self._question: RecordDict | None = None
        self.closed = False
        """Whether the list of survivors of the sum that is going on is fixed: then no more vectors are asked for."""

    @property
    def quick(self) -> float:
        """Seconds that phases without training wait for answers."""
        return min(self._settings.secure.phase_timeout, self._settings.reply_timeout)

    @property
    def agreement(self) -> Agreement:
        """The noise of the run."""
        return decode(Agreement, self.coordinator.roster.facts)

    @property
    def work(self) -> Round:
        """The round that is going on."""
        assert self._round is not None
        return self._round

    def deal(self) -> Iterator[Message]:
        """Ask every platform on the roster for shares."""
        for number, member in self._there(range(len(self.coordinator.roster.entries))):
            record = self._record(Phase.DEAL, 0, encode(self.coordinator.deal_for(number)))
            yield self._message(member, number, record, MessageType.QUERY)

    def dealt(self, replies: Iterable[Message]) -> None:
        """Take the shares in."""
        self.report = RoundReport()
        for number, body in self._bodies(replies, Phase.DEAL, 0):
            with _Dropping(self, number):
                self.coordinator.dealt(number, decode(secagg.Dealt, body))

    def count(self) -> Iterator[Message]:
        """Begin round 0: ask every platform that is present for its masked counts.

        Raises:
            InputError: the catalogues are too large for one sum.
        """
        point = self.agreement.popularity_point(quorum=self.coordinator.roster.quorum, settings=self._settings)
        request = Count(run=self._run, settings=self._settings, body=b"")
        self._begin(POPULARITY, point, request, secagg.Before())
        return self._asking(to_record(request))

    def prefer(self, question: PreferenceQuestion, *, lists: bytes) -> Iterator[Message]:
        """Begin a sum of what users like: ask every platform that is present.

        Raises:
            InputError: it cannot be put into whole numbers at this length.
        """
        request = Prefer(run=self._run, settings=self._settings, **question.fields(), lists=lists, body=b"")
        point = self.agreement.preference_point(dimension=question.size, of=question.of, roster=self.coordinator.roster)
        self._begin(0, point, request, secagg.Before())
        return self._asking(to_record(request))

    def preferences(self, owners: Container[int] | None = None) -> PreferenceSum:
        """What was summed.

        Args:
            owners: Numbers of those that have any of the items, the others added noise alone; None: all have.

        Raises:
            Abandoned: shares are missing.
        """
        entries = self.coordinator.roster.entries
        return PreferenceSum(
            vector=self.point.decode(self.work.sum()),
            noise=self._summed_noise,
            users=sum(
                self.members[entries[number].platform].users
                for number in self.work.survivors
                if owners is None or number in owners
            ),
        )

    @property
    def _summed_noise(self) -> float:
        """Standard deviation of the noise in the sum: every survivor's share, of which those of the honest would suffice."""
        return self.point.noise * math.sqrt(len(self.work.survivors) / self.point.honest)

    @property
    def missing(self) -> set[str]:
        """Platforms whose answer the sum that is going on lacks; asked again, they give what they gave or would have given."""
        work, session = self.work, self.coordinator.session
        if work.summed:
            return set()
        if not self.closed:
            lacking = set(session.present).difference(work.survivors)
        elif not work.whole and len(work.signed) < session.roster.quorum.votes:
            lacking = set(work.survivors) - work.signed
        else:
            lacking = set(work.survivors) - work.shared
        return {session.roster.entries[number].platform for number in lacking}

    def again(self) -> Iterator[Message]:
        """The question of the sum that is going on, for those that have not answered it."""
        assert self._question is not None
        return self._asking(self._question)

    def close(self) -> None:
        """No more masked vectors.

        Raises:
            Abandoned: too few came; or, in round 0, too few of those that have one catalogue: no platform would unmask that sum.
        """
        if self.encoded is not None and self._sum > LAST_SUM:
            self.encoded = self.encoded.answered(self.work.survivors)
        self.work.close()
        if self._sum == COUNTS:
            try:
                require_owners(self.coordinator.roster, self.agreement.catalogues, self.work.survivors)
            except ProtocolError as error:
                raise Abandoned(error.found) from None
        self.closed = True

    def popularities(self) -> tuple[Popularity, ...]:
        """What round 0 summed, in the order of the agreed catalogues.

        Raises:
            Abandoned: shares are missing.
        """
        total = self.point.decode(self.work.sum()).astype("<f4")
        return tuple(
            Popularity(counts=total[place].tobytes(), noise=self._summed_noise)
            for place in places(self.agreement.catalogues).values()
        )

    def tell(self, popularities: Mapping[str, Popularity]) -> Iterator[Message]:
        """Send platforms the popularity of their catalogues."""
        for number, member in self._there(self.coordinator.session.present):
            if member.platform in popularities:
                record = self._record(Phase.POPULARITY, POPULARITY, encode(popularities[member.platform]))
                yield self._message(member, number, record, MessageType.QUERY)

    def told(self, replies: Iterable[Message]) -> set[str]:
        """Who has it now."""
        self.report = RoundReport()
        found: set[str] = set()
        for number, body in self._bodies(replies, Phase.POPULARITY, POPULARITY):
            with _Dropping(self, number):
                decode(Taken, body)
                found.add(self._member(number).platform)
        return found

    def _begin(self, server_round: int, point: FixedPoint, request: Sum | Count | Prefer, before: secagg.Before) -> None:
        """One question for all: only then do the masks of what they answer cancel."""
        self.point, self._server_round, self._sum = point, server_round, sum_number(request)
        question = question_of(request, before=before)
        frame = MaskFrame(round=self._sum, length=point.dimension, bits=point.bits, question=question)
        self._round, self.closed = Round(self.coordinator, frame, before=before), False

    def _before(self, server_round: int) -> secagg.Before:
        """What the round's vectors depend on from before it: items' vectors of an earlier round, if everyone asked has them."""
        told, known = tuple(one.digest for one in self.known), self.encoded
        there = {number for number, _ in self._there(self.coordinator.session.present)}
        if known is None or not known.serves(server_round, there, rounds=self._settings.training.bank_steps):
            return secagg.Before(told=told)
        self.encoded = replace(known, round=server_round)
        if known.since == server_round:
            return secagg.Before(told=told)
        return secagg.Before(told=told, since=number_of(known.since), based=known.question)

    def mask(self, server_round: int, adapter: Adapter) -> Iterator[Message]:
        """Begin a round: ask every platform that is present for its masked sum.

        Raises:
            InputError: the agreed noise cannot be put into whole numbers at this length.
        """
        factors = self._strategy.factors(server_round)
        layout = self._layout(server_round, adapter)
        length = sum(math.prod(shape) for shape in layout.values())
        point = self.agreement.point(dimension=length, quorum=self.coordinator.roster.quorum, clip=self._settings.training.clip)
        self._adapter = adapter
        request = Sum(
            run=self._run,
            settings=self._settings,
            round=server_round,
            factors=factors,
            adapter=self._strategy.view(adapter, None),
            body=b"",
        )
        before = self._before(server_round)
        self._begin(server_round, point, request, before)
        if not before.since:
            self.encoded = Encoded(round=server_round, since=server_round, question=self.work.frame.question)
        return self._asking(to_record(request))

    def _asking(self, shared: RecordDict) -> Iterator[Message]:
        """The shared record for everybody, each with a body of its own; the same body, too, where no shares are to be sent."""
        self._question = shared
        plain: ArrayRecord | None = None
        for number, member in self._there(sorted(set(self.coordinator.session.present).difference(self.work.survivors))):
            asked = self.work.mask_for(number)
            if asked.parcels or plain is None:
                body = record_of_bytes(encode(asked))
                plain = plain if asked.parcels else body
            else:
                body = plain
            record = RecordDict({name: part for name, part in shared.items() if name != _BODY})
            record[_BODY] = body
            yield self._message(member, number, record, MessageType.TRAIN)

    def masked(self, replies: Iterable[Message]) -> None:
        """Add masked sums as they come."""
        self.report = RoundReport()
        for number, answer in self._answers(replies, Summed):
            assert isinstance(answer, Summed)
            member = self._member(number)
            with _Dropping(self, number):
                if answer.round != self._server_round or answer.users != member.users:
                    raise ProtocolError(f"answers round {answer.round} for {answer.users} users")
                self.work.masked(number, decode(secagg.Masked, answer.body))
                self.report.updates.append(receipt_of(answer))
            del answer

    def confirm(self) -> Iterator[Message]:
        """Ask every survivor to sign who they are; only where somebody is missing."""
        record = self._record(Phase.CONFIRM, self._server_round, encode(self.work.confirm()))
        for number, member in self._there(sorted(set(self.work.survivors) - self.work.signed)):
            yield self._message(member, number, record, MessageType.QUERY)

    def confirmed(self, replies: Iterable[Message]) -> None:
        """Take the signatures in."""
        self.report = RoundReport()
        for number, body in self._bodies(replies, Phase.CONFIRM, self._server_round):
            with _Dropping(self, number):
                self.work.confirmed(number, decode(secagg.Confirmed, body))

    def unmask(self) -> Iterator[Message]:
        """Ask every survivor for its shares.

        Raises:
            Abandoned: too few signed.
        """
        for number, member in self._there(sorted(set(self.work.survivors) - self.work.shared)):
            record = self._record(Phase.UNMASK, self._server_round, encode(self.work.unmask_for(number)))
            yield self._message(member, number, record, MessageType.QUERY)

    def unmasked(self, replies: Iterable[Message]) -> None:
        """Take the shares in."""
        self.report = RoundReport()
        for number, body in self._bodies(replies, Phase.UNMASK, self._server_round):
            with _Dropping(self, number):
                self.work.unmasked(number, decode(secagg.Unmasked, body))

    def gradient_sum(self) -> NDArray[np.float64]:
        """The noised sum of clipped gradients, float64 (d,), in the layout's order: all that the coordinator sees of the round.

        Raises:
            Abandoned: shares are missing.
        """
        return self.point.decode(self.work.sum())

    def step(self) -> Adapter:
        """The next global adapter, from the sum of the round.

        Raises:
            Abandoned: shares are missing.
        """
        total = self.gradient_sum()
        entries = self.coordinator.roster.entries
        users = [self.members[entries[number].platform].users for number in self.work.survivors]
        # Public, and never the real size of the batches.
        mean = total / self._settings.training.batch(users)
        change: Change = {}
        start = 0
        for name, shape in self.layout().items():
            end = start + math.prod(shape)
            change[name] = -mean[start:end].reshape(shape)
            start = end
        adapter = self._strategy.step(self._adapter, change)
        if not all(np.isfinite(array).all() for array in adapter.values()):
            raise Abandoned(f"round {self._server_round} would drive the adapter out of the range of float32")
        return adapter

    def drop(self, number: int, reason: str) -> None:
        """Note that a platform's answer was left out."""
        member = self._member(number)
        self.report.drops.append(Drop(node=member.node, platform=member.platform, reason=reason))

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Parameters of the round's sum, in its order, and their shapes."""
        return self._layout(self._server_round, self._adapter)

    def _layout(self, server_round: int, adapter: Adapter) -> dict[str, tuple[int, ...]]:
        return {name: adapter[name].shape for name in trained(adapter, self._strategy.factors(server_round))}

    def _there(self, numbers: Iterable[int]) -> Iterator[tuple[int, Member]]:
        """Those of the platforms for which somebody speaks now."""
        for number in numbers:
            member = self.members.get(self.coordinator.roster.entries[number].platform)
            if member is not None:
                yield number, member

    def _member(self, number: int) -> Member:
        return self.members[self.coordinator.roster.entries[number].platform]

    def _record(self, phase: Phase, server_round: int, body: bytes) -> RecordDict:
        return to_record(Secure(run=self._run, settings=self._settings, round=server_round, phase=phase, body=body))

    def _message(self, member: Member, number: int, record: RecordDict, kind: str) -> Message:
        timeout = self._settings.reply_timeout if kind == MessageType.TRAIN else self.quick
        return Message(record, member.node, kind, ttl=lifetime_of(timeout), group_id=f"secure-{number}")

    def _bodies(self, replies: Iterable[Message], phase: Phase, server_round: int) -> Iterator[tuple[int, bytes]]:
        for number, answer in self._answers(replies, Secured):
            assert isinstance(answer, Secured)
            if (answer.phase, answer.round) == (phase, server_round):
                yield number, answer.body
            else:
                self.drop(number, f"answers {answer.phase} of round {answer.round}")

    def _answers(self, replies: Iterable[Message], kind: type[Summed | Secured]) -> Iterator[tuple[int, Answer]]:
        nodes = {member.node: platform for platform, member in self.members.items()}
        for message in replies:
            node = message.metadata.src_node_id
            platform = nodes.get(node, "")
            try:
                if message.has_error():
                    raise ProtocolError(f"error {message.error.code}")
                number = self.coordinator.roster.number(platform)
                answer = answer_from(message.content)
                if isinstance(answer, Refusal):
                    self.report.refusals[node] = answer
                    continue
                if not isinstance(answer, kind) or answer.run != self._run or answer.platform != platform:
                    raise ProtocolError(f"answered with '{answer.kind}' of {answer.platform!r} in run {answer.run!r}")
            except ProtocolError as error:
                self.report.drops.append(Drop(node=node, platform=platform, reason=error.found))
                continue
            finally:
                del message
            yield number, answer
            del answer


class _Dropping:
    """Leaves an answer out, with its reason, if what it holds cannot be used."""

    def __init__(self, phases: Phases, number: int) -> None:
        self._phases, self._number = phases, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ProtocolError):
            return False
        self._phases.drop(self._number, error.found)
        return True
