"""What a platform's word for a refusal means, for the coordinator's people; the platform's own log says more."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.common.constant import ErrorCode

from shared.protocol.messages import Reason

_MEANINGS: Mapping[Reason, str] = {
    Reason.BUDGET: "its privacy budget, or what a run may spend of it, does not carry it",
    Reason.SETTINGS: "its file allows less than the run asks for",
    Reason.NOISE: "what it would give would be noise",
    Reason.ROUND: "it was asked for something that it has answered already, or out of order",
    Reason.SOURCES: "its sources cannot be read",
    Reason.MESSAGE: "it could make nothing of the request",
    Reason.PEERS: "the secure sum is with a platform that it does not know: run `fedfuse client trust` there",
    Reason.VERSION: "its Fedfuse is of another version",
    Reason.WARRANT: "the request has no leave from the coordinator that it trusts",
    Reason.LEDGER: "its ledger lacks answers that it has given: an older copy was put back; it has to find the newest",
    Reason.FAILED: "something failed there",
}


def refusal_words(reason: Reason) -> str:
    """A reason with what it means.

    >>> refusal_words(Reason.BUDGET)
    'budget (its privacy budget, or what a run may spend of it, does not carry it)'
    """
    return f"{reason.value} ({_MEANINGS[reason]})"


_ERRORS: Mapping[int, str] = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "its messenger could not load what it was sent",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "its messenger raised an exception",
    ErrorCode.MESSAGE_UNAVAILABLE: "the request was lost on the way",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its answer was lost on the way, or came too late",
    ErrorCode.NODE_UNAVAILABLE: "its SuperNode is gone",
    ErrorCode.INVALID_FAB: "its SuperNode does not take this bundle",
    ErrorCode.CLIENT_APP_CRASHED: "its messenger's process was killed",
}


def flower_error_words(code: int) -> str:
    """What Flower says became of a message.

    >>> flower_error_words(5), flower_error_words(99)
    ("its SuperNode is gone (Flower's error 5)", "Flower's error 99")
    """
    meaning = _ERRORS.get(code)
    return f"Flower's error {code}" if meaning is None else f"{meaning} (Flower's error {code})"
