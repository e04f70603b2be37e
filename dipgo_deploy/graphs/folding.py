"""Weights that an engine holds in part, because the builder computes what reads nothing but weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.fusion import fed_nodes

__all__ = ["folded_values"]


def folded_values(content: bytes, specs: Mapping[str, TensorSpec]) -> int:
    """Values that an engine of a serialized graph does not hold, because it holds a smaller result of them."""
    graph = ir.from_proto(onnx.load_model_from_string(content)).graph
    fed = set(fed_nodes(graph))
    sources: dict[ir.Value, list[int]] = defaultdict(list)
    for value in graph.initializers.values():
        result, size = _result(value, fed), _size(value.shape)
        if result is not value and size is not None:
            sources[result].append(size)
    results = {result: _size(spec.shape) for result in sources if (spec := specs.get(str(result.name))) is not None}
    return sum(max(sum(sources[result]) - size, 0) for result, size in results.items() if size is not None)


def _result(value: ir.Value, fed: set[ir.Node]) -> ir.Value:
    """What a chain of nodes makes of it that no input feeds and nothing else reads in between; itself without one."""
    while len(value.uses()) == 1 and (reader := value.uses()[0][0]) not in fed and len(reader.outputs) == 1:
        value = reader.outputs[0]
    return value


def _size(shape: Iterable[object] | None) -> int | None:
    """Values of a shape; None where it is open or unknown."""
    axes = None if shape is None else list(shape)
    return None if axes is None or not all(isinstance(axis, int) for axis in axes) else prod(axes)  # type: ignore[arg-type]
