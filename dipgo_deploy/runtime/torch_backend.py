"""The PyTorch backend: a program in layout ``subnets`` on the live model, without graph files.

A run computes the blocks of its graph and copies their features into the slots that the run writes. A block whose
feature or residual the run reads returns that value. Every other block is dead and returns NaN, so a block that was
wrongly taken for dead shows in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import residual_name
from dipgo_deploy.core.program import TIMESTEP, Program, Run
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime.backend import BoundCall
from dipgo_deploy.runtime.memory import TorchMemory
from dipgo_deploy.supernet.backup import FeatureTemplate, block_input, flatten_feature
from dipgo_deploy.supernet.network import Denoiser
from dipgo_deploy.supernet.surgery import gated, lock_of

__all__ = ["ExampleDenoiser", "TorchBackend"]


class ExampleDenoiser(Denoiser, Protocol):
    """A network with example inputs."""

    def example_inputs(self, rows: int) -> Mapping[str, torch.Tensor]:
        """Inputs by name, in their shapes and dtypes for a number of rows."""
        ...


@dataclass(frozen=True)
class _DryRun:
    """What one forward shows: how blocks nest their features, and NaN of features and inputs in their dtypes."""

    templates: Mapping[str, FeatureTemplate]
    features: Mapping[str, torch.Tensor]
    inputs: Mapping[str, torch.Tensor]

    def at(self, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> _DryRun:
        """The same with the shapes that ``specs`` have at ``sizes``."""
        features, inputs = (
            {name: _dead(tensor, specs[name].resolve(sizes)) for name, tensor in tensors.items()}
            for tensors in (self.features, self.inputs)
        )
        return _DryRun(self.templates, features, inputs)


class TorchBackend(TorchMemory):
    """Runs the graphs of a program on the live model, in the model's dtype.

    Args:
        model: the network. Its module is moved to ``device`` and is not changed otherwise.
        blocks: the blocks that the program was lowered from.
        program: the program to run.
        device: ``cpu`` or ``cuda``.
        dtype: of every floating slot. None takes the program's. ``float64`` suits a float64 model, to compare exactly.
        compiler: a backend of torch.compile, such as ``inductor``. None runs eagerly. A call that computes all blocks
            and keeps none of their features is compiled whole. Other calls compile block by block.

    Raises:
        UsageError: the layout is not ``subnets``, or the device or dtype is unknown.
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
                f"backend torch runs layout subnets, the program has {program.layout}: lower it with layout subnets, "
                "or use backend onnxruntime"
            )
        self.model, self.blocks, self._graphs = model, blocks, program.graph_of_name
        self.names = [name for name in blocks.block_names if name != PREDICTION]
        modules = dict(model.module.named_modules())
        if missing := [name for name in self.names if name not in modules]:
            raise InputError(f"{type(model.module).__name__} has no block {missing[0]}: use the model that was traced")
        model.module.to(device)
        self._compiler = compiler
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._dry_runs: dict[tuple[tuple[str, int], ...], _DryRun] = {}

    def bind_run(self, run: Run, buffers: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend."""
        if run.graph not in self._graphs:
            raise InputError(f"the program runs graph {run.graph!r}, which it does not describe: re-export")
        computes = {*self._graphs[run.graph].computes, PREDICTION}
        self._check_names(run, computes)
        rows, key = sizes["rows"], tuple(sorted(sizes.items()))
        if key not in self._dry_runs:
            self._dry_runs[key] = self._dry_run.at(self.blocks.values, sizes)
        sources = {name: buffers[slot] for name, slot in run.inputs}
        sources[TIMESTEP] = torch.full((rows,), run.timestep, dtype=torch.float32, device=self.device)
        targets = {name: buffers[slot] for name, slot in run.outputs}
        return _GatedCall(self, frozenset(computes), self._dry_runs[key], sources, targets)

    def compiled(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a forward once, if the backend has a compiler.

        Args:
            name: of the block, or "" for the whole network.
            forward: of that block.

        Returns:
            The compiled forward, or ``forward``.
        """
        if self._compiler is None:
            return forward
        if name not in self._compiled:
            self._compiled[name] = torch.compile(forward, backend=self._compiler, dynamic=False)
        return self._compiled[name]

    def _check_names(self, run: Run, computes: set[str]) -> None:
        stored = {b.name: {*b.features, residual_name(b.name)} for b in self.blocks.blocks}
        known = {spec.name for spec in self.blocks.inputs}.union(*stored.values())
        if unknown := [name for name, _ in run.inputs if name not in known]:
            raise InputError(f"graph {run.graph} reads {unknown[0]}, which the traced model does not have: re-export")
        computed = set().union(*(stored[block] for block in computes))
        if dead := [name for name, _ in run.outputs if name not in computed]:
            raise InputError(f"graph {run.graph} writes {dead[0]}, but does not compute it: re-export")

    @cached_property
    @torch.no_grad()
    def _dry_run(self) -> _DryRun:
        templates: dict[str, FeatureTemplate] = {}
        features: dict[str, torch.Tensor] = {}

        def record(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            feature = forward(*args, **kwargs)
            tensors, templates[block] = flatten_feature(feature)
            names = self.blocks.block_of_name[block].features
            if len(tensors) != len(names):
                raise InputError(
                    f"block {block} returns {len(tensors)} tensors, but {len(names)} were traced: trace again"
                )
            features.update(zip(names, tensors, strict=True))
            return feature

        inputs = {name: tensor.to(self.device) for name, tensor in self.model.example_inputs(1).items()}
        with lock_of(self.model.module), gated(self.model.module, self.names, record):
            self.model.forward(**inputs)
        return _DryRun(templates, features, inputs)


class _GatedCall:
    """A graph call: the gates of the graph's blocks, bound to the slots that the call reads and writes."""

    def __init__(
        self,
        backend: TorchBackend,
        computes: frozenset[str],
        dry: _DryRun,
        sources: Mapping[str, torch.Tensor],
        targets: Mapping[str, torch.Tensor],
    ) -> None:
        self._backend, self._computes, self._dry = backend, computes, dry
        self._sources, self._targets = sources, targets
        network = {spec.name for spec in backend.blocks.inputs}
        only_prediction = targets.keys() <= {backend.blocks.prediction}
        # A plain call needs no surgery, so torch.compile can take the network as a whole.
        self._is_plain = only_prediction and sources.keys() <= network and computes >= set(backend.names)

    @torch.no_grad()
    def __call__(self) -> None:
        inputs = {name: self._value(name, dead) for name, dead in self._dry.inputs.items()}
        module = self._backend.model.module
        gates: Any = nullcontext() if self._is_plain else gated(module, self._backend.names, self._gate)
        forward = self._backend.model.forward
        with lock_of(module), gates:
            output = (self._backend.compiled("", forward) if self._is_plain else forward)(**inputs)
        self._write(self._backend.blocks.prediction, output)

    def _gate(self, block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entry = block_input(args, kwargs)
        if block in self._computes:
            feature = self._backend.compiled(block, forward)(*args, **kwargs)
            self._keep(block, feature, entry)
            return feature
        residual = residual_name(block)
        if residual in self._sources and entry is not None:
            tensors = [entry + self._sources[residual].to(entry.dtype)]
        else:
            names = self._backend.blocks.block_of_name[block].features
            tensors = [self._value(name, self._dry.features[name]) for name in names]
        return self._dry.templates[block].rebuild(tensors)

    def _value(self, name: str, dead: torch.Tensor) -> torch.Tensor:
        """The value that the run reads under a name, or NaN if the run does not read it."""
        if name not in self._sources:
            return dead
        source = self._sources[name]
        # Copied, because the network may write to a block's output in place.
        return source.to(dead.dtype if source.is_floating_point() and name != TIMESTEP else source.dtype, copy=True)

    def _keep(self, block: str, feature: Any, entry: torch.Tensor | None) -> None:
        tensors, _ = flatten_feature(feature)
        for name, tensor in zip(self._backend.blocks.block_of_name[block].features, tensors, strict=True):
            self._write(name, tensor)
        if entry is not None and residual_name(block) in self._targets:
            self._write(residual_name(block), tensors[0] - entry)

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._targets:
            self._targets[name].copy_(tensor)


def _dead(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """NaN (integers: 0) in a shape and the tensor's dtype, in the memory of one element."""
    value = torch.nan if tensor.is_floating_point() else 0
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device).expand(*shape)
