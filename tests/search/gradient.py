"""A small gradient search on a shipped model: six steps, one image per batch."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import DipgoOptions, SearchOptions
from dipgo_deploy.search.dipgo.training import Training
from dipgo_deploy.search.problem import Problem

SMALL: dict[str, Any] = {"iterations": 4, "batch": 1, "pool": 2, "ratios": (0.3, 0.6), "polish": 0}
SHARED = ("seed", "images", "classes", "prompts", "guidance_scale", "latency")


def contract_for(model, **fields) -> Contract:
    return make_contract(model, **{"steps": 6, **fields})


def options_of(kind="output", ratio: float = 0.5, **fields) -> SearchOptions:
    """Options of a small search; ``fields`` are those of SearchOptions in SHARED, or of DipgoOptions."""
    shared = {"images": 1, **{name: fields.pop(name) for name in SHARED if name in fields}}
    return SearchOptions("dipgo", ratio, kind, settings=DipgoOptions(**{**SMALL, **fields}), **shared)


def problem_of(model, graph, kind="output", contract=None, **fields) -> Problem:
    return Problem(model, graph, contract or contract_for(model), options_of(kind, **fields))


def training_of(model, graph, kind="output", contract=None, **fields) -> Training:
    return Training(problem_of(model, graph, kind, contract, **fields))
