"""A whole run: wait for the platforms, let them join, train round by round, evaluate, checkpoint, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.monitoring.run_events import Event, Kind, Outcome, Tally, Watcher
from server.monitoring.tensorboard import TensorBoardWriter
from server.registry.publication import MODEL, Export, publish_adapter
from server.run.attendance import Attendance
from server.run.checkpoint import NAME as CHECKPOINT
from server.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.run.exchange import Exchange
from server.run.secure_round import SecureRounds
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.model.adapter import initial
from shared.model.factor_schedule import personalises
from shared.model.residual_factors import require_with_residual, split_residual
from shared.model.update_bound import largest_change
from shared.protocol.flower_records import bytes_of, request_from
from shared.protocol.messages import Arrays, Joined, Label, Reason
from strategies.base import Member, NoUpdate, Receipt, adapter_from, record_of
from strategies.composition import named


def run_federation(
    *,
    grid: Grid,
    settings: Settings,
    run: str,
    out: Path,
    events: Watcher | None = None,
    resume: bool = False,
    nodes: int | None = None,
    wait: float = 300.0,
    start: Arrays | None = None,
    export: Export | None = None,
    names: Callable[[], Mapping[int, str]] | None = None,
    identities: Callable[[], Mapping[str, bytes]] | None = None,
) -> Outcome:
    """Train one adapter over the platforms that `grid` reaches.

    Args:
        grid: Flower's, or an in-process one.
        run: Name of the run; platforms keep their ledgers under it, so a resumed run must have the same.
        out: The run's folder: checkpoint, TensorBoard curves and, at the end, `model/`.
        events: Told what happens, as it happens.
        resume: Go on from the checkpoint in `out`.
        nodes: Nodes to wait for; None: whoever is there once no new one has come for half a second.
        wait: Seconds to wait for them.
        start: Adapter to begin from; None: `shared.model.adapter.initial`.
        export: Writes the model's files; None: `shared.model.peft_export.export`.
        names: Node -> the platform that it was approved as; None: a node is whoever it says.
        identities: Platform -> the identity in the secure sum that it was approved with; None: whatever it says.

    Raises:
        InputError: `out` holds a run and `resume` is not set, or there is nothing that fits to resume.
        NoUpdate: a round brought no usable update. The last checkpoint stands.
        ProtocolError: two nodes speak for one platform.
        FedfuseError: no platform came, or none is left.
    """
    began = time.monotonic()
    adapter = dict(initial(settings) if start is None else start)
    if not resume and ((out / CHECKPOINT).exists() or (out / MODEL).exists()):
        raise InputError("holds a run already", where=str(out), do="resume it, or name another folder")
    with TensorBoardWriter(out / "tensorboard") as board:

        def tell(event: Event) -> None:
            board(event)
            if events is not None:
                events(event)

        federation = _Federation(
            grid=grid,
            settings=settings,
            run=run,
            out=out,
            tell=tell,
            adapter=adapter,
            wait=wait,
            names=names,
            identities=identities,
        )
        if resume:
            federation.restore()
        federation.attendance.join(federation.attendance.wait_for(nodes, seconds=wait))
        federation.train()
        model = publish_adapter(
            federation.adapter,
            settings,
            out,
            run=run,
            rounds=federation.round,
            tallies=federation.tallies,
            start=start,
            export=export,
        )
        tell(Event(kind=Kind.PUBLISHED, round=federation.round, text=f"the model is in {model}", tallies={}))
    return Outcome(
        run=run,
        adapter=federation.adapter,
        tallies=dict(sorted(federation.tallies.items())),
        rounds=federation.round,
        seconds=time.monotonic() - began,
        model=model,
    )


class _Federation:
    """The state of a run between its phases: the adapter, the round, who is in, and their tallies."""

    def __init__(
        self,
        *,
        grid: Grid,
        settings: Settings,
        run: str,
        out: Path,
        tell: Callable[[Event], None],
        adapter: dict[str, NDArray[np.float32]],
        wait: float,
        names: Callable[[], Mapping[int, str]] | None = None,
        identities: Callable[[], Mapping[str, bytes]] | None = None,
    ) -> None:
        self._grid, self._settings, self._run, self._out, self._tell = grid, settings, run, out, tell
        self._wait = wait
        self._strategy = named(settings.strategy)(settings=settings, run=run, members=())
        self.attendance = Attendance(
            grid=grid,
            settings=settings,
            run=run,
            least=max(self._strategy.least, settings.server.minimum_platforms),
            say=self._say,
            entered=self._entered,
            names=names,
        )
        if names is not None:
            # Platforms are strangers here: what their training cannot have made is not combined.
            self._strategy.largest = largest_change(settings)
        self._layout = {name: (array.shape[0], array.shape[1]) for name, array in split_residual(adapter)[0].items()}
        require_with_residual(adapter, self._layout, where="the adapter to begin from")
        self.adapter, self.round = adapter, 0
        self.tallies: dict[str, Tally] = {}
        self._secure: SecureRounds | None = None
        if settings.distributed:
            self._secure = SecureRounds(
                grid=grid,
                settings=settings,
                run=run,
                out=out,
                strategy=self._strategy,
                host=self,
                wait=wait,
                approved=identities,
            )

    def restore(self) -> None:
        """Go back to where the last checkpoint was written."""
        checkpoint = load_checkpoint(self._out, run=self._run, settings=self._settings, layout=self._layout)
        self.adapter, self.round = dict(checkpoint.adapter), checkpoint.round
        self.tallies = dict(checkpoint.tallies)
        self._strategy.restore(checkpoint.state, self.adapter)
        if self._secure is not None:
            self._secure.restore()
        self._say(Kind.RESUMED, f"goes on after round {self.round}")

    def train(self) -> None:
        """All rounds that are still to do, with their evaluations and checkpoints."""
        if self._secure is not None and self.round < self._settings.rounds:
            self._secure.set_up(self.adapter)
        if self.round == 0 and not any(tally.before for tally in self.tallies.values()):
            self._evaluate(Label.BEFORE)
        while self.round < self._settings.rounds:
            if self._secure is None:
                self.look()
                self.attendance.await_someone(seconds=self._wait)
            self._train_round(self.round + 1)
            self.round += 1
            self._save()
            self._say(Kind.ROUND, f"round {self.round} of {self._settings.rounds} is done", tallies=self.tallies)
            every = self._settings.evaluate_every
            if every and self.round % every == 0 and self.round < self._settings.rounds:
                self._evaluate(Label.FEDERATED)
        if not any(tally.federated and tally.federated.round == self.round for tally in self.tallies.values()):
            self._evaluate(Label.FEDERATED)
        if personalises(self._settings.strategy) and not any(tally.personal for tally in self.tallies.values()):
            self._personalise()

    def _train_round(self, round_: int) -> None:
        if self._secure is not None:
            moved = self._secure.round(round_, self.adapter)
            self.adapter = self.adapter if moved is None else moved
            return
        self._strategy.members = self.attendance.asked(round_)
        messages = self._strategy.configure_train(round_, record_of(self.adapter), ConfigRecord(), self._grid)
        exchange = self._send(messages)
        try:
            arrays, _ = self._strategy.aggregate_train(round_, self.watched(exchange, round_))
        except NoUpdate as error:
            lost = self._lost_with_the_coordinator(round_)
            self.note(exchange, round_)
            if not self.members:
                raise NoUpdate(
                    f"round {round_}: no platform is left",
                    where="; ".join(f"{tally.platform}: {dict(tally.refusals)}" for tally in self.tallies.values()),
                    do=f"the adapter of round {self.round} is in {self._out / CHECKPOINT}; plan fewer rounds",
                ) from None
            if not lost:
                raise NoUpdate(error.found, where=error.where or self._gone(exchange), do=error.do) from None
            self._say(Kind.LATE, f"round {round_} was answered before the coordinator stopped; it is not trained twice")
            return
        self.note(exchange, round_)
        came, least = len(self._strategy.report.updates), self._settings.server.minimum_platforms
        if came < least:
            # The platforms agreed to be one of so many; what came is not used, and is answered again when the round is.
            raise NoUpdate(
                f"round {round_}: {came} platforms answered, and the run's settings need {least}",
                where=self._gone(exchange),
                do="see why the others did not, then resume the run",
            )
        self.adapter = adapter_from(arrays)

    def _evaluate(self, label: Label) -> None:
        self._strategy.members = self.members
        config = ConfigRecord({"label": label.value})
        exchange = self._send(self._strategy.configure_evaluate(self.round, record_of(self.adapter), config, self._grid))
        self._strategy.aggregate_evaluate(self.round, self.watched(exchange, self.round))
        for metrics in self._strategy.report.metrics:
            slot: dict[str, Any] = {label.value: metrics}
            self._add(metrics.platform, up=bytes_of(metrics), epsilon=metrics.epsilon, ledger=metrics.ledger, **slot)
        self.note(exchange, self.round)
        self._save()
        text = f"{len(self._strategy.report.metrics)} platforms evaluated the {label.value} model"
        self._say(Kind.EVALUATED, text, tallies=self.tallies)

    def _entered(self, member: Member, joined: Joined, down: int) -> None:
        why = "" if self._secure is None else self._secure.enter(joined)
        if why:
            self.attendance.dismiss(member.node)
            self._say(Kind.LEFT, f"{joined.platform} is left out: {why}", platform=joined.platform)
            return
        came, joined = bytes_of(joined), replace(joined, keys=b"")
        self.tallies[joined.platform] = replace(self.tallies.get(joined.platform, Tally(joined=joined)), joined=joined)
        self._add(joined.platform, down=down, up=came)
        self._tell(
            Event(
                kind=Kind.JOINED,
                round=self.round,
                text=f"{joined.platform} joined with {joined.users} users",
                platform=joined.platform,
                tallies=dict(self.tallies),
            )
        )

    @property
    def members(self) -> dict[int, Member]:
        """Who is there now, by node."""
        return self.attendance.members

    def look(self) -> None:
        """Let go of who has left, and take in who has come."""
        self.attendance.look()

    def say(self, kind: Kind, text: str, *, platform: str = "", round_: int | None = None) -> None:
        """Tell an event."""
        self._say(kind, text, platform=platform, round_=round_)

    def sent(self, platform: str, size: int) -> None:
        """Count what was sent to a platform."""
        self._add(platform, down=size)

    def credit(self, receipt: Receipt, *, counted: bool) -> None:
        """Count a platform's masked sum, and the round if its sum came about."""
        rounds = self.tallies[receipt.platform].rounds + counted
        self._add(receipt.platform, up=receipt.bytes, epsilon=receipt.epsilon, ledger=receipt.ledger, rounds=rounds)

    def _personalise(self) -> None:
        """Let every platform train a model of its own; what comes of it stays there, but for one word."""
        self._strategy.members = self.members
        exchange = self._send(self._strategy.configure_personalise(self.round, record_of(self.adapter), self._grid))
        self._strategy.aggregate_personalise(self.round, self.watched(exchange, self.round))
        answers = self._strategy.report.personalised
        for answer in answers:
            self._add(answer.platform, up=bytes_of(answer), epsilon=answer.epsilon, ledger=answer.ledger, chosen=answer.chosen)
        self.note(exchange, self.round)
        self._save()
        own = sum(answer.chosen for answer in answers)
        self._say(Kind.PERSONALISED, f"{own} of {len(answers)} platforms go on with a model of their own", tallies=self.tallies)
        if self._settings.simulation:
            self._evaluate(Label.PERSONAL)

    def _send(self, messages: list[Message]) -> Exchange:
        if messages:
            size = bytes_of(request_from(messages[0].content))  # one record for all
            for message in messages:
                self._add(self.members[message.metadata.dst_node_id].platform, down=size)
        return Exchange(self._grid, messages, timeout=self._settings.reply_timeout)

    def watched(self, exchange: Exchange, round_: int) -> Iterator[Message]:
        """An exchange's answers, each told."""
        for message in exchange.replies():
            member = self.members.get(message.metadata.src_node_id)
            if member is not None:
                self._say(Kind.ANSWERED, f"{member.platform} answered", platform=member.platform, round_=round_)
            yield message
            del message

    def note(self, exchange: Exchange, round_: int) -> None:
        """Put what came of an exchange into the tallies, by the strategy's report. One without budget is not asked again."""
        report = self._strategy.report
        for receipt in report.updates:
            self.credit(receipt, counted=True)
        for node, refusal in report.refusals.items():
            if node not in self.members:
                continue  # it has left already, in an earlier phase of this round
            name = self.members[node].platform
            refusals = {**self.tallies[name].refusals, round_: refusal.reason}
            self._add(name, up=bytes_of(refusal), refusals=refusals)
            self._say(Kind.REFUSED, f"{name}: {refusal.reason.value}", platform=name, round_=round_, reason=refusal.reason)
            if refusal.reason is Reason.BUDGET:
                self.attendance.dismiss(node)
                self._say(Kind.LEFT, f"{name} has no budget left: the run goes on without it", platform=name, round_=round_)
        unheard = [(drop.node, Kind.DROPPED, drop.reason) for drop in report.drops]
        unheard += [(node, Kind.FAILED, f"Flower's error {code}") for node, code in exchange.errors.items()]
        unheard += [(node, Kind.SILENT, "no answer in time") for node in exchange.silent]
        for node, kind, reason in unheard:
            if node in self.members:
                name = self.members[node].platform
                self._add(name, failures=self.tallies[name].failures + 1)
                self._say(kind, f"{name}: {reason}", platform=name, round_=round_)
        if exchange.late:
            self._say(Kind.LATE, f"{exchange.late} answers to an earlier round were discarded", round_=round_)

    def _lost_with_the_coordinator(self, round_: int) -> bool:
        """Whether every member answered this round to a coordinator that was stopped before it could keep the sum."""
        refusals, asked = self._strategy.report.refusals, self._strategy.members or {}
        return bool(asked) and all(
            node in refusals and refusals[node].reason is Reason.ROUND and self.tallies[member.platform].joined.finished >= round_
            for node, member in asked.items()
        )

    def _gone(self, exchange: Exchange) -> str:
        names = {node: member.platform for node, member in self.members.items()}
        parts = [f"{names.get(node, node)}: Flower's error {code}" for node, code in exchange.errors.items()]
        parts += [f"{names.get(node, node)}: no answer" for node in exchange.silent]
        parts += [f"{names.get(node, node)}: {refusal.reason.value}" for node, refusal in self._strategy.report.refusals.items()]
        return "; ".join(parts)

    def _add(self, platform: str, *, down: int = 0, up: int = 0, **changes: object) -> None:
        tally = self.tallies[platform]
        counted = {"bytes_down": tally.bytes_down + down, "bytes_up": tally.bytes_up + up, **changes}
        self.tallies[platform] = replace(tally, **counted)  # type: ignore[arg-type]

    def _save(self) -> None:
        state = Checkpoint(
            run=self._run,
            round=self.round,
            settings=self._settings,
            adapter=self.adapter,
            tallies=dict(self.tallies),
            state=self._strategy.state(),
        )
        save_checkpoint(self._out, state)

    def _say(
        self,
        kind: Kind,
        text: str,
        *,
        platform: str = "",
        round_: int | None = None,
        reason: Reason | None = None,
        tallies: Mapping[str, Tally] | None = None,
    ) -> None:
        at = self.round if round_ is None else round_
        self._tell(Event(kind=kind, round=at, text=text, platform=platform, reason=reason, tallies=dict(tallies or {})))
