"""Lowering: Schedule to Program, as pure functions on plain data."""

from __future__ import annotations

from dipgo_deploy.lowering.budget import limit_graphs
from dipgo_deploy.lowering.lower import LowerOptions, lower

__all__ = ["LowerOptions", "limit_graphs", "lower"]
