"""The half-precision variant of a bundle: a second set of graphs, one more weights file and their program.

It stands in the bundle beside the float32 graphs, each file under its name with ``fp16`` or ``bf16`` in it; the record
(``precision.fp16.json``) is written last. A bundle that was exported in half precision is its own variant, unless its
record keeps something in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.amend import amend_manifest, drop_records
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.disk import check_digest, path_inside, write_atomic
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import (
    load_block_graph,
    load_manifest,
    load_precision,
    load_program,
    save_block_graph,
    save_precision,
    save_program,
)
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, variant_name
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs.cut import cut_program, load_master
from dipgo_deploy.graphs.half_weights import save_half_weights, weight_bytes
from dipgo_deploy.graphs.precision import fixed_islands, half_blocks, half_graph
from dipgo_deploy.graphs.trace import MASTER_FILE, Trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, lower, shares_graphs
from dipgo_deploy.models.sampler_coefficients import read_sampler

__all__ = [
    "PRECISION_FILE",
    "Variant",
    "half_trace",
    "load_record",
    "load_variant",
    "write_record",
    "write_variant",
]

PRECISION_FILE = "precision.json"
"""Name of the record, of which the variant's is derived."""

_DOCUMENTS = ("program.json", "blocks.json", PRECISION_FILE)
"""Names of a variant's documents, of which its own are derived; the record is the last."""


@dataclass(frozen=True)
class Variant:
    """Program, blocks, graph files by name, master graph, weights file and record of a half-precision variant."""

    program: Program
    blocks: BlockGraph
    graphs: Mapping[str, Path]
    master: Path
    weights: Path
    record: PrecisionRecord


def write_variant(
    folder: Path,
    denoiser: Path,
    blocks: BlockGraph,
    schedule: Schedule,
    program: Program,
    record: PrecisionRecord,
    islands: Collection[str],
    source: Path | None = None,
) -> Variant:
    """Convert the master graph of the bundle in ``folder``, lower and cut it again, and write all that.

    ``program`` is the bundle's own, whose layout and sharing of graphs are kept. ``source`` is the folder of the master
    graph and weights in float32, of which ``blocks``, ``schedule`` and ``program`` are; None for ``denoiser`` itself.
    Raises GateError for a weight that the half precision cannot hold and no island reads, InputError for a file that
    cannot be written.
    """
    dtype = record.dtype
    weights, master = (denoiser / variant_name(name, dtype) for name in (WEIGHTS_FILE, MASTER_FILE))
    graphs = {name: denoiser / variant_name(f"{name}.onnx", dtype) for name in program.graph_of_name}
    documents = [folder / variant_name(name, dtype) for name in _DOCUMENTS]
    files = [weights, master, *graphs.values(), *documents]
    drop_records(folder, files)  # first: a manifest that records a missing file is refused
    documents[-1].unlink(missing_ok=True)
    halved = _convert(source or denoiser, blocks, dtype, islands, record.wide, master, weights)
    typed = replace(schedule, contract=replace(schedule.contract, dtype=dtype))
    options = LowerOptions(program.layout, share_graphs=shares_graphs(program, schedule, blocks))
    lowered = lower(typed, halved, read_sampler(schedule.contract.sampler), options)
    for name, content in cut_program(master, lowered, halved).items():
        write_atomic(graphs[name], content)
    save_program(documents[0], lowered)
    save_block_graph(documents[1], halved)
    save_precision(documents[-1], record)
    amend_manifest(folder, files)
    return Variant(lowered, halved, graphs, master, weights, record)


def half_trace(trace: Trace, dtype: HalfType, folder: Path) -> Trace:
    """A trace converted to ``dtype`` in ``folder``, for measuring: only what is never half stays in float32.

    Raises GateError for a weight that ``dtype`` cannot hold.
    """
    islands = fixed_islands(load_master(trace.master).graph, dtype)
    master, weights = folder / MASTER_FILE, folder / WEIGHTS_FILE
    return Trace(folder, _convert(trace.folder, trace.blocks, dtype, islands, (), master, weights))


def _convert(
    source: Path,
    blocks: BlockGraph,
    dtype: HalfType,
    islands: Collection[str],
    wide: Collection[str],
    master: Path,
    weights: Path,
) -> BlockGraph:
    """Write the master graph and the weights in the folder ``source`` in half precision; the blocks they then have."""
    model = load_master(source / MASTER_FILE)
    half_graph(model.graph, blocks.values, dtype, islands, wide)
    save_half_weights(model.graph, source / WEIGHTS_FILE, weights, dtype)
    write_atomic(master, ir.to_proto(model).SerializeToString())
    return half_blocks(blocks, dtype, wide, weight_bytes(model.graph))


def write_record(folder: Path, denoiser: Path, record: PrecisionRecord) -> None:
    """Write the record alone, of a bundle that was exported in half precision and is right as it is.

    An earlier variant of the same precision is removed.
    """
    ending = variant_name("*.*", record.dtype)
    documents = [folder / variant_name(name, record.dtype) for name in _DOCUMENTS]
    files = [*documents, *(path for path in denoiser.glob(ending) if not path.is_symlink())]
    drop_records(folder, files)
    for path in files:
        path.unlink(missing_ok=True)
    save_precision(documents[-1], record)
    amend_manifest(folder, documents[-1:])


def load_record(folder: Path, dtype: HalfType) -> PrecisionRecord:
    """What was found about a half precision of a bundle; InputError where nothing was, or it is damaged."""
    path = folder / variant_name(PRECISION_FILE, dtype)
    if not path.is_file():
        raise InputError(f"{folder} has no {dtype} variant: run dipgo-deploy build-engine on it with that precision")
    _check_recorded(folder, [path])
    return load_precision(path)


def load_variant(folder: Path, denoiser: Path, dtype: HalfType) -> Variant:
    """The variant as it stands in a bundle; InputError where there is none, it is damaged or its files unrecorded."""
    record = load_record(folder, dtype)
    documents = [folder / variant_name(name, dtype) for name in _DOCUMENTS]
    _check_recorded(folder, documents)
    program, blocks = load_program(documents[0]), load_block_graph(documents[1])
    home = denoiser.relative_to(folder).as_posix()
    graphs = {
        name: path_inside(folder, f"{home}/{variant_name(f'{name}.onnx', dtype)}") for name in program.graph_of_name
    }
    master, weights = (path_inside(folder, f"{home}/{variant_name(n, dtype)}") for n in (MASTER_FILE, WEIGHTS_FILE))
    _check_recorded(folder, [master, *graphs.values()])
    _check_recorded(folder, [weights], whole=False)
    return Variant(program, blocks, graphs, master, weights, record)


def _check_recorded(folder: Path, files: Iterable[Path], whole: bool = True) -> None:
    """InputError unless the manifest records each file, as it is: of size, and if ``whole`` of digest."""
    recorded = {record.path: record for record in load_manifest(folder / BUNDLE_FILE).files}
    for file in files:
        record = recorded.get(file.relative_to(folder).as_posix())
        if record is None:
            raise InputError(
                f"{folder / BUNDLE_FILE} has no digest of {file.name}: run dipgo-deploy build-engine again"
            )
        check_digest(file, record, whole)
