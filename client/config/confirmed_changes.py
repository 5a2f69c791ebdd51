"""Replacing what a platform's people confirmed earlier: only by naming it, with the fingerprint of what takes its place.

Keys and addresses come in files that anybody may have sent. What is new is confirmed as such; what would replace something known
is shown as CHANGED, and takes its place only if a person names it: at a terminal, or with `--replace NAME=FINGERPRINT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shared.base.errors import InputError
from shared.protocol.fingerprint_words import is_fingerprint, shown_fingerprint


@dataclass(frozen=True, kw_only=True)
class IdentityChange:
    """Something known that would be replaced.

    Args:
        name: What `--replace` calls it.
        old, new: Fingerprints, or addresses.
    """

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        """For a person."""
        return f"{self.name} CHANGED\n  old: {shown_fingerprint(self.old)}\n  new: {shown_fingerprint(self.new)}"


def parse_replacements(words: Iterable[str]) -> dict[str, str]:
    """The fingerprint that each NAME=FINGERPRINT accepts.

    Raises:
        InputError: a word has another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in found:
            raise InputError(f"{word!r} is not NAME=FINGERPRINT, each once", where="--replace", do="write what was shown as new")
        found[name] = value
    return found


def require_agreed(changes: Iterable[IdentityChange], replace: Mapping[str, str], *, where: str) -> None:
    """Check that each change is named in `replace`, by what takes its place.

    Raises:
        InputError: one is not, or `replace` names what does not change.
    """
    wanted = {change.name: change for change in changes}
    for name, value in replace.items():
        if name not in wanted:
            known = ", ".join(wanted) or "nothing"
            raise InputError(f"{name!r} does not change", where=f"--replace, {where}", do=f"leave it out; what changes: {known}")
        if not is_fingerprint(value, wanted[name].new):
            raise InputError(
                f"{wanted[name]}\n  --replace accepts {value}", where=where, do="compare again: this is not what you agreed to"
            )
    missing = [change for change in wanted.values() if change.name not in replace]
    if missing:
        agreed = " ".join(f"--replace {change.name}={change.new}" for change in missing)
        raise InputError(
            "\n".join(map(str, missing)),
            where=where,
            do=f"nothing was written; ask the people concerned by a way that you trust, and if they confirm it: {agreed}",
        )


def ask(changes: Iterable[IdentityChange], replace: Mapping[str, str], *, confirm: Callable[[str], bool]) -> dict[str, str]:
    """The changes accepted by `replace` and those accepted at the terminal, where each is confirmed separately."""
    agreed = dict(replace)
    for change in changes:
        if change.name not in agreed and confirm(f"{change}\nreplace it? (have you asked the people concerned?)"):
            agreed[change.name] = change.new
    return agreed
