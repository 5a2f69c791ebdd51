"""`fedfuse audit` and `fedfuse ledger`: what an auditor, a regulator or a platform's own people run on ledgers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from shared.base.errors import FedfuseError, InputError, PrivacyError, StorageError
from shared.base.terminal_table import terminal_console

if TYPE_CHECKING:
    from shared.ledger.audit import AuditVerdict
    from shared.ledger.evidence import LedgerEvidence


class AuditCode(IntEnum):
    """Exit codes of an audit."""

    SOUND = 0
    UNSOUND = 1
    UNKNOWN = 2


class _CheckByDefault(TyperGroup):
    """`fedfuse audit RUN` is `fedfuse audit check RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["check", *args]
        return super().parse_args(ctx, args)


audit = typer.Typer(
    cls=_CheckByDefault,
    no_args_is_help=True,
    help="Audit privacy: `fedfuse audit PATH` checks ledgers and recomputes epsilon; `fedfuse audit attack WORLD` attacks a run.",
)
ledger = typer.Typer(no_args_is_help=True, help="Show, verify or export one platform's ledger.")

Trust = Annotated[list[Path] | None, typer.Option(help="Public key of who may have signed the model; may be repeated.")]
Coordinator = Annotated[
    list[Path] | None,
    typer.Option(help="Public key of whose receipts count, as `coordinator` in an invitation; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@audit.command("check")
def audit_command(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Ledgers, folders of platforms, or a run's folder with its ledgers in ledger/.", readable=False),
    ],
    head: Annotated[
        list[str] | None, typer.Option(help="Head that somebody wrote down: a line's hash, or NAME=HASH; may be repeated.")
    ] = None,
    receipts: Annotated[
        list[Path] | None, typer.Option(help="The coordinator's receipts.jsonl of a run; may be repeated.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Folder of a model that was pulled; may be repeated.")] = None,
    trust: Trust = None,
    coordinator: Coordinator = None,
    curve: Annotated[bool, typer.Option("--curve", help="Also epsilon at every delta.")] = False,
    person: Annotated[str, typer.Option(help="Platforms that one person is on, NAME,NAME,...; default: all that are here.")] = "",
    run: Annotated[list[str] | None, typer.Option(help="A run that counts for the person; default: all.")] = None,
    group: Annotated[int, typer.Option(help="So many people together.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Also what is left: rounds to come by noise, as a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check ledgers against themselves and against what somebody outside holds, and recompute epsilon with three accountants.

    \b
    fedfuse audit runs/first                                   a simulation, against its own receipts
    fedfuse audit shop/ --receipts receipts.jsonl --model m    a platform, against the coordinator's

    Exit code 0: sound. 1: unsound. 2: nobody can tell, for want of a receipt, or because it cannot be read.
    """
    from shared.ledger.audit import AuditVerdict, audit_ledgers
    from shared.ledger.audit_report import render_audit
    from shared.ledger.what_if_report import what_if_report

    try:
        ledgers, evidence = gather_ledgers(paths, head or (), receipts or (), model or (), trust or (), coordinator or ())
        report = audit_ledgers(ledgers, name=", ".join(str(path) for path in paths), evidence=evidence)
    except (FedfuseError, OSError) as error:
        leave_unjudged(error, as_json=as_json)
    extra = None
    try:
        if curve or person or run or group != 1 or plan:
            extra = what_if_report(report.summaries, person=person, runs=run or (), people=group, plan=plan)
    except FedfuseError as error:
        if report.verdict is not AuditVerdict.UNSOUND:  # which no question takes back
            leave_unjudged(error, as_json=as_json)
        typer.echo(f"not answered: {error}", err=True)
    if as_json:
        values = json.loads(report.to_json())
        typer.echo(json.dumps({**values, **({} if extra is None else {"what_if": extra.to_values()})}, indent=2, sort_keys=True))
    else:
        terminal_console().print(render_audit(report))
        if extra is not None:
            terminal_console().print(extra.render())
    _leave(report.verdict)


@ledger.command("show")
def ledger_show_command(
    path: Annotated[Path, typer.Argument(help="A ledger, or a platform's folder.", readable=False)],
    last: Annotated[int, typer.Option(min=0, help="Lines at its end that are printed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """What a ledger says: whose it is, what is spent, and its last lines."""
    from collections import deque

    from shared.ledger.format import Entry, Line, ReleaseRecord
    from shared.ledger.summary import summarise_ledger

    tail: deque[Line] = deque(maxlen=last)
    try:
        file = _one(path)
        summary = summarise_ledger(file, tell=tail.append)
    except (FedfuseError, OSError) as error:
        _leave_ledger(error, as_json=as_json)
    header = summary.header
    shown = {
        "ledger": str(file),
        "platform": header.platform,
        "version": header.version,
        "identity": summary.identity.hex(),
        "epsilon": _plain(summary.epsilon),
        "budget": _plain(header.budget),
        "delta": header.delta,
        "charges": dict(summary.kinds),
        "answers": summary.released,
        "lines": summary.lines,
        "head": summary.head,
    }
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        typer.echo(f"{name:<9} {value}")
    for line in tail:
        if isinstance(line, Entry):
            what = f"charge   {line.kind}, {line.steps} steps, noise {line.noise_multiplier:.4g}, epsilon {line.epsilon:.4g}"
        elif isinstance(line, ReleaseRecord):
            what = f"released {line.left[:16]} " + (f"for {line.charge[:16]}" if line.charge else "without a row")
        else:
            what = f"identity {line.identity}"
        at = f"run {line.run}, round {line.round}" if isinstance(line, Entry | ReleaseRecord) else ""
        typer.echo(f"{line.seq:>7}  {line.time}  {what}  {at}")


@ledger.command("verify")
def ledger_verify_command(
    path: Annotated[Path, typer.Argument(help="A ledger, or a platform's folder.", readable=False)],
    every: Annotated[
        bool, typer.Option("--every", help="Verify each signature by itself; some minutes for a million lines.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a ledger: every line, the chain, and the last signature, which by the chain covers all lines.

    It says nothing of whether the end is missing: `fedfuse audit` does.
    """
    from shared.ledger.audit import AuditVerdict
    from shared.ledger.reading import Signatures
    from shared.ledger.summary import summarise_ledger

    try:
        summary = summarise_ledger(_one(path), signatures=Signatures.EVERY if every else Signatures.LAST)
    except (FedfuseError, OSError) as error:
        _leave_ledger(error, as_json=as_json)
    signed = summary.lines - summary.unsigned
    why = (
        f"whole in itself: {summary.lines} lines, {signed} of them signed; head {summary.head}; a removed tail would not be seen"
    )
    _said(AuditVerdict.SOUND, why, as_json=as_json)


@ledger.command("export")
def ledger_export_command(
    path: Annotated[Path, typer.Argument(help="A ledger, or a platform's folder; its worker may be running.", readable=False)],
    out: Annotated[Path, typer.Option(help="File for the copy; new.")],
    as_json: AsJson = False,
) -> None:
    """Copy a ledger for an auditor: its whole lines, verified, as they are now. No row of a user is in it."""
    from shared.ledger.audit import AuditVerdict
    from shared.ledger.copying import copy_ledger

    try:
        copied = copy_ledger(_one(path), out)
    except (FedfuseError, OSError) as error:
        if isinstance(error, PrivacyError):  # as `verify` says of it
            _said(AuditVerdict.UNSOUND, error.brief, as_json=as_json)
        leave_unjudged(error, as_json=as_json)
    if as_json:
        values = {"copy": str(out), "platform": copied.platform, "lines": copied.lines, "head": copied.head}
        typer.echo(json.dumps(values, indent=2))
        return
    typer.echo(f"{out}: {copied.lines} lines of platform {copied.platform}, head {copied.head}")


def gather_ledgers(
    paths: Iterable[Path],
    heads: Iterable[str],
    receipts: Iterable[Path],
    models: Iterable[Path],
    trust: Iterable[Path],
    coordinators: Iterable[Path],
) -> tuple[list[Path], LedgerEvidence]:
    """The ledgers under `paths`, and all that is held against them.

    Raises:
        FedfuseError: a path or a piece of evidence cannot be used.
    """
    from server.registry.model_evidence import model_evidence
    from shared.ledger.copying import without_copies
    from shared.ledger.evidence import LedgerEvidence, folder_evidence, heads_evidence, receipts_evidence
    from shared.ledger.receipts import RECEIPTS
    from shared.registry.signing import load_trusted

    keys = [load_trusted(path) for path in trust]
    raw = [load_trusted(path).raw for path in coordinators]
    ledgers: list[Path] = []
    evidence = LedgerEvidence()
    for path in paths:
        found = _ledgers(path)
        ledgers += found
        if path.is_dir() and found[0].parent == path / "ledger" and not (path / "identity.key").exists():
            evidence = evidence.plus(folder_evidence(path))
        elif path.is_dir() and (found[0].parent.parent / RECEIPTS).exists():
            evidence = evidence.plus(receipts_evidence(found[0].parent.parent / RECEIPTS, trusted=raw, own=True))
    evidence = evidence.plus(heads_evidence(heads))
    for path in receipts:
        evidence = evidence.plus(receipts_evidence(path, trusted=raw))
    for path in models:
        evidence = evidence.plus(model_evidence(path, trusted=keys))
    distinct, copies = without_copies(ledgers)
    return distinct, evidence.plus(LedgerEvidence(notes=tuple(copies)))


def _ledgers(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path / "ledger", path / "worker" / "ledger"):
        found = sorted(folder.glob("*.jsonl"))
        if found:
            return found
    raise InputError(
        "no ledger found" if path.exists() else "there is no such file or folder",
        where=str(path),
        do="name a ledger, a platform's folder, or a run's folder with its ledgers in ledger/",
    )


def _one(path: Path) -> Path:
    found = _ledgers(path)
    if len(found) > 1:
        raise InputError(f"{len(found)} ledgers are there", where=str(path), do="name one of them")
    return found[0]


def leave_unjudged(error: FedfuseError | OSError, *, as_json: bool) -> NoReturn:
    """Say why nobody can tell, and leave with that exit code."""
    from shared.ledger.audit import AuditVerdict

    if isinstance(error, OSError):  # of a path that cannot even be asked for: a name too long, a folder without the right
        error = InputError(
            f"cannot be read ({error.strerror})", where=str(error.filename or ""), do="check the path and its rights"
        )
    _said(AuditVerdict.UNKNOWN, str(error), as_json=as_json)


def _leave_ledger(error: FedfuseError | OSError, *, as_json: bool) -> NoReturn:
    """The same of one ledger that was read: a line that does not hold is unsound."""
    from shared.ledger.audit import AuditVerdict
    from shared.ledger.reading import UnreadableLedger

    if isinstance(error, PrivacyError | StorageError) and not isinstance(error, UnreadableLedger):
        _said(AuditVerdict.UNSOUND, error.brief, as_json=as_json)
    leave_unjudged(error, as_json=as_json)


def _said(verdict: AuditVerdict, why: str, *, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"verdict": str(verdict), "why": why}, indent=2))
    else:
        typer.echo(f"{verdict}: {why}")
    _leave(verdict)


def _leave(verdict: AuditVerdict) -> NoReturn:
    from shared.ledger.audit import AuditVerdict

    code = {AuditVerdict.SOUND: AuditCode.SOUND, AuditVerdict.UNSOUND: AuditCode.UNSOUND}.get(verdict, AuditCode.UNKNOWN)
    raise typer.Exit(code)


def _plain(value: float) -> float | str:
    return "inf" if math.isinf(value) else value
