"""Runtime: bundles opened, run and verified."""

from __future__ import annotations

from dipgo_deploy.runtime.generate import GenerateOptions, generate
from dipgo_deploy.runtime.loaded import Compiled, LoadedBundle
from dipgo_deploy.runtime.loading import load_bundle
from dipgo_deploy.runtime.verify import VerifyReport, verify
from dipgo_deploy.runtime.verify_options import VerifyOptions

__all__ = [
    "Compiled",
    "GenerateOptions",
    "LoadedBundle",
    "VerifyOptions",
    "VerifyReport",
    "generate",
    "load_bundle",
    "verify",
]
