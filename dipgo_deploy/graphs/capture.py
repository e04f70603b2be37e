"""Capture: one torch.onnx export of a denoiser with every block's feature as a named output.

The surgery notes each block's return value while the exporter runs the model, so no model file is copied or rewritten.
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
from dipgo_deploy.graphs.exporter_fixes import mend, put_stand_ins
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.exportable import exportable
from dipgo_deploy.supernet import flatten_feature, gated
from dipgo_deploy.supernet.backup import block_input

__all__ = ["PARAMETER_PREFIX", "Capture", "capture"]

PARAMETER_PREFIX = "model."
"""What stands before a parameter's state-dict name in the exported graph."""

EXAMPLE_ROWS = 2
"""Rows of the example that is exported; any number but 1 keeps the batch axis symbolic."""

_MOST_ROWS = 63
"""Rows that the exporter is told of: at 64 the up-sampling of diffusers' U-Nets takes another branch, of equal values.

The graph takes any number. An export that is told of more fails first and then, told so, does all its work again.
"""


@dataclass
class Capture:
    """The exported model, and the names of its outputs.

    ``outputs`` names the graph outputs in order; ``features`` gives each block's tensors, ``entries`` the value that
    enters a block whose only tensor has the shape of its input.
    """

    model: ir.Model
    outputs: list[str]
    features: dict[str, tuple[str, ...]]
    entries: dict[str, str]


@dataclass
class _Notes:
    """What a recorded forward saw. An object of its own, because the exporter restores the module's attributes."""

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
        found: dict[str, torch.Tensor] = {}
        notes = self.notes
        notes.features, notes.entries = {}, {}
        given = dict(zip(self._names, inputs, strict=True))

        def note(name: str, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry = block_input(args, kwargs)
            output = block(*args, **kwargs)
            tensors, _ = flatten_feature(output)
            if len(tensors) == 1 and entry is not None and _alike(tensors[0], entry) and tensors[0] is not entry:
                notes.entries[name] = _name_of(entry, found, given, f"{name}:input")
            notes.features[name] = tuple(_own_name(t, found, f"{name}:{k}") for k, t in enumerate(tensors))
            return output

        with gated(self.model, self._blocks, note):
            prediction = self._forward(**given)
        if any(tensor is prediction for tensor in found.values()):
            raise InputError("the model's output is the output of its last block: leave that block out of the patterns")
        found = {PREDICTION: prediction, **found}
        notes.outputs = list(found)
        return tuple(found.values())


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _own_name(tensor: torch.Tensor, found: dict[str, torch.Tensor], name: str) -> str:
    """Record a feature. A tensor that another block also returned cannot belong to both."""
    for other, known in list(found.items()):
        if known is tensor and not other.endswith(":input"):
            raise InputError(f"{name} and {other} are the same tensor: choose blocks that do not nest")
    found[name] = tensor
    return name


def _name_of(tensor: torch.Tensor, found: dict[str, torch.Tensor], given: dict[str, torch.Tensor], name: str) -> str:
    for known, other in (*found.items(), *given.items()):
        if other is tensor:
            return known
    found[name] = tensor
    return name


def capture(model: LoadedModel, blocks: Sequence[str]) -> Capture:
    """Export ``model`` with the features of ``blocks`` (in execution order) as outputs, the batch axis dynamic.

    The graph is left as exported but for known defects: no constant is folded, every parameter keeps its name and
    orientation.
    Raises InputError where the exporter cannot follow the model, with its last line.
    """
    inputs = model.example_inputs(EXAMPLE_ROWS)
    recorder = _Recorder(model, blocks, list(inputs)).eval()
    rows = torch.export.Dim("rows", max=_MOST_ROWS)
    shapes = (tuple({0: rows} for _ in inputs),)
    log = logging.getLogger("torch.onnx")
    before = log.level
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
        log.setLevel(before)
    assert program is not None
    mend(program.model)
    put_stand_ins(program.model.graph)
    notes = recorder.notes
    return Capture(program.model, notes.outputs, notes.features, notes.entries)
