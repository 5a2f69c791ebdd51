"""One exchange with the platforms: send to all, take answers as they come, stop at the deadline.

Flower's own `Grid.send_and_receive` keeps all answers in a list and, over HTTP, looks for them only every 3 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

from flwr.app import Message
from flwr.serverapp import Grid

FIRST_LOOK, LAST_LOOK = 0.001, 0.2
"""Seconds between looks for answers: short at first (a node may be in this process), doubled while nothing comes."""
AT_ONCE = 8
"""Messages sent in one push, and answers asked for in one pull: the most that are in this process at a time."""


class Exchange:
    """Messages that were sent, and their answers.

    Args:
        messages: One per node; made as they are sent, if they are made by an iterator.
        timeout: Seconds from now that answers are waited for.

    Once `replies` is exhausted, `errors` (node -> Flower's error code) and `silent` (nodes that did not answer, or could
    not be reached) say what became of the others, and `late` counts answers to messages that are not of this exchange.
    """

    def __init__(self, grid: Grid, messages: Iterable[Message], *, timeout: float) -> None:
        self._grid = grid
        self._end = time.monotonic() + timeout
        self._pending: dict[str, int] = {}
        self._unsent: list[int] = []
        waiting = iter(messages)
        while sent := list(islice(waiting, AT_ONCE)):
            pushed = set(grid.push_messages(sent))
            # A grid gives no id, or None, for what it could not send. The id that it gave is also written in the message.
            for message in sent:
                if message.metadata.message_id in pushed:
                    self._pending[message.metadata.message_id] = message.metadata.dst_node_id
                else:
                    self._unsent.append(message.metadata.dst_node_id)
        self.errors: dict[int, int] = {}
        self.late = 0

    @property
    def silent(self) -> list[int]:
        """Nodes without an answer."""
        return [*self._unsent, *self._pending.values()]

    def replies(self) -> Iterator[Message]:
        """Answers with content, as they arrive.

        What has not arrived by the deadline is never asked for again: that is how an answer to a finished round is
        discarded, as Flower itself would still deliver it.
        """
        pause = FIRST_LOOK
        while self._pending and time.monotonic() < self._end:
            waiting = len(self._pending)
            yield from self._sweep()
            if len(self._pending) < waiting:
                pause = FIRST_LOOK
            else:
                time.sleep(max(0.0, min(pause, self._end - time.monotonic())))
                pause = min(2 * pause, LAST_LOOK)

    def arrived(self) -> list[Message]:
        """Answers with content that are there now; waits for none."""
        return list(self._sweep()) if self._pending else []

    def _sweep(self) -> Iterator[Message]:
        ids = list(self._pending)
        for start in range(0, len(ids), AT_ONCE):
            if time.monotonic() >= self._end:
                return
            for message in self._grid.pull_messages(ids[start : start + AT_ONCE]):
                # An error that Flower answers with comes from the SuperLink, not from the node: only the id tells whose it is.
                node = self._pending.pop(message.metadata.reply_to_message_id, None)
                if node is None:
                    self.late += 1
                elif message.has_error():
                    self.errors[node] = message.error.code
                else:
                    yield message
                del message
