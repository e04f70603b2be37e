"""The PyTorch reference: features recorded on the live model, and the model with some blocks replaced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.supernet import flatten_feature, gated

TRACES = [("digits-unet", g) for g in ("stage", "layer", "branch")] + [("digits-dit", g) for g in ("stage", "branch")]
"""Every reference model at every granularity."""

EVERY_TRACE = pytest.mark.parametrize(("name", "granularity"), TRACES)


def example(model, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a forward, different in every row."""
    torch.manual_seed(seed)
    inputs = model.example_inputs(rows)
    return inputs | {"timestep": torch.linspace(900, 20, rows)}


@torch.no_grad()
def record(model, blocks: BlockGraph, inputs: Mapping[str, torch.Tensor], substitutes: Mapping[str, np.ndarray] = {}):
    """Every feature, residual and block input by name, with ``substitutes`` in place of values by stored name.

    A substituted residual is added to the input that its block has in this forward.
    """
    values: dict[str, np.ndarray] = {}
    by_name = blocks.block_of_name

    def gate(name, forward, args, kwargs):
        entry = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        if by_name[name].residual_input is not None:
            values[by_name[name].residual_input] = entry.numpy().copy()
        output = forward(*args, **kwargs)
        tensors, template = flatten_feature(output)
        if f"{name}:residual" in substitutes:
            tensors = [entry + torch.from_numpy(substitutes[f"{name}:residual"])]
        elif f"{name}:0" in substitutes:
            tensors = [torch.from_numpy(substitutes[f"{name}:{k}"]) for k in range(len(tensors))]
        for k, tensor in enumerate(tensors):
            values[f"{name}:{k}"] = tensor.numpy().copy()
        if by_name[name].residual_input is not None:
            values[f"{name}:residual"] = (tensors[0] - entry).numpy()
        return template.rebuild(tensors)

    with gated(model.module, [name for name in blocks.block_names if name != PREDICTION], gate):
        values[PREDICTION] = model.forward(**inputs).numpy()
    return values


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation over the largest expected value; infinite for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual - expected).max() / max(1e-6, np.abs(expected).max()))
