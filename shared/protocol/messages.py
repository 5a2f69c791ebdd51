"""The requests a coordinator may send to a platform, and the answers it may get.

Each message is a small frozen dataclass that checks itself where it is made; `shared/protocol/flower_records.py` puts it into
Flower's records. Neither torch nor any source is imported here, so the messenger process starts quickly.

What an answer may hold is the list in `docs/guarantees.md` ("What leaves, field by field") and nothing else: text
in an answer is a declared public name, a hash, or a word from a closed list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.base.settings import Settings
from shared.preferences.item_index import WIDTH
from shared.preferences.sum_kind import SumKind, sum_size
from shared.protocol.quality import Quality

Arrays = Mapping[str, NDArray[np.float32]]
"""A flattened adapter: parameter name -> float32 array. The format is `shared/model/adapter.py`'s."""

PROTOCOL = 6
"""Version of the message format; two sides must have the same."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
HASH = re.compile(r"[0-9a-f]{64}|")
SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==|")
MAX_PARAMETERS = 1 << 28
MAX_BYTES = 1 << 28


class Reason(StrEnum):
    """Why a platform did not do what it was asked: a closed list, so that no data can hide in it."""

    BUDGET = "budget"  # the release would exceed the platform's privacy budget
    SETTINGS = "settings"  # the platform does not accept these settings
    NOISE = "noise"  # the planned update would be noise
    ROUND = "round"  # this round was answered already, or comes out of order
    SOURCES = "sources"  # the platform's sources cannot be read
    MESSAGE = "message"  # the request was malformed
    VERSION = "version"  # the platform's installed version speaks another protocol; its own log says which it needs
    PEERS = "peers"  # the secure sum is with a platform that this one does not know
    WARRANT = "warrant"  # the request has no leave from the coordinator that this platform trusts
    LEDGER = "ledger"  # the platform's ledger lacks what it has signed: an older copy was put back
    FAILED = "failed"  # anything else; the platform's own log says what


class Label(StrEnum):
    """Which model an evaluation speaks of."""

    BEFORE = "before"
    FEDERATED = "federated"
    PERSONAL = "personal"  # whatever the platform uses after personalising; in a simulation only


class Phase(StrEnum):
    """What a platform is asked in the secure sum beside the masked vectors; see `shared/secagg/messages.py`."""

    DEAL = "deal"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    POPULARITY = "popularity"  # here is what round 0 summed; `shared/secagg/shared_catalogues.py`


class Factors(StrEnum):
    """Which factors of the adapter a round trains and sends; the others stay as the coordinator sent them."""

    BOTH = "ab"
    A = "a"
    B = "b"
    R = "r"  # the matrix between fixed factors


@dataclass(frozen=True, kw_only=True)
class _Message:
    """What messages have in common.

    Args:
        run: Name of the run.
        settings: Of the run; the same in all of its messages.
        platform: The platform's declared name.
        round: From 1 on; 0 is before the first.
        adapter: The global adapter, float32.
        factors: Which factors of the adapter the round trains and sends.
        label: Which model is meant.
        phase: Of the secure sum.
    """

    kind: ClassVar[str]
    run: str

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.run)), f"{self.kind}: run {self.run!r} is not a name")
        for part in fields(self):
            _check(self.kind, part.name, getattr(self, part.name))


@dataclass(frozen=True, kw_only=True)
class Join(_Message):
    """Prepare for a run: read the sources, make the plan, check the gradients."""

    kind: ClassVar[str] = "join"
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Quote(_Message):
    """Say what a run of these settings would cost: nothing is charged, remembered or made of rows."""

    kind: ClassVar[str] = "quote"
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Train(_Message):
    """Train from the global `adapter` and answer with an `Update`."""

    kind: ClassVar[str] = "train"
    settings: Settings
    round: int
    factors: Factors
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Message):
    """Score the global `adapter` on the platform's held-out interactions."""

    kind: ClassVar[str] = "evaluate"
    settings: Settings
    round: int
    label: Label
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Personalise(_Message):
    """Train a residual adapter of the platform's own on the `adapter` of the last round, and keep it if it is better."""

    kind: ClassVar[str] = "personalise"
    settings: Settings
    round: int
    adapter: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Sum(_Message):
    """Take one gradient step's sum from the global `adapter`, and answer with it, noised and masked, as `Summed`.

    Args:
        body: `shared.secagg.messages.Mask`.
    """

    kind: ClassVar[str] = "sum"
    settings: Settings
    round: int
    factors: Factors
    adapter: Arrays = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Count(_Message):
    """Count how often each item was liked, and answer with it, noised and masked, as `Summed` of round 0.

    Args:
        body: `shared.secagg.messages.Mask`.
    """

    kind: ClassVar[str] = "count"
    settings: Settings
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Prefer(_Message):
    """Sum what users like of items that platforms share, and answer with it, noised: `Preferred`, or `Summed` where it is masked.

    Args:
        items: Hashes of the items, ascending (`shared.preferences.item_index`); empty for a sum that is not of items.
        of: What is summed.
        axis: With preferences, the direction of popularity, which is taken off every user's vector
            (`shared.preferences.popularity_axis`); else empty.
        lists: All platforms' lists of items, for platforms to check that others have these, too
            (`shared.preferences.platform_lists`); empty where each adds all of its noise itself.
        body: `shared.secagg.messages.Mask`; empty where nothing is masked.
    """

    kind: ClassVar[str] = "prefer"
    settings: Settings
    items: bytes = field(repr=False)
    of: SumKind
    axis: bytes = field(repr=False)
    lists: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Numbers of the sum."""
        width = self.settings.preferences.map if self.of is SumKind.TASTE else len(self.items) // WIDTH
        return sum_size(width, self.of)


@dataclass(frozen=True, kw_only=True)
class Secure(_Message):
    """A phase of the secure sum that reads no row.

    Args:
        round: 0 for what happens once in a run.
        body: `Deal`, `Confirm` or `Unmask` of `shared.secagg.messages`, or `Popularity` of `shared.secagg.shared_catalogues`.
    """

    kind: ClassVar[str] = "secure"
    settings: Settings
    round: int
    phase: Phase
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Joined(_Message):
    """The platform is ready. Every field is declared public, or follows from what is.

    Args:
        users: Declared number of users (never the counted one).
        items: Size of the public catalogue.
        budget, delta: What the platform may spend, in epsilon, at that delta.
        planned_epsilon: What the whole plan will have spent.
        noise_multiplier: Noise of a step over its clipping bound, for the budget.
        signal_to_noise: Bound on the run's update norm over its noise norm (dimensionless).
        finished: Last round that this platform has answered in this run; 0 if none.
        rank: LoRA rank that it trains, where ranks may differ; 0: the run's.
        keys: Its public keys for the secure sum (`shared.secagg.roster.Advert`); empty without one.
        catalogue: Hash of its public item ids (`shared.secagg.shared_catalogues.catalogue_digest`), in hex; empty without a
            secure sum.
        item_list: Hashes of its public items' keys (`shared.preferences.item_index.declared_items`); empty where no preferences
            are shared.
        preference_noise: Noise multiplier that the sum of preferences must have for its budget; 0 without.
        taste_noise: The same of the sum behind the taste map.
        trust: Whom it trusts to be whom (`shared.secagg.trust_statement`); empty without a secure sum, and in a simulation.
    """

    kind: ClassVar[str] = "joined"
    platform: str
    users: int
    items: int
    budget: float
    delta: float
    planned_epsilon: float
    noise_multiplier: float
    signal_to_noise: float
    finished: int = 0
    rank: int = 0
    keys: bytes = field(default=b"", repr=False)
    catalogue: str = ""
    item_list: bytes = field(default=b"", repr=False)
    preference_noise: float = 0.0
    taste_noise: float = 0.0
    trust: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class Quoted(_Message):
    """What a run would cost the platform; every field is declared public, or follows from what is and from its ledger.

    Args:
        users: Declared number of users.
        epsilon, delta: By how much the run would raise what the platform has spent, at that delta.
        shown: Whether the platform lets its budget be seen; if not, what is left is said to be 0.
        left, left_after: Epsilon that is left of its budget, before and after the run.
        noise_multiplier, preference_noise, taste_noise: That the releases must have for it, as in `Joined`.
        trust: As in `Joined`.
    """

    kind: ClassVar[str] = "quoted"
    platform: str
    users: int
    epsilon: float
    delta: float
    shown: bool
    left: float
    left_after: float
    noise_multiplier: float
    preference_noise: float
    taste_noise: float
    trust: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class Released(_Message):
    """What every answer says that was made from rows, and charged where it is private.

    Args:
        users: Declared number of users.
        epsilon: What the platform has spent by now.
        ledger: SHA-256 of the ledger's line that names this answer; empty without a ledger.
        seconds: The public moment at which it left, after the question, in tenths; not how long the work took.
        signature: The platform's Ed25519 signature of `ledger`, base64 (`shared/ledger/receipts.py`); empty without a ledger.
    """

    platform: str
    round: int
    users: int
    epsilon: float
    ledger: str
    seconds: float
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Update(Released):
    """The platform's noised change of the adapter in one round (platform minus global).

    Args:
        change: The factors that are sent, float32.
    """

    kind: ClassVar[str] = "update"
    change: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Preferred(Released):
    """The platform's answer to `Prefer` with all of the noise.

    Args:
        sums: One float32 array, named as what it is of (`SumKind`).
    """

    kind: ClassVar[str] = "preferred"
    sums: Arrays = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Summed(Released):
    """The platform's sum of clipped gradients (in round 0, of what users like) with its share of the noise, under masks.

    Args:
        body: `shared.secagg.messages.Masked`.
    """

    kind: ClassVar[str] = "summed"
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Secured(_Message):
    """The answer to `Secure`.

    Args:
        body: `Dealt`, `Confirmed` or `Unmasked` of `shared.secagg.messages`, or `Taken` of `shared.secagg.shared_catalogues`.
    """

    kind: ClassVar[str] = "secured"
    platform: str
    round: int
    phase: Phase
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Metrics(Released):
    """Ranking quality on held-out interactions; exact only in a simulation, else noised and charged.

    Args:
        quality: Each metric by its name (`shared/protocol/quality.py`).
        exact: Whether it is without noise.
    """

    kind: ClassVar[str] = "metrics"
    label: Label
    quality: Quality
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Personalised(Released):
    """The platform has personalised the model, or has kept the global one.

    Args:
        chosen: Whether it uses its own now; the outcome of a noised, charged comparison, or False without one.
    """

    kind: ClassVar[str] = "personalised"
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Refusal(_Message):
    """The platform did not do it.

    Args:
        reason: Why, in one word of a closed list.
    """

    kind: ClassVar[str] = "refusal"
    platform: str
    round: int
    reason: Reason


Request = Join | Quote | Train | Evaluate | Personalise | Sum | Count | Prefer | Secure
Answer = Joined | Quoted | Update | Metrics | Personalised | Preferred | Summed | Secured | Refusal
REQUESTS: dict[str, type[Any]] = {m.kind: m for m in (Join, Quote, Train, Evaluate, Personalise, Sum, Count, Prefer, Secure)}
ANSWERS: dict[str, type[Any]] = {
    m.kind: m for m in (Joined, Quoted, Update, Metrics, Personalised, Preferred, Summed, Secured, Refusal)
}


_MAY_BE_INFINITE = ("epsilon", "budget", "planned_epsilon", "signal_to_noise", "left", "left_after")


def _check(kind: str, name: str, value: Any) -> None:
    if isinstance(value, Quality):
        return  # it has checked itself
    if isinstance(value, Mapping):
        total = 0
        for key, array in value.items():
            require(isinstance(array, np.ndarray) and array.dtype == np.float32, f"{kind}.{name}[{key!r}] is not float32")
            total += array.size
        require(0 < total <= MAX_PARAMETERS, f"{kind}.{name} holds {total} parameters")
    elif isinstance(value, bytes):
        require(len(value) <= MAX_BYTES, f"{kind}.{name} holds {len(value)} bytes")
    elif name == "platform":
        require(bool(NAME.fullmatch(value)), f"{kind}.platform {value!r} is not a name")
    elif name == "signature":
        require(bool(SIGNATURE.fullmatch(value)), f"{kind}.signature is no signature")
    elif name in ("ledger", "catalogue"):
        require(bool(HASH.fullmatch(value)), f"{kind}.{name} is not a SHA-256")
    elif name in ("round", "users", "items", "finished", "rank"):
        require(0 <= value < 1 << 53, f"{kind}.{name} {value} is out of range")
    elif isinstance(value, float):
        # Privacy turned off is said as an infinite epsilon; nothing else may be infinite.
        require(
            value >= 0 and (math.isfinite(value) or name in _MAY_BE_INFINITE),
            f"{kind}.{name} {value} is out of range",
        )


def require(holds: bool, otherwise: str) -> None:
    """Say what is wrong with what another party sent.

    Raises:
        ProtocolError: it does not hold.
    """
    if not holds:
        raise ProtocolError(otherwise)


__all__ = [
    "ANSWERS",
    "REQUESTS",
    "Answer",
    "Arrays",
    "Count",
    "Evaluate",
    "Factors",
    "Join",
    "Joined",
    "Label",
    "Metrics",
    "Personalise",
    "Personalised",
    "Phase",
    "Prefer",
    "Preferred",
    "Quote",
    "Quoted",
    "Reason",
    "Refusal",
    "Released",
    "Request",
    "Secure",
    "Secured",
    "Sum",
    "Summed",
    "Train",
    "Update",
]
