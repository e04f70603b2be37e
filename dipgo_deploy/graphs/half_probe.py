"""What the island search asks of the graphs: ranges and features of the float32 master, and rounded graphs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.graphs.half_graph import always_fp32_nodes
from dipgo_deploy.graphs.pieces import nodes_of_pieces
from dipgo_deploy.graphs.rounding import add_ranges, round_graph

__all__ = ["HalfProbe"]


class HalfProbe:
    """The float32 master graph of a bundle, asked about its behaviour in half precision. Nodes go by their names."""

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
        given = sorted((piece_of[makers[name]], name) for name in outputs if name in makers)
        self.features = tuple(name for _, name in given)
        """Outputs of the master graph in execution order."""
        self.piece_of_feature = {name: index for index, name in given}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(str(value.name) for value in self._model.graph.inputs)

    def block(self, piece: int) -> str:
        """The block whose feature a piece gives, else the first value that it gives."""
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
        """The master graph, rounded to half precision outside the ``fallback`` nodes."""
        model = load_master(self._path)
        round_graph(model.graph, self._blocks.values, self._dtype, fallback, fp32_tensors)
        return _bytes(model)

    def rounded_cut(self, graph: bytes, fallback: Collection[str], fp32_tensors: Collection[str]) -> bytes:
        """A graph that was cut from the master, rounded the same way."""
        model = ir.from_proto(onnx.load_model_from_string(graph))
        round_graph(model.graph, self._blocks.values, self._dtype, fallback, fp32_tensors)
        return _bytes(model)

    def around(self, values: Collection[str]) -> dict[int, tuple[str, ...]]:
        """Makers and readers of ``values``, by piece: nodes that must be in float32 for the values to be."""
        found: dict[int, set[str]] = {}
        piece_of = {name: index for index, names in enumerate(self.pieces) for name in names}
        for node in self._model.graph:
            if any(str(v.name) in values for v in (*node.inputs, *node.outputs) if v is not None):
                found.setdefault(piece_of[str(node.name)], set()).add(str(node.name))
        order = {name: place for place, name in enumerate(str(node.name) for node in self._model.graph)}
        return {piece: tuple(sorted(names, key=order.__getitem__)) for piece, names in sorted(found.items())}

    def weights_beyond(self, largest: float) -> Mapping[str, float]:
        """Weights whose magnitude exceeds ``largest``, with it; infinite ones are masks, which half has too."""
        sizes = {}
        for name, value in self._model.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size:
                sizes[name] = float(abs(value.const_value.numpy()).max())
        return {name: size for name, size in sizes.items() if largest < size < float("inf")}


def _bytes(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString()
    return content
