"""Runtime: sessions of bundles on ONNX Runtime, PyTorch and TensorRT, and images that they generate."""

from __future__ import annotations

from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.runtime.generate import GenerateOptions, generate
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session

__all__ = ["GenerateOptions", "RunOptions", "Session", "generate", "open_session"]
