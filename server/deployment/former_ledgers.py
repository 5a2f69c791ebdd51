"""A platform that comes back with a new folder: what it had spent under its former identity, as the coordinator's runs attest it.

A ledger belongs to an identity, so a new folder begins at nothing, and its users have spent what both ledgers say. The platform
alone could keep that to itself; whoever approves it learns of it.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder
from server.monitoring.journal import read_state
from shared.base.errors import FedfuseError
from shared.ledger.receipts import RECEIPTS, LedgerReceipt, read_receipts
from shared.protocol.invitation import Application, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class FormerLedger:
    """What one identity that a platform had before is known to have spent.

    Args:
        fingerprint: Of that identity.
        revoked: When it was shut out, seconds since 1970; None where it is approved still.
        epsilon, budget, delta: As its answers said; None where no run here knows.
        run, head: Of the last receipt whose head that identity signed, in the run that says most; empty where there is none.
        damaged: Runs whose files cannot be read.
    """

    platform: str
    fingerprint: str
    revoked: float | None
    epsilon: float | None = None
    budget: float | None = None
    delta: float | None = None
    run: str = ""
    head: str = ""
    damaged: tuple[str, ...] = ()

    def text(self) -> str:
        """For whoever approves."""
        when = "" if self.revoked is None else datetime.fromtimestamp(self.revoked, UTC).strftime(", revoked on %Y-%m-%d")
        said = [f"NOTE: {self.platform} was approved before, with another identity ({self.fingerprint}{when})."]
        if self.epsilon is not None:
            of = f" of {self.budget:g}" if self.budget else ""
            at = f" at delta {self.delta:g}" if self.delta else ""
            said.append(
                f"Its ledger had spent epsilon {self.epsilon:.4g}{of}{at} in run {self.run}, by its answers, whose ledger head "
                f"{self.head} that identity signed."
            )
        else:
            said.append("No run in this folder attests what its ledger had spent: ask for that ledger.")
        if self.damaged:
            said.append(f"It may be more: of {', '.join(self.damaged)} receipts or state cannot be read.")
        said.append(
            "A new identity begins a new ledger at 0, and for its users both add up: have it put its former folder back, or give "
            "it no more than what is left (fedfuse audit OLD NEW composes both)."
        )
        return " ".join(said)


def former_ledgers(coordinator: CoordinatorFolder, application: Application) -> tuple[FormerLedger, ...]:
    """What identities other than the application's, approved under its name before, had spent.

    Raises:
        StorageError: the list of platforms is damaged.
    """
    before = {
        one.identity: one
        for one in Platforms(coordinator.platforms).all()
        if one.name == application.platform and one.identity != application.identity
    }
    runs = sorted((coordinator.folder / "runs").glob("*"))
    return tuple(
        _attested(
            FormerLedger(platform=one.name, fingerprint=fingerprint_of(identity), revoked=one.revoked), b64decode(identity), runs
        )
        for identity, one in before.items()
    )


def _attested(former: FormerLedger, identity: bytes, runs: Iterable[Path]) -> FormerLedger:
    for run in runs:
        try:
            last = _last_signed(run / RECEIPTS, former.platform, identity)
        except FedfuseError:
            former = replace(former, damaged=(*former.damaged, run.name))
            continue
        if last is None:
            continue
        platforms = (read_state(run) or {}).get("platforms")
        line = platforms.get(former.platform) if isinstance(platforms, dict) else None
        epsilon = _amount(line, "epsilon")
        if epsilon is None:
            former = replace(former, damaged=(*former.damaged, run.name))
        elif former.epsilon is None or epsilon >= former.epsilon:
            former = replace(
                former,
                epsilon=epsilon,
                budget=_amount(line, "budget"),
                delta=_amount(line, "delta"),
                run=run.name,
                head=last.ledger,
            )
    return former


def _last_signed(path: Path, platform: str, identity: bytes) -> LedgerReceipt | None:
    """The last receipt of the platform whose head that identity signed; a platform may have changed it during a run."""
    if not path.exists():
        return None
    found = None
    for receipt in read_receipts(path):
        if receipt.platform == platform and receipt.head_signed_by(identity):
            found = receipt
    return found


def _amount(line: Any, key: str) -> float | None:
    value = line.get(key) if isinstance(line, dict) else None
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None
