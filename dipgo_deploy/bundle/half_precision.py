"""The half-precision graphs of a float32 bundle: a second set of graphs, a second weights file and their program.

These files are next to the float32 files, with ``fp16`` or ``bf16`` in their names. ``precision.fp16.json``, the
record, is written last. A bundle that was exported in half precision has no second set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.manifest import add_records, drop_records
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.digests import check_digest
from dipgo_deploy.core.disk import path_inside, write_atomic
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import (
    load_block_graph,
    load_manifest,
    load_precision,
    load_program,
    save_block_graph,
    save_precision,
    save_program,
)
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, half_precision_name
from dipgo_deploy.core.program import Program
from dipgo_deploy.graphs.cut import MASTER_FILE, cut_program
from dipgo_deploy.graphs.half_weights import convert_master
from dipgo_deploy.graphs.untrusted import load_graphs
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models.sampler_coefficients import read_sampler

__all__ = ["GraphSource", "graph_source", "load_half_precision", "write_half_precision"]

_PRECISION_FILE = "precision.json"
_DOCUMENTS = ("program.json", "blocks.json", _PRECISION_FILE)
"""Documents that half-precision graphs have in their own version. The record comes last."""


@dataclass(frozen=True)
class GraphSource:
    """Graphs in one precision, as engines are built from them and run.

    Attributes:
        program: the calls over the graphs.
        blocks: the blocks in that precision.
        graphs: the ONNX file of each graph by its name.
        weights: the weights file behind the graphs.
        record: the result of the search for fallback nodes. None for the precision that the bundle was exported in.
    """

    program: Program
    blocks: BlockGraph
    graphs: Mapping[str, Path]
    weights: Path
    record: PrecisionRecord | None = None


def graph_source(bundle: Bundle, precision: str | None) -> GraphSource:
    """The graphs of ``bundle`` in a precision, checked as untrusted input.

    Args:
        bundle: the bundle.
        precision: ``float16``, ``bfloat16``, or None for the precision that the bundle was exported in.

    Returns:
        The graphs in the bundle's folder.

    Raises:
        InputError: the bundle has no graphs in that precision yet.
        UsageError: the bundle was exported in another half precision.
    """
    own = bundle.contract.dtype
    if precision in (None, own):
        graphs = {name: path_inside(bundle.folder, path) for name, path in bundle.manifest.graphs.items()}
        return GraphSource(bundle.program, bundle.blocks, graphs, bundle.weights)
    check_convertible(bundle, precision)
    half: HalfType = "float16" if precision == "float16" else "bfloat16"
    source = load_half_precision(bundle.folder, bundle.denoiser, half)
    load_graphs(source.graphs.items(), source.weights)
    return source


def check_convertible(bundle: Bundle, precision: str | None) -> None:
    """Raise UsageError if ``bundle`` was exported in half precision and another precision is requested."""
    own = bundle.contract.dtype
    if own != "float32" and precision not in (None, own):
        raise UsageError(f"the bundle is in {own}, {precision} is requested: export it in float32, or keep {own}")


def write_half_precision(bundle: Bundle, record: PrecisionRecord, fallback: Collection[str]) -> GraphSource:
    """Convert the master graph of ``bundle``, lower and cut it again, and write the result into the bundle's folder.

    Args:
        bundle: a bundle in float32.
        record: the result of the search for fallback nodes.
        fallback: names of all nodes that stay in float32.

    Returns:
        The half-precision graphs.

    Raises:
        GateError: a weight is beyond the half precision and no fallback node reads it in float32.
        InputError: a file cannot be written.
    """
    folder, denoiser, dtype = bundle.folder, bundle.denoiser, record.dtype
    weights, master = (denoiser / half_precision_name(name, dtype) for name in (WEIGHTS_FILE, MASTER_FILE))
    graphs = {name: denoiser / half_precision_name(f"{name}.onnx", dtype) for name in bundle.program.graph_of_name}
    documents = [folder / half_precision_name(name, dtype) for name in _DOCUMENTS]
    files = [weights, master, *graphs.values(), *documents]
    # Records go first, because a bundle whose manifest records a missing file does not load.
    drop_records(folder, files)
    documents[-1].unlink(missing_ok=True)
    blocks = convert_master(denoiser, bundle.blocks, dtype, fallback, record.fp32_tensors, master, weights)
    program = lower_half_precision(bundle, blocks, dtype)
    for name, content in cut_program(master, program, blocks).items():
        write_atomic(graphs[name], content)
    save_program(documents[0], program)
    save_block_graph(documents[1], blocks)
    save_precision(documents[-1], record)
    add_records(folder, files)
    return GraphSource(program, blocks, graphs, weights, record)


def lower_half_precision(bundle: Bundle, blocks: BlockGraph, dtype: HalfType) -> Program:
    """The bundle's schedule as a program over ``blocks`` in half precision, with the bundle's layout and graphs."""
    schedule = replace(bundle.schedule, contract=replace(bundle.schedule.contract, dtype=dtype))
    options = LowerOptions(bundle.program.layout, share_graphs=bundle.program.share_graphs)
    return lower(schedule, blocks, read_sampler(schedule.contract.sampler), options)


def load_half_precision(folder: Path, denoiser: Path, dtype: HalfType) -> GraphSource:
    """Load the half-precision graphs of a bundle.

    Args:
        folder: the bundle.
        denoiser: the folder of graphs and weights inside the bundle.
        dtype: the half precision.

    Returns:
        Program, blocks, graphs and record.

    Raises:
        InputError: there are none, they are damaged, or the manifest does not record them.
    """
    documents = [folder / half_precision_name(name, dtype) for name in _DOCUMENTS]
    if not documents[-1].is_file():
        raise InputError(f"{folder} has no {dtype} graphs: build engines of it in that precision first")
    _check_recorded(folder, documents)
    record, program, blocks = load_precision(documents[-1]), load_program(documents[0]), load_block_graph(documents[1])
    home = denoiser.relative_to(folder).as_posix()
    graphs = {
        name: path_inside(folder, f"{home}/{half_precision_name(f'{name}.onnx', dtype)}")
        for name in program.graph_of_name
    }
    master, weights = (
        path_inside(folder, f"{home}/{half_precision_name(name, dtype)}") for name in (MASTER_FILE, WEIGHTS_FILE)
    )
    _check_recorded(folder, [master, *graphs.values()])
    _check_recorded(folder, [weights], remember=True)
    return GraphSource(program, blocks, graphs, weights, record)


def _check_recorded(folder: Path, files: Iterable[Path], remember: bool = False) -> None:
    """Raise InputError unless the manifest records each file with its digest, which may be a remembered one."""
    recorded = {record.path: record for record in load_manifest(folder / BUNDLE_FILE).files}
    for file in files:
        record = recorded.get(file.relative_to(folder).as_posix())
        if record is None:
            raise InputError(f"{folder / BUNDLE_FILE} has no digest of {file.name}: build the engines again")
        check_digest(file, record, remember=remember)
