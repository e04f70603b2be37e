"""Engines of a bundle: built in a requested precision, planned before they are built, and profiled."""

from __future__ import annotations

from dipgo_deploy.engines.build import EngineOptions, EngineReport, build_bundle_engines
from dipgo_deploy.engines.planner import Plan, PlanOptions, plan
from dipgo_deploy.engines.profile import ProfileOptions, profile

__all__ = [
    "EngineOptions",
    "EngineReport",
    "Plan",
    "PlanOptions",
    "ProfileOptions",
    "build_bundle_engines",
    "plan",
    "profile",
]
