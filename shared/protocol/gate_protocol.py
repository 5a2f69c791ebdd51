"""What a platform and the coordinator's gate tell each other outside Flower: a platform's status, and why it left.

A greeting is a GET with the headers that Flower's SuperNode signs its requests with; the answer is a small JSON object. A
complaint goes to a server that could not be verified, so it is signed in a form of its own: whoever receives it can pass it on to
the coordinator, and can do nothing else in the platform's name.
"""

from __future__ import annotations

from enum import StrEnum

GREETING_PATH = "/fedfuse/v1/greeting"
COMPLAINT_PATH = "/fedfuse/v1/complaint"
AUTHORITY_PATH = "/fedfuse/v1/authority"
"""With a nonce as its query: which authorities the coordinator has (`shared/protocol/authorities.py`)."""
AUTHORITY_HEADER = "fedfuse-authorities"
"""In a greeting: digest of the authorities that the platform knows."""
VERSION_HEADER = "fedfuse-version"
COMPLAINT_HEADER, COMPLAINT_DOMAIN = "fedfuse-complaint", b"fedfuse complaint\n"
"""Signature (base64) over the domain and the time stamp."""


class Standing(StrEnum):
    """How the coordinator sees a platform: a closed list."""

    WELCOME = "welcome"  # approved, in time, new enough
    UNKNOWN = "unknown"  # its key is not on the list
    REVOKED = "revoked"  # it was, and was struck off
    CLOCK = "clock"  # its clock is too far from the coordinator's
    OUTDATED = "outdated"  # its version is too old
    PRESENT = "present"  # another client speaks for it, or did a moment ago
    UNSIGNED = "unsigned"  # what came was not signed by the key that it named

    def explained(self, *, version: str = "", minimum: str = "") -> str:
        """One sentence for a person."""
        needed = f"at least {minimum}" if minimum else "a newer one"
        return {
            Standing.WELCOME: "it is welcome",
            Standing.UNKNOWN: "the coordinator does not know this platform's key",
            Standing.REVOKED: "the coordinator has revoked this platform",
            Standing.CLOCK: "the platform's clock is too far from the coordinator's",
            Standing.OUTDATED: f"fedfuse {version or 'of the platform'} is too old, {needed} is needed",
            Standing.PRESENT: "a client of this platform is connected already, or was a moment ago",
            Standing.UNSIGNED: "the request is not signed by the key that it names",
        }[self]


class Complaint(StrEnum):
    """Why a platform does not trust the server it reached."""

    AUTHORITY = "authority"
    EXPIRED = "expired"
    NAME = "name"
    OTHER = "other"

    @property
    def explained(self) -> str:
        """One sentence for a person at the coordinator."""
        return {
            Complaint.AUTHORITY: "it says that this server's certificate is not of the authority in its invitation",
            Complaint.EXPIRED: "it says that this server's certificate has expired (or its clock is wrong)",
            Complaint.NAME: "it says that this server's certificate is for another name",
            Complaint.OTHER: "it says that this server's certificate is not valid",
        }[self]
