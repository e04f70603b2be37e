"""Kernels counted in small graphs, against counts by hand."""

from __future__ import annotations

import pytest
from onnx import parser

from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.kernels import KERNEL_KINDS, kernel_counts

HEAD = '<ir_version: 10, opset_import: ["" : 20]> g (float[rows, 8, 16] x) => (float[rows, 8, 16] y)'
WEIGHT = "<float[16, 16] w = {" + ", ".join(["1"] * 256) + "}>"
TOKENS = ("rows", 8, 16)


def counts(body: str, shapes: dict[str, tuple] | None = None) -> dict[str, int]:
    given = {"x": TOKENS, "y": TOKENS, **(shapes or {})}
    specs = {name: TensorSpec(name, shape, "float32") for name, shape in given.items()}
    found = kernel_counts(parser.parse_model(f"{HEAD} {WEIGHT} {{ {body} }}").SerializeToString(), specs)
    assert list(found) == list(KERNEL_KINDS) and found.pop("engine") == 1
    return {kind: count for kind, count in found.items() if count}


def test_what_hangs_together_is_one_kernel_and_products_part_it():
    assert counts("a = Relu(x) y = Sigmoid(a)", {"a": TOKENS}) == {"node": 2, "pointwise": 1}
    parted = counts("a = Relu(x) m = MatMul(a, w) y = Sigmoid(m)", {"a": TOKENS, "m": TOKENS})
    assert parted == {"node": 3, "pointwise": 2}


def test_a_skip_around_a_product_is_not_drawn_into_one_kernel():
    # a and y hang together by the skip, but m lies between them: a cycle, were they one kernel.
    found = counts("a = Relu(x) m = MatMul(a, w) y = Add(a, m)", {"a": TOKENS, "m": TOKENS})
    assert found == {"node": 3, "pointwise": 2}


def test_the_same_nodes_on_the_same_shapes_share_their_code_but_not_on_vectors():
    body = "a = Relu(x) m = MatMul(a, w) b = Relu(m) n = MatMul(b, w) y = Relu(n)"
    assert counts(body, dict.fromkeys("abmn", TOKENS)) == {"node": 5, "pointwise": 1}
    assert counts(body, dict.fromkeys("abmnxy", ("rows", 16))) == {"node": 5, "vector": 3}


def test_views_and_what_reads_weights_alone_cost_nothing():
    found = counts("v = Transpose(w) c = Identity(x) y = MatMul(c, v)", {"c": TOKENS, "v": (16, 16)})
    assert found == {"node": 3}


def test_moves_and_norms_are_kinds_of_their_own():
    found = counts("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul(t, x)", {"t": ("rows", 16, 8)})
    assert found == {"node": 2, "layout": 1}
    assert counts("y = LayerNormalization(x, w)") == {"node": 1, "layer_norm": 1}
    assert counts("y = InstanceNormalization(x, w, w)") == {"node": 1, "group_norm": 1}


@pytest.mark.parametrize(
    ("head", "other", "wanted"),
    [
        (16, 8, {"attention": 1}),
        (16, 5, {"attention": 1, "cross_attention": 1, "unaligned": 2}),
        (8, 8, {"narrow_attention": 1}),
    ],
)
def test_attention_is_counted_by_the_width_of_its_heads(head, other, wanted):
    body = "s = MatMul(x, x) t = Mul(s, s) p = Softmax(t) o = MatMul(p, x) y = Identity(o)"
    scores, values = ("rows", 8, other), ("rows", 8, head)
    shapes = {"s": scores, "t": scores, "p": scores, "o": values, "y": values}
    assert counts(body, shapes) == {"node": 5} | wanted


def test_channels_that_are_no_multiple_of_eight_are_counted_once_a_product():
    shapes = dict.fromkeys("mn", ("rows", 8, 12))
    assert counts("m = MatMul(x, w) n = MatMul(x, w) y = Add(m, n)", shapes)["unaligned"] == 1
