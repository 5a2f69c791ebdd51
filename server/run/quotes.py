"""A dry run: every platform says whether it would take part and what it would cost; nothing is spent, joined or remembered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.monitoring.refusal_words import flower_error_words, refusal_words
from server.run.attendance import Attendance, Say
from server.run.exchange import Exchange
from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, NoisyPlan, ProtocolError
from shared.base.settings import Settings
from shared.model.adapter import initial, most_trained
from shared.model.factor_schedule import scheme_of
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import Quote, Quoted, Refusal
from shared.secagg.codec import decode
from shared.secagg.sum_signal import require_signal
from shared.secagg.trust_statement import TrustStatement
from strategies.base import lifetime_of
from strategies.composition import named
from strategies.secure_sum.mutual_trust import trusting_platforms
from strategies.secure_sum.summed_step import sufficient_noise

FILE = "dry-run.json"


@dataclass(frozen=True, kw_only=True)
class QuoteLine:
    """One platform's answer.

    Args:
        takes_part: Whether it would be in the run.
        why: Why not, and what to do; empty where it would.
        epsilon: By how much the run would raise what it has spent; None where it did not say.
        left, left_after: Of its budget, before and after; None where it does not show them.
        noise_multiplier: That training must have for it, or the sum of preferences.
    """

    platform: str
    takes_part: bool
    why: str = ""
    users: int = 0
    epsilon: float | None = None
    delta: float | None = None
    left: float | None = None
    left_after: float | None = None
    noise_multiplier: float | None = None

    @classmethod
    def of(cls, said: Quoted) -> QuoteLine:
        """The line of a platform that would take part."""
        return cls(
            platform=said.platform,
            takes_part=True,
            users=said.users,
            epsilon=said.epsilon,
            delta=said.delta,
            left=said.left if said.shown else None,
            left_after=said.left_after if said.shown else None,
            noise_multiplier=said.noise_multiplier or said.preference_noise or said.taste_noise,
        )


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What would become of a run.

    Args:
        why: Why it would not begin; empty where it would.
    """

    run: str
    platforms: tuple[QuoteLine, ...]
    why: str = ""

    @property
    def begins(self) -> bool:
        """Whether it would."""
        return not self.why

    def to_json(self) -> dict[str, Any]:
        """For machines; an infinite number is the string 'inf'."""
        lines = [{key: "inf" if value == math.inf else value for key, value in asdict(line).items()} for line in self.platforms]
        return {"run": self.run, "begins": self.begins, "why": self.why, "platforms": lines}

    def save(self, folder: Path) -> None:
        """Write it down for `read_dry_run`."""
        write_whole(folder / FILE, (json.dumps(self.to_json()) + "\n").encode())


def read_dry_run(folder: Path) -> DryRun:
    """What `DryRun.save` wrote.

    Raises:
        FedfuseError: there is none, or it is damaged.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        numbers: list[dict[str, Any]] = [
            {key: math.inf if value == "inf" else value for key, value in line.items()} for line in values["platforms"]
        ]
        lines = [QuoteLine(**line) for line in numbers]
        return DryRun(run=str(values["run"]), platforms=tuple(lines), why=str(values["why"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FedfuseError(f"the dry run left no answer: {error}", where=str(folder), do="see the server's log") from None


def ask_quotes(
    *,
    grid: Grid,
    settings: Settings,
    run: str,
    say: Say,
    nodes: int | None,
    wait: float,
    names: Callable[[], Mapping[int, str]],
    identities: Callable[[], Mapping[str, bytes]],
    only: Collection[str] = (),
) -> DryRun:
    """Ask every approved platform what a run would cost it.

    Args:
        run: A name that no run has.
        say: Called with what happens.
        nodes, wait, names, identities, only: As `server.run.federation.run_federation`.

    Raises:
        FedfuseError: fewer platforms came than are waited for.
    """
    least = max(named(settings.strategy)(settings=settings, run=run, members=()).least, settings.server.minimum_platforms)
    attendance = Attendance(
        grid=grid, settings=settings, run=run, least=least, say=say, entered=lambda *_: None, names=names, only=only
    )
    there = attendance.wait_for(nodes, seconds=wait)
    known, approved = dict(names()), dict(identities())
    lines = {
        name: QuoteLine(platform=name, takes_part=False, why="it is not there") for name in approved if not only or name in only
    }
    said: dict[str, Quoted] = {}
    content, lifetime = to_record(Quote(run=run, settings=settings)), lifetime_of(settings.reply_timeout)
    asked = [node for node in there if node in known]
    exchange = Exchange(
        grid,
        [Message(content, node, MessageType.QUERY, ttl=lifetime, group_id="quote") for node in asked],
        timeout=settings.reply_timeout,
    )
    for message in exchange.replies():
        name = known[message.metadata.src_node_id]
        try:
            answer = answer_from(message.content)
            if isinstance(answer, Refusal):
                lines[name] = QuoteLine(platform=name, takes_part=False, why=refusal_words(answer.reason))
                continue
            if not isinstance(answer, Quoted) or (answer.run, answer.platform) != (run, name):
                raise ProtocolError(f"answered with '{answer.kind}' of {answer.platform!r} in run {answer.run!r}")
            said[name], lines[name] = answer, QuoteLine.of(answer)
        except ProtocolError as error:
            lines[name] = QuoteLine(platform=name, takes_part=False, why=f"its answer cannot be used: {error.found}")
    for node in exchange.silent:
        lines[known[node]] = QuoteLine(platform=known[node], takes_part=False, why="no answer in time")
    for node, code in exchange.errors.items():
        lines[known[node]] = QuoteLine(platform=known[node], takes_part=False, why=flower_error_words(code))
    return _judged(run, settings, lines, said, approved, least=least)


def _judged(
    run: str,
    settings: Settings,
    lines: dict[str, QuoteLine],
    said: dict[str, Quoted],
    approved: Mapping[str, bytes],
    *,
    least: int,
) -> DryRun:
    """What the coordinator makes of the answers, as a run would."""
    if settings.distributed:
        least = max(least, settings.secure.colluders + 2)
        statements: dict[str, TrustStatement] = {}
        for name, one in list(said.items()):
            try:
                statement = decode(TrustStatement, one.trust)
                if (statement.run, statement.platform, statement.identity) != (run, name, approved.get(name)):
                    raise ProtocolError("states another platform's trust")
                statements[name] = statement
            except ProtocolError as error:
                del said[name]
                lines[name] = replace(lines[name], takes_part=False, why=f"its answer cannot be used: {error.found}")
        identities = {name: approved[name] for name in statements}
        _, left = trusting_platforms({name: one.users for name, one in said.items()}, statements, identities, run=run)
        for out in left:
            del said[out.platform]
            lines[out.platform] = replace(lines[out.platform], takes_part=False, why=str(out))
    why = ""
    if len(said) < least:
        why = f"{len(said)} platforms would take part, and {least} are needed"
    elif settings.distributed:
        why = _noise(settings, said)
    return DryRun(run=run, platforms=tuple(lines[name] for name in sorted(lines)), why=why)


def _noise(settings: Settings, said: Mapping[str, Quoted]) -> str:
    """Why the sums would be noise; empty where they would not."""
    there = list(said.values())
    users = [one.users for one in there]
    agreement = sufficient_noise(there, batch=max(settings.training.batch([one]) for one in users))
    parameters = most_trained(initial(settings), scheme_of(settings.strategy).cycle) if settings.trains else 1
    try:
        # How many items are in common is known once platforms have joined.
        require_signal(settings, agreement, users=users, parameters=parameters, shared=settings.preferences.items)
    except NoisyPlan as error:
        return error.found
    return ""
