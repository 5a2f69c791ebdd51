"""A model of a platform's own: after the federation, a residual adapter trained here from what is left of the budget.

Everything learnt so far is frozen as it is, and a fresh adapter beside it is trained on this platform's users alone, with
the same mechanism. It stays on the platform. It is used only if it ranks held-out items better, which a noised and charged
comparison decides; otherwise the platform goes on with the global model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from client.run.adapter_partition import Part
from shared.layers.lora import Parameters
from shared.model.adapter import drawn
from shared.model.residual_factors import maps_in


def flattened(parameters: Parameters) -> dict[str, Tensor]:
    """One A and one B for each map, with core and residual in them; it computes the same."""
    plain: dict[str, Tensor] = {}
    for name in maps_in(parameters):
        a, b = parameters[f"{name}.lora_A"], parameters[f"{name}.lora_B"]
        if f"{name}.lora_R" in parameters:
            a = parameters[f"{name}.lora_R"] @ a
        if f"{name}.residual_A" in parameters:
            a = torch.cat([a, parameters[f"{name}.residual_A"]])
            b = torch.cat([b, parameters[f"{name}.residual_B"]], 1)
        plain[f"{name}.lora_A"], plain[f"{name}.lora_B"] = a, b
    return plain


def begun(shared: Parameters, part: Part) -> dict[str, Tensor]:
    """The same model with a fresh adapter beside it: the one learnt so far is all residual now.

    Args:
        shared: The global adapter completed, with this platform's own parameters.
    """
    frozen = {name.replace(".lora_", ".residual_"): value for name, value in flattened(shared).items()}
    device = next(iter(frozen.values())).device
    fresh = drawn(part.layout, seed=part.settings.seed, again=part.settings.rounds + 1)
    return {**shared, **frozen, **{name: torch.from_numpy(value).to(device) for name, value in fresh.items()}}


def without_forms(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters whose A and B are a whole flattened adapter: core and residual are in them already."""
    return {name: value for name, value in parameters.items() if not name.endswith((".lora_R", ".residual_A", ".residual_B"))}
