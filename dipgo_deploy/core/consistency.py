"""Whether a document refers only to what it holds: names, indices, shapes and dtypes of blocks.json and program.json.

A file may be well-formed and yet name a tensor that it does not describe. Whoever loads one checks it here, so that
everything after may look names up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.tensors import DTYPE_BYTES, Dim, TensorSpec

__all__ = ["check_block_graph", "check_program"]

_SYMBOLS = ("batch", "rows")
_FILE_NAME = re.compile(r"(?!\.)[\w.-]+", re.ASCII)


def check_block_graph(graph: BlockGraph, what: str) -> None:
    """InputError, beginning with ``what``, unless every name in ``graph`` is described and each piece only looks back.

    1. The last block is the prediction; values have shapes and dtypes that exist.
    2. Features, residual inputs and what pieces read and give are values; the weights of pieces are weights.
    3. Pieces are numbered in order and read network inputs or what earlier ones gave.
    """
    if not graph.blocks or graph.blocks[-1].name != PREDICTION or len(graph.blocks[-1].features) != 1:
        raise InputError(f"{what}: the last block must be '{PREDICTION}', with one feature: trace the model again")
    _check_specs((*graph.inputs, *graph.values.values()), what)
    known = {spec.name for spec in graph.inputs}
    for index, piece in enumerate(graph.pieces):
        if piece.index != index:
            raise InputError(f"{what}: piece {index} is numbered {piece.index}: trace the model again")
        _check_known(piece.weights, graph.weights, f"{what}: piece {index} has weight")
        _check_known(piece.reads, known, f"{what}: piece {index} reads")
        _check_known(piece.gives, graph.values, f"{what}: piece {index} gives")
        known.update(piece.gives)
    for block in graph.blocks:
        needed = block.features if block.residual_input is None else (*block.features, block.residual_input)
        _check_known(needed, known, f"{what}: block {block.name} names")


def check_program(program: Program, what: str) -> None:
    """InputError, beginning with ``what``, unless slots have shapes and dtypes that exist and runs name graphs.

    A graph's name is that of its files, so it must be one plain file name: it could lead out of the bundle otherwise.
    """
    for graph in program.graphs:
        if not _FILE_NAME.fullmatch(graph.name):
            raise InputError(f"{what}: a graph is named {graph.name!r}, which is no plain file name: export anew")
    _check_specs(program.slots, what)
    for run in program.runs:
        _check_known((run.graph,), program.graph_of_name, f"{what}: step {run.step} runs")


def _check_known(names: Iterable[str], known: Collection[str], start: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{start} {name!r}, which the file does not describe: make it anew")


def _check_specs(specs: Iterable[TensorSpec], what: str) -> None:
    for spec in specs:
        if spec.dtype not in DTYPE_BYTES or not all(map(_is_size, spec.shape)):
            raise InputError(f"{what}: {spec.name} has no usable shape or dtype ({spec.shape}, {spec.dtype}): mend it")


def _is_size(dim: Dim) -> bool:
    if isinstance(dim, int):
        return dim >= 0
    return all(factor in _SYMBOLS or factor.isdecimal() for factor in dim.split("*"))
