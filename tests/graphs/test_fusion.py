"""What of small graphs runs together, against what is seen with the eye."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from dipgo_deploy.graphs.fusion import Fusion, fuse
from tests.graphs.kernel_graphs import graph


def fused(body: str, gives: str = "y") -> Fusion:
    content, specs = graph(body, gives=gives)
    return fuse(ir.from_proto(onnx.load_model_from_string(content)).graph, specs, True)


def groups(body: str, gives: str = "y") -> list[str]:
    """Operators of every group, one text each."""
    return sorted(" ".join(group.operators) for group in fused(body, gives).groups)


def test_products_part_what_hangs_together():
    assert groups("a = Relu(x) y = Sigmoid(a)") == ["Relu Sigmoid"]
    assert groups("a = Relu(x) m = MatMul(a, w) y = Sigmoid(m)") == ["Relu", "Sigmoid"]


def test_a_skip_around_a_product_is_not_drawn_into_one_group():
    assert groups("a = Relu(x) m = MatMul(a, w) n = Tan(m) y = Add(a, n)") == ["Relu", "Tan Add"]


def test_a_group_that_one_other_alone_reads_is_drawn_into_it_in_the_order_of_the_graph():
    assert groups("m = MatMul(x, w) t = Tan(m) a = Relu(x) y = Add(a, t)") == ["Tan Relu Add"]
    shown = "m = MatMul(x, w) t = Tan(m) a = Relu(x) y = Add(a, t)"
    assert groups(shown, "y a") == ["Relu", "Tan Add"], "what leaves the graph is a result of its own"
    viewed = shown + " b = Identity(a)"
    assert groups(viewed, "y b") == ["Relu", "Tan Add"], "through a view too"


def test_views_are_in_no_group_and_hide_nobody():
    body = "r = Identity(x) a = Relu(r) s = Identity(a) m = MatMul(s, w) t = Identity(m) y = Tan(t)"
    (before, behind) = sorted(fused(body).groups, key=lambda group: group.operators)
    assert (before.operators, behind.operators) == (("Relu",), ("Tan",))
    assert before.readers == behind.makers and {node.op_type for node in behind.makers} == {"MatMul"}


def test_products_of_one_value_and_weights_are_merged():
    found = fused("i = Identity(x) m = MatMul(x, v) n = MatMul(i, w) k = MatMul(x, x) p = Add(m, n) y = Add(p, k)")
    assert {node.outputs[0].name: place for node, place in found.merged.items()} == {"m": 0, "n": 1}


def test_what_reads_weights_alone_is_not_fed():
    found = fused("s = Softmax(w) m = MatMul(s, v) n = MatMul(u, v) k = Add(m, n) y = Add(x, k)")
    assert [node.op_type for node in found.fed] == ["Add"] and not found.attention


@pytest.mark.parametrize(
    "middle",
    ["p = Softmax(s)", "t = Mul(s, w) p = Softmax(t)", "t = Mul(w, s) n = Add(x, t) p = Softmax(n)"],
    ids=["plain", "scaled", "masked"],
)
def test_an_attention_is_a_product_softmax_and_a_product(middle):
    found = fused(f"s = MatMul(x, x) {middle} c = Identity(p) o = MatMul(c, x) y = Relu(o)")
    members = [node.outputs[0].name for node in found.attention]
    assert members[-1] == "o" and {"s", "p"} < set(members) and len(members) == middle.count("=") + 2
    assert {node.op_type for node in found.attention.values()} == {"Softmax"}
    (group,) = found.groups
    assert group.operators == ("Relu",) and found.products(group) == frozenset()


def test_no_attention_is_a_softmax_without_a_product_on_either_side():
    assert not fused("p = Softmax(x) y = MatMul(p, x)").attention
    assert not fused("s = MatMul(x, x) p = Softmax(s) y = Relu(p)").attention


def test_a_chain_of_thousands_is_one_group_and_thousands_of_blocks_are_as_many():
    """A chain, and blocks of products: both of thousands of nodes."""
    chain = " ".join(f"a{i + 1} = Relu(a{i})" for i in range(8000))
    blocks = " ".join(f"m{i} = MatMul({f'b{i}' if i else 'x'}, w) b{i + 1} = Relu(m{i})" for i in range(3000))
    assert len(fused(f"a0 = Relu(x) {chain} y = Relu(a8000)").groups) == 1
    assert len(fused(f"{blocks} y = Relu(b3000)").groups) == 3000
