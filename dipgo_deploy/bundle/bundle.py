"""Bundle: the documents, graphs and model of a bundle folder, and programs compiled from its master graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.schedule import MAIN_EXPERT, Schedule, in_order
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs import cut_program
from dipgo_deploy.graphs.activations import master_specs
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.untrusted import load_graphs
from dipgo_deploy.lowering import LowerOptions, StepProgram, begin_at, lower, lower_steps
from dipgo_deploy.models import PRESETS, LoadedModel, load_model
from dipgo_deploy.models.input_shapes import with_inputs
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.schedulers import own_config
from dipgo_deploy.models.sources.python import with_weights

__all__ = ["Bundle", "CompiledProgram"]


@dataclass(frozen=True)
class CompiledProgram:
    """A program with the serialized graphs that it runs, by name."""

    program: Program
    graphs: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True, repr=False)
class Bundle:
    """A bundle whose manifest, documents and file sizes have been checked.

    Attributes:
        folder: the bundle's folder.
        manifest: contract, file records and where things are.
        schedule: what is computed at which step.
        program: the calls that the schedule was lowered to.
        blocks: the blocks of the model that was traced.
        own_model: the exported model, where it cannot be loaded from the bundle alone.
    """

    folder: Path
    manifest: BundleManifest
    schedule: Schedule
    program: Program
    blocks: BlockGraph
    own_model: LoadedModel | None = None

    def __repr__(self) -> str:
        sampler = self.contract.sampler
        return (
            f"Bundle({str(self.folder)!r}, {self.contract.model_class}, {sampler.class_name}, "
            f"{self.program.nfe} of {sampler.calls} calls, layout {self.program.layout}, {self.contract.dtype})"
        )

    @property
    def contract(self) -> Contract:
        """What the bundle was made for."""
        return self.manifest.contract

    @property
    def weights(self) -> Path:
        """The weights file that all graphs share."""
        return path_inside(self.folder, self.manifest.weights[MAIN_EXPERT])

    @property
    def denoiser(self) -> Path:
        """The folder of graphs and weights."""
        return path_inside(self.folder, self.manifest.denoiser)

    @cached_property
    def compiled(self) -> CompiledProgram:
        """The bundle's own program and graphs, checked as untrusted input."""
        files = [(name, path_inside(self.folder, path)) for name, path in self.manifest.graphs.items()]
        return CompiledProgram(self.program, load_graphs(files, self.weights))

    @cached_property
    def model(self) -> LoadedModel:
        """The PyTorch model with the bundle's own weights, and with the latent and text lengths that were traced.

        It makes conditioning, and only ``live_model`` computes what was traced. Raises InputError if no preset for the
        class ships and ``own_model`` is None, or for another model.
        """
        contract = self.contract
        if self.own_model is not None:
            model = with_weights(self.own_model.as_dtype(contract.dtype), self.weights, contract.model_digest)
        elif contract.model_class in PRESETS:
            model = self._load_model()
            if not (self.folder / "scheduler").is_dir():  # a copy of the denoiser alone
                model = replace(model, scheduler_config=own_config(contract.sampler), assumptions=())
        else:
            raise InputError(
                f"{self.folder} holds a {contract.model_class}, for which no preset ships: pass the exported model "
                "as own_model"
            )
        if contract.tokens is None:  # Bundles of format 1.1 and before have one text length.
            text = next((spec.shape[1] for spec in self.blocks.inputs if spec.name == "encoder_hidden_states"), None)
            model = replace(model, text_tokens=text if isinstance(text, int) else None)
        usual = contract.sizes(1)
        inputs = [replace(spec, shape=spec.resolve(usual)) for spec in self.blocks.inputs]
        return with_inputs(model.for_contract(contract), inputs)

    def _load_model(self) -> LoadedModel:
        """The model as its files hold it. Weights of a changed module may have names that its class does not know."""
        try:
            return load_model(self.folder, dtype=self.contract.dtype)
        except InputError:
            if not self.manifest.behaviour:
                raise
        raise self._asks_for_model()

    def _asks_for_model(self) -> InputError:
        return InputError(
            f"{self.folder} was made from a live {self.contract.model_class} with behaviour of its own "
            f"({self.manifest.behaviour}), which its files do not hold: pass that model as own_model"
        )

    @cached_property
    def live_model(self) -> LoadedModel:
        """The PyTorch model, to be run: its forward is the one that was traced.

        Raises InputError if the exported module had behaviour of its own that config and weights do not hold, or if
        this process changes the behaviour of the class.
        """
        model, own = self.model, self.manifest.behaviour
        if self.own_model is not None or not (own or model.behaviour) or model.has_digest(self.contract.model_digest):
            return model
        if own:
            raise self._asks_for_model()
        raise InputError(
            f"a {self.contract.model_class} does something else in this process ({model.behaviour.summary}) than in "
            f"{self.folder}: undo that change, or export the bundle again"
        )

    @cached_property
    def _master(self) -> Path:
        """The master graph, checked as untrusted input."""
        path = self.denoiser / MASTER_FILE
        load_graphs([(MASTER_FILE, path)], self.weights)
        return path

    @cached_property
    def value_specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of every value in the master graph."""
        return master_specs(self._master, self.blocks.sizes)

    def compile(self, schedule: Schedule, layout: Layout = "subnets", fold: bool = True) -> CompiledProgram:
        """Lower and cut another schedule of the same model in memory.

        Args:
            schedule: the schedule. Its sampler may differ from the bundle's.
            layout: ``subnets`` or ``segments``.
            fold: whether chains of combinations become one.

        Returns:
            The program and its graphs.

        Raises:
            InputError: the schedule does not fit the model.
        """
        schedule = in_order(schedule, self.blocks.block_names)
        program = lower(schedule, self.blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout, fold=fold))
        return CompiledProgram(program, cut_program(self._master, program, self.blocks))

    def lower_steps(
        self, first: int = 0, layout: Layout | None = None, blocks: BlockGraph | None = None
    ) -> StepProgram:
        """Lower the bundle's schedule from step ``first`` on, for a caller that runs the sampler itself.

        A run that begins late computes everything in its first step.

        Args:
            first: the step at which the run begins.
            layout: None takes the bundle's own.
            blocks: those of the half-precision graphs. None takes the bundle's own.

        Returns:
            The calls of every step, see ``lowering.lower_steps``.
        """
        own = self.program.layout
        # Graphs are shared only where the result must have the bundle's own graphs.
        share = self.program.share_graphs and first == 0 and layout in (None, own)
        options = LowerOptions(layout or own, share_graphs=share)
        return lower_steps(begin_at(self.schedule, first), blocks or self.blocks, options)

    def graphs_for(self, program: Program) -> dict[str, bytes]:
        """The graphs of ``program``: the bundle's own graphs if equal, otherwise cut from the master graph."""
        if program.graphs == self.program.graphs:
            return self.compiled.graphs
        return cut_program(self._master, program, self.blocks)
