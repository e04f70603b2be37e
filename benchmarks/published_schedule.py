"""The schedule that DiP-GO published for Stable Diffusion 1.5 at a ratio of 0.80, as the tests hold it."""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.interchange import import_schedule

__all__ = ["TABLE", "published_schedule"]

TABLE = Path(__file__).parents[1] / "tests" / "data" / "dipgo_sd15_ratio080.json"
"""The published table."""


def published_schedule(graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule for the model of ``graph``, whose blocks are those of the granularity ``stage``."""
    return import_schedule("dipgo", read_json(TABLE), graph, contract)
