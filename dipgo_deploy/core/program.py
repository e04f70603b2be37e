"""Program: the straight-line list of calls that makes one batch of images, over named slots.

There are three calls and no branches: ``Run`` (a graph), ``Combine`` (a linear combination of slots) and ``Sample`` (a
step of the scheduler itself, for samplers that are not linear). Values whose lifetimes do not meet share a slot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from dipgo_deploy.core.blocks import Kind, Macs, check_known
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import TensorSpec, check_specs

__all__ = [
    "TIMESTEP",
    "Call",
    "Combine",
    "Graph",
    "Half",
    "Layout",
    "Program",
    "Run",
    "Sample",
    "Term",
    "check_program",
    "memory_bytes",
]

TIMESTEP = "timestep"
"""Name of the network input that no slot holds: each Run feeds its own constant, float32 of shape (rows,)."""

Layout = Literal["subnets", "segments"]
"""``subnets``: steps with equal computed blocks and reads share a graph. ``segments``: each weight is in one graph."""

Half = Literal["all", "first", "second"]
"""Which rows of a slot a term uses: under concatenated guidance the first half is unconditional."""


@dataclass(frozen=True)
class Graph:
    """One graph to cut from the master graph and run.

    A graph that reads ``<block>:residual`` adds the residual to the input of the block. A graph that writes it
    subtracts.

    Attributes:
        name: name of the graph and of its files.
        expert: the model that the graph is cut from.
        computes: the blocks that the graph computes.
        inputs: the network inputs of the graph.
        reads: all other inputs: stored names, or values of other segments.
        writes: all outputs.
        pieces: indices into ``BlockGraph.pieces``.
        macs: multiply-accumulates per row.
        weight_bytes: bytes of the graph's weights.
    """

    name: str
    expert: str
    computes: tuple[str, ...]
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    pieces: tuple[int, ...]
    macs: Macs
    weight_bytes: int


@dataclass(frozen=True)
class Run:
    """Run a graph. ``inputs`` and ``outputs`` pair tensor names of the graph with slots. The timestep is a constant."""

    graph: str
    step: int
    timestep: float
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    op: Literal["run"] = "run"


@dataclass(frozen=True)
class Term:
    """``(constant + guided * scale) * slot`` with ``scale`` the guidance scale of the run.

    ``half`` selects rows. ``channels`` keeps only the first channels, for models with a learned sigma. None keeps all.
    """

    slot: str
    constant: float
    guided: float = 0.0
    half: Half = "all"
    channels: int | None = None


@dataclass(frozen=True)
class Combine:
    """Write the sum of ``terms``, accumulated in float32, to ``target``, ``copies`` times along the batch."""

    target: str
    terms: tuple[Term, ...]
    step: int
    copies: int = 1
    op: Literal["combine"] = "combine"


@dataclass(frozen=True)
class Sample:
    """Let the diffusers scheduler make its step ``step`` from a latent and a guided output."""

    step: int
    latent: str
    output: str
    target: str
    op: Literal["sample"] = "sample"


Call = Run | Combine | Sample
"""One entry of a program."""


@dataclass(frozen=True, repr=False)
class Program:
    """Calls over slots. The caller fills ``noise`` and ``conditioning``; ``image`` is the result.

    Attributes:
        contract, granularity, kind: as in the schedule.
        layout: how the graphs were chosen.
        graphs, slots, calls: the graphs, the slots, and the calls in order.
        noise, image: slots of the first noise and of the result.
        conditioning: pairs of a network input and its slot.
        full_macs: multiply-accumulates of the full run per image.
        share_graphs: whether steps with the same compute row share a graph. A limit on the number of graphs requires
            that. False in programs of format 1.0.
    """

    contract: Contract
    granularity: str
    kind: Kind
    layout: Layout
    graphs: tuple[Graph, ...]
    slots: tuple[TensorSpec, ...]
    calls: tuple[Call, ...]
    noise: str
    image: str
    conditioning: tuple[tuple[str, str], ...]
    full_macs: Macs = field(default=Macs(0, 0))
    share_graphs: bool = False

    def __repr__(self) -> str:
        return (
            f"Program({self.contract.model_class}, {self.contract.sampler.class_name}, {self.nfe} of "
            f"{self.contract.sampler.calls} calls, layout {self.layout}, {len(self.graphs)} graphs, "
            f"{len(self.slots)} slots)"
        )

    @cached_property
    def graph_of_name(self) -> Mapping[str, Graph]:
        """Each graph by its name."""
        return {graph.name: graph for graph in self.graphs}

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The network calls, in order."""
        return tuple(call for call in self.calls if isinstance(call, Run))

    @property
    def nfe(self) -> int:
        """Network evaluations per image: steps in which any graph runs."""
        return len({run.step for run in self.runs})

    @property
    def macs(self) -> Macs:
        """MACs of a whole trajectory per image, guidance rows included."""
        total = Macs(0, 0)
        for run in self.runs:
            total = total + self.graph_of_name[run.graph].macs
        factor = self.contract.rows_per_image
        return Macs(total.papers * factor, total.full * factor)


def memory_bytes(program: Program, batch: int, sizes: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """Bytes that are known before anything runs.

    Args:
        program: the program.
        batch: images of a call.
        sizes: values of free sizes by symbol. The others have their usual values.

    Returns:
        ``slots``, and ``weights`` summed over graphs.
    """
    values = program.contract.sizes(batch, sizes)
    return {
        "slots": sum(slot.nbytes(values) for slot in program.slots),
        "weights": sum(graph.weight_bytes for graph in program.graphs),
    }


_FILE_NAME = re.compile(r"(?!\.)[\w.-]+", re.ASCII)


def check_program(program: Program, source: str) -> None:
    """Check that slots have usable shapes and dtypes and that runs name described graphs.

    A graph's name is also the name of its files. A name with a path in it could lead out of the bundle.

    Args:
        program: the program to check.
        source: the file name that begins each message.

    Raises:
        InputError: a slot, a graph name or a run is not usable.
    """
    for graph in program.graphs:
        if not _FILE_NAME.fullmatch(graph.name):
            raise InputError(f"{source}: a graph is named {graph.name!r}, which is not a plain file name: re-export")
    check_specs(program.slots, source)
    for run in program.runs:
        check_known((run.graph,), program.graph_of_name, f"{source}: step {run.step} runs")
