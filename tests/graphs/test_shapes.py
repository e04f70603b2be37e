"""Shapes as multiples of the batch, and shape arithmetic that no longer depends on features."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.shapes import infer_specs, make_shapes_constant
from tests.graphs.onnx_text import model_from_text, op_types, open_session, run_session

# Heads split by a Reshape to a computed shape, as an exporter writes it.
HEADS = """
agraph (float[rows, 4, 6] x) => (float[n, h, s, d] y)
<int64[1] minus = {-1}, int64[1] two = {2}, int64[1] three = {3}>
{
    rows_of_x = Shape<start = 0, end = 1>(x)
    target = Concat<axis = 0>(rows_of_x, minus, two, three)
    hidden = Tanh(x)
    split = Reshape(hidden, target)
    y = Transpose<perm = [0, 2, 1, 3]>(split)
}
"""

# The batch is folded into another axis, then expanded from a feature's shape.
FOLDED = """
agraph (float[rows, 4, 6] x) => (float[m, 6] flat, float[a, b, c] wide)
<int64[2] shape = {-1, 6}, int64[3] six = {1, 1, 6}>
{
    feature = Tanh(x)
    flat = Reshape(feature, shape)
    long = Shape<start = 0, end = 1>(flat)
    one = Constant<value_ints = [1]>()
    target = Concat<axis = 0>(one, long, one)
    zero = Constant<value = float[1] {2.0}>()
    wide = Expand(zero, target)
}
"""


def test_sizes_are_numbers_or_multiples_of_the_batch() -> None:
    specs = infer_specs(model_from_text(HEADS))
    assert specs["x"] == TensorSpec("x", ("rows", 4, 6), "float32")
    assert specs["y"] == TensorSpec("y", ("rows", 2, 4, 3), "float32")
    assert specs["rows_of_x"] == TensorSpec("rows_of_x", (1,), "int64")
    specs = infer_specs(model_from_text(FOLDED))
    assert specs["flat"].shape == ("4*rows", 6) and specs["wide"].shape == (1, "4*rows", 1)


@pytest.mark.parametrize("text", [HEADS, FOLDED])
def test_constant_shapes_leave_every_batch_as_it_was(text: str) -> None:
    before, after = model_from_text(text), model_from_text(text)
    make_shapes_constant(after, infer_specs(after))
    sessions = [open_session(ir.to_proto(model).SerializeToString(), None) for model in (before, after)]
    for rows in (1, 2, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 4, 6)).astype(np.float32)
        expected, found = (run_session(session, {"x": x}) for session in sessions)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_no_shape_is_taken_of_a_feature() -> None:
    heads, folded = model_from_text(HEADS), model_from_text(FOLDED)
    for model in (heads, folded):
        make_shapes_constant(model, infer_specs(model))
        assert all(node.inputs[0] is model.graph.inputs[0] for node in model.graph if node.op_type == "Shape")
    assert op_types(heads) == ["Tanh", "Reshape", "Transpose"]
    assert [tuple(t.const_value.numpy()) for t in heads.graph.initializers.values()] == [(-1, 4, 2, 3)]


def test_a_size_that_is_no_multiple_of_the_batch_is_refused() -> None:
    text = """
    agraph (float[rows, 3] x, float[1, 3] y) => (float[n, 3] z)
    {
        z = Concat<axis = 0>(x, y)
    }
    """
    model = model_from_text(text, y=np.zeros((1, 3), np.float32))
    with pytest.raises(
        InputError, match="a size of z is 3 for 2 rows and 4 for 3 rows, not a multiple of the batch: the model"
    ):
        infer_specs(model)


def test_a_size_that_depends_on_values_is_refused() -> None:
    text = """
    agraph (float[rows] x) => (int64[1, n] y)
    {
        y = NonZero(x)
    }
    """
    with pytest.raises(InputError, match="the shape of y cannot be inferred: the model cannot run with a dynamic"):
        infer_specs(model_from_text(text))
