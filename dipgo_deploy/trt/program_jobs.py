"""From a program to engine jobs: one for each graph, for one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import cache_folder
from dipgo_deploy.core.engine import engine_folder
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.job import BuildFlags, EngineJob, graph_tensors, profile_of
from dipgo_deploy.trt.target import Target

__all__ = ["Machine", "program_jobs"]


@dataclass(frozen=True)
class Machine:
    """The machine that engines are built for.

    Attributes:
        target: the library.
        gpus: architectures such as ``sm89``.
        batch: images of a call.
        flags: how the library builds.
        sizes: ranges of free sizes by symbol. Sizes that are left out have the contract's ranges.
    """

    target: Target
    gpus: tuple[str, ...]
    batch: BatchRange
    flags: BuildFlags
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder of the engines for this machine."""
        return engine_folder(self.target.name, self.target.version, "+".join(self.gpus))


def program_jobs(
    program: Program, graphs: Mapping[str, Path], weights_digest: str, machine: Machine, folder: Path
) -> list[EngineJob]:
    """An engine job for every graph of a program.

    Args:
        program: the program.
        graphs: the ONNX file of each graph.
        weights_digest: sha256 of the weights file behind the graphs.
        machine: the machine to build for.
        folder: the folder of the engines.

    Returns:
        The jobs, in the order of the program's graphs.
    """
    contract, batch, tensors = program.contract, machine.batch, graph_tensors(program)
    sizes = {**contract.ranges, **machine.sizes}
    return [
        EngineJob(
            graph=graph.name,
            onnx=str(graphs[graph.name]),
            folder=str(folder),
            timing_cache=str(cache_folder() / "engines" / f"{machine.folder}.timing"),
            target=machine.target.name,
            version=machine.target.version,
            gpus=machine.gpus,
            precision=contract.dtype,
            flags=machine.flags,
            batch=BatchRange(batch.opt, batch.opt, batch.opt) if machine.flags.static else batch,
            profile={
                tensor: profile_of(contract, batch, sizes, tensors[graph.name][tensor])
                for tensor in (*graph.inputs, *graph.reads)
            },
            dtypes={tensor: spec.dtype for tensor, spec in tensors[graph.name].items()},
            graph_digest=graph_digest(graphs[graph.name].read_bytes()),
            weights_digest=weights_digest,
            weight_bytes=graph.weight_bytes,
        )
        for graph in program.graphs
    ]
