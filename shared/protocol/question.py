"""What a masked vector answers: one digest of everything that it depends on and the coordinator chooses.

The digest enters the derivation of every mask (`shared.secagg.masks.MaskFrame`), so vectors that were made for different
questions do not cancel each other's masks and none of them can be read. Without it a coordinator that sends one platform the
model, and all others a model whose gradient is zero, reads that platform's vector off the sum (Pasquini et al. 2022, "Eluding
secure aggregation in federated learning via model inconsistency").

The terms of the run, the roster and the agreed facts enter the derivation as the session's digest (its HKDF salt).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields

from shared.base.safetensors_checks import feed
from shared.base.settings import Settings, settings_digest
from shared.protocol.messages import Count, Prefer, Request, Sum
from shared.secagg.identity import digest_of
from shared.secagg.messages import Before
from shared.secagg.noise_agreement import COUNTS, SUMS, number_of

_MASKS = "body"
"""The field of a request that says what to mask with, and not what: the session binds it."""


def question_of(request: Sum | Count | Prefer, *, before: Before = Before()) -> bytes:  # noqa: B008 - frozen
    """SHA-256 of all fields of a request but its body, and of what its answers depend on from before it.

    Both sides compute it: the coordinator from what it sends, a platform from what it received.

    Returns:
        32 bytes.
    """
    return digest_of("question", *bound_parts(request), before.digest)


def sum_number(request: Sum | Count | Prefer) -> int:
    """The secure sum's own number of what a request asks for."""
    if isinstance(request, Sum):
        return number_of(request.round)
    if isinstance(request, Count):
        return COUNTS
    return SUMS[request.of]


def bound_parts(request: Request) -> list[bytes]:
    """The kind of a request, and the name and value of every field but its body: what `digest_of` is to bind.

    Settings, arrays and bytes count by their digests.
    """
    # Whatever fields a request has: one that is added later is bound, or stops here.
    names = [field.name for field in fields(request) if field.name != _MASKS]
    return [request.kind.encode(), *(part for name in names for part in _named(name, getattr(request, name)))]


def _named(name: str, value: object) -> tuple[bytes, bytes]:
    if isinstance(value, Settings):
        raw = settings_digest(value).encode()
    elif isinstance(value, Mapping):
        sha = hashlib.sha256()
        feed(sha, value)
        raw = sha.digest()
    elif isinstance(value, bytes):
        raw = hashlib.sha256(value).digest()
    else:
        assert isinstance(value, str | int), f"{name} of a request has a type that no digest covers"
        raw = str(value).encode()
    return name.encode(), raw
