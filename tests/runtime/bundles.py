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

__all__ = ["PLANTED", "few_graphs", "planted", "scheduled"]

PLANTED = "down_blocks.1"
"""The block of ``planted`` whose values float16 cannot hold."""


@cache
def planted(factor: float = 1e7) -> LoadedModel:
    """A tiny U-Net with values of millions behind one convolution. The next normalization scales them back.

    With a ``factor`` of 2e5 float16 holds the weights of the convolution, but not its output.
    """
    model = tiny("ddpm")
    with torch.no_grad():
        model.module.get_submodule(PLANTED).resnets[0].conv1.weight.mul_(factor)
    return model


def scheduled(model: LoadedModel, shares: Sequence[float], guidance: str = "concat") -> Schedule:
    """A schedule with one step for each share. A step computes that share of the blocks, the last ones.

    A share of 0 reuses the prediction too.
    """
    graph = trace(model).blocks
    contract = make_contract(model, steps=len(shares), guidance=guidance)
    blank = random_schedule(graph, contract, "output", np.random.default_rng(0), 0.5)
    count = len(graph.block_names)
    rows = tuple(tuple(index >= count - round(share * count) for index in range(count)) for share in shares)
    return replace(blank, compute=rows, forecasts={})


def few_graphs(
    model: LoadedModel,
    out: Path,
    layout: Layout = "subnets",
    shares: Sequence[float] = (1, 0.5, 0),
    dtype: str | None = None,
) -> Bundle:
    """A bundle of three steps: all blocks, the later half of the blocks, and no block. ``dtype`` is the export's."""
    return load_bundle(export(model, scheduled(model, shares), out, ExportOptions(layout, dtype=dtype)))
