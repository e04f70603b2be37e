"""Graphs on the live PyTorch model under surgery: a program of the subnets layout without any graph file.

At a Run the blocks that its graph computes compute, and what the run writes is copied from their features into slots. A
block whose feature or residual the run reads returns it. Every other block is dead, and returns NaN: one that was
wrongly held for dead is seen at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import residual_name
from dipgo_deploy.core.program import TIMESTEP, Program, Run
from dipgo_deploy.runtime.backend import BoundCall
from dipgo_deploy.runtime.memory import TorchMemory
from dipgo_deploy.supernet.backup import block_input
from dipgo_deploy.supernet.features import FeatureTemplate, flatten_feature
from dipgo_deploy.supernet.network import Denoiser
from dipgo_deploy.supernet.surgery import gated

__all__ = ["ExampleDenoiser", "TorchBackend"]


class ExampleDenoiser(Denoiser, Protocol):
    """A network that can also show what its inputs look like."""

    def example_inputs(self, rows: int) -> Mapping[str, torch.Tensor]:
        """Inputs of the right names, shapes and dtypes, for ``rows`` rows."""
        ...


@dataclass(frozen=True)
class _DryRun:
    """What one forward shows: how blocks nest their features, and NaN of the shapes of features and inputs."""

    templates: Mapping[str, FeatureTemplate]
    features: Mapping[str, torch.Tensor]
    inputs: Mapping[str, torch.Tensor]


class TorchBackend(TorchMemory):
    """Runs the graphs of ``program`` on the live model, in the module's dtype.

    Args:
        model: the network; its module is moved to ``device`` and otherwise left as it is.
        blocks: what the program was lowered from.
        program: whose graphs are run.
        device: ``cpu`` or ``cuda``.
        compiler: backend of torch.compile, such as ``inductor``; None runs eagerly. Calls that compute everything and
            keep nothing are compiled whole, the blocks of others one by one.
        dtype: of every floating slot, instead of the program's: ``float64`` beside a float64 model, to compare exactly.

    Raises:
        UsageError: the layout is not ``subnets``, or an unknown device or dtype.
        MissingError: ``cuda`` without a GPU.
        InputError: the model does not have the blocks.
    """

    name = "torch"

    def __init__(
        self,
        model: ExampleDenoiser,
        blocks: BlockGraph,
        program: Program,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        compiler: str | None = None,
    ) -> None:
        super().__init__(device, dtype)
        if program.layout != "subnets":
            raise UsageError(
                f"the torch backend runs the subnets layout; found {program.layout}: lower with layout 'subnets', or "
                "run on onnxruntime"
            )
        self.model, self.blocks, self._graphs = model, blocks, program.graph_of_name
        self.names = [name for name in blocks.block_names if name != PREDICTION]
        modules = dict(model.module.named_modules())
        if missing := [name for name in self.names if name not in modules]:
            raise InputError(f"{type(model.module).__name__} has no block {missing[0]}: take the model that was traced")
        model.module.to(device)
        self._compiler = compiler
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._dry_runs: dict[int, _DryRun] = {}

    def bind_run(self, run: Run, buffers: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend."""
        if run.graph not in self._graphs:
            raise InputError(f"the program runs graph {run.graph!r}, which it does not describe: re-export")
        computes = {*self._graphs[run.graph].computes, PREDICTION}
        self._check_names(run, computes)
        rows = sizes["rows"]
        if rows not in self._dry_runs:
            self._dry_runs[rows] = self._dry_run(rows)
        given = {name: buffers[slot] for name, slot in run.inputs}
        given[TIMESTEP] = torch.full((rows,), run.timestep, dtype=torch.float32, device=self.device)
        targets = {name: buffers[slot] for name, slot in run.outputs}
        return _GatedCall(self, frozenset(computes), self._dry_runs[rows], given, targets)

    def compiled(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` of the block ``name`` ("" for the whole network), compiled once where that was asked for."""
        if self._compiler is None:
            return forward
        if name not in self._compiled:
            self._compiled[name] = torch.compile(forward, backend=self._compiler, dynamic=False)
        return self._compiled[name]

    def _check_names(self, run: Run, computes: set[str]) -> None:
        stored = {b.name: {*b.features, residual_name(b.name)} for b in self.blocks.blocks}
        known = {spec.name for spec in self.blocks.inputs}.union(*stored.values())
        if odd := [name for name, _ in run.inputs if name not in known]:
            raise InputError(f"graph {run.graph} reads {odd[0]}, which the traced model does not have: re-export")
        given = set().union(*(stored[block] for block in computes))
        if odd := [name for name, _ in run.outputs if name not in given]:
            raise InputError(f"graph {run.graph} writes {odd[0]}, but does not compute it: re-export")

    @torch.no_grad()
    def _dry_run(self, rows: int) -> _DryRun:
        templates: dict[str, FeatureTemplate] = {}
        features: dict[str, torch.Tensor] = {}

        def note(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            feature = forward(*args, **kwargs)
            tensors, templates[block] = flatten_feature(feature)
            names = self.blocks.block_of_name[block].features
            if len(tensors) != len(names):
                raise InputError(f"block {block} returns {len(tensors)} tensors, {len(names)} were traced: trace again")
            features.update(zip(names, map(_dead, tensors), strict=True))
            return feature

        inputs = {name: tensor.to(self.device) for name, tensor in self.model.example_inputs(rows).items()}
        with gated(self.model.module, self.names, note):
            self.model.forward(**inputs)
        return _DryRun(templates, features, {name: _dead(tensor) for name, tensor in inputs.items()})


class _GatedCall:
    """One Run: the gates of its graph, bound to its slots."""

    def __init__(
        self,
        backend: TorchBackend,
        computes: frozenset[str],
        dry: _DryRun,
        given: Mapping[str, torch.Tensor],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        self._backend, self._computes, self._dry, self._given, self._targets = backend, computes, dry, given, targets
        self._dtype = next(backend.model.module.parameters()).dtype
        network = {spec.name for spec in backend.blocks.inputs}
        only_prediction = targets.keys() <= {backend.blocks.prediction}
        self._is_plain = only_prediction and given.keys() <= network and computes >= set(backend.names)

    @torch.no_grad()
    def __call__(self) -> None:
        inputs = {name: self._value(name, dead) for name, dead in self._dry.inputs.items()}
        if self._is_plain:
            output = self._backend.compiled("", self._backend.model.forward)(**inputs)
        else:
            with gated(self._backend.model.module, self._backend.names, self._gate):
                output = self._backend.model.forward(**inputs)
        self._write(self._backend.blocks.prediction, output)

    def _gate(self, block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = block_input(args, kwargs)
        if block in self._computes:
            feature = self._backend.compiled(block, forward)(*args, **kwargs)
            self._keep(block, feature, entry)
            return feature
        residual = residual_name(block)
        if residual in self._given and entry is not None:
            tensors = [entry + self._given[residual].to(entry.dtype)]
        else:
            names = self._backend.blocks.block_of_name[block].features
            tensors = [self._value(name, self._dry.features[name]) for name in names]
        return self._dry.templates[block].rebuild(tensors)

    def _value(self, name: str, dead: torch.Tensor) -> torch.Tensor:
        """What the run gives under ``name``, or the stand-in for what it does not."""
        if name not in self._given:
            return dead
        given = self._given[name]
        # Copied: what comes after a block may write to its output in place.
        return given.to(self._dtype if given.is_floating_point() and name != TIMESTEP else given.dtype, copy=True)

    def _keep(self, block: str, feature: Any, entry: torch.Tensor | None) -> None:
        tensors, _ = flatten_feature(feature)
        for name, tensor in zip(self._backend.blocks.block_of_name[block].features, tensors, strict=True):
            self._write(name, tensor)
        if entry is not None and residual_name(block) in self._targets:
            self._write(residual_name(block), tensors[0] - entry)

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._targets:
            self._targets[name].copy_(tensor)


def _dead(tensor: torch.Tensor) -> torch.Tensor:
    """NaN (integers: 0) of the tensor's shape, in the memory of one element."""
    value = torch.nan if tensor.is_floating_point() else 0
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
