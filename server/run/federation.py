"""A whole run: wait for the platforms, let them join, train round by round, evaluate, checkpoint, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.monitoring.run_events import EarlyStop, Event, Kind, Outcome, Watcher
from server.monitoring.tensorboard import TensorBoardWriter
from server.registry.publication import MODEL, Export, publish_adapter
from server.run.attendance import Attendance
from server.run.checkpoint import NAME as CHECKPOINT
from server.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.run.dispatch import Dispatch
from server.run.early_stopping import early_stop, plateau_words
from server.run.last_receipts import LastReceipts
from server.run.local_round import LocalRounds
from server.run.preference_store import PreferenceStore, SumWatcher
from server.run.receipt_book import ReceiptBook
from server.run.run_record import RunRecord
from server.run.secure_round import OpenRound, SecureRounds
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.model.adapter import initial
from shared.model.backbone import shape_of, weights_sha256
from shared.model.factor_schedule import personalises
from shared.model.residual_factors import change_norm, require_with_residual, split_residual
from shared.model.update_bound import largest_change
from shared.preferences.taste_map import TasteMap, denoised_map
from shared.protocol.flower_records import record_bytes, to_record
from shared.protocol.messages import Arrays, Joined, Label
from shared.protocol.quality import NDCG
from strategies.base import Member, record_of
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
    patience: float = 0.0,
    start: Arrays | None = None,
    export: Export | None = None,
    names: Callable[[], Mapping[int, str]] | None = None,
    identities: Callable[[], Mapping[str, bytes]] | None = None,
    signer: Ed25519PrivateKey | None = None,
    acknowledged: LastReceipts | None = None,
    sums: SumWatcher | None = None,
    only: Collection[str] = (),
    before: Callable[[], object] | None = None,
) -> Outcome:
    """Train one adapter over the platforms that `grid` reaches.

    Args:
        grid: Flower's, or an in-process one.
        run: Name of the run; platforms keep their ledgers under it, so a resumed run must have the same.
        out: The run's folder: checkpoint, TensorBoard curves and, at the end, `model/`.
        events: Called with each event as it happens.
        resume: Go on from the checkpoint in `out`.
        nodes: Nodes to wait for; None: whoever is there once no new one has come for half a second.
        wait: Seconds to wait for them.
        patience: Seconds in which a sum of the secure sum that is given up is asked for again, when its platforms are back.
        start: Adapter to begin from; None: `shared.model.adapter.initial`.
        export: Writes the model's files; None: `shared.model.peft_export.export`.
        names: Node -> the platform that it was approved as; None: a node is whoever it says.
        identities: Platform -> the identity in the secure sum that it was approved with; None: whatever it says.
        signer: The coordinator's federation key, which signs receipts; None: nobody does.
        acknowledged: Each platform's last receipt over all runs; None: runs know nothing of each other.
        sums: Called with every noised sum of preferences; for simulations that are attacked.
        only: Names of the approved platforms that are asked; empty: all are.
        before: Called whenever platforms are there and before they are asked to join; raises where the run must not go on.

    Returns:
        The last global adapter, float32; each platform's part, with its epsilon in nats; the rounds that are in the model, those
        that were lost, and in `open` the one before which the run ended incomplete; the model's folder.

    Raises:
        InputError: `out` holds a run and `resume` is not set, or there is nothing that fits to resume.
        NoUpdate: a round brought no usable update. The last checkpoint remains.
        ProtocolError: two nodes speak for one platform.
        FedfuseError: no platform came, or none is left.

    | given | result |
    |---|---|
    | nobody comes within `wait` | `FedfuseError` |
    | `resume` without a checkpoint | `InputError` |
    | an `out` that holds a model, without `resume` | `InputError`, before anybody is asked |
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
            patience=patience,
            names=names,
            identities=identities,
            signer=signer,
            acknowledged=acknowledged,
            sums=sums,
            only=only,
            before=before,
            wanted=nodes or 0,
        )
        if resume:
            federation.restore()
        else:
            federation.take_up()
        federation.attendance.join(federation.attendance.wait_for(nodes, seconds=wait))
        federation.train()
        model = publish_adapter(
            federation.adapter,
            settings,
            out,
            run=run,
            rounds=federation.record.counted,
            stopped=federation.stopped,
            tallies=federation.record.tallies,
            start=start,
            export=export,
            preferences=federation.preferences.load(),
            taste=federation.preferences.load_taste(),
            left_out=federation.record.left_out.values(),
        )
        federation.record.say(Kind.PUBLISHED, f"the model is in {model}")
    return Outcome(
        run=run,
        adapter=federation.adapter,
        tallies=dict(sorted(federation.record.tallies.items())),
        rounds=federation.record.counted,
        lost=federation.record.lost,
        open=federation.record.open,
        stopped=federation.stopped,
        seconds=time.monotonic() - began,
        model=model,
    )


class _Federation:
    """The state of a run between its phases: the adapter, who is in, and what is known of them."""

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
        patience: float,
        names: Callable[[], Mapping[int, str]] | None = None,
        identities: Callable[[], Mapping[str, bytes]] | None = None,
        signer: Ed25519PrivateKey | None = None,
        acknowledged: LastReceipts | None = None,
        sums: SumWatcher | None = None,
        only: Collection[str] = (),
        before: Callable[[], object] | None = None,
        wanted: int = 0,
    ) -> None:
        self._grid, self._settings, self._run, self._out = grid, settings, run, out
        self._strategy = named(settings.strategy)(settings=settings, run=run, members=())
        self.record = RunRecord(tell)
        self.preferences = PreferenceStore(out, told=sums)
        self._receipts = ReceiptBook(out, run=run, signer=signer, over_all=acknowledged)
        self.attendance = Attendance(
            grid=grid,
            settings=settings,
            run=run,
            least=max(self._strategy.least, settings.server.minimum_platforms),
            say=self.record.say,
            entered=self._entered,
            names=names,
            only=only,
            receipt=self._receipts.last,
            before=before,
        )
        if names is not None:
            # Platforms are not trusted here: what their training cannot have made is not combined.
            self._strategy.largest = largest_change(settings)
        self._layout = {name: (array.shape[0], array.shape[1]) for name, array in split_residual(adapter)[0].items()}
        require_with_residual(adapter, self._layout, where="the adapter to begin from")
        self.adapter = adapter
        self._dispatch = Dispatch(
            grid, attendance=self.attendance, record=self.record, receipts=self._receipts, timeout=settings.reply_timeout
        )
        parts: dict[str, Any] = {
            "settings": settings,
            "out": out,
            "strategy": self._strategy,
            "attendance": self.attendance,
            "record": self.record,
            "dispatch": self._dispatch,
            "wait": wait,
        }
        self._rounds: LocalRounds | SecureRounds = (
            SecureRounds(run=run, approved=identities, patience=patience, wanted=wanted, named=bool(only), **parts)
            if settings.distributed
            else LocalRounds(grid=grid, **parts)
        )

    def take_up(self) -> None:
        """Take up what a process of this run left that ended before its first checkpoint: keys that were dealt, receipts.

        Platforms deal once in a run, so new keys would be refused for good.
        """
        self._rounds.restore()
        self._receipts.restore()

    def restore(self) -> None:
        """Go back to where the last checkpoint was written."""
        checkpoint = load_checkpoint(self._out, run=self._run, settings=self._settings, layout=self._layout)
        self.adapter, self.record.round = dict(checkpoint.adapter), checkpoint.round
        self.record.tallies, self.record.lost = dict(checkpoint.tallies), checkpoint.lost
        self._strategy.restore(checkpoint.state, self.adapter)
        self._rounds.restore()
        self._receipts.restore()
        self.record.say(Kind.RESUMED, f"goes on after round {checkpoint.round}")

    @property
    def stopped(self) -> EarlyStop | None:
        """Why no further round is trained, from what the checkpoint holds alone, so that a resumed run decides the same."""
        return early_stop(self.record.tallies, self._settings, round_=self.record.round)

    def train(self) -> None:
        """All rounds that are still to do, with their evaluations and checkpoints."""
        record, rounds, every = self.record, self._settings.rounds, self._settings.evaluate_every
        asked, beginning = self._settings.preferences, record.round == 0
        mapping = beginning and bool(asked.map) and self.preferences.load() is None and self.preferences.load_taste() is None
        sharing = beginning and bool(asked.items) and self.preferences.load() is None
        if (record.round < rounds and not self.stopped) or sharing or mapping:
            self._rounds.set_up(self.adapter)
        if mapping:
            self._share_taste()
        if sharing:
            self._share_preferences()
        if not self._settings.trains:
            return
        if record.round == 0 and not any(tally.before for tally in record.tallies.values()):
            self._evaluate(Label.BEFORE)
        while record.round < rounds:
            # At the head: a run that was interrupted between a round and its evaluation goes on with that.
            if every and record.round and record.round % every == 0 and not self._evaluated_now():
                self._evaluate(Label.FEDERATED)
            if stopped := self.stopped:
                record.say(Kind.PLATEAU, str(stopped), with_tallies=True)
                break
            try:
                moved = self._rounds.round(record.round + 1, self.adapter)
            except OpenRound as error:
                # Further rounds would forget the keys of this one. Resumed, it is asked for again, with its answers.
                record.open = record.round + 1
                self._save()
                text = f"round {record.open} of {rounds} is given up: {error.found}; the run ends before it, and can be resumed"
                record.say(Kind.LOST, text, with_tallies=True)
                return
            record.round += 1
            before = self.adapter
            if moved is None:
                record.lost = (*record.lost, record.round)
            else:
                self.adapter = moved
            self._save()
            if moved is None:
                record.say(
                    Kind.LOST, f"round {record.round} of {rounds} is lost: nothing of it is in the model", with_tallies=True
                )
            else:
                change = change_norm(before, moved)
                record.say(Kind.ROUND, f"round {record.round} of {rounds} is done", with_tallies=True, change=change)
        if not self._evaluated_now():
            self._evaluate(Label.FEDERATED)
        if personalises(self._settings.strategy) and not any(tally.personal for tally in record.tallies.values()):
            self._personalise()

    def _evaluated_now(self) -> bool:
        """Whether any platform's metrics of the model as it is are in."""
        return any(tally.federated and tally.federated.round == self.record.round for tally in self.record.tallies.values())

    def _share_taste(self) -> None:
        found, settings = self._rounds.taste(self.preferences), self._settings
        self._save()
        if found is None:
            return
        backbone = shape_of(settings.model.backbone)
        taste = TasteMap(
            matrix=denoised_map(found.vector, settings.preferences.map, noise=found.noise),
            noise=found.noise,
            users=found.users,
            backbone=settings.model.backbone,
            backbone_sha256=weights_sha256(settings.model.backbone) or "",
            width=backbone.hidden,
            item_tokens=settings.model.item_tokens,
        )
        self.preferences.save_taste(taste)
        text = f"a taste map of {taste.directions} directions, {taste.strong} of them above the noise"
        self.record.say(Kind.PREFERRED, text, with_tallies=True)

    def _share_preferences(self) -> None:
        found = self._rounds.prefer(self.preferences)
        self._save()
        if found is None:
            self.record.say(Kind.PREFERRED, "no preferences are shared: no two platforms have items in common")
            return
        self.preferences.save(found)
        text = f"preferences for {len(found.items)} shared items: {len(found.factors)} factors are above the noise"
        self.record.say(Kind.PREFERRED, text, with_tallies=True)

    def _evaluate(self, label: Label) -> None:
        at = self.record.round
        self._strategy.members = self.attendance.members
        config = ConfigRecord({"label": label.value})
        exchange = self._dispatch.send(self._strategy.configure_evaluate(at, record_of(self.adapter), config, self._grid))
        self._strategy.aggregate_evaluate(at, self._dispatch.answers(exchange, told=at))
        for metrics in self._strategy.report.metrics:
            slot: dict[str, Any] = {label.value: metrics}
            if label is not Label.PERSONAL:
                slot["figures"] = {**self.record.tallies[metrics.platform].figures, at: metrics.quality[NDCG]}
            self.record.add(metrics.platform, epsilon=metrics.epsilon, ledger=metrics.ledger, **slot)
        self._dispatch.book(exchange, self._strategy.report, at)
        self._save()
        text = f"{len(self._strategy.report.metrics)} platforms evaluated the {label.value} model"
        if label is not Label.PERSONAL:
            text += plateau_words(self.record.tallies, self._settings)
        self.record.say(Kind.EVALUATED, text, with_tallies=True)

    def _entered(self, member: Member, joined: Joined, down: int) -> None:
        name, why = joined.platform, self._rounds.enter(joined)
        if why:
            self.attendance.dismiss(member.node)
            self.record.say(Kind.LEFT, f"{name} is left out: {why}", platform=name)
            return
        self.record.enter(joined)
        self.record.add(name, down=down, up=record_bytes(to_record(joined)))
        self.record.say(Kind.JOINED, f"{name} joined with {joined.users} users", platform=name, with_tallies=True)

    def _personalise(self) -> None:
        """Let every platform train a model of its own; what comes of it stays there, but for one word."""
        at = self.record.round
        self._strategy.members = self.attendance.members
        exchange = self._dispatch.send(self._strategy.configure_personalise(at, record_of(self.adapter), self._grid))
        self._strategy.aggregate_personalise(at, self._dispatch.answers(exchange, told=at))
        answers = self._strategy.report.personalised
        for one in answers:
            self.record.add(one.platform, epsilon=one.epsilon, ledger=one.ledger, chosen=one.chosen)
        self._dispatch.book(exchange, self._strategy.report, at)
        self._save()
        text = f"{sum(one.chosen for one in answers)} of {len(answers)} platforms go on with a model of their own"
        self.record.say(Kind.PERSONALISED, text, with_tallies=True)
        if self._settings.simulation:
            self._evaluate(Label.PERSONAL)

    def _save(self) -> None:
        state = Checkpoint(
            run=self._run,
            round=self.record.round,
            settings=self._settings,
            adapter=self.adapter,
            tallies=dict(self.record.tallies),
            lost=self.record.lost,
            state=self._strategy.state(),
        )
        save_checkpoint(self._out, state)
