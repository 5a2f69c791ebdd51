"""Flower's own SecAgg+, of its legacy stack, for comparison: one round over vectors in this process, with its processor time.

Both sides are the installed package's code (`flwr.client.mod.secaggplus_mod`, `flwr.server.workflow.SecAggPlusWorkflow`). Only
the transport between them is replaced by calls, and the time of either side is taken at that border.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

CLIPPING = 8.0
QUANTISATION = 1 << 22


@dataclass(frozen=True, kw_only=True)
class LegacyRound:
    """What a round took.

    Args:
        client: Processor seconds of all platforms together.
        server: Processor seconds of the coordinator.
        exact: Whether the mean is right up to the quantisation.
    """

    client: float
    server: float
    exact: bool


def legacy_round(
    vector: Callable[[int], NDArray[np.float32]],
    *,
    participants: int,
    gone: Collection[int],
    shares: int,
    threshold: int,
    expected: NDArray[np.float64],
) -> LegacyRound:
    """One round; those in `gone` are lost after they dealt their shares.

    Args:
        vector: A platform's float32 vector; made when it is asked for, outside of the time.
        shares: Shares of a secret, its owner's among them; as many neighbours and one more.
        threshold: Shares that give it back.
        expected: Mean of the others' vectors.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    grid = _Grid(vector, participants=participants, gone=gone)
    empty = Parameters(tensors=[], tensor_type="numpy.ndarray")
    proxies = [(SimpleNamespace(node_id=node), FitIns(parameters=empty, config={})) for node in grid.contexts]
    results: list[Any] = []

    def aggregate(round_: int, answers: list[Any], failures: list[Any]) -> tuple[None, dict[str, Any]]:
        results.extend(answers)
        return None, {}

    context = LegacyContext(
        Context(1, 1, {}, RecordDict(), {}),
        strategy=SimpleNamespace(configure_fit=lambda *_: proxies, aggregate_fit=aggregate),  # type: ignore[arg-type]
        client_manager=SimpleNamespace(num_available=lambda: participants),  # type: ignore[arg-type]
    )
    context.state[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state[MAIN_PARAMS_RECORD] = ArrayRecord()
    workflow = SecAggPlusWorkflow(
        num_shares=1.0 if shares == participants else shares,
        reconstruction_threshold=threshold,
        max_weight=1.0,
        clipping_range=CLIPPING,
        quantization_range=QUANTISATION,
    )
    began = time.process_time()
    workflow(grid, context)  # type: ignore[arg-type]
    total = time.process_time() - began
    if not results:
        raise RuntimeError("Flower's SecAgg+ gave the round up")
    (found,) = parameters_to_ndarrays(results[0][1].parameters)
    step = 2 * CLIPPING / QUANTISATION
    return LegacyRound(client=grid.client, server=total - grid.inside, exact=bool(np.abs(found - expected).max() <= step + 1e-9))


class _Grid:
    """Calls a platform for every message; `client` is the time that platforms took, `inside` all that the server did not."""

    def __init__(self, vector: Callable[[int], NDArray[np.float32]], *, participants: int, gone: Collection[int]) -> None:
        self.contexts: Mapping[int, Context] = {
            node: Context(1, node, {}, RecordDict(), {}) for node in range(2, participants + 2)
        }
        self.client = self.inside = 0.0
        self._vector, self._gone = vector, {number + 2 for number in gone}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answers of all that are still there."""
        began = time.process_time()
        answers = [answer for message in messages if (answer := self._answer(message)) is not None]
        self.inside += time.process_time() - began
        return answers

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if node in self._gone and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
            return None
        received = Message(_own(message.content), node, message.metadata.message_type)
        # Made beforehand: what the platform would send without any secure sum.
        plain = self._plain(node) if stage == Stage.COLLECT_MASKED_VECTORS else RecordDict()
        began = time.process_time()
        answer = secaggplus_mod(received, self.contexts[node], lambda asked, _: Message(plain, reply_to=asked))
        self.client += time.process_time() - began
        return answer

    def _plain(self, node: int) -> RecordDict:
        parameters = ndarrays_to_parameters([self._vector(node - 2)])
        answer = FitRes(status=Status(Code.OK, ""), parameters=parameters, num_examples=1, metrics={})
        return compat.fitres_to_recorddict(answer, keep_input=False)


def _own(content: RecordDict) -> RecordDict:
    """The platform takes entries out of what it gets, and the server sends one record to all."""
    return RecordDict(
        {name: ConfigRecord(dict(part)) if isinstance(part, ConfigRecord) else part for name, part in content.items()}
    )
