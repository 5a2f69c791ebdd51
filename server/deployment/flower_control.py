"""Flower's Control interface, as the coordinator uses it: register and list SuperNodes, start, watch and stop runs."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto import fab_pb2 as proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from server.deployment.folder import CoordinatorFolder
from server.deployment.gate import BUNDLE_PATH, STATUS_PATH
from shared.base.errors import FedfuseError

FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A SuperNode, as Flower knows it.

    Args:
        status: Flower's word: registered, online, offline.
        seen: ISO time of its last change of state, '' if it never came.
    """

    node: int
    name: str
    status: str
    seen: str


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run, as Flower knows it.

    Args:
        status: pending, starting, running or finished.
        result: Of a finished one: completed, failed or stopped.
    """

    run: int
    status: str
    result: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether it is over."""
        return self.status == FINISHED


class Unreachable(FedfuseError):
    """The coordinator's server does not answer."""


def require_server(coordinator: CoordinatorFolder) -> None:
    """Check that the coordinator's server answers.

    Raises:
        Unreachable: it does not.
        FedfuseError: something else answers.
    """
    with Control(coordinator) as control:
        control.seen()


class Control:
    """A connection to the coordinator's own SuperLink. Use it as a context manager."""

    def __init__(self, coordinator: CoordinatorFolder) -> None:
        self._place = coordinator.control
        self._client = ControlHttpClient.from_server_address(
            self._place,
            insecure=False,
            root_certificates=str(coordinator.certificates.trusted),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedfuse")],
        )
        context = ssl.create_default_context(cafile=str(coordinator.certificates.trusted))
        self._http = httpx.Client(base_url=f"https://{self._place}", verify=context, timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._client.close()
        self._http.close()

    def register(self, key: bytes, name: str) -> int:
        """Flower's id for a SuperNode with that public key (PEM)."""
        with self._errors():
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)

    def nodes(self) -> list[Node]:
        """Every SuperNode."""
        with self._errors():
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                node=int(one.node_id),
                name=one.name,
                status=one.status,
                seen=max(one.last_activated_at, one.last_deactivated_at),
            )
            for one in answer.nodes_info
        ]

    def start(self, fab: Fab, config: Mapping[str, Any]) -> int:
        """Start a run of a signed bundle.

        Args:
            config: Overrides of the bundle's run configuration; scalars.
        """
        values = {
            "digest": fab.hash_str,
            "content": base64.b64encode(fab.content).decode("ascii"),
            "verifications": fab.verifications,
        }
        with self._errors():
            # Flower takes signatures only with a bundle that it has already.
            answer = self._http.post(BUNDLE_PATH, json=values)
            answer.raise_for_status()
            request = StartRunRequest(
                fab=proto.Fab(hash_str=fab.hash_str),
                override_config=user_config_to_proto(dict(config)),
                app_spec=answer.json()["app"],
            )
            started = self._client.StartRun(request)
        if not started.HasField("run_id"):
            raise FedfuseError("Flower did not start the run", where=self._place, do="see the server's log")
        return int(started.run_id)

    def seen(self) -> dict[str, Any]:
        """What the gate saw of each platform since the server was started."""
        with self._errors():
            answer = self._http.get(STATUS_PATH)
            answer.raise_for_status()
            return dict(answer.json()["seen"])

    def run(self, run: int) -> FlowerRun:
        """The state of a run."""
        with self._errors():
            answer = self._client.ListRuns(ListRunsRequest(run_id=run))
        found = answer.run_dict[run]
        return FlowerRun(run=run, status=found.status.status, result=found.status.sub_status, details=found.status.details)

    def stop(self, run: int) -> None:
        """Stop a run."""
        with self._errors():
            self._client.StopRun(StopRunRequest(run_id=run))

    def log(self, run: int) -> str:
        """What a run has logged until now."""
        with self._errors():
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run, after_timestamp=0.0)):
                return str(part.log_output)
        return ""

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unreachable(
                f"the coordinator's server does not answer ({error})", where=self._place, do="start it: fedfuse server start DIR"
            ) from None
        except httpx.HTTPStatusError as error:
            said = FlowerError.from_json(error.response.text)
            text = f"{said.message} {said.public_details or ''}".strip() if said else f"HTTP {error.response.status_code}"
            raise FedfuseError(f"Flower refused: {text}", where=self._place, do="see the server's log") from None
