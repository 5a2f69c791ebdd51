"""What `exact`, `flora` and `svd` have in common: they combine products B A instead of factors."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from shared.base.errors import ProtocolError
from shared.model.adapter import Layout
from shared.model.residual_factors import maps_in
from shared.protocol.messages import Arrays, Update
from strategies.averaging import Change
from strategies.base import Adapter, AdapterStrategy, Combiner

_LARGEST = float(np.finfo(np.float32).max) / 4


class Products(Combiner):
    """Folds factors in as products; it gives the next adapter itself."""

    @abstractmethod
    def add(self, change: Arrays, *, weight: int) -> None:
        """Take one update in; its arrays are not kept as they are."""

    @abstractmethod
    def adapter(self) -> Adapter:
        """The next global adapter, with its residual if it has one."""

    def change(self) -> Change:
        """Not a change: products have no common factors that could be moved."""
        raise TypeError("products are combined to an adapter, not to a change")


class ProductStrategy(AdapterStrategy):
    """Needs each platform's factors in clear, so it cannot run under a secure sum."""

    linear: ClassVar[bool] = False

    def combiner(self, layout: Layout) -> Combiner:
        """A fresh fold of products over the adapter that this round sent."""
        return self.products(self._adapter)

    @abstractmethod
    def products(self, adapter: Adapter) -> Products:
        """A fresh fold over that adapter."""

    def finish(self, combiner: Combiner) -> Adapter:
        """What the fold gives."""
        assert isinstance(combiner, Products)
        return combiner.adapter()

    def require_usable(self, update: Update, view: Adapter, layout: Layout) -> None:
        """Check the product too: two factors within float32 may have one that is not."""
        super().require_usable(update, view, layout)
        for name in maps_in(layout):
            a, b = f"{name}.lora_A", f"{name}.lora_B"
            after = [np.linalg.norm(view[key] + update.change[key].astype(np.float64)) for key in (a, b)]
            if not after[0] * after[1] <= _LARGEST:
                raise ProtocolError(f"the product of {name} would leave the range of float32", where=update.platform)
