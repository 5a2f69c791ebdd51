"""Checks of folders and keys: whose they are, and who else can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from shared.base.errors import shell_word
from shared.doctor.findings import Finding, fault, fine, warning

SOON = 30.0
"""Days before a certificate ends from which it is a warning."""


def check_secrets(
    keys: Mapping[str, Path], *, folders: Iterable[Path], passed: Iterable[Path] = (), away: Iterable[str] = ()
) -> Iterator[Finding]:
    """Whether keys are there, this user's, and no one else's to read; one line where all are.

    Args:
        keys: What each is -> its file.
        folders: That should be closed to others (0700).
        away: Keys that may be kept elsewhere while nothing is done with them.
        passed: Through which others may pass to what is theirs, and not look around (0711).
    """
    count, here = 0, {what: path for what, path in keys.items() if what not in away or path.exists()}
    for what in sorted(set(keys) - set(here)):
        yield fine("keys", f"{what} is kept elsewhere")
    for what, path in here.items():
        try:
            state = path.stat()
        except FileNotFoundError:
            yield fault("keys", f"{what} is missing: {path}", "restore it from a backup; a new one is another party")
            continue
        except PermissionError:
            yield fault("keys", f"{what} may not be looked at: {path}", "work as its owner")
            continue
        if stat.S_IMODE(state.st_mode) & 0o077:
            yield fault(
                "keys",
                f"{what} can be read by others ({stat.S_IMODE(state.st_mode):04o}): {path}",
                f"chmod 600 {shell_word(path)}",
            )
        elif not os.access(path, os.R_OK):
            yield fault("keys", f"{what} may not be read: {path}", "work as its owner")
        else:
            count += 1
    if count == len(here):
        said = f"{count} keys, readable by their" if count > 1 else f"{''.join(here)}, readable by its"
        yield fine("keys", f"{said} owner alone")
    for folder in sorted({path.parent for path in keys.values()}):
        # Whoever can write a folder can put other keys into it, whatever the rights of the files are.
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & 0o022:
            yield fault("rights", f"others may write into {folder}, and so replace keys", f"chmod go-w {shell_word(folder)}")
    for folder, closed in [*((folder, 0o077) for folder in folders), *((folder, 0o066) for folder in passed)]:
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & closed:
            rights = "700" if closed == 0o077 else "711"
            yield warning("rights", f"others may look into {folder}", f"chmod {rights} {shell_word(folder)}")


def check_certificate(what: str, path: Path, *, cure: str, now: datetime | None = None) -> Finding:
    """Whether a certificate holds now, and for how long."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return fault("certificate", f"{what} cannot be read: {path}", cure)
    moment = now or datetime.now(UTC)
    if moment < found.not_valid_before_utc:
        return fault(
            "clock",
            f"{what} begins on {found.not_valid_before_utc:%Y-%m-%d}, and this machine says {moment:%Y-%m-%d}",
            "set the clock",
        )
    return certificate_days(what, (found.not_valid_after_utc - moment).total_seconds() / 86400, cure=cure)


def certificate_days(what: str, days: float, *, cure: str) -> Finding:
    """A certificate that holds for so many days more."""
    if days <= 0:
        return fault("certificate", f"{what} expired {-days:.1f} days ago (or this machine's clock is wrong)", cure)
    found = f"{what} holds for {days:.0f} days"
    return warning("certificate", found, cure) if days < SOON else fine("certificate", found)
