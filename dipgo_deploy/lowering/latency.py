"""Estimated time of a program, from a latency table and the features that the table was fitted on.

1. Features of a network call: its pieces, a constant, the MiB that cross its border, and the MiB of lost weights.
2. Weights of a graph are lost when the calls since the graph last ran touched more bytes than the cache holds. They are
   always lost at the first call of a trajectory.
3. Features of a combination: a constant, and the MiB of its terms and its target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.latency import LatencyTable, check_table
from dipgo_deploy.core.program import Combine, Graph, Program
from dipgo_deploy.core.tensors import MIB, TensorSpec

__all__ = ["Features", "combine_features", "lost_mib", "predict_ms", "reuse_distances", "run_features"]

Features = NDArray[np.float64]
"""One row per call. Columns of runs: one per piece, then 1 and border MiB. Columns of combinations: 1 and MiB."""


def predict_ms(program: Program, blocks: BlockGraph, table: LatencyTable) -> float:
    """Estimate the time of one run with the batch of the table.

    Args:
        program: the program.
        blocks: the blocks of the model.
        table: costs of the same model.

    Returns:
        Milliseconds.

    Raises:
        InputError: the table belongs to another model.
    """
    check_table(table, blocks)
    runs = run_features(program, blocks, table.batch) @ np.array(
        [*table.pieces_ms, table.call_ms, table.border_ms_per_mib]
    )
    lost = lost_mib(program, table.cache_bytes) * table.cold_ms_per_mib
    combines = combine_features(program, table.batch) @ np.array([table.combine_ms, table.combine_ms_per_mib])
    return float(runs.sum() + lost.sum() + combines.sum()) * table.whole_over_calls


def run_features(program: Program, blocks: BlockGraph, batch: int) -> Features:
    """Features of every network call, except lost MiB, which depend on a cache size (`lost_mib`).

    Args:
        program: the program.
        blocks: the blocks of the model.
        batch: images per call.

    Returns:
        One row per call.
    """
    sizes, specs = program.contract.sizes(batch), {slot.name: slot for slot in program.slots}
    rows = np.zeros((len(program.runs), len(blocks.pieces) + 2))
    for row, run in zip(rows, program.runs, strict=True):
        row[list(program.graph_of_name[run.graph].pieces)] = 1
        row[-2] = 1
        row[-1] = _mib((slot for _, slot in (*run.inputs, *run.outputs)), specs, sizes)
    return rows


def lost_mib(program: Program, cache_bytes: int) -> Features:
    """MiB of weights that every network call fetches again.

    Args:
        program: the program.
        cache_bytes: weight bytes that the caches hold.

    Returns:
        One number per call.
    """
    weights = np.array([program.graph_of_name[run.graph].weight_bytes for run in program.runs]) / MIB
    lost: Features = weights * (np.array(reuse_distances(program)) > cache_bytes)
    return lost


def reuse_distances(program: Program) -> list[float]:
    """Weight bytes that were touched since the graph of each call last began. Infinite at the first call of a graph."""
    began: dict[str, int] = {}
    touched, distances = 0, []
    for run in program.runs:
        graph: Graph = program.graph_of_name[run.graph]
        distances.append(touched - began[run.graph] if run.graph in began else inf)
        began[run.graph] = touched
        touched += graph.weight_bytes
    return distances


def combine_features(program: Program, batch: int) -> Features:
    """Features of every combination.

    Args:
        program: the program.
        batch: images per call.

    Returns:
        One row per combination.
    """
    sizes, specs = program.contract.sizes(batch), {slot.name: slot for slot in program.slots}
    calls = [call for call in program.calls if isinstance(call, Combine)]
    rows = np.ones((len(calls), 2))
    for row, call in zip(rows, calls, strict=True):
        row[1] = _mib([call.target, *(term.slot for term in call.terms)], specs, sizes)
    return rows


def _mib(slots: Iterator[str] | list[str], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> float:
    return sum(specs[slot].nbytes(sizes) for slot in slots) / MIB
