"""The behaviour of a float32 graph in half precision: ranges of its values, and the graph with rounded values.

ONNX Runtime on a CPU computes half precision in float32 and leaves out the roundings between nodes, so an overflow
inside a typed graph does not show. A rounded graph passes every stored value through the half precision. There an
overflow becomes infinite, as on a GPU. Inputs and outputs of a rounded graph stay float32, so that it can replace the
float32 graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.graphs.half_graph import HALF_TYPES, always_fp32_nodes, cast_node, is_float
from dipgo_deploy.graphs.links import read_tensor
from dipgo_deploy.graphs.pieces import nodes_of_pieces

__all__ = ["RANGE_SUFFIX", "HalfProbe", "add_ranges", "round_graph"]

RANGE_SUFFIX = ":range"
"""Suffix of the output that holds the largest magnitude of a value."""


class HalfProbe:
    """The float32 master graph of a bundle, and what half precision does to it. Nodes are named, not held."""

    def __init__(self, master: Path, blocks: BlockGraph, dtype: HalfType) -> None:
        self._path, self._blocks, self._dtype = master, blocks, dtype
        self._model = load_master(master)
        graph = self._model.graph
        self.always_fp32 = always_fp32_nodes(graph, dtype)
        pieces = nodes_of_pieces(graph, [str(value.name) for value in graph.outputs])
        self.pieces = tuple(tuple(str(node.name) for node in nodes) for nodes in pieces)
        outputs = {str(value.name) for value in graph.outputs}
        makers = {str(value.name): str(node.name) for node in graph for value in node.outputs}
        piece_of = {name: index for index, names in enumerate(self.pieces) for name in names}
        features = sorted((piece_of[makers[name]], name) for name in outputs if name in makers)
        self.features = tuple(name for _, name in features)
        """Outputs of the master graph in execution order."""
        self.piece_of_feature = {name: index for index, name in features}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(str(value.name) for value in self._model.graph.inputs)

    def block(self, piece: int) -> str:
        """Name of the block whose feature a piece gives. A piece without a feature has the name of its first value."""
        gives = sorted(name for name, index in self.piece_of_feature.items() if index == piece)
        blocks = [self._blocks.block_of_feature[name] for name in gives if name in self._blocks.block_of_feature]
        return (blocks or gives or [self.pieces[piece][0]])[0]

    def measured(self) -> bytes:
        """The master graph with every feature, and the range of every value (``:range``), as outputs."""
        model = load_master(self._path)
        features = list(model.graph.outputs)
        add_ranges(model.graph)
        model.graph.outputs.extend(features)
        return _bytes(model)

    def rounded(self, fallback: Collection[str], fp32_tensors: Collection[str]) -> bytes:
        """The master graph with rounded values.

        Args:
            fallback: names of the nodes that stay in float32.
            fp32_tensors: names of the features that stay float32.

        Returns:
            The graph, serialized.
        """
        model = load_master(self._path)
        round_graph(model.graph, self._blocks.values, self._dtype, fallback, fp32_tensors)
        return _bytes(model)

    def rounded_cut(self, graph: bytes, fallback: Collection[str], fp32_tensors: Collection[str]) -> bytes:
        """A graph that was cut from the master, with rounded values.

        Args:
            graph: the cut graph, serialized.
            fallback: names of the nodes that stay in float32.
            fp32_tensors: names of the features that stay float32.

        Returns:
            The graph, serialized.
        """
        model = ir.from_proto(onnx.load_model_from_string(graph))
        round_graph(model.graph, self._blocks.values, self._dtype, fallback, fp32_tensors)
        return _bytes(model)

    def around(self, values: Collection[str]) -> dict[int, tuple[str, ...]]:
        """Producers and readers of ``values`` by piece: the nodes that must be float32 for the values to be float32."""
        touching: dict[int, set[str]] = {}
        piece_of = {name: index for index, names in enumerate(self.pieces) for name in names}
        for node in self._model.graph:
            if any(str(v.name) in values for v in (*node.inputs, *node.outputs) if v is not None):
                touching.setdefault(piece_of[str(node.name)], set()).add(str(node.name))
        order = {name: place for place, name in enumerate(str(node.name) for node in self._model.graph)}
        return {piece: tuple(sorted(names, key=order.__getitem__)) for piece, names in sorted(touching.items())}

    def weights_beyond(self, largest: float) -> Mapping[str, float]:
        """Weights whose magnitude exceeds ``largest``, with that magnitude.

        Infinite weights are left out. They are masks, and half precision has infinity too.
        """
        sizes = {}
        for name, value in self._model.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size:
                sizes[name] = float(abs(read_tensor(value.const_value)).max())
        return {name: size for name, size in sizes.items() if largest < size < float("inf")}


def _bytes(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def round_graph(
    graph: ir.Graph,
    cuts: Collection[str],
    dtype: HalfType,
    fallback: Collection[str],
    fp32_tensors: Collection[str] = (),
) -> None:
    """Round in place every value that `half_graph` would store in half precision, weights included.

    Args:
        graph: a graph in float32 whose values all have a type.
        cuts: names of values at which the graph may be cut.
        dtype: the half precision.
        fallback: names of the nodes that stay in float32.
        fp32_tensors: names of cut values that stay float32.
    """
    keep = {*fp32_tensors, TIMESTEP}
    crossing = {*cuts, *(str(value.name) for value in graph.outputs)}
    weights: dict[ir.Value, ir.Value] = {}
    nodes = list(graph)
    stored = [value for value in graph.inputs if is_float(value) and value.name not in keep]
    for node in nodes:
        half = node.name not in fallback
        for index, value in enumerate(node.inputs):
            if half and value is not None and is_float(value) and value.is_initializer():
                if value not in weights:
                    weights[value] = _rounded(graph, value, dtype, first=True)
                node.replace_input_with(index, weights[value])
        outputs = [value for value in node.outputs if is_float(value) and value.name not in keep]
        stored += [value for value in outputs if half or str(value.name) in crossing]
    for value in stored:
        _round_uses(graph, value, dtype)


def _round_uses(graph: ir.Graph, value: ir.Value, dtype: HalfType) -> None:
    """Let all readers read the rounded value. A graph output keeps its name."""
    uses = list(value.uses())
    rounded = _rounded(graph, value, dtype)
    for node, index in uses:
        node.replace_input_with(index, rounded)
    if value.is_graph_output():
        name, value.name = value.name, f"{value.name}:exact"
        rounded.name = name
        graph.outputs[:] = [rounded if output is value else output for output in graph.outputs]


def _rounded(graph: ir.Graph, value: ir.Value, dtype: HalfType, first: bool = False) -> ir.Value:
    half = cast_node(value, HALF_TYPES[dtype], f"{value.name}:half")
    back = cast_node(half.outputs[0], ir.DataType.FLOAT, f"{value.name}:rounded")
    producer = value.producer()
    if first or producer is None:
        graph.insert_before(graph[0], [half, back])
    else:
        graph.insert_after(producer, [half, back])
    return back.outputs[0]


def add_ranges(graph: ir.Graph) -> None:
    """Replace the graph's outputs: one scalar per float value that a node makes, its largest magnitude."""
    graph.outputs.clear()
    for node in list(graph):
        for value in filter(is_float, node.outputs):
            size = ir.Node("", "Abs", [value])
            largest = ir.Node("", "ReduceMax", size.outputs, [ir.AttrInt64("keepdims", 0)])
            for inserted, suffix in ((size, ":size"), (largest, RANGE_SUFFIX)):
                inserted.outputs[0].name, inserted.outputs[0].type = f"{value.name}{suffix}", value.type
            size.outputs[0].shape, largest.outputs[0].shape = value.shape, ir.Shape([])
            graph.insert_after(node, [size, largest])
            graph.outputs.append(largest.outputs[0])
