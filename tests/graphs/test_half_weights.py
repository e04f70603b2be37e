from __future__ import annotations

import pytest
import torch

from dipgo_deploy.core.errors import GateError
from dipgo_deploy.graphs.half_weights import halved


def test_a_weight_that_half_precision_makes_infinite_is_refused():
    big = torch.tensor([1.0, 1e6])
    with pytest.raises(GateError, match="weight w reaches 1e.06, which float16 cannot hold: use bfloat16"):
        halved(big, "w", "float16", True)
    assert halved(big, "w", "bfloat16", True).dtype == torch.bfloat16
    assert torch.isinf(halved(big, "w", "float16", False)).any()  # only the float32 copy is read
    assert halved(torch.tensor([3]), "w", "float16", True).dtype == torch.int64
