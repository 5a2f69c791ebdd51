"""What a charge was for: one digest of all that was asked, so that another question is another charge."""

from __future__ import annotations

from shared.protocol.messages import Request
from shared.protocol.question import bound_parts
from shared.secagg.identity import digest_of


def charged_question(request: Request, release: str) -> str:
    """SHA-256, in hex, of a request and of what is released in answer to it.

    The frames of the secure sum are left out: they say who is present and carry sealed shares, and the secure sum checks them
    against its own record.

    Args:
        release: A word for the release, where a request leads to more than one.
    """
    return digest_of("charge", release.encode(), *bound_parts(request)).hex()
