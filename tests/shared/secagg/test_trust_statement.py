"""What a platform signs of whom it trusts: complete, bounded, of one run, and without a name of whom the reader does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.base.errors import ProtocolError
from shared.secagg.codec import decode, encode
from shared.secagg.identity import Identity
from shared.secagg.quorum import MOST
from shared.secagg.trust_statement import WIDTH, TrustStatement

OWN, VIDEO, NEWS = Identity(b"s" * 32), Identity(b"v" * 32), Identity(b"n" * 32)


def of(**peers: bytes) -> TrustStatement:
    return TrustStatement.of(peers, run="spring", platform="shop", identity=OWN)


def test_it_says_whom_the_platform_knows_and_by_which_identity() -> None:
    said = decode(TrustStatement, encode(of(video=VIDEO.public, news=NEWS.public)))
    assert said.trusts("video", VIDEO.public) and said.trusts("news", NEWS.public)
    assert not said.trusts("video", NEWS.public) and not said.trusts("books", VIDEO.public)
    assert of().trusted == b"" and not of().trusts("video", VIDEO.public)


def test_the_platform_itself_is_not_in_it() -> None:
    assert of(shop=OWN.public) == of()


def test_who_is_not_known_to_the_reader_is_a_number_that_changes_with_the_run() -> None:
    one = of(video=VIDEO.public)
    other = TrustStatement.of({"video": VIDEO.public}, run="summer", platform="shop", identity=OWN)
    assert one.trusted != other.trusted
    assert b"video" not in encode(one) and VIDEO.public not in encode(one) and len(one.trusted) == WIDTH


@pytest.mark.parametrize(
    "change",
    [
        {"run": "summer"},
        {"platform": "video"},
        {"platform": "Not A Name"},
        {"identity": VIDEO.public},
        {"identity": bytes(31)},
        {"trusted": b""},
        {"trusted": bytes(WIDTH)},
        {"trusted": bytes(WIDTH - 1)},
        {"trusted": bytes(2 * WIDTH)},  # one twice
        {"trusted": bytes(WIDTH * (MOST + 1))},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
    ids=str,
)
def test_another_one_is_not_signed(change: dict[str, Any]) -> None:
    said = of(video=VIDEO.public, news=NEWS.public)
    with pytest.raises(ProtocolError):
        replace(said, **change)


def test_the_digests_are_in_order() -> None:
    said = of(video=VIDEO.public, news=NEWS.public)
    turned = b"".join(reversed(said.digests))
    with pytest.raises(ProtocolError, match="out of order"):
        replace(said, trusted=turned)
