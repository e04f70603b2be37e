"""Options of quick builds."""

from __future__ import annotations

from dataclasses import replace

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.engines import EngineOptions, FallbackOptions

__all__ = ["FLOAT32", "FP16"]

FP16 = EngineOptions("float16", "rtx", ("sm89",), BatchRange(1, 4, 8), fallback=FallbackOptions(images=1, steps=1))
"""Engines in float16 for 1 to 8 images, after a search on one step of one image."""

FLOAT32 = replace(FP16, precision=None)
"""The same in the bundle's own dtype, without a search."""
