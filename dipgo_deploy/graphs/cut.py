"""Cut: extract a SubNet or segment from the master graph, by the names of its inputs and outputs.

1. Every read becomes a graph input. Nodes that only the reads needed are removed, with their weights.
2. Reading ``<block>:residual`` replaces the block's output by input + residual. Writing ``<block>:residual`` adds a
   node that subtracts.
3. Outputs are in the order of ``graph.writes``. Weights stay in the weights file of the master graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.liveness import residual_name
from dipgo_deploy.core.program import Graph, Program

__all__ = ["MASTER_FILE", "cut", "cut_program", "load_master"]

MASTER_FILE = "master.onnx"
"""Name of the master graph, in a trace and in the denoiser's folder of a bundle."""


def load_master(path: Path) -> ir.Model:
    """Read a master graph without its weights. Raises InputError if the graph cannot be parsed."""
    try:
        return ir.load(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: trace the model again") from None
    except Exception as error:
        raise InputError(f"{path} is not a readable ONNX graph ({first_line(error)}): trace the model again") from None


def cut_program(master: Path, program: Program, blocks: BlockGraph) -> dict[str, bytes]:
    """Cut every graph of a program.

    Args:
        master: the file of the master graph.
        program: the program.
        blocks: the blocks of the master graph.

    Returns:
        Serialized ONNX models by graph name.

    Raises:
        InputError: a graph does not fit the master graph.
    """
    model = load_master(master)
    return {graph.name: cut(model, graph, blocks) for graph in program.graphs}


def cut(model: ir.Model, graph: Graph, blocks: BlockGraph) -> bytes:
    """Cut one graph. A cut takes a fraction of a second for weights of any size.

    Args:
        model: the master graph. It is not changed.
        graph: names of inputs, reads and writes.
        blocks: the blocks of the master graph.

    Returns:
        A serialized ONNX model that refers to its weights.

    Raises:
        InputError: ``graph`` names a value that the master graph lacks, or lacks an input that it needs.
    """
    whole = model.graph
    if any(_residual_block(blocks, name) for name in (*graph.reads, *graph.writes)):
        whole = whole.clone(allow_outer_scope_values=False)  # Residuals add nodes, and the master must stay as it is.
        whole.outputs.clear()
    values = dict(ir.convenience.create_value_mapping(whole))
    try:
        inputs = [values[name] for name in graph.inputs]
        for name in graph.reads:
            block = _residual_block(blocks, name)
            inputs.append(values[name] if block is None else _add_residual(whole, values, block, name))
        outputs = [_output(whole, values, blocks, name) for name in graph.writes]
        part = ir.convenience.extract(whole, inputs, outputs)
    except (KeyError, ValueError) as error:
        raise InputError(f"{graph.name} does not fit the traced graph ({error}): trace the model again") from None
    part.name = graph.name
    for value in part.outputs:
        value.metadata_props.clear()
    try:
        proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
    except ir.serde.SerdeError:
        raise InputError(f"{graph.name} cannot be written as ONNX: the master graph is damaged, trace again") from None
    # Extraction collects values in sets. Sorted by name, equal cuts have equal bytes and so equal engine digests.
    for entries in (proto.graph.initializer, proto.graph.value_info):
        entries.sort(key=lambda entry: entry.name)
    return proto.SerializeToString(deterministic=True)


def _residual_block(blocks: BlockGraph, name: str) -> tuple[str, str] | None:
    """Input and output value of the block that ``name`` is the residual of, None for other names."""
    for block in blocks.blocks:
        if block.residual_input is not None and name == residual_name(block.name):
            return block.residual_input, block.features[0]
    return None


def _add_residual(graph: ir.Graph, values: dict[str, ir.Value], ends: tuple[str, str], name: str) -> ir.Value:
    """Let all readers of the block's output read input + ``name``, and update ``values``."""
    entry, output = (values[end] for end in ends)
    stored = ir.Value(name=name, shape=output.shape, type=output.type)
    graph.inputs.append(stored)
    total = _insert(graph, output, "Add", entry, stored, f"{name}:sum")
    ir.convenience.replace_all_uses_with(output, total)
    values[ends[1]] = total
    return stored


def _output(graph: ir.Graph, values: Mapping[str, ir.Value], blocks: BlockGraph, name: str) -> ir.Value:
    ends = _residual_block(blocks, name)
    if ends is None:
        return values[name]
    entry, output = (values[end] for end in ends)
    return _insert(graph, output, "Sub", output, entry, name)


def _insert(graph: ir.Graph, after: ir.Value, op: str, first: ir.Value, second: ir.Value, name: str) -> ir.Value:
    node = ir.Node("", op, [first, second])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, after.shape, after.type
    producer = after.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return node.outputs[0]
