"""The one outgoing check: every answer that leaves a platform passes here, and nothing else leaves.

The list is that of `docs/guarantees.md`: the noised update or sum, masked or not, noised metrics (exact ones only in a
simulation), declared public facts, status and timings. What the secure sum adds are keys, signatures and shares of secrets that
no row enters. The check knows what the answer may be, not how it was made, so a mistake elsewhere stops here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from client.config.platform_file import PlatformFile
from client.privacy.answer_timing import Pace
from shared.base.errors import PrivacyError, ProtocolError
from shared.protocol.messages import (
    Answer,
    Joined,
    Metrics,
    Personalised,
    Phase,
    Preferred,
    Quoted,
    Refusal,
    Released,
    Secured,
    Summed,
    Update,
)
from shared.secagg.bit_packing import packed_size
from shared.secagg.codec import Message, decode
from shared.secagg.messages import Confirmed, Dealt, Masked, Unmasked
from shared.secagg.roster import Advert
from shared.secagg.shared_catalogues import Taken
from shared.secagg.trust_statement import TrustStatement, trusted_digest

_KINDS = (Joined, Quoted, Update, Metrics, Personalised, Preferred, Summed, Secured, Refusal)
_PHASES: Mapping[Phase, type[Dealt | Confirmed | Unmasked | Taken]] = {
    Phase.DEAL: Dealt,
    Phase.CONFIRM: Confirmed,
    Phase.UNMASK: Unmasked,
    Phase.POPULARITY: Taken,
}


def checked(
    answer: Answer,
    *,
    platform: PlatformFile,
    layout: Mapping[str, tuple[int, ...]],
    rank: int,
    items: int,
    simulation: bool,
    pace: Pace,
    catalogue: str = "",
    item_list: bytes = b"",
    peers: Mapping[str, bytes] | None = None,
) -> Answer:
    """The answer, if it may leave.

    Args:
        layout: Names and shapes of the tensors that the answer may hold; no other may leave.
        rank: The rank that follows from the platform file and the run's settings.
        items: Size of the public catalogue.
        simulation: Whether exact metrics are allowed.
        pace: The durations that may leave.
        catalogue: Hash of the public item ids, in hex.
        item_list: Hashes of the public items' keys.
        peers: The identities that the platform file trusts.

    Raises:
        PrivacyError: the answer holds something that is not on the list.
    """
    _require(type(answer) in _KINDS, f"an answer of type {type(answer).__name__}")
    _require(answer.platform == platform.name, "another platform's name")
    if isinstance(answer, Joined | Quoted | Released):
        _require(answer.users == platform.users, "a number of users that is not the declared one")
    if isinstance(answer, Released):
        _require(math.isclose(answer.seconds, pace.of(answer.seconds), abs_tol=1e-6), "a timing between two public steps")
    if isinstance(answer, Joined):
        _require(answer.items == items, "a catalogue size that is not the public one")
        _require(answer.rank == rank, "a rank that is not the declared one")
        _require(answer.catalogue in ("", catalogue), "a hash that is not the catalogue's")
        _require(answer.item_list in (b"", item_list), "a list of items that is not the catalogue's")
        _require(not answer.keys or _body(Advert, answer.keys).keys.platform == platform.name, "another platform's keys")
        _require_own_trust(answer.trust, run=answer.run, platform=platform.name, peers=peers or {})
    elif isinstance(answer, Quoted):
        _require(answer.shown == platform.federation.show_budget, "a budget that is not shown")
        _require(answer.shown or answer.left == answer.left_after == 0.0, "what is left of a budget that is not shown")
        _require_own_trust(answer.trust, run=answer.run, platform=platform.name, peers=peers or {})
    elif isinstance(answer, Update | Preferred):
        sent = answer.change if isinstance(answer, Update) else answer.sums
        _require(set(sent) == set(layout), "tensors that are not the federated ones")
        for name, shape in layout.items():
            array = sent[name]
            _require(array.shape == shape and array.dtype == np.float32, f"{name} of another shape or type")
            _require(bool(np.isfinite(array).all()), f"{name} with values that are not finite")
    elif isinstance(answer, Metrics):
        _require(simulation or not answer.exact, "exact metrics outside a simulation")
    elif isinstance(answer, Summed):
        size, length = len(_body(Masked, answer.body).words), sum(math.prod(shape) for shape in layout.values())
        _require(any(size == packed_size(length, bits) for bits in range(1, 33)), "a vector of another length than is federated")
    elif isinstance(answer, Secured):
        _body(_PHASES[answer.phase], answer.body)
    return answer


def _require_own_trust(data: bytes, *, run: str, platform: str, peers: Mapping[str, bytes]) -> None:
    """Check that a trust statement says what the platform file says, of this run, and no more."""
    if data:
        said = _body(TrustStatement, data)
        known = {trusted_digest(name, key, run=run) for name, key in peers.items()}
        _require((said.run, said.platform) == (run, platform), "another platform's trust, or another run's")
        _require(set(said.digests) <= known, "trust in an identity that the platform file does not name")


def _body(kind: type[Message], data: bytes) -> Message:
    try:
        return decode(kind, data)
    except ProtocolError:
        raise _leak(f"bytes that are no {kind.__name__}") from None


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _leak(what)


def _leak(what: str) -> PrivacyError:
    return PrivacyError(f"an outgoing answer held {what}; it was not sent", do="this is a fault of the program: please report it")
