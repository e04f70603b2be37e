"""Peak bytes of small graphs, counted by hand."""

from __future__ import annotations

import pytest
from onnx import parser

from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.activations import activation_bytes, peak_bytes

HEAD = '<ir_version: 10, opset_import: ["" : 18]> g (float[rows, 8] x) => (float[rows, 8] y)'


def peak(body, shapes, rows=4):
    specs = {name: TensorSpec(name, shape, "float32") for name, shape in shapes.items()}
    return peak_bytes(parser.parse_model(f"{HEAD} {{ {body} }}").SerializeToString(), specs, {"rows": rows})


def test_two_values_at_once_are_counted_together():
    # a and b live together while c is made; x and y are slots.
    body = "a = Softplus(x) b = Softplus(a) c = MatMul(a, b) y = Softplus(c)"
    assert peak(body, dict.fromkeys("abc", ("rows", 8))) == 3 * 4 * 8 * 4


def test_element_wise_nodes_write_over_their_input_and_views_cost_nothing():
    body = "a = Softplus(x) b = Relu(a) c = Identity(b) d = Sigmoid(c) y = Softplus(d)"
    assert peak(body, dict.fromkeys("abcd", ("rows", 8))) == 4 * 8 * 4


def test_parts_of_a_value_are_views_of_it():
    body = "a = Softplus(x) b, c = Split <axis = 1, num_outputs = 2> (a) d = Gelu(b) y = MatMul(c, d)"
    shapes = {"a": ("rows", 8), **dict.fromkeys("bcd", ("rows", 4))}
    assert peak(body, shapes) == 4 * (8 + 4) * 4


def test_scores_of_attention_are_never_held():
    body = "q = Softplus(x) s = MatMul(q, q) t = Mul(s, s) p = Softmax(t) o = MatMul(p, q) y = Softplus(o)"
    shapes = {"q": ("rows", 8), "s": ("rows", 999), "t": ("rows", 999), "p": ("rows", 999), "o": ("rows", 8)}
    assert peak(body, shapes) == 2 * 4 * 8 * 4


@pytest.mark.parametrize("rows", [1, 8])
def test_the_largest_graph_decides(rows):
    specs = {"a": TensorSpec("a", ("rows", 8), "float16")}
    small = parser.parse_model(f"{HEAD} {{ y = Softplus(x) }}").SerializeToString()
    large = parser.parse_model(f"{HEAD} {{ a = Softplus(x) y = Softplus(a) }}").SerializeToString()
    assert activation_bytes([small, large], specs, {"rows": rows}) == rows * 8 * 2
    assert activation_bytes([], specs, {"rows": rows}) == 0
