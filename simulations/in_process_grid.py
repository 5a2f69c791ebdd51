"""A Flower grid inside one process: the same ServerApp code, the same ClientApp, no Ray, and one copy of the backbone.

A message is executed when its answer is first asked for. So an abandoned message (its round is over) is never run and
costs no platform any budget, and at most `workers` answers are held at a time, however many platforms there are.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import uuid4

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict, UserConfigValue
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.date import now
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.protocol.messages import Reason

_PATIENCE = 0.05
"""Seconds that one pull waits for a worker thread, so that the caller can look at its own deadline."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception that a ClientApp raised. It stays on this side: the error reply says only that it failed."""

    node: int
    message_type: str
    error: BaseException


class InProcessGrid(Grid):
    """Runs `app` for every message, in the calling thread or in a few threads.

    Messages are not serialised. Each side gets its own records around the same immutable bytes, so neither can change
    what the other holds.

    Args:
        app: The ClientApp; as in a deployment, one node answers one message at a time.
        nodes: Node id -> node_config, as a SuperNode's `--node-config`.
        run_config: As Flower's own, for every node.
        workers: Messages executed at a time. 1 uses no thread at all; torch releases the interpreter lock, so more
            can help where one platform does not fill the cores.

    `failures` holds what ClientApps raised, in order, so that a simulation can show it to the person.
    """

    def __init__(
        self,
        *,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, UserConfigValue]],
        run_config: Mapping[str, UserConfigValue] | None = None,
        workers: int = 1,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, found {workers}")
        if SUPERLINK_NODE_ID in nodes:
            raise ValueError(f"nodes: id {SUPERLINK_NODE_ID} is the coordinator's own")
        self.failures: list[Failure] = []
        self._app, self._workers = app, workers
        self.set_run(Run.create_empty(run_id=secrets.randbits(63)))
        self._contexts = {
            node: Context(self._run.run_id, node, dict(config), RecordDict(), dict(run_config or {}))
            for node, config in nodes.items()
        }
        self._waiting: dict[str, Message] = {}
        self._running: dict[str, tuple[int, Future[Message]]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="platform") if workers > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was not started and stop the threads, once what they do is done."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Work for that run. Flower's `Message` reads who sends it from the process-wide TaskIdentity."""
        self._run = run
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message; the `Message` constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes, in the order given."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages; as in Flower, one to an unknown node gets no id."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                continue
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answers that are there, after running at least one of the asked-for messages if there is any to run.

        An id that is not known, was answered already, or has outlived its time to live brings an error reply, as in
        Flower.
        """
        ids = list(message_ids)
        lost = [self._lost(id_) for id_ in ids if self._is_lost(id_)]
        if self._pool is None:
            ready = next((id_ for id_ in ids if id_ in self._waiting), None)
            return lost + ([self._execute(self._waiting.pop(ready))] if ready else [])
        self._start(ids, self._pool)
        asked = [future for id_, (_, future) in self._running.items() if id_ in ids or not future.done()]
        if asked and not lost:
            wait(asked, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
        done = [id_ for id_ in ids if id_ in self._running and self._running[id_][1].done()]
        return lost + [self._running.pop(id_)[1].result() for id_ in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until every answer is there or `timeout` seconds are over."""
        pending = set(self.push_messages(messages))
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while pending and time.monotonic() < end:
            arrived = self.pull_messages(pending)
            replies.extend(arrived)
            pending -= {message.metadata.reply_to_message_id for message in arrived}
        return replies

    def _start(self, ids: Iterable[str], pool: ThreadPoolExecutor) -> None:
        wanted = dict.fromkeys(ids)
        # Answers that are asked for and not pulled yet count too: that is what bounds the memory. One that came after its
        # deadline, which nobody asks for any more, must not: it would keep its node, and a thread, for ever.
        busy = {node for id_, (node, future) in self._running.items() if id_ in wanted or not future.done()}
        count = sum(id_ in wanted or not future.done() for id_, (_, future) in self._running.items())
        for id_ in [id_ for id_ in wanted if id_ in self._waiting]:
            node = self._waiting[id_].metadata.dst_node_id
            if count >= self._workers:
                return
            if node in busy:
                continue
            late = [old for old, (owner, _) in self._running.items() if owner == node]
            for old in late:  # at most one late answer is kept for a node
                del self._running[old]
            busy.add(node)
            count += 1
            self._running[id_] = node, pool.submit(self._execute, self._waiting.pop(id_))

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        received = make_message(_addressed(message.metadata, self._run.run_id), content=_own(message.content))
        try:
            reply = self._app(received, self._contexts[node])
            if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise TypeError("the ClientApp did not answer the message that it got")
        except Exception as error:  # noqa: BLE001 - one platform's failure must not stop the others
            kind = message.metadata.message_type
            self.failures.append(Failure(node=node, message_type=kind, error=error.__cause__ or error))
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=Reason.FAILED.value), reply_to=received)
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        if reply.has_error():
            return reply
        return make_message(reply.metadata, content=_own(reply.content))

    def _is_lost(self, id_: str) -> bool:
        message = self._waiting.get(id_)
        if message is None:
            return id_ not in self._running
        return message.metadata.created_at + message.metadata.ttl <= now().timestamp()

    def _lost(self, id_: str) -> Message:
        self._waiting.pop(id_, None)
        # Flower answers for the node itself here, so the source is the coordinator, not the node.
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id=str(uuid4()),
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=id_,
            group_id="",
            created_at=now().timestamp(),
            ttl=0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return make_message(metadata, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="unknown or expired"))


def _addressed(metadata: Metadata, run_id: int) -> Metadata:
    # Rebuilt, not passed on: a node must not see later changes, and another grid may have set TaskIdentity since.
    return Metadata(
        run_id=run_id,
        message_id=metadata.message_id,
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=metadata.dst_node_id,
        reply_to_message_id="",
        group_id=metadata.group_id,
        created_at=metadata.created_at,
        ttl=metadata.ttl,
        message_type=metadata.message_type,
    )


def _own(record: RecordDict) -> RecordDict:
    """Records of one's own around the same bytes (Array.data is immutable; an Array's fields are not)."""
    own = RecordDict()
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            own[name] = ArrayRecord({key: _same_bytes(array) for key, array in part.items()})
        elif isinstance(part, ConfigRecord):
            own[name] = ConfigRecord({key: value.copy() if isinstance(value, list) else value for key, value in part.items()})
        else:
            own[name] = MetricRecord({key: value.copy() if isinstance(value, list) else value for key, value in part.items()})
    return own


def _same_bytes(array: Array) -> Array:
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data)
