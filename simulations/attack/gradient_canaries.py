"""Canaries in private training: users whose gradient is a direction of their own, drawn, clipped and noised like everybody's.

A user's gradient is clipped whatever it is, so the promise holds for any. These are the worst: as long as the bound, and
orthogonal to one another, so that what is released along one says nothing of another (Andrew et al. 2023 draw theirs at random
for the same end). They have no part in what stays on the platform.

The attacker knows what all other users added to each step. It may: a user is drawn independently of the others, so that the
promise holds for whatever others are drawn. Under the secure sum it sees the sum over platforms, and knows what the users of all
of them added, but for the canaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.privacy.bounded_sum import BoundedSum
from client.privacy.noise_sources import NoiseSource
from client.run import training_context
from client.training.adam import Adam
from client.training.trainer import Trainer
from shared.base.errors import InputError
from simulations.attack.one_run import Floats
from strategies.secure_sum.flower_phases import Phases

LENGTH = 10.0
"""Norm of a canary's gradient before it is clipped, in bounds."""


@dataclass
class GradientCanaries:
    """Canaries of one platform, and what the attacker sees of each step.

    Args:
        count: Canaries; as many as there are parameters that leave, at most.
        seed: Of directions and coins.
        steps: What was released in each step less what others added, float64 (d,), in the mechanism's own unit.
        names, sizes: Parameters that train and leave, in the order of the vectors, and their numbers.
        clip: The bound.
    """

    count: int
    seed: int
    steps: list[Floats] = field(default_factory=list)
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    clip: float = 1.0
    _directions: Floats | None = None
    _inside: NDArray[np.bool_] | None = None
    _known: list[Mapping[str, Floats]] = field(default_factory=list)
    """What others added to the step, by platform and parameter."""

    def begin(self, shapes: Mapping[str, tuple[int, ...]], *, clip: float) -> None:
        """Draw directions and coins, once it is known what trains and leaves.

        Raises:
            InputError: this step trains others than the first.
        """
        if self._directions is not None:
            if tuple(shapes) != self.names:
                raise InputError(
                    "the strategy trains other factors in other rounds", where="strategy", do="attack one that trains the same"
                )
            return
        random = np.random.default_rng([self.seed, *b"gradient canaries"])
        dimension = sum(int(np.prod(shape)) for shape in shapes.values())
        self.count = min(self.count, dimension)
        basis, _ = np.linalg.qr(random.normal(size=(dimension, self.count)))
        self._directions, self._inside = basis.T, random.random(self.count) < 0.5
        self.names, self.clip = tuple(shapes), clip
        self.sizes = tuple(int(np.prod(shape)) for shape in shapes.values())

    def know(self, others: BoundedSum) -> None:
        """What the users of a platform other than canaries add to this step."""
        self._known.append({name: part.reshape(-1).cpu().numpy() for name, part in others.parts.items()})

    def see(self, released: Mapping[str, Floats], *, box: float = math.inf) -> None:
        """What a step released, each parameter's part as a vector, in the mechanism's own unit.

        Args:
            box: To which each platform's coordinates were cut.
        """
        others = {name: sum(np.clip(one[name], -box, box) for one in self._known) for name in self.names}
        self.steps.append(np.concatenate([released[name] - others[name] for name in self.names]))
        self._known.clear()

    @property
    def directions(self) -> Floats:
        """Orthonormal, float64 (m, d)."""
        assert self._directions is not None
        return self._directions

    @property
    def inside(self) -> NDArray[np.bool_]:
        """bool (m,). Who is in."""
        assert self._inside is not None
        return self._inside

    def gradients(self, drawn: NDArray[np.int64], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Unclipped gradients of those who are in and drawn, by parameter, (drawn, *shape)."""
        rows = self.directions[self.inside][drawn] * (LENGTH * self.clip)
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
        parts = zip(shapes.items(), np.split(rows, ends, axis=1), strict=True)
        return {name: torch.from_numpy(part.astype(np.float32)).reshape(len(rows), *shape) for (name, shape), part in parts}

    def linear_scores(self) -> Floats:
        """How far the sum of all steps goes along each canary's direction, in bounds, float64 (m,)."""
        total: Floats = np.sum(self.steps, axis=0) / self.clip
        return self.directions @ total

    def spread_scores(self) -> Floats:
        """How far apart two steps are along each direction, at most, in bounds, float64 (m,): noise that repeats cancels."""
        along = np.stack([self.directions @ step for step in self.steps]) / self.clip
        found: Floats = along.max(0) - along.min(0)
        return found


class _Known(Trainer):
    """A trainer of a platform of which the attacker knows everything."""

    canaries: GradientCanaries

    def contribution(
        self, parameters: Mapping[str, Tensor], trained: Sequence[str], bank: Tensor, random: NoiseSource
    ) -> BoundedSum:
        found = super().contribution(parameters, trained, bank, random)
        self.canaries.know(found)
        return found


class _Watched(Trainer):
    """A trainer of the attacked platform, whose sampler sees the canaries that are in as further users.

    Args:
        staying: Parameters that never leave.
    """

    canaries: GradientCanaries
    staying: Set[str]

    def sample(self, random: NoiseSource) -> NDArray[np.int64]:
        present = self._data.users
        users = self.mechanism.sample(present + int(self.canaries.inside.sum()), random)
        self._drawn = users[users >= present] - present
        return self.picked(users[users < present], random)

    def contribution(
        self, parameters: Mapping[str, Tensor], trained: Sequence[str], bank: Tensor, random: NoiseSource
    ) -> BoundedSum:
        shapes = {name: tuple(parameters[name].shape) for name in trained}
        leaving = {name: shape for name, shape in shapes.items() if name not in self.staying}
        self.canaries.begin(leaving, clip=self.mechanism.clip)
        others = super().contribution(parameters, trained, bank, random)
        self.canaries.know(others)
        if not len(self._drawn):
            return others
        found = self.canaries.gradients(self._drawn, leaving)
        count = len(next(iter(found.values())))
        gradients = {name: found.get(name, torch.zeros(count, *shape)) for name, shape in shapes.items()}
        everybody = torch.ones(count, dtype=torch.bool)
        return others.plus(self._clip(gradients, everybody, self.mechanism))

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        values = list(args)
        values[3] = _Noting(values[3], self)
        return super().run(*values, **kwargs)

    def note(self, gradient: Mapping[str, Tensor]) -> None:
        """Keep what a step released, less what others added."""
        names, batch = self.canaries.names, self.mechanism.expected_batch
        self.canaries.see({name: gradient[name].cpu().double().numpy().reshape(-1) * batch for name in names})


class _Noting:
    """An optimizer that shows each gradient to the trainer before it steps."""

    def __init__(self, optimizer: Adam, trainer: _Watched) -> None:
        self._optimizer, self._trainer = optimizer, trainer

    def step(self, values: dict[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
        self._trainer.note(gradient)
        self._optimizer.step(values, dict(gradient))


@contextmanager
def canaries_on(platform: str, canaries: GradientCanaries, *, summed: bool = False) -> Iterator[None]:
    """Put canaries among the users of one platform of a simulation in this process, while it trains.

    Args:
        summed: Whether the attacker sees the sums over platforms instead of that platform's own.
    """
    real, gradient_sum = training_context.TrainingContext.trainer, Phases.gradient_sum

    def trainer(run: training_context.TrainingContext, *args: Any, **kwargs: Any) -> Trainer:
        made = real(run, *args, **kwargs)
        if run.platform.name == platform:
            made.__class__ = type("Watched", (_Watched,), {"canaries": canaries, "staying": frozenset(run.initial_local)})
        elif summed:
            made.__class__ = type("Known", (_Known,), {"canaries": canaries})
        return made

    def seen(phases: Phases) -> Floats:
        total, layout = gradient_sum(phases), phases.layout()
        ends = np.cumsum([int(np.prod(shape)) for shape in layout.values()])[:-1]
        box = phases.point.box / phases.point.scale
        canaries.see(dict(zip(layout, np.split(total, ends), strict=True)), box=box)
        return total

    training_context.TrainingContext.trainer = trainer  # type: ignore[method-assign,assignment]
    Phases.gradient_sum = seen  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        training_context.TrainingContext.trainer = real  # type: ignore[method-assign]
        Phases.gradient_sum = gradient_sum  # type: ignore[method-assign]
