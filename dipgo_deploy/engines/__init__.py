"""Engines of a bundle: build them in a precision, plan their memory before the build, and profile a model's pieces."""

from __future__ import annotations

from dipgo_deploy.engines.build import EngineReport, build_bundle_engines
from dipgo_deploy.engines.options import EngineOptions, FallbackOptions, PlanOptions, ProfileOptions
from dipgo_deploy.engines.planner import Plan, plan
from dipgo_deploy.engines.profiling import profile

__all__ = [
    "EngineOptions",
    "EngineReport",
    "FallbackOptions",
    "Plan",
    "PlanOptions",
    "ProfileOptions",
    "build_bundle_engines",
    "plan",
    "profile",
]
