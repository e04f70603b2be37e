"""A small gradient search on a model that ships: six steps, one image a batch."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.training import Training

SMALL: dict[str, Any] = {"iterations": 4, "batch": 1, "pool": 2, "ratios": (0.3, 0.6), "polish": 0, "polish_images": 1}


def contract_for(model, **fields) -> Contract:
    return make_contract(model, **{"steps": 6, **fields})


def training_of(model, graph, kind="output", contract=None, **fields) -> Training:
    return Training(model, graph, contract or contract_for(model), kind, DipgoOptions(**{**SMALL, **fields}))
