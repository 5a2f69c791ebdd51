"""Which tests of bfloat16 this processor can run."""

from __future__ import annotations

import pytest
import torch

from shared.model.encoder import compute_dtype

# Where the processor does not multiply it, some of torch's products in bfloat16 raise.
needs_bfloat16 = pytest.mark.skipif(
    compute_dtype(torch.device("cpu")) != torch.bfloat16, reason="this processor does not multiply in bfloat16"
)
