"""How ids are read: one declared rule for every cell of every source, so that one person is one user in all of them."""

from __future__ import annotations

from client.config.table_location import Frozen


class IdRules(Frozen):
    """What is made alike of the ids of users, items, friends and events before they are compared; in all sources the same.

    Each rule looks at one cell alone. `fedfuse check` says how many cells of which column each has changed.

    Args:
        whole_numbers: Whether `7.0`, `7.` and `7e+00` are the id `7`: other programs write integers with gaps so. False keeps
            them apart. An integer that a floating-point number does not hold exactly is refused in any case.
        composed: Whether a letter and its combining accent are the accented letter (Unicode NFC).
        invisible: Whether characters that nobody sees are left out: zero-width spaces, byte-order marks, direction marks, soft
            hyphens, control characters, and joiners where no script needs them.
        spaces: Whether space around an id is left out, and other spaces within it (no-break, ideographic) are plain ones.
        uuids: Whether a UUID is written in small letters, without the braces or the `urn:uuid:` around it: `{A1B2...}` and
            `a1b2...` are the same one by its standard (RFC 9562).
        folded: Whether ids that differ in capital and small letters alone (`Ann@x.org`, `ann@x.org`), or in forms of the same
            characters (full-width digits, ligatures), are one: Unicode NFKC and case folding. Off by default: where letters
            matter, as in base64 or base62, it makes one of two people. `fedfuse check` says how many ids it would join.
        refuse_lists: Whether a text that looks like a list (`101, 103`, `[101]`) is refused as the id of a user, an item or a
            friend. False takes it as one id; `explode = true` in the source reads its entries.
    """

    whole_numbers: bool = True
    composed: bool = True
    invisible: bool = True
    spaces: bool = True
    uuids: bool = True
    folded: bool = False
    refuse_lists: bool = True


USUAL_IDS = IdRules()
"""What holds without a declaration."""
