"""Capture: one torch.onnx export of a denoiser with every block's feature as a named output.

The surgery records each block's return value while the exporter runs the model. No model file is copied or rewritten.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import torch
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs.exporter_fixes import apply_exporter_fixes
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.exportable import exportable
from dipgo_deploy.supernet import flatten_feature, gated
from dipgo_deploy.supernet.backup import block_input

__all__ = ["PARAMETER_PREFIX", "Capture", "capture"]

PARAMETER_PREFIX = "model."
"""Prefix of a parameter's state-dict name in the exported graph."""

EXAMPLE_ROWS = 2
"""Rows of the example input. Any number but 1 keeps the batch axis symbolic."""

_MOST_ROWS = 63
"""Upper bound of rows that the exporter assumes. The graph takes any number.

At 64 rows the upsampling of diffusers' U-Nets takes another branch with the same values. With a larger bound the
exporter fails at that branch, lowers the bound itself, and starts again.
"""


@dataclass
class Capture:
    """The exported model, and the names of its outputs.

    Attributes:
        model: the graph as exported, with known defects fixed.
        outputs: names of the graph outputs in order.
        features: names of each block's output tensors.
        entries: the value that enters a block, for blocks with one output tensor of the shape of their input.
    """

    model: ir.Model
    outputs: list[str]
    features: dict[str, tuple[str, ...]]
    entries: dict[str, str]


@dataclass
class _Notes:
    """Names that a recorded forward collects. The exporter restores the module's attributes, but not this object."""

    outputs: list[str] = field(default_factory=list)
    features: dict[str, tuple[str, ...]] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)


class _Recorder(nn.Module):
    """Calls the model and returns its output followed by all features and block inputs, each distinct tensor once."""

    def __init__(self, model: LoadedModel, blocks: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.model = model.module
        self._forward, self._blocks, self._names = model.forward, blocks, names
        self.notes = _Notes()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors_by_name: dict[str, torch.Tensor] = {}
        notes = self.notes
        notes.features, notes.entries = {}, {}
        network_inputs = dict(zip(self._names, inputs, strict=True))

        def note(name: str, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry = block_input(args, kwargs)
            output = block(*args, **kwargs)
            tensors, _ = flatten_feature(output)
            if len(tensors) == 1 and entry is not None and _alike(tensors[0], entry) and tensors[0] is not entry:
                notes.entries[name] = _entry_name(entry, tensors_by_name, network_inputs, f"{name}:input")
            notes.features[name] = tuple(
                _feature_name(tensor, tensors_by_name, f"{name}:{k}") for k, tensor in enumerate(tensors)
            )
            return output

        with gated(self.model, self._blocks, note):
            prediction = self._forward(**network_inputs)
        if any(tensor is prediction for tensor in tensors_by_name.values()):
            raise InputError("the model's output is the output of its last block: leave that block out of the patterns")
        outputs = {PREDICTION: prediction, **tensors_by_name}
        notes.outputs = list(outputs)
        return tuple(outputs.values())


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype


def _feature_name(tensor: torch.Tensor, tensors_by_name: dict[str, torch.Tensor], name: str) -> str:
    """Record a feature. Raises InputError for a tensor that another block has returned too."""
    for other, known in list(tensors_by_name.items()):
        if known is tensor and not other.endswith(":input"):
            raise InputError(f"{name} and {other} are the same tensor: choose blocks that do not nest")
    tensors_by_name[name] = tensor
    return name


def _entry_name(
    entry: torch.Tensor, tensors_by_name: dict[str, torch.Tensor], network_inputs: dict[str, torch.Tensor], name: str
) -> str:
    """Name of the value that enters a block. Records the value under ``name`` if it has no name yet."""
    for known, tensor in (*tensors_by_name.items(), *network_inputs.items()):
        if tensor is entry:
            return known
    tensors_by_name[name] = entry
    return name


def capture(model: LoadedModel, blocks: Sequence[str]) -> Capture:
    """Export a model with the features of its blocks as outputs and a dynamic batch axis.

    No constant is folded, and every parameter keeps its name and orientation.

    Args:
        model: the denoiser.
        blocks: paths of the blocks in execution order.

    Returns:
        The exported model.

    Raises:
        InputError: the exporter cannot follow the model. The message ends with the exporter's last line.
    """
    inputs = model.example_inputs(EXAMPLE_ROWS)
    recorder = _Recorder(model, blocks, list(inputs)).eval()
    rows = torch.export.Dim("rows", max=_MOST_ROWS)
    shapes = (tuple({0: rows} for _ in inputs),)
    log = logging.getLogger("torch.onnx")  # The exporter warns about every fallback of its own.
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad(), exportable():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                recorder,
                tuple(inputs.values()),
                input_names=list(inputs),
                dynamic_shapes=shapes,
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
            )
    except InputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"{model.class_name} cannot be exported to ONNX ({lines[-1].strip()})") from error
    finally:
        log.setLevel(level)
    assert program is not None
    apply_exporter_fixes(program.model)
    notes = recorder.notes
    return Capture(program.model, notes.outputs, notes.features, notes.entries)
