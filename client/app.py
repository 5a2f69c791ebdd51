"""The messenger: the ClientApp in Flower's bundle. It carries requests to the worker and answers back, nothing else.

Flower starts a new process for every message and imports this module there, so it imports neither torch nor a source.
"""

from __future__ import annotations

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.messenger.worker_link import connect
from shared.base.errors import ProtocolError
from shared.base.logs import configure_from_environment, tell
from shared.protocol.flower_records import receipt_in, request_from, to_record
from shared.protocol.messages import (
    Answer,
    Count,
    Evaluate,
    Join,
    Personalise,
    Prefer,
    Quote,
    Reason,
    Refusal,
    Request,
    Secure,
    Sum,
    Train,
)

logger = logging.getLogger(__name__)
app = ClientApp()
configure_from_environment("messenger")


class Unanswered(Exception):
    """The worker gave no answer. Flower sends an exception's text to the coordinator, so it is a word of a closed list."""


@app.query()
def query(message: Message, context: Context) -> Message:
    """Carry a `Quote`, a `Join`, or a phase of the secure sum that reads no row."""
    return _carry(message, context, Quote, Join, Secure)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Carry a `Count`, a `Prefer`, a `Train` or a `Sum`, or after the last round a `Personalise`."""
    return _carry(message, context, Count, Prefer, Train, Sum, Personalise)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Carry an `Evaluate`."""
    return _carry(message, context, Evaluate)


def _carry(message: Message, context: Context, *kinds: type[Request]) -> Message:
    try:
        request = request_from(message.content)
        if not isinstance(request, kinds):
            raise ProtocolError(f"a '{request.kind}' request came as Flower's '{message.metadata.message_type}'")
    except ProtocolError as error:
        logger.warning("refused a message: %s", error.found)
        answer: Answer = Refusal(run="unknown", platform="unknown", round=0, reason=Reason.MESSAGE)
    else:
        link = connect(context)
        try:
            answer = link.ask(request, receipt_in(message.content))
        except Exception as error:
            # The cause is for this platform's own log: its text may speak of rows.
            raise Unanswered(Reason.FAILED.value) from error
        tell(logger, "carried", "carried '%s', got '%s'", request.kind, answer.kind, run=request.run, platform=answer.platform)
    return Message(to_record(answer), reply_to=message)
