"""Schedules from a block graph: which blocks each step computes and which it reuses."""

from __future__ import annotations

from dipgo_deploy.search.options import METHODS, TOLERANCE, SearchOptions
from dipgo_deploy.search.random_schedule import random_schedule
from dipgo_deploy.search.search import search_schedule

__all__ = ["METHODS", "TOLERANCE", "SearchOptions", "random_schedule", "search_schedule"]
