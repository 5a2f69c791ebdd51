"""The one outgoing check: every answer that leaves a platform passes here, and nothing else leaves.

The list is DESIGN's: the noised update, noised metrics (exact ones only in a simulation), declared public facts, status
and timings. The check knows what the answer may be, not how it was made, so a mistake elsewhere stops here.
"""

from __future__ import annotations

import math

import numpy as np

from client.platform_file import PlatformFile
from shared.adapter import Layout
from shared.errors import PrivacyError
from shared.messages import Answer, Joined, Metrics, Refusal, Update


def checked(answer: Answer, *, platform: PlatformFile, layout: Layout, rank: int, items: int, simulation: bool) -> Answer:
    """The answer, if it may leave.

    Args:
        layout: Names and shapes of the tensors that this round sends; no other tensor may leave.
        rank: The rank that follows from the platform file and the run's settings.
        items: Size of the public catalogue.
        simulation: Whether exact metrics are allowed.

    Raises:
        PrivacyError: the answer holds something that is not on the list.
    """
    _require(type(answer) in (Joined, Update, Metrics, Refusal), f"an answer of type {type(answer).__name__}")
    _require(answer.platform == platform.name, "another platform's name")
    if isinstance(answer, Joined):
        _require(answer.users == platform.users, "a number of users that is not the declared one")
        _require(answer.items == items, "a catalogue size that is not the public one")
        _require(answer.rank == rank, "a rank that is not the declared one")
    elif isinstance(answer, Update):
        _require(answer.users == platform.users, "a weight that is not the declared number of users")
        _require(set(answer.change) == set(layout), "tensors that are not the federated ones")
        for name, shape in layout.items():
            array = answer.change[name]
            _require(array.shape == shape and array.dtype == np.float32, f"{name} of another shape or type")
            _require(bool(np.isfinite(array).all()), f"{name} with values that are not finite")
    elif isinstance(answer, Metrics):
        _require(answer.users == platform.users, "a number of users that is not the declared one")
        _require(simulation or not answer.exact, "exact metrics outside a simulation")
    if isinstance(answer, Update | Metrics):
        rounded = round(answer.seconds, 1)
        _require(math.isclose(answer.seconds, rounded, abs_tol=1e-6), "a timing finer than a tenth of a second")
    return answer


def coarse(seconds: float) -> float:
    """A duration as it may leave."""
    return round(seconds, 1)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise PrivacyError(
            f"an outgoing answer held {what}; it was not sent", do="this is a fault of the program: please report it"
        )
