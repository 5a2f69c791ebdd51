"""What somebody outside a platform knows of its ledger: without it, nobody sees that a ledger's end was removed.

Heads come from the coordinator's receipts, from a published model, or from whoever wrote one down; a ledger that does not hold
a head that its platform once gave was cut, or rewritten, or is one of two histories.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.base.errors import InputError
from shared.base.regular_files import open_regular
from shared.ledger.receipts import LedgerReceipt, read_receipts
from shared.privacy.releases import ReleaseKind
from shared.protocol.keys import ed25519_line

MAX_METRICS = 4 << 20
HEAD = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Witness:
    """One head of one ledger, as somebody outside holds it.

    Args:
        platform: Whose; empty for a head that was given without a name.
        head: Hash of a line, hex.
        source: Who holds it, for a person; empty for a head that a person gave by itself.
        left: SHA-256 of the answer that came with it, hex; empty where that is not known.
        epsilon: Spent by then, as they say; None where they do not.
        own: Whether it comes from the platform itself: it shows what is missing, and not that nothing is.
        receipt: The receipt, where it is one.
    """

    platform: str
    head: str
    source: str
    left: str = ""
    epsilon: float | None = None
    own: bool = False
    receipt: LedgerReceipt | None = field(default=None, repr=False)

    @property
    def called(self) -> str:
        """The head, as a sentence names it."""
        return f"the head of {self.source}" if self.source else f"the head {self.head[:16]} that was given"


@dataclass(frozen=True, kw_only=True)
class MechanismClaim:
    """What a published model says of the mechanism of a run, for one platform.

    Args:
        rounds: Rounds whose sum holds the platform's update.
        steps: Steps of a round.
        noise_multiplier: That the platform declared; None under a secure sum, where the noise is agreed on later.
        once: Kind of a sum that is released once -> the noise multiplier that it may claim at most; empty under a secure sum.
    """

    platform: str
    run: str
    rounds: int
    steps: int
    sample_rate: float
    noise_multiplier: float | None
    once: Mapping[ReleaseKind, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LedgerEvidence:
    """Everything that ledgers are checked against.

    Args:
        complete: Whether the witnesses are of one run whose ledgers are all here, as in a simulation's folder.
        notes: What an auditor should know of it.
        problems: What is wrong with it already.
    """

    witnesses: tuple[Witness, ...] = ()
    claims: tuple[MechanismClaim, ...] = ()
    complete: bool = False
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def plus(self, other: LedgerEvidence) -> LedgerEvidence:
        """Both. A note that both have is one."""
        return LedgerEvidence(
            witnesses=self.witnesses + other.witnesses,
            claims=self.claims + other.claims,
            complete=self.complete or other.complete,
            notes=tuple(dict.fromkeys(self.notes + other.notes)),
            problems=self.problems + other.problems,
        )

    def of(self, platform: str, *, alone: bool, holds: Container[str] = ()) -> tuple[Witness, ...]:
        """Those of a platform; one without a name is of the ledger that holds it, and of one that is audited alone."""
        return tuple(
            one for one in self.witnesses if one.platform == platform or (not one.platform and (alone or one.head in holds))
        )


def heads_evidence(heads: Iterable[str]) -> LedgerEvidence:
    """Of heads that a person wrote down: 64 hexadecimal digits, or NAME=DIGITS where several ledgers are audited.

    Raises:
        InputError: one is none.
    """
    found = []
    for text in heads:
        platform, _, head = text.rpartition("=")
        if not HEAD.fullmatch(head):
            raise InputError(f"{text[:100]!r} is no head", where="--head", do="give the 64 hexadecimal digits of a line's hash")
        found.append(Witness(platform=platform, head=head, source=""))
    return LedgerEvidence(witnesses=tuple(found))


def receipts_evidence(path: Path, *, trusted: Iterable[bytes] = (), complete: bool = False, own: bool = False) -> LedgerEvidence:
    """Of a file of receipts.

    Args:
        trusted: Public keys of coordinators, 32 bytes each; without any, a receipt has to be signed by the key it names.
        own: Whether a platform kept the file itself.

    Raises:
        InputError: it holds something else.
        StorageError: it cannot be read.
    """
    keys, found, seen = set(trusted), [], set()
    unsigned, foreign, forged = 0, 0, 0
    for number, receipt in enumerate(read_receipts(path), start=1):
        if receipt.coordinator:
            known = not keys or _raw(receipt.coordinator) in keys
            if not known or not receipt.vouched:
                foreign, forged = foreign + (not known), forged + known
                continue
            seen.add(receipt.coordinator)
        else:
            unsigned += 1
            if keys:
                continue
        source = f"receipt {number} of {path} (run {receipt.run}, round {receipt.round}, {receipt.kind})"
        found.append(
            Witness(platform=receipt.platform, head=receipt.ledger, source=source, left=receipt.left, own=own, receipt=receipt)
        )
    notes, problems = [], []
    if unsigned:
        notes.append(f"{path}: {unsigned} receipts are signed by no coordinator, as in a simulation")
    if seen and not keys:
        lines = ", ".join(ed25519_line(Ed25519PublicKey.from_public_bytes(_raw(key))) for key in sorted(seen))
        notes.append(
            f"{path}: signed by {lines}. Whether that is the coordinator is not checked: compare it with the line `coordinator` "
            f"of an invitation, and name that with --coordinator"
        )
    if foreign:
        notes.append(f"{path}: {foreign} receipts of coordinators that are not trusted were left out")
    if forged:
        problems.append(f"{path}: {forged} receipts are not signed by the coordinator that they name")
    return LedgerEvidence(witnesses=tuple(found), complete=complete, notes=tuple(notes), problems=tuple(problems))


def metrics_evidence(path: Path) -> LedgerEvidence:
    """Of a simulation's `metrics.json`.

    Raises:
        InputError: it is none.
    """
    heads = _heads(path)
    found = [Witness(platform=name, head=head, source=path.name) for name, head in heads.items()]
    return LedgerEvidence(witnesses=tuple(found), complete=True)


def folder_evidence(run: Path) -> LedgerEvidence:
    """Of what a run's folder holds: `metrics.json` and `receipts.jsonl`; in a platform's own folder, of what it kept itself."""
    own = (run / "identity.key").exists()
    found = LedgerEvidence()
    if (run / "metrics.json").exists():
        found = found.plus(metrics_evidence(run / "metrics.json"))
    if (run / "receipts.jsonl").exists():
        found = found.plus(receipts_evidence(run / "receipts.jsonl", complete=not own, own=own))
    return found


def _raw(key: str) -> bytes:
    from base64 import b64decode

    return b64decode(key)


def _heads(path: Path) -> Mapping[str, str]:
    """Platform -> ledger head, from the coordinator's metrics.json."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(MAX_METRICS))
        platforms = content.get("platforms", {})
        heads = {str(name): values["ledger"] for name, values in platforms.items() if values.get("ledger")}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"metrics.json cannot be read ({type(error).__name__})", where=str(path), do="restore it, or audit the ledgers alone"
        ) from None
    for name, head in heads.items():
        if not isinstance(head, str) or not HEAD.fullmatch(head):
            raise InputError(f"the receipt of platform {name[:63]} is not a SHA-256", where=str(path), do="restore metrics.json")
    return heads
