"""Shape arithmetic that no longer depends on features, for every value of the free sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.graphs.constant_shapes import make_shapes_constant
from dipgo_deploy.graphs.shapes import infer_specs
from tests.graphs.onnx_text import FOLDED, HEADS, model_from_text, op_types, open_session, run_session

TOKENS = {"tokens": SizeRange(1, 7, 1024)}

# Text split into heads, keys transposed as the exporter does.
TEXT = """
agraph (float[rows, 4, 6] x, float[rows, tokens, 6] text) => (float[n, 2, 3, t] keys)
<int64[1] minus = {-1}, int64[1] two = {2}, int64[1] three = {3}>
{
    hidden = Tanh(text)
    rows_of_x = Shape<start = 0, end = 1>(x)
    tokens_of_text = Shape<start = 1, end = 2>(hidden)
    target = Concat<axis = 0>(rows_of_x, tokens_of_text, two, three)
    split = Reshape(hidden, target)
    heads = Transpose<perm = [0, 2, 1, 3]>(split)
    merged = Concat<axis = 0>(minus, tokens_of_text, three)
    flat = Reshape(heads, merged)
    turned = Transpose<perm = [0, 2, 1]>(flat)
    unmerged = Concat<axis = 0>(rows_of_x, two, three, tokens_of_text)
    keys = Reshape(turned, unmerged)
}
"""

# A joint sequence split again, and a table as long as the text, read by two nodes.
JOINT = """
agraph (float[rows, 4, 6] x, float[rows, tokens, 6] text)
    => (float[r, t, 6] first, float[r, 4, 6] second, float[t, 6] one, float[t, 6] two)
<int64[1] four = {4}, int64[1] six = {6}, float[1] zero = {0.5}>
{
    joint = Concat<axis = 1>(text, x)
    tokens_of_text = Shape<start = 1, end = 2>(text)
    parts = Concat<axis = 0>(tokens_of_text, four)
    first, second = Split<axis = 1>(joint, parts)
    table = Concat<axis = 0>(tokens_of_text, six)
    one = Expand(zero, table)
    half = Mul(zero, zero)
    two = Expand(half, table)
}
"""


@pytest.mark.parametrize("text", [HEADS, FOLDED, TEXT, JOINT])
def test_constant_shapes_leave_every_size_as_it_was(text: str) -> None:
    before, after = model_from_text(text), model_from_text(text)
    make_shapes_constant(after, infer_specs(after, TOKENS))
    sessions = [open_session(ir.to_proto(model).SerializeToString(), None) for model in (before, after)]
    for rows, tokens in ((1, 1), (2, 7), (5, 30)):
        draw = np.random.default_rng(rows).standard_normal
        feed = {"x": draw((rows, 4, 6)).astype(np.float32), "text": draw((rows, tokens, 6)).astype(np.float32)}
        expected, found = (run_session(session, feed) for session in sessions)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_no_shape_is_taken_of_a_feature() -> None:
    heads, _, text, joint = models = [model_from_text(text) for text in (HEADS, FOLDED, TEXT, JOINT)]
    for model in models:
        make_shapes_constant(model, infer_specs(model, TOKENS))
        assert all(node.inputs[0] in model.graph.inputs for node in model.graph if node.op_type == "Shape")
    assert op_types(heads) == ["Tanh", "Reshape", "Transpose"]
    assert [tuple(t.const_value.numpy()) for t in heads.graph.initializers.values()] == [(-1, 4, 2, 3)]
    assert op_types(text) == ["Tanh", "Reshape", "Transpose", "Transpose"]
    assert [tuple(t.const_value.numpy()) for t in text.graph.initializers.values()] == [(0, 0, 2, 3)]
    assert op_types(joint).count("Slice") == 2 and "Split" not in op_types(joint)


def test_every_reader_has_its_own_shape_arithmetic() -> None:
    model = model_from_text(JOINT)
    make_shapes_constant(model, infer_specs(model, TOKENS))
    readers = [node for node in model.graph if node.op_type == "Expand"]
    targets = [node.inputs[1].producer() for node in readers]
    assert len({*targets}) == len(readers) == 2
    assert len({target.inputs[0].producer() for target in targets}) == op_types(model).count("Shape") == 2
