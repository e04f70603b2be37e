"""Lowering: from Schedule to Program, as pure functions on plain data."""

from __future__ import annotations

from dipgo_deploy.lowering.budget import limit_graphs
from dipgo_deploy.lowering.lower import LowerOptions, lower
from dipgo_deploy.lowering.stepwise import StepProgram, begin_at, lower_steps

__all__ = ["LowerOptions", "StepProgram", "begin_at", "limit_graphs", "lower", "lower_steps"]
