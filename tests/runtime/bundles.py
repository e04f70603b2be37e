"""Small bundles with few graphs, for tests that build something from each graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dipgo_deploy.bundle import Bundle, ExportOptions, export, load_bundle
from dipgo_deploy.core.program import Layout
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from tests.models.families import tiny

__all__ = ["PLANTED", "few_graphs", "half_export", "planted", "scheduled"]

PLANTED = "down_blocks.1"
"""The block of `planted` that float16 cannot hold."""


@cache
def planted(factor: float = 1e7) -> LoadedModel:
    """A tiny U-Net one of whose convolutions gives millions, which the next normalisation takes back.

    With a ``factor`` of 2e5 its weights are held by float16, but not what it gives.
    """
    model = tiny("sd")
    with torch.no_grad():
        model.module.get_submodule(PLANTED).resnets[0].conv1.weight.mul_(factor)
    return model


def scheduled(model: LoadedModel, shares: Sequence[float], guidance: str = "concat") -> Schedule:
    """One step for each of ``shares``: the last so many of the blocks are computed, 0 reuses the prediction too."""
    graph = trace(model).blocks
    contract = make_contract(model, steps=len(shares), guidance=guidance)
    blank = random_schedule(graph, contract, "output", np.random.default_rng(0), 0.5)
    count = len(graph.block_names)
    rows = tuple(tuple(index >= count - round(share * count) for index in range(count)) for share in shares)
    return replace(blank, compute=rows, forecasts={})


def few_graphs(
    model: LoadedModel, out: Path, layout: Layout = "subnets", shares: Sequence[float] = (1, 0.5, 0)
) -> Bundle:
    """A bundle of three steps: everything, the later half of the blocks, and nothing."""
    return load_bundle(export(model, scheduled(model, shares), out, ExportOptions(layout)))


def half_export(model: LoadedModel, out: Path, layout: Layout = "subnets", shares: Sequence[float] = (1, 0)) -> Bundle:
    """A bundle that is exported in float16."""
    return load_bundle(export(model, scheduled(model, shares), out, ExportOptions(layout, dtype="float16")))
