"""A federation's status: the server, its platforms, its last run; put together from what each of them wrote down."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.markup import escape

from server.deployment.approved_platforms import Platforms
from server.deployment.flower_control import Control, Node, Unreachable
from server.deployment.folder import CoordinatorFolder
from server.monitoring.journal import read_state
from shared.base.errors import FedfuseError
from shared.base.terminal_table import terminal_table
from shared.protocol.fingerprint_words import federation_number
from shared.protocol.invitation import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class PlatformStatus:
    """One platform.

    Args:
        standing: approved or revoked.
        fingerprint: Of its identity, as its people read it out.
        connection: online, offline, never (was here), or unknown, when the server does not run.
        seen: Seconds since its last request that was let through; None if there was none since the server started.
        version: Of its Fedfuse, as it said when it greeted.
        refused: Why its last refused request was refused, '' if none was.
        rounds: Of the last run, that hold its update.
        spent, budget: Epsilon, as its last answer says, in whichever run; the budget is what it allows to be shown.
        trouble: What went wrong last in the last run.
    """

    name: str
    standing: str
    fingerprint: str
    connection: str
    seen: float | None = None
    version: str = ""
    refused: str = ""
    rounds: int = 0
    spent: float | None = None
    budget: float | None = None
    delta: float | None = None
    trouble: str = ""

    @property
    def left(self) -> float | None:
        """Epsilon that is left, as far as it is shown."""
        return None if self.spent is None or self.budget is None else max(self.budget - self.spent, 0.0)


@dataclass(frozen=True, kw_only=True)
class Status:
    """A federation.

    Args:
        server: Whether it answers.
        certificate: Days that its certificate holds.
        run: State of the newest run, as its journal has it; empty if there was none.
        number: Of all who are approved: platforms compare it, and have the same one where they trust them all.
        strangers: Keys that were refused, and why.
    """

    federation: str
    address: str
    server: bool
    certificate: float
    platforms: list[PlatformStatus]
    number: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For machines; an infinite epsilon is the string 'inf'."""
        values = asdict(self)
        for one, platform in zip(values["platforms"], self.platforms, strict=True):
            one["left"] = platform.left
            for key in ("spent", "budget", "left"):
                one[key] = "inf" if one[key] == math.inf else one[key]
        values["run"].pop("platforms", None)
        return values


def status_of(coordinator: CoordinatorFolder) -> Status:
    """The status of that coordinator's federation.

    Raises:
        StorageError: its list of platforms or its certificate cannot be read.
    """
    try:
        with Control(coordinator) as control:
            nodes, seen = {node.node: node for node in control.nodes()}, control.seen()
        up = True
    except Unreachable:
        nodes, seen, up = {}, {}, False
    runs = _runs(coordinator)
    run = runs[0] if runs else {}
    lines = run.get("platforms", {})
    found = Platforms(coordinator.platforms).all()
    platforms = []
    for one in found:
        if one.revoked is not None and any(other.name == one.name and other.revoked is None for other in found):
            continue  # an old key of a platform that has another now
        gate, line, budget = seen.get(one.name, {}), lines.get(one.name, {}), _last_answer(runs, one.name)
        platforms.append(
            PlatformStatus(
                name=one.name,
                standing="approved" if one.revoked is None else "revoked",
                fingerprint=fingerprint_of(one.identity),
                connection="shut out" if one.revoked is not None else _connection(nodes.get(one.node), up=up),
                seen=time.time() - gate["last"] if gate.get("last") else None,
                version=str(gate.get("version", "")),
                refused=str(gate.get("reason", "")) if gate.get("refused", 0) > gate.get("last", 0) else "",
                rounds=int(line.get("rounds", 0)),
                spent=_number(budget, "epsilon"),
                budget=_number(budget, "budget"),
                delta=_number(budget, "delta"),
                trouble=str(line.get("trouble", "")),
            )
        )
    names = {one.name for one in found}
    return Status(
        federation=coordinator.file.name,
        address=coordinator.address,
        server=up,
        certificate=coordinator.certificates.days_left(),
        platforms=platforms,
        number=federation_number(coordinator.file.name, {one.name: one.identity for one in found if one.revoked is None}),
        run=run,
        strangers={name: str(gate["reason"]) for name, gate in seen.items() if name not in names and gate.get("reason")},
    )


def render_status(status: Status) -> Group:
    """For a terminal."""
    head = f"federation [bold]{escape(status.federation)}[/] at {escape(status.address)}: " + (
        f"the server runs, its certificate holds for {status.certificate:.0f} days"
        if status.server
        else "[bold red]the server does not answer[/]"
    )
    table = terminal_table()
    for name in ("platform", "standing", "connection", "rounds", "ε of budget", "last trouble"):
        table.add_column(name, justify="right" if name in ("rounds", "ε of budget") else "left")
    for one in status.platforms:
        since = f", {_ago(one.seen)}" if one.seen is not None else ""
        trouble = one.trouble or (f"refused: {one.refused}" if one.refused else "-")
        spent = "-" if one.spent is None or one.budget is None else f"{one.spent:.2f} of {one.budget:g}"
        table.add_row(one.name, one.standing, f"{one.connection}{since}", str(one.rounds), spent, escape(trouble))
    parts: list[Any] = [head, table]
    if status.number:
        parts.append(f"number {status.number} of all that are approved: platforms compare it (fedfuse client trust)")
    run = status.run
    if run:
        when = datetime.datetime.fromtimestamp(float(run.get("time", 0)), datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        why = f": {escape(str(run['why']))}" if run.get("why") else ""
        parts.append(
            f"run [bold]{escape(str(run['run']))}[/]: {run['state']}, round {run['round']} of {run['rounds']} ({when}){why}"
        )
    parts += [f"[yellow]{escape(str(why))}[/]" for why in list(run.get("left_out", {}).values())[:10]]
    parts += [f"[yellow]refused: {escape(name)}: {escape(why)}[/]" for name, why in list(status.strangers.items())[:10]]
    return Group(*parts)


def _last_answer(runs: list[dict[str, Any]], platform: str) -> dict[str, Any]:
    """What the newest run that the platform has answered says of it; else the newest that it is in."""
    lines = [line for run in runs if (line := run.get("platforms", {}).get(platform))]
    return next((line for line in lines if line.get("users") and float(line.get("epsilon", 0.0))), lines[0] if lines else {})


def _runs(coordinator: CoordinatorFolder) -> list[dict[str, Any]]:
    """The states of all runs, the newest first."""
    states = [state for path in (coordinator.folder / "runs").glob("*") if (state := read_state(path)) is not None]
    try:
        return sorted(states, key=lambda state: float(state["time"]), reverse=True)
    except (KeyError, TypeError, ValueError):
        raise FedfuseError(
            "the state of a run is damaged", where=str(coordinator.folder / "runs"), do="remove its state.json"
        ) from None


def _connection(node: Node | None, *, up: bool) -> str:
    if not up:
        return "unknown"
    if node is None or node.status == "registered":
        return "never came"
    return node.status


def _number(line: dict[str, Any], key: str) -> float | None:
    value = line.get(key)
    return None if value is None or not line.get("users") else float(value)


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
