"""A platform's part in the adapter: what it trains, what it sends, what stays, and what it is sent besides.

It follows from the run's settings and the platform's own file, never from a later request: a coordinator that asks for
factors which stay here is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.model.adapter import drawn, layout_of, require_layout, trained
from shared.model.backbone import Backbone, BackboneShape
from shared.model.factor_schedule import Scheme, scheme_of
from shared.model.fixed_factors import core_factors
from shared.model.residual_factors import require_with_residual
from shared.protocol.messages import Arrays, Factors

Adapter = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one platform does with the adapter in a run.

    Args:
        rank: LoRA rank that this platform trains.
        layout: The federated tensors as this platform trains them, at its own rank.
        whole: The same at the run's rank, as evaluations get them.
    """

    settings: Settings
    scheme: Scheme
    rank: int
    layout: dict[str, tuple[int, int]] = field(repr=False)
    whole: dict[str, tuple[int, int]] = field(repr=False)
    _fixed: Adapter = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, settings: Settings, shape: BackboneShape, *, rank: int | None) -> Part:
        """The part of a platform whose file allows that rank.

        Args:
            rank: Largest LoRA rank that the platform trains; None: whatever the run's is.

        Raises:
            PrivacyError: the run trains a larger rank, and its strategy allows only one.
        """
        scheme, most = scheme_of(settings.strategy), settings.model.rank
        if rank is not None and rank < most and not scheme.ranks:
            raise PrivacyError(
                f"the run trains rank {most}, and this platform at most {rank}",
                where=f"strategy {settings.strategy}",
                do="raise `rank` in the platform file, or take part in runs of strategy svd, which mixes ranks",
            )
        own = min(rank or most, most)
        return cls(
            settings=settings,
            scheme=scheme,
            rank=own,
            layout=layout_of(shape, settings.model, scheme, rank=own),
            whole=layout_of(shape, settings.model, scheme),
        )

    @property
    def kept(self) -> list[str]:
        """Tensors that are trained here and never leave."""
        return trained(self.layout, self.scheme.kept) if self.scheme.kept else []

    @property
    def learning(self) -> int:
        """Most parameters that one round trains and sends: the dimension of its noise, but for what stays here."""
        return max(self.size(factors) for factors in self.scheme.cycle)

    def sent(self, factors: Factors) -> dict[str, tuple[int, int]]:
        """Names and shapes of what leaves when a round asks for those factors.

        Raises:
            ProtocolError: it asks for what stays here, or for what there is not.
        """
        self.scheme.require(factors)
        return {name: self.layout[name] for name in trained(self.layout, factors)}

    def initial(self) -> Adapter:
        """The adapter that changes nothing, as this platform trains it, with the fixed factors left out."""
        return _cut(drawn(self.whole, seed=self.settings.seed), self.layout)

    def require(self, arrays: Arrays, *, where: str, whole: bool = False) -> None:
        """Check an adapter that the coordinator sent.

        Args:
            whole: It is to be evaluated, so it has the run's rank.

        Raises:
            ProtocolError: anything differs from what this run's strategy sends.
        """
        layout = self.whole if whole else self.layout
        if self.scheme.residual:
            require_with_residual(arrays, layout, where=where)
        else:
            require_layout(arrays, layout, where=where)

    def completed(self, arrays: Arrays, backbone: Backbone) -> Adapter:
        """What was sent, with the fixed factors that are not."""
        if self.scheme.core and not self._fixed:
            self._fixed.update(core_factors(self.settings, backbone))  # once: it takes an SVD of every map
        return {**self._fixed, **arrays}

    def size(self, factors: Factors) -> int:
        """Parameters that a round with those factors trains and sends."""
        return sum(math.prod(self.layout[name]) for name in trained(self.layout, factors))


def _cut(adapter: Adapter, layout: dict[str, tuple[int, int]]) -> Adapter:
    return {name: np.ascontiguousarray(adapter[name][: shape[0], : shape[1]]) for name, shape in layout.items()}
