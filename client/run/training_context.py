"""A run on one platform that trains adapters: the model, the mechanism of its steps, and what of it stays here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.evaluation.held_out_ranking import held_out_ranks
from client.model.item_bank import BankOfRounds
from client.model.prepared_platform import PreparedPlatform
from client.privacy.limited_plan import mechanism_of
from client.privacy.mechanism import Mechanism
from client.recommender.frozen_texts import frozen_vectors
from client.run.adapter_partition import Part
from client.run.run_context import RunContext
from client.training.losses import CLICK_BIAS
from client.training.trainer import Trainer, TrainingData
from shared.base.errors import OutOfOrder
from shared.base.settings import CLIPS, Settings
from shared.preferences.sum_kind import SumKind
from shared.privacy.plan import Plan
from shared.protocol.messages import Arrays


class TrainingContext(RunContext):
    """A run as its training, its evaluations and personalising share it.

    Args:
        platform: With its model.
        others: As `RunContext` takes them.

    Raises:
        PrivacyError: as `RunContext`.
    """

    def __init__(self, *, settings: Settings, platform: PreparedPlatform, **others: Any) -> None:
        self.platform = platform
        self.device = platform.towers.encoder.device
        self.part = Part.of(settings, platform.towers.encoder.backbone.shape, rank=platform.file.rank)
        super().__init__(settings=settings, platform=platform, group_size=platform.friends.group_size, **others)
        self.bank = BankOfRounds(
            platform.bank,
            rounds=settings.training.bank_steps // settings.round_steps,
            device=self.device,
            remembered=self.state.bank,
        )

    def mechanism_under(self, plan: Plan) -> Mechanism:
        """The training step that a plan pays for."""
        platform, terms = self.platform, self.platform.file.federation
        return mechanism_of(
            plan,
            self.settings.training,
            users=platform.file.users,
            dimension=self.parameters_trained,
            group_size=platform.friends.group_size,
            clips=CLIPS if self.simulation else (terms.minimum_clip, terms.maximum_clip),
        )

    @property
    def mechanism(self) -> Mechanism:
        """The step of a platform that adds all of its noise itself.

        Preferences are asked for before the first round or not at all, so what they were planned to take is known by then.
        """
        known = self.state.preferences
        return self.mechanism_under(self.plan if known is not None and known.of is not SumKind.TASTE else self.plan_alone)

    def item_vectors(self) -> NDArray[np.float32]:
        """As `RunContext`."""
        return frozen_vectors(self.platform.towers, self.platform.items.texts_alone())

    @property
    def parameters_trained(self) -> int:
        """As `RunContext`."""
        return self.part.learning + self.staying

    @property
    def rank(self) -> int:
        """As `RunContext`."""
        return self.part.rank

    @cached_property
    def initial_local(self) -> Mapping[str, Tensor]:
        """Parameters that stay here, as a run begins with them."""
        settings, platform = self.settings, self.platform
        random = np.random.default_rng([settings.seed, *platform.name.encode()])
        local = platform.towers.fusion.initial(platform.tables.vector_widths, platform.towers.encoder.hidden, random)
        local |= {CLICK_BIAS: torch.zeros(1)} if settings.training.objective == "click" else {}
        # Factors that stay here are local parameters like any other: remembered, and never sent.
        start = self.part.initial()
        return local | {name: torch.from_numpy(start[name]) for name in self.part.kept}

    @property
    def staying(self) -> int:
        """Parameters that are trained here and never leave."""
        return sum(value.numel() for value in self.initial_local.values())

    @property
    def local(self) -> Mapping[str, Tensor]:
        """Those parameters as they are now."""
        return self.initial_local if self.state.prior is None else self.state.local

    def require_training(self) -> None:
        """Check that the run's last word was not spoken: personalising is once, and its plan spends what the rounds have left.

        Raises:
            OutOfOrder: this platform was asked to personalise already.
        """
        last = self.settings.rounds + 1
        if any((entry.run, entry.round) == (self.name, last) for entry in self.ledger.ledger.entries):
            raise OutOfOrder("asked to train after personalising, which ends a run")

    def parameters(self, adapter: Arrays) -> dict[str, Tensor]:
        """The whole model: the adapter that was sent, with its fixed factors, and what stays here."""
        # Copied: the arrays belong to the message and are read-only.
        whole = self.part.completed(adapter, self.platform.towers.encoder.backbone)
        sent = {name: torch.tensor(value, device=self.device) for name, value in whole.items()}
        return {**sent, **self.there(self.local)}

    def there(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on the run's device."""
        return {name: value.to(self.device) for name, value in values.items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's moments of the round before, but for factors that the strategy has turned since."""
        turned = self.part.layout if self.part.scheme.restarts else {}
        return {key: value for key, value in self.state.moments.items() if key.partition(":")[2] not in turned}

    def trainer(self, prior: Tensor, mechanism: Mechanism) -> Trainer:
        """Trains with that mechanism, its clip where the rounds before have moved it to."""
        platform = self.platform
        data = TrainingData(rows=platform.training, prior=prior, users=platform.tables.users)
        if mechanism.quantile is not None and self.state.clip is not None:
            mechanism = replace(mechanism, clip=self.state.clip)
        return Trainer(towers=platform.towers, data=data, settings=self.settings, mechanism=mechanism, guard=self.guard)

    def ranks(
        self, parameters: Mapping[str, Tensor], prior: Tensor, *, serving: bool, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `held_out_ranks`, on this platform."""
        bank = self.bank.now(parameters)
        return held_out_ranks(self.platform, self.settings, bank, parameters, prior, serving=serving, only=only)
