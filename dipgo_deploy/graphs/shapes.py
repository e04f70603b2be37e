"""Shapes of every value of a graph, as sums of products of symbols.

1. ONNX shape inference runs at two values of every symbol of the inputs, in all combinations. Integers that follow from
   the shapes of inputs are computed first, because inference does not know the values of every integer. Where shapes
   stay unknown, integers that follow from the shapes found so far are computed, and inference runs again.
2. Every size is fitted by a sum of products of symbols, which must also hold at a third value of every symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
from onnx.reference import ReferenceEvaluator  # noqa: TID251 - the home of onnx

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import FREE_SIZES, ROWS, Dim, SizeRange, TensorSpec

__all__ = ["ARITHMETIC", "infer_specs"]

ARITHMETIC = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Reshape", "Slice",
     "Squeeze", "Sub", "Unsqueeze"}
)  # fmt: skip
"""Operators of shape arithmetic, besides Shape itself."""

_MOST_INTEGERS = 64
"""Largest number of elements of a value that counts as shape arithmetic."""


_ROWS = SizeRange(2, 2, 64)
"""Rows at which shapes are inferred. With 1 row, a size of 1 could be a number or the batch."""

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)

Terms = Mapping[tuple[str, ...], Fraction]
"""A sum of products: the coefficient of every product of symbols. The empty product stands for a number."""


def infer_specs(model: ir.Model, sizes: Mapping[str, SizeRange] | None = None) -> dict[str, TensorSpec]:
    """Shape and dtype of every value.

    Args:
        model: the graph. Free axes of its inputs are named by their symbols.
        sizes: ranges of the symbols other than ``rows``.

    Returns:
        Specs by the names of the values.

    Raises:
        InputError: a size cannot be inferred, or is not a sum of products of symbols.
    """
    proto = ir.to_proto(model)
    dims = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim}
    symbols = [symbol for symbol in (ROWS, *FREE_SIZES) if symbol in dims]
    samples = {symbol: _samples((sizes or {}).get(symbol, _ROWS)) for symbol in symbols}
    corners = [
        _infer_at(proto, {s: samples[s][index] for s, index in zip(symbols, corner, strict=True)})
        for corner in product((0, 1), repeat=len(symbols))
    ]
    third = {symbol: samples[symbol][2] for symbol in symbols}
    elsewhere = _infer_at(proto, third)
    specs = {}
    for name, (dtype, shape) in elsewhere.items():
        shapes = [corner[name][1] for corner in corners]
        if {len(other) for other in shapes} != {len(shape)}:
            raise InputError(f"value {name} changes its rank with {' or '.join(symbols)}: fix the size, or the model")
        fitted = (_fit(values, symbols, samples) for values in zip(*shapes, strict=True))
        dims_of_value = tuple(_dim(name, terms, size, third) for terms, size in zip(fitted, shape, strict=True))
        specs[name] = TensorSpec(name, dims_of_value, dtype)
    return specs


def _samples(size: SizeRange) -> tuple[int, int, int]:
    """Three values of a symbol, or two where the range has no more. Sizes of 1 would broadcast."""
    first = min(max(size.min, 2 * size.step), size.max - size.step)
    return first, first + size.step, min(first + 3 * size.step, size.max)


def _infer_at(proto: onnx.ModelProto, values: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for dim in (dim for value in fixed.graph.input for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param:
            dim.dim_value = values[dim.dim_param]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    integers = _put_integers(fixed.graph, {v.name: _known_shape(v) or () for v in fixed.graph.input})
    while True:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
        values_of_graph = (*inferred.value_info, *inferred.input, *inferred.output)
        shapes = {value.name: shape for value in values_of_graph if (shape := _known_shape(value)) is not None}
        unknown = [value.name for value in values_of_graph if value.name not in shapes]
        if not unknown:
            break
        more = _put_integers(fixed.graph, shapes)
        if not more:
            free = " and ".join("batch" if symbol == ROWS else symbol for symbol in values)
            raise InputError(
                f"the shape of {unknown[0]} cannot be inferred: the model cannot run with a dynamic {free}"
            )
        integers |= more
    kinds = {value.name: value.type.tensor_type.elem_type for value in values_of_graph}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(kind).name for name, kind in kinds.items()}
    return {**{name: (dtypes[name], shape) for name, shape in shapes.items()}, **integers}


def _known_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """The shape of a value in numbers. None if it is not known."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _put_integers(
    graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Replace integers that follow from known shapes by initializers.

    Args:
        graph: changed in place.
        shapes: in numbers, of the values whose shapes are known.

    Returns:
        Dtype and shape of every integer that was replaced.
    """
    small = (t for t in graph.initializer if t.data_type in _INTEGERS and np.prod(t.dims) <= _MOST_INTEGERS)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small}
    known: dict[str, np.ndarray] = {}
    kept = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names[0] in shapes:
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            known[node.output[0]] = np.array(shapes[names[0]][bounds.get("start", 0) : bounds.get("end")], np.int64)
        elif node.op_type in ARITHMETIC and set(names) & known.keys() and set(names) <= known.keys() | constants.keys():
            feeds = {name: known.get(name, constants.get(name)) for name in names}
            known[node.output[0]] = ReferenceEvaluator(node).run(None, feeds)[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in known.items())
    return {name: (array.dtype.name, array.shape) for name, array in known.items()}


def _fit(values: Sequence[int], symbols: Sequence[str], samples: Mapping[str, Sequence[int]]) -> Terms:
    """The sum of products with these values at the corners, in the order of ``itertools.product``."""
    if len(set(values)) == 1:
        return {(): Fraction(values[0])}
    symbol, rest, half = symbols[0], symbols[1:], len(values) // 2
    low, high = samples[symbol][:2]
    first, second = _fit(values[:half], rest, samples), _fit(values[half:], rest, samples)
    terms = {}
    for symbols_of_term in {**first, **second}:
        start = first.get(symbols_of_term, Fraction(0))
        slope = (second.get(symbols_of_term, Fraction(0)) - start) / (high - low)
        terms[symbols_of_term], terms[symbol, *symbols_of_term] = start - low * slope, slope
    return {symbols_of_term: factor for symbols_of_term, factor in terms.items() if factor}


def _dim(name: str, terms: Terms, size: int, values: Mapping[str, int]) -> Dim:
    """The size that ``terms`` describe, checked to be ``size`` at ``values``."""
    if sum((factor * _product(symbols, values) for symbols, factor in terms.items()), Fraction(0)) != size:
        raise InputError(
            f"a size of {name} is not a sum of products of {', '.join(values)}: fix the size, or the model"
        )
    text = "+".join(_term(symbols, terms[symbols]) for symbols in sorted(terms, key=lambda s: (-len(s), s)))
    if len({ROWS in symbols for symbols in terms}) > 1:
        raise InputError(
            f"a size of {name} is {text}, not a multiple of the batch: the model cannot run with a dynamic batch"
        )
    return text if any(terms) else size


def _product(symbols: Sequence[str], values: Mapping[str, int]) -> int:
    return int(np.prod([values[symbol] for symbol in symbols], dtype=np.int64))


def _term(symbols: tuple[str, ...], factor: Fraction) -> str:
    number = (str(factor.numerator),) if factor.numerator != 1 or not symbols else ()
    return "*".join((*number, *symbols)) + (f"/{factor.denominator}" if factor.denominator != 1 else "")
