"""Capture: one torch.onnx export of a denoiser with every block's feature as a named output.

The surgery records each block's return value while the exporter runs the model. No model file is copied or rewritten.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from types import MappingProxyType
from typing import Any

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import torch
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.tensors import ROWS, SizeRange
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

MOST_ROWS = 63
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
        sizes: the values that the graph takes for every free size.
    """

    model: ir.Model
    outputs: list[str]
    features: dict[str, tuple[str, ...]]
    entries: dict[str, str]
    sizes: Mapping[str, SizeRange]


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


def capture(
    model: LoadedModel, blocks: Sequence[str], sizes: Mapping[str, SizeRange] = MappingProxyType({})
) -> Capture:
    """Export a model with the features of its blocks as outputs, a dynamic batch axis and other free axes.

    No constant is folded, and every parameter keeps its name and orientation.

    Args:
        model: the denoiser.
        blocks: paths of the blocks in execution order.
        sizes: the range of each free symbol of the inputs. A range of one value fixes the axis.

    Returns:
        The exported model.

    Raises:
        InputError: the exporter cannot follow the model, or cannot keep a size free. The message ends with the
            exporter's last line.
    """
    inputs = model.example_inputs(EXAMPLE_ROWS)
    recorder = _Recorder(model, blocks, list(inputs)).eval()
    axes = {name: {0: ROWS, **_free_axes(model.axes.get(name, {}), sizes)} for name in inputs}
    free = {name: _dim(name, size) for name, size in sizes.items() if not size.is_fixed}
    dims = {ROWS: torch.export.Dim(ROWS, max=MOST_ROWS), **free}
    shapes = (tuple({axis: dims[symbol] for axis, symbol in axes[name].items()} for name in inputs),)
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
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = first_line(ValueError(lines[-1] if lines else ""))
        raise InputError(f"{model.class_name} cannot be exported to ONNX ({reason})") from error
    finally:
        log.setLevel(level)
    assert program is not None and program.exported_program is not None
    taken = _taken_sizes(program.exported_program, list(axes.values()), sizes)
    _name_dims(program.model.graph, axes)
    apply_exporter_fixes(program.model)
    notes = recorder.notes
    return Capture(program.model, notes.outputs, notes.features, notes.entries, taken)


def _free_axes(axes: Mapping[int, str], sizes: Mapping[str, SizeRange]) -> dict[int, str]:
    return {axis: symbol for axis, symbol in axes.items() if symbol in sizes and not sizes[symbol].is_fixed}


def _dim(name: str, size: SizeRange) -> Any:
    """The exporter's dimension: a multiple of a dimension that counts steps."""
    steps = torch.export.Dim(name, min=size.min // size.step, max=size.max // size.step)
    return steps if size.step == 1 else size.step * steps


def _taken_sizes(
    program: torch.export.ExportedProgram, axes: Sequence[Mapping[int, str]], sizes: Mapping[str, SizeRange]
) -> dict[str, SizeRange]:
    """The ranges that the exported program takes.

    The exporter narrows a range without a word where the model branches on a size.
    """
    taken = dict(sizes)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, symbols in zip(program.graph_signature.user_inputs, axes, strict=True):
        for axis, symbol in symbols.items():
            low, high = _limits(program, nodes[str(name)].meta["val"].shape[axis])
            if symbol == ROWS and low == high:
                raise InputError(f"the exporter takes only {low} rows: the model cannot run with a dynamic batch")
            if symbol == ROWS:
                continue
            size = taken[symbol]
            taken[symbol] = replace(size, min=max(size.min, low), max=min(size.max, high))
            if taken[symbol].min >= taken[symbol].max:
                raise InputError(f"the model takes only {symbol} {size.opt}, because its forward depends on the number")
    return taken


def _limits(program: torch.export.ExportedProgram, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    # A size in steps is a number times a symbol, and only the symbol has a range.
    step, symbol = size.node.expr.as_coeff_Mul()
    limits = program.range_constraints.get(symbol)
    if limits is None:
        return 0, sys.maxsize
    return int(limits.lower) * int(step), int(min(limits.upper * step, sys.maxsize))


def _name_dims(graph: ir.Graph, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Name the free axes of the graph's inputs by their symbols."""
    for value in graph.inputs:
        assert value.shape is not None
        symbols = axes[str(value.name)]
        value.shape = ir.Shape([symbols.get(axis, size) for axis, size in enumerate(value.shape)])
