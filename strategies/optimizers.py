"""Server optimizers: the combined change of a round is taken for a gradient (Reddi et al. 2021, Algorithms 1 and 2).

Each holds a state of the adapter's size, in float64, which a checkpoint keeps (`state`, `restore`), so that a resumed run
goes on as if it had never stopped. A tensor that a round does not train has neither its value nor its moments moved.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError
from shared.base.settings import ServerSettings
from shared.protocol.messages import Arrays
from strategies.averaging import Change
from strategies.strategy_card import Card, Role

Adapter = dict[str, NDArray[np.float32]]
State = dict[str, NDArray[np.float64]]


class ServerOptimizer:
    """How a combined change moves the global adapter. This one adds it as it is."""

    def __init__(self, server: ServerSettings) -> None:
        self._server = server
        self._state: State = {}

    def step(self, adapter: Arrays, change: Change) -> Adapter:
        """The next global adapter, float32; tensors without a change stay."""
        return {
            name: (array + self.move(name, change[name])).astype(np.float32) if name in change else array.copy()
            for name, array in adapter.items()
        }

    def move(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added to a tensor, given its combined change; moves the tensor's moments."""
        return change

    def state(self) -> State:
        """Everything that the next step depends on, by name."""
        return dict(self._state)

    def restore(self, state: Mapping[str, NDArray[np.float64]], adapter: Arrays) -> None:
        """Go on from a `state()` over that adapter.

        Raises:
            InputError: it is of another optimizer or of another adapter.
        """
        for key, value in state.items():
            moment, _, name = key.partition(":")
            fits = name in adapter and value.shape == adapter[name].shape and value.dtype == np.float64
            if moment not in self.moments or not fits or not np.isfinite(value).all():
                raise InputError(
                    f"the server optimizer's state {key!r} does not fit this run",
                    do="resume with the checkpoint of this very run",
                )
        self._state = {key: np.array(value) for key, value in state.items()}

    moments: ClassVar[tuple[str, ...]] = ()

    def _moment(self, moment: str, name: str, like: NDArray[np.float64], *, start: float = 0.0) -> NDArray[np.float64]:
        return self._state.get(f"{moment}:{name}", np.full_like(like, start))


class _Named(ServerOptimizer):
    """An optimizer that a person may ask for by name."""

    card: ClassVar[Card]

    @property
    def rate(self) -> float:
        """The learning rate of the settings, or where they say 0 the optimizer's own default."""
        return self._server.learning_rate or self.default

    @property
    @abstractmethod
    def default(self) -> float:
        """Learning rate where the settings say 0."""


class FedAvgM(_Named):
    """Server momentum (Hsu, Qi & Brown 2019): v = beta v + change, and rate times v is added.

    >>> optimizer = FedAvgM(ServerSettings(momentum=0.5, learning_rate=1.0))
    >>> [float(optimizer.move("x", np.array([1.0]))[0]) for _ in range(3)]
    [1.0, 1.5, 1.75]
    """

    card: ClassVar[Card] = Card(
        name="fedavgm",
        role=Role.OPTIMIZER,
        when="rounds pull to and fro: momentum smooths them; takes a few rounds more to start",
        trusts="what the updates trust",
        sends="what the updates send",
    )
    moments = ("velocity",)

    @property
    def default(self) -> float:
        """1 - beta: in the long run as far as without momentum. A rate of 1 goes 1 / (1 - beta) times as far."""
        return 1.0 - self._server.momentum

    def move(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """Learning rate times the velocity."""
        velocity = self._server.momentum * self._moment("velocity", name, change) + change
        self._state[f"velocity:{name}"] = velocity
        return self.rate * velocity


class _Adaptive(_Named):
    """Algorithm 2 of Reddi et al. 2021, without bias correction, from v = tau squared."""

    moments = ("first", "second")

    @property
    def default(self) -> float:
        """About as far in a round as the eight local steps of Adam at 5e-3 that are the default."""
        return 0.01

    def move(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """Learning rate times m / (sqrt v + tau)."""
        server = self._server
        first = server.momentum * self._moment("first", name, change) + (1 - server.momentum) * change
        second = self.second(self._moment("second", name, change, start=server.adaptivity**2), np.square(change))
        self._state[f"first:{name}"], self._state[f"second:{name}"] = first, second
        return self.rate * first / (np.sqrt(second) + server.adaptivity)

    @abstractmethod
    def second(self, v: NDArray[np.float64], squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """The second moment, given the one before and the squared change."""


class FedAdam(_Adaptive):
    """v = beta v + (1 - beta) change squared."""

    card: ClassVar[Card] = Card(
        name="fedadam",
        role=Role.OPTIMIZER,
        when="tensors need steps of different size, over 20 rounds or more; choose server.learning_rate",
        trusts="what the updates trust",
        sends="what the updates send",
    )

    def second(self, v: NDArray[np.float64], squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """An exponential mean."""
        beta = self._server.second_moment
        return beta * v + (1 - beta) * squared


class FedYogi(_Adaptive):
    """v = v - (1 - beta) change squared sign(v - change squared), which forgets a loud round slowly."""

    card: ClassVar[Card] = Card(
        name="fedyogi",
        role=Role.OPTIMIZER,
        when="as fedadam, where updates jump in size between rounds",
        trusts="what the updates trust",
        sends="what the updates send",
    )

    def second(self, v: NDArray[np.float64], squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Moves by a part of the squared change, never by a part of itself."""
        return v - (1 - self._server.second_moment) * squared * np.sign(v - squared)
