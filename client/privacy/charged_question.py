"""What a charge was for: one digest of all that was asked, so that another question is another charge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields

from shared.base.safetensors_checks import feed
from shared.base.settings import Settings, settings_digest
from shared.protocol.messages import Request


def charged_question(request: Request, release: str) -> str:
    """SHA-256, in hex, of a request and of what is released in answer to it.

    Settings count by their digest, arrays by their bytes. The frames of the secure sum are left out: they say who is present and
    carry sealed shares, and the secure sum holds them against its own record.

    Args:
        release: A word for the release, where a request leads to more than one.
    """
    sha = hashlib.sha256(b"fedfuse question 1")
    for part in (release, request.kind):
        _text(sha, part)
    for field in fields(request):
        value = getattr(request, field.name)
        if isinstance(value, bytes):
            continue
        _text(sha, field.name)
        if isinstance(value, Settings):
            _text(sha, settings_digest(value))
        elif isinstance(value, Mapping):
            feed(sha, value)
        else:
            _text(sha, str(value))
    return sha.hexdigest()


def _text(sha: hashlib._Hash, text: str) -> None:
    raw = text.encode()
    sha.update(len(raw).to_bytes(4, "little") + raw)
