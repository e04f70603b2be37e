"""Gates on a live PyTorch model. They observe, compute or replace features, and the model is restored on exit."""

from __future__ import annotations

from dipgo_deploy.supernet.backup import FeatureTemplate, flatten_feature
from dipgo_deploy.supernet.surgery import execution_order, gated, match_blocks

__all__ = ["FeatureTemplate", "execution_order", "flatten_feature", "gated", "match_blocks"]
