"""A bundle opened for use: its documents, its graphs, its model, and programs compiled from its master graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.schedule import MAIN_EXPERT, Schedule
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs import cut_program
from dipgo_deploy.graphs.activations import master_specs
from dipgo_deploy.graphs.trace import MASTER_FILE
from dipgo_deploy.graphs.untrusted import load_graphs
from dipgo_deploy.lowering import LowerOptions, StepProgram, begin_at, lower, lower_steps, shares_graphs
from dipgo_deploy.models import PRESETS, LoadedModel, load_model
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.sources.python import with_weights
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend

if TYPE_CHECKING:
    from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

__all__ = ["BackendName", "Compiled", "LoadedBundle", "onnxruntime_class"]

BackendName = Literal["onnxruntime", "torch", "tensorrt", "rtx"]
"""What runs a bundle; ``rtx`` is TensorRT for RTX."""


@dataclass(frozen=True)
class Compiled:
    """A program with the serialized graphs it runs."""

    program: Program
    graphs: dict[str, bytes]


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle whose manifest, documents and file sizes have been checked.

    ``own_model`` is the model that was exported, where it cannot be loaded from the bundle alone.
    """

    folder: Path
    manifest: BundleManifest
    schedule: Schedule
    program: Program
    blocks: BlockGraph
    own_model: LoadedModel | None = None

    @property
    def weights(self) -> Path:
        """The weights file behind all graphs."""
        return path_inside(self.folder, self.manifest.weights[MAIN_EXPERT])

    @property
    def denoiser(self) -> Path:
        """The folder of graphs and weights."""
        return path_inside(self.folder, self.manifest.denoiser)

    @cached_property
    def compiled(self) -> Compiled:
        """The bundle's own program and graphs, checked as untrusted input."""
        files = [(name, path_inside(self.folder, path)) for name, path in self.manifest.graphs.items()]
        return Compiled(self.program, load_graphs(files, self.weights))

    @cached_property
    def model(self) -> LoadedModel:
        """The PyTorch model, loaded from the bundle's own weights file, with the latent and text that were traced.

        Raises InputError where no preset for its class ships and ``own_model`` is None, or it is another model.
        """
        contract = self.manifest.contract
        if self.own_model is not None:
            model = with_weights(self.own_model.as_dtype(contract.dtype), self.weights, contract.model_digest)
        elif contract.model_class in PRESETS:
            model = load_model(self.folder, dtype=contract.dtype)
        else:
            raise InputError(
                f"{self.folder} holds a {contract.model_class}, for which no preset ships: say which model was "
                "exported, with --model package.module:attribute"
            )
        text = next((spec.shape[1] for spec in self.blocks.inputs if spec.name == "encoder_hidden_states"), None)
        return replace(model, latent_shape=contract.latent_shape, text_tokens=text if isinstance(text, int) else None)

    @cached_property
    def _master(self) -> Path:
        """The master graph, checked as untrusted input."""
        path = self.denoiser / MASTER_FILE
        load_graphs([(MASTER_FILE, path)], self.weights)
        return path

    @cached_property
    def value_specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of every value inside the model's graph."""
        return master_specs(self._master)

    def compile(self, schedule: Schedule, layout: Layout = "subnets", fold: bool = True) -> Compiled:
        """Lower and cut another schedule for the same model, in memory. The sampler may differ."""
        program = lower(schedule, self.blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout, fold=fold))
        return Compiled(program, cut_program(self._master, program, self.blocks))

    def lower_steps(
        self, first: int = 0, layout: Layout | None = None, blocks: BlockGraph | None = None
    ) -> StepProgram:
        """The bundle's schedule from step ``first`` on, for a caller that samples itself, in its own layout or another.

        See ``lowering.lower_steps``; a run that begins late computes everything in its first step. ``blocks`` are those
        of a half-precision variant.
        """
        graph = blocks or self.blocks
        own = self.program.layout
        shares = first == 0 and layout in (None, own) and shares_graphs(self.program, self.schedule, self.blocks)
        return lower_steps(begin_at(self.schedule, first), graph, LowerOptions(layout or own, share_graphs=shares))

    def graphs_for(self, program: Program) -> dict[str, bytes]:
        """The graphs of a program: the bundle's own where they are the same ones, else cut from the master graph."""
        if program.graphs == self.program.graphs:
            return self.compiled.graphs
        return cut_program(self._master, program, self.blocks)

    def runner(
        self,
        compiled: Compiled,
        backend: BackendName = "onnxruntime",
        *,
        threads: int | None = None,
        device: str = "cpu",
        cuda_graph: bool = False,
        compiler: str | None = None,
    ) -> Backend:
        """The backend that runs a compiled program; several sessions may share one.

        Raises UsageError for an unknown backend, MissingError for a missing device or library.
        """
        if backend == "torch":
            return TorchBackend(self.model, self.blocks, compiled.program, device=device, compiler=compiler)
        if backend != "onnxruntime":
            raise UsageError(f"backend {backend!r} runs no graphs that are compiled here: choose onnxruntime or torch")
        return onnxruntime_class()(
            compiled.graphs, self.denoiser, threads=threads, device=device, cuda_graph=cuda_graph
        )

    def session(
        self,
        batch: int,
        *,
        backend: BackendName = "onnxruntime",
        guidance_scale: float = 1.0,
        threads: int | None = None,
        device: str = "cpu",
        compiled: Compiled | None = None,
        cuda_graph: bool = False,
        compiler: str | None = None,
        gpu_memory: int | None = None,
        trust_engines: bool = False,
    ) -> Session:
        """Bind the bundle's program (or another ``compiled`` one) to a backend, for ``batch`` images.

        ``cuda_graph`` replays calls as CUDA graphs; ``compiler`` is a backend of torch.compile, for ``torch``;
        ``gpu_memory`` bytes limit engines, slots and activations, and ``trust_engines`` loads engines that were not
        built here, for ``tensorrt`` and ``rtx``.

        Raises UsageError for an unknown backend, a batch outside the contract or an option of another backend,
        MissingError for a missing device or library, InputError where engines are missing or do not fit.
        """
        _check_options(backend, compiler, gpu_memory)
        allowed = self.manifest.contract.batch
        if not allowed.min <= batch <= allowed.max:
            raise UsageError(
                f"a batch of {batch} is outside the contract's {allowed.min} to {allowed.max} images: ask for that"
            )
        if backend in ("tensorrt", "rtx"):
            from dipgo_deploy.runtime.opened import engine_backend

            if compiled is not None:
                raise UsageError(f"backend {backend} runs a bundle's own engines: export the schedule, and build them")
            program, engines = engine_backend(self, backend, batch, gpu_memory=gpu_memory, trust=trust_engines)
            return Session(program, engines, batch, guidance_scale, cuda_graph=cuda_graph)
        own = Compiled(self._torch_program(), {}) if backend == "torch" else None
        chosen = compiled or own or self.compiled
        recorded = cuda_graph and backend == "onnxruntime"  # which makes graphs of single calls by itself
        runner = self.runner(chosen, backend, threads=threads, device=device, cuda_graph=recorded, compiler=compiler)
        return Session(chosen.program, runner, batch, guidance_scale, cuda_graph=cuda_graph and not recorded)

    def _torch_program(self) -> Program:
        """The subnets program, which alone the live model can run."""
        return self.program if self.program.layout == "subnets" else self.compile(self.schedule).program


def _check_options(backend: str, compiler: str | None, gpu_memory: int | None) -> None:
    if backend not in get_args(BackendName):
        raise UsageError(f"backend {backend!r} is unknown: choose {', '.join(get_args(BackendName))}")
    if compiler is not None and backend != "torch":
        raise UsageError(f"--compile belongs to backend torch, found {backend}: leave it out")
    if gpu_memory is not None and backend not in ("tensorrt", "rtx"):
        raise UsageError(f"--gpu-memory belongs to backends tensorrt and rtx, found {backend}: leave it out")


def onnxruntime_class() -> type[OnnxRuntimeBackend]:
    """The backend's class; onnxruntime is an extra, without which the torch backend still works."""
    try:
        from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported ({error}): pip install 'dipgo-deploy[cpu]'") from None
    return OnnxRuntimeBackend
