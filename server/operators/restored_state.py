"""What shows that a restore from a backup put back an older list of platforms, or an older log, than there was.

The list alone, or the log alone: they contradict each other (`list_differences`). Both together say the same, of an earlier day:
only what is elsewhere knows better. So the head of the log is noted in `state/` as well (`SEEN`), which no backup holds and a
restore into the same folder leaves as it is; and platforms keep it, and show it (`log_witness`), wherever the folder is restored.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from server.deployment.folder import CoordinatorFolder
from server.operators.operator_log import AlteredLog, LoggedPlatform, NotedHead, OperatorLog, noted_head
from server.operators.rights import Verb
from shared.base.errors import shell_word

SEEN = "log-head.json"
"""In `state/`: the last action that this machine's commands, or platforms, have seen."""
_SHOWN = 5
_SLACK = 5.0
"""Seconds by which the list may be written after its line in the log, whose times are whole seconds."""


@dataclass(frozen=True, kw_only=True)
class ListDifference:
    """What the list of platforms says of one, and the log does not.

    Args:
        found: What differs, with who did what and when.
        do: What mends it.
        admits: The list lets in whom the log does not: dangerous. The other way round somebody is merely missing.
    """

    found: str
    do: str
    admits: bool


def list_differences(coordinator: CoordinatorFolder, log: OperatorLog) -> Iterator[ListDifference]:
    """Where the list of platforms is not what the log's actions made of it.

    Raises:
        StorageError: the list cannot be read.
    """
    logged = log.platforms()
    listed = {one.fingerprint: one for one in Platforms(coordinator.platforms).all()}
    for key, one in listed.items():
        last = logged.get(key)
        # Of what was shut out before there was a log, it says nothing; it does no harm either.
        approved = last is not None and last.approved
        if approved == (one.revoked is None):
            continue
        yield _admitted(one, last, log) if one.revoked is None else _shut_out(one, last, log)
    for key, last in logged.items():
        if key and last.approved and key not in listed:
            yield ListDifference(
                found=f"{last.name} is not in the list of platforms, and {_who(last)}",
                do=f"let it in again (fedfuse approve {last.name} APPLICATION), or put back the newest copy of the list",
                admits=False,
            )


def require_listed(coordinator: CoordinatorFolder, log: OperatorLog, *, admitted: bool = False) -> None:
    """Return only if the list of platforms is what the log's actions made of it.

    Args:
        admitted: Only whether the list lets in whom the log does not counts.

    Raises:
        AlteredLog: it is not; the error says where, and what mends it.
        StorageError: the list cannot be read.
    """
    strange = [one for one in list_differences(coordinator, log) if one.admits or not admitted]
    if strange:
        raise AlteredLog(
            "; ".join(one.found for one in strange[:_SHOWN]),
            where=str(coordinator.platforms),
            do="; ".join(dict.fromkeys(one.do for one in strange[:_SHOWN])),
        )


def seen_note(coordinator: CoordinatorFolder) -> Path:
    """Where the last action is noted that was seen."""
    return coordinator.state / SEEN


def unaccounted_head(coordinator: CoordinatorFolder, log: OperatorLog) -> NotedHead | None:
    """The last action that was seen, if the log neither holds it nor says that it is lost.

    Raises:
        StorageError: the note cannot be read.
    """
    seen = noted_head(seen_note(coordinator))
    return None if seen is None or log.accounts_for(seen) else seen


def require_current(coordinator: CoordinatorFolder, log: OperatorLog, *, admitted: bool = False) -> None:
    """`require_latest`, and `require_listed`."""
    require_latest(coordinator, log)
    require_listed(coordinator, log, admitted=admitted)


def require_latest(coordinator: CoordinatorFolder, log: OperatorLog) -> None:
    """Return only if the log holds the last action that was seen, or an operator has said that it is lost.

    Raises:
        AlteredLog: it does not: log and list are of an earlier day.
        StorageError: the note cannot be read.
    """
    seen = unaccounted_head(coordinator, log)
    if seen is None:
        return
    last = log.actions[-1]
    raise AlteredLog(
        f"the log ends with action {last.seq} of {last.time}, and action {seen.seq} ({seen.hash[:12]}...) was seen: the log, "
        "and with it perhaps the list of platforms, is an older copy. Who was revoked or removed since would be let in",
        where=str(coordinator.operators),
        do="put back the newest copy of operators/ and platforms.json; if there is none, ask every operator what they did since "
        f"{last.time}, do it again (revoke first), then say so: fedfuse server restored {shell_word(coordinator.folder)}",
    )


def _admitted(one: ApprovedPlatform, last: LoggedPlatform | None, log: OperatorLog) -> ListDifference:
    found = f"{one.name} is approved in the list of platforms, and "
    if last is None:
        found += "no operator's line says so" + _later(one.approved, log)
        do = f"find out who let it in: fedfuse revoke {one.name}, then approve its application again if it is to take part"
    else:
        found += _who(last) + (_later(one.approved, log) or ": the list is an older copy, or somebody changed it")
        do = f"shut it out again: fedfuse revoke {one.name}"
    return ListDifference(found=found, do=do, admits=True)


def _shut_out(one: ApprovedPlatform, last: LoggedPlatform | None, log: OperatorLog) -> ListDifference:
    assert last is not None  # it is approved there
    return ListDifference(
        found=f"{one.name} is revoked in the list of platforms, and {_who(last)}{_later(one.revoked or 0.0, log)}",
        do="put back the newest copy of the list and of operators/, or decide again: "
        f"fedfuse approve {one.name} APPLICATION, and revoke",
        admits=False,
    )


def _who(last: LoggedPlatform) -> str:
    """The last that an operator did with a platform's key."""
    action = last.action
    did = "approved it" if last.approved else "revoked it" if action.verb is Verb.REVOKE else "replaced its key"
    return f"{action.operator} {did} on {action.time} (action {action.seq})"


def _later(when: float, log: OperatorLog) -> str:
    """What it means that the list was changed after the log's last line; '' where it was not."""
    last = log.actions[-1]
    if when <= datetime.datetime.fromisoformat(last.time).timestamp() + _SLACK:
        return ""
    return (
        f"; the list was changed after the log's last action ({last.time}): the log is an older copy, "
        "or something else than a command changed the list"
    )
