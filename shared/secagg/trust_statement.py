"""Whom a platform trusts to be whom, in its own signed words: how a coordinator finds out who can be in one secure sum.

A platform shares masks with identities alone that its own people wrote down (`fedfuse client trust`). One that meets a roster
with a stranger on it refuses, so a coordinator that does not know who knows whom loses the run to one newcomer. A statement is
made of the platform file, and says nothing of rows. Each identity is in it as a digest under the run's name: a coordinator
recognises the identities that it has approved, and learns no other.

Nothing is believed on the coordinator's word: a platform holds every roster against its own list, whatever was stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from shared.base.errors import ProtocolError
from shared.secagg.identity import PUBLIC, SIGNATURE, Identity, digest_of, signed_by
from shared.secagg.quorum import MOST
from shared.secagg.roster import NAME

WIDTH = 16
"""Bytes of a digest in a statement."""


@dataclass(frozen=True, kw_only=True)
class TrustStatement:
    """The identities that a platform knows, as it says of them in one run.

    Args:
        identity: The platform's own Ed25519 public key.
        trusted: `trusted_digest` of every platform that it knows, ascending, `WIDTH` bytes each; `quorum.MOST` at most.
        signature: Of all of it, by that identity.

    Raises:
        ProtocolError: a field is of another size, the digests are out of order, or the signature is not the identity's.
    """

    tag: ClassVar[int] = 64

    run: str
    platform: str
    identity: bytes
    trusted: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not (NAME.fullmatch(self.run) and NAME.fullmatch(self.platform)):
            raise ProtocolError("a trust statement of no name")
        if len(self.identity) != PUBLIC or len(self.signature) != SIGNATURE:
            raise ProtocolError(f"{self.platform}'s trust statement is damaged")
        if len(self.trusted) % WIDTH or len(self.trusted) > WIDTH * MOST:
            raise ProtocolError(f"{len(self.trusted)} bytes of trusted identities, {WIDTH * MOST} at most")
        if list(self.digests) != sorted(set(self.digests)):
            raise ProtocolError(f"{self.platform}'s trusted identities are out of order, or one is named twice")
        signed = _signed(self.run, self.platform, self.trusted)
        if not signed_by(self.identity, self.signature, signed):
            raise ProtocolError(f"{self.platform}'s trust statement is not signed by its identity")

    @classmethod
    def of(cls, peers: Mapping[str, bytes], *, run: str, platform: str, identity: Identity) -> TrustStatement:
        """A platform's statement.

        Args:
            peers: Platform -> Ed25519 identity, as its own people wrote them down.

        Raises:
            ProtocolError: they are more than can be stated.
        """
        others = {name: key for name, key in peers.items() if name != platform}
        trusted = b"".join(sorted({trusted_digest(name, key, run=run) for name, key in others.items()}))
        signature = identity.sign(_signed(run, platform, trusted))
        return cls(run=run, platform=platform, identity=identity.public, trusted=trusted, signature=signature)

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The digests, one by one."""
        return tuple(self.trusted[start : start + WIDTH] for start in range(0, len(self.trusted), WIDTH))

    @cached_property
    def known(self) -> frozenset[bytes]:
        """The same, to look them up."""
        return frozenset(self.digests)

    def trusts(self, platform: str, identity: bytes) -> bool:
        """Whether the platform says that it knows this one by that identity."""
        return trusted_digest(platform, identity, run=self.run) in self.known


def trusted_digest(platform: str, identity: bytes, *, run: str) -> bytes:
    """Stands for a platform's identity in the statements of one run, `WIDTH` bytes."""
    return digest_of("trusted", run.encode(), platform.encode(), identity)[:WIDTH]


def _signed(run: str, platform: str, trusted: bytes) -> bytes:
    return digest_of("trust statement", run.encode(), platform.encode(), trusted)
