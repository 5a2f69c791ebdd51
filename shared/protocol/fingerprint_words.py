"""What two people compare by voice: a fingerprint as six words, and one number for whom a whole federation trusts.

The words are proquints (D. S. Wilkerson, "A Proposal for Proquints: Identifiers that are Readable, Spellable, and Pronounceable",
arXiv:0901.4016): five letters for 16 bits, the same in every language, without a list. Six of them are the first 96 bits of a
fingerprint: whoever wants another key with the same words has to try 2^96 of them.

The number identifies the set of members that the coordinator sends. A dishonest coordinator may send each platform another set,
with keys it made itself, so two sets with one number must not be found: 40 digits (10^20 attempts, by the birthday paradox),
each attempt of 2^17 hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"
_WORDS, _DIGITS, _ROUNDS = 6, 40, 1 << 17
_HEXADECIMAL = re.compile(r"[0-9a-f]{4}(-[0-9a-f]{4}){7}")


def fingerprint_words(fingerprint: str) -> str:
    """Six words for a fingerprint.

    >>> fingerprint_words("7f00-0001-3f54-dcc1-0000-ffff-0000-0000")
    'lusab babad gutih tugad babab zuzuz'

    Raises:
        ValueError: it has not the form of a fingerprint.
    """
    if not _HEXADECIMAL.fullmatch(fingerprint):
        raise ValueError("expected a fingerprint: eight groups of four hexadecimal digits")
    return " ".join(_proquint(int(group, 16)) for group in fingerprint.split("-")[:_WORDS])


def shown_fingerprint(fingerprint: str) -> str:
    """For a person: the fingerprint, and its words; an address or several fingerprints as they are.

    >>> shown_fingerprint("7f00-0001-3f54-dcc1-0000-ffff-0000-0000")
    '7f00-0001-3f54-dcc1-0000-ffff-0000-0000 (lusab babad gutih tugad babab zuzuz)'
    """
    return f"{fingerprint} ({fingerprint_words(fingerprint)})" if _HEXADECIMAL.fullmatch(fingerprint) else fingerprint


def is_fingerprint(said: str, fingerprint: str) -> bool:
    """Whether what somebody has read out, in either form, is this fingerprint.

    >>> is_fingerprint("Lusab-babad-gutih tugad babab zuzuz", "7f00-0001-3f54-dcc1-0000-ffff-0000-0000")
    True
    >>> is_fingerprint("lusab babad", "7f00-0001-3f54-dcc1-0000-ffff-0000-0000")
    False
    """
    plain = said.strip().lower()
    if plain == fingerprint.lower():
        return True
    words = " ".join(re.split(r"[\s-]+", plain))
    return bool(_HEXADECIMAL.fullmatch(fingerprint)) and words == fingerprint_words(fingerprint)


def federation_number(federation: str, members: Mapping[str, str]) -> str:
    """One number for a federation's platforms and their identities: equal where everybody trusts the same.

    Args:
        members: Identity (base64) by name, of all platforms.

    >>> federation_number("spring", {"shop": "AAAA", "video": "BBBB"})
    '20549-83436-00644-96570-00082-67711-95781-90072'
    """
    return _number((federation, *(part for pair in sorted(members.items()) for part in pair)))


@lru_cache(maxsize=64)
def _number(parts: tuple[str, ...]) -> str:
    # Kept, since a page that asks for the status every second would compute it as often.
    digest = hashlib.sha256(b"fedfuse federation\n")
    for part in parts:
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    found = hashlib.pbkdf2_hmac("sha256", digest.digest(), b"fedfuse federation number", _ROUNDS, 24)
    digits = f"{int.from_bytes(found, 'big') % 10**_DIGITS:0{_DIGITS}}"
    return "-".join(digits[at : at + 5] for at in range(0, _DIGITS, 5))


def _proquint(value: int) -> str:
    first, second = _CONSONANTS[value >> 12], _VOWELS[value >> 10 & 3]
    middle = _CONSONANTS[value >> 6 & 15]
    return first + second + middle + _VOWELS[value >> 4 & 3] + _CONSONANTS[value & 15]
