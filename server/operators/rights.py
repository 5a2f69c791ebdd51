"""What operators of a coordinator may do: a role is a set of these rights."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from shared.base.errors import InputError


class Right(StrEnum):
    """What an operator may be allowed."""

    INVITE = "invite"
    APPROVE = "approve"
    REVOKE = "revoke"
    RUN = "run"
    PUBLISH = "publish"
    CERTIFICATES = "certificates"
    OPERATORS = "operators"

    @property
    def meaning(self) -> str:
        """What whoever has it can do."""
        return _MEANINGS[self]


_MEANINGS = {
    Right.INVITE: "make invitations",
    Right.APPROVE: "let platforms in, and replace their keys",
    Right.REVOKE: "shut platforms out",
    Right.RUN: "start, resume and abort runs, and ask what they would cost",
    Right.PUBLISH: "sign and publish models",
    Right.CERTIFICATES: "renew the server's certificate, and change the authority",
    Right.OPERATORS: "add and remove operators, and so, in the end, everything; say that a backup was restored",
}


class Verb(StrEnum):
    """What a line of the log says was done."""

    BEGIN = "begin"
    ADOPT = "adopt"
    ADD_OPERATOR = "add-operator"
    REMOVE_OPERATOR = "remove-operator"
    INVITE = "invite"
    APPROVE = "approve"
    REVOKE = "revoke"
    RUN = "run"
    DRY_RUN = "dry-run"
    RESUME = "resume"
    ABORT = "abort"
    PUBLISH = "publish"
    RENEW = "renew"
    AUTHORITY_BEGIN = "authority-begin"
    AUTHORITY_SWITCH = "authority-switch"
    AUTHORITY_FINISH = "authority-finish"
    RESTORED = "restored"

    @property
    def right(self) -> Right:
        """What it takes. (`BEGIN` is the first line's alone: it makes the first operator, who has every right.)"""
        return _NEEDS[self]


_NEEDS = {
    Verb.BEGIN: Right.OPERATORS,
    Verb.ADOPT: Right.APPROVE,
    Verb.ADD_OPERATOR: Right.OPERATORS,
    Verb.REMOVE_OPERATOR: Right.OPERATORS,
    Verb.INVITE: Right.INVITE,
    Verb.APPROVE: Right.APPROVE,
    Verb.REVOKE: Right.REVOKE,
    Verb.RUN: Right.RUN,
    Verb.DRY_RUN: Right.RUN,
    Verb.RESUME: Right.RUN,
    Verb.ABORT: Right.RUN,
    Verb.PUBLISH: Right.PUBLISH,
    Verb.RENEW: Right.CERTIFICATES,
    Verb.AUTHORITY_BEGIN: Right.CERTIFICATES,
    Verb.AUTHORITY_SWITCH: Right.CERTIFICATES,
    Verb.AUTHORITY_FINISH: Right.CERTIFICATES,
    Verb.RESTORED: Right.OPERATORS,
}
ALL = frozenset(Right)


def rights_in(text: str) -> frozenset[Right]:
    """The rights in a list such as 'invite,approve', or in 'all'.

    Raises:
        InputError: a word is none, or there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return ALL
    unknown = [word for word in words if word not in list(Right)]
    if unknown or not words:
        raise InputError(
            f"no right: {', '.join(unknown)[:200]}" if unknown else "no right is named",
            where="--may",
            do=f"name some of: {', '.join(Right)}; or: all",
        )
    return frozenset(Right(word) for word in words)


def rights_text(rights: Iterable[Right]) -> str:
    """The inverse of `rights_in`, in one order.

    >>> rights_text({Right.RUN, Right.INVITE})
    'invite,run'
    """
    held = frozenset(rights)
    return "all" if held == ALL else ",".join(right for right in Right if right in held)
