"""Kernels counted in small graphs, against counts by hand: every rule at the top of kernels.py."""

from __future__ import annotations

import pytest

from dipgo_deploy.graphs.kernels import KERNEL_KINDS, kernel_counts
from tests.graphs.kernel_graphs import TOKENS, graph


def counts(body: str, shapes: dict[str, tuple] | None = None, is_half: bool = True, gives: str = "y") -> dict[str, int]:
    """What is counted besides nodes; values without a shape are tokens."""
    values = {name: TOKENS for part in body.split(" = ")[:-1] for name in part.rsplit(") ", 1)[-1].split(", ")}
    found = kernel_counts(*graph(body, {**values, **(shapes or {})}, gives), is_half)
    assert list(found) == list(KERNEL_KINDS) and found.pop("node") == body.count("(")
    return {kind: count for kind, count in found.items() if count}


def test_what_hangs_together_is_one_kernel_and_products_part_it():
    assert counts("a = Relu(x) y = Relu(a)") == {"kernel": 1}
    assert counts("a = Relu(x) m = MatMul(a, w) y = Tan(m)") == {"kernel": 2}


def test_what_follows_a_product_element_by_element_is_its_epilogue():
    assert counts("m = MatMul(x, w) y = Gelu(m)") == {}
    assert counts("m = MatMul(x, w) y = Transpose(m)") == {"kernel": 1}


def test_a_gate_is_an_epilogue_in_half_precision_only():
    body = "m = MatMul(x, w) a, b = Split <axis = 2, num_outputs = 2> (m) c = Mul(a, b) y = MatMul(c, w)"
    assert counts(body) == {}
    assert counts(body, is_half=False) == {"kernel": 1}


def test_the_same_nodes_on_the_same_shapes_share_a_kernel():
    body = "a = Relu(x) m = MatMul(a, w) b = Relu(m) n = MatMul(b, w) y = Tan(n)"
    assert counts(body) == {"kernel": 2}
    assert counts(body, dict.fromkeys("bn", ("rows", 9, 16))) == {"kernel": 3}
    assert counts(body, gives="y b") == {"kernel": 3}, "a result of the graph is no value within it"


def test_readers_of_merged_products_share_no_kernel():
    """Two weights and one input are one product, whose readers read at different offsets."""
    tail = "p = MatMul(a, b) y = MatMul(p, b)"
    assert counts(f"m = MatMul(x, v) n = MatMul(x, w) a = Gelu(m) b = Gelu(n) {tail}") == {"kernel": 2}
    assert counts(f"m = MatMul(x, v) a = Gelu(m) n = MatMul(a, w) b = Gelu(n) {tail}") == {}


def test_views_and_what_reads_weights_alone_cost_nothing():
    assert counts("k = Transpose(w) c = Identity(x) y = MatMul(c, k)", {"k": (16, 16)}) == {}


def test_values_of_unknown_shape_are_counted_all_the_same():
    content, _ = graph("a = Relu(x) m = MatMul(a, w) s = MatMul(m, m) p = Softmax(s) y = MatMul(p, m)")
    assert kernel_counts(content, {}, True)["kernel"] == 2


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("y = LayerNormalization(x, w)", {"layer_norm": 1}),
        ("n = LayerNormalization(x, w) m = MatMul(n, w) y = Add(m, w)", {"layer_norm": 1}),
        ("n = LayerNormalization(x, w) y = Gemm(n, w)", {"layer_norm": 1}),
        ("n = LayerNormalization(x, w) m = MatMul(n, w) y = Gelu(m)", {"layer_norm": 1, "kernel": 1}),
        ("m = MatMul(x, w) a = Add(m, w) r = Add(a, x) n = LayerNormalization(r, w) y = Mul(n, w)",
         {"layer_norm": 1, "kernel": 1}),
        ("m = MatMul(x, w) a = Add(m, w) r = Add(a, x) y = LayerNormalization(r, w)", {"layer_norm": 1}),
        ("m = ReduceMean(x) y = Mul(x, m)", {"kernel": 2}),
        ("m = ReduceMean(x) k = ReduceMean(m) y = Mul(x, k)", {"kernel": 3}),
        ("m = ReduceMean(x) a = Mul(x, m) y = ScatterElements(a, u, a)", {"kernel": 3}),
        ("a = Relu(x) y = ScatterElements(a, u, a)", {"kernel": 1}),
    ],
    ids=["alone", "bias", "gemm", "no bias", "modulated sum", "sum", "mean", "means", "mean, scatter", "scatter"],
)  # fmt: skip
def test_norms_and_means_are_one_kernel_or_more(body, wanted):
    content, specs = graph(body.replace("ScatterElements(a, u, a)", "Hardmax(a)"))
    if "Scatter" in body:
        content = content.replace(b"Hardmax", b"Scatter")  # One of the same length: its inputs are not looked at.
    found = kernel_counts(content, {**specs, **{name: specs["x"] for name in "amnrk"}}, True)
    assert {kind: count for kind, count in found.items() if count and kind != "node"} == wanted


@pytest.mark.parametrize(
    ("channels", "groups", "kernels"),
    [(64, 8, 2), (48, 8, 3), (16, 8, 3), (32, 32, 3)],
    ids=["power of two", "six each", "few channels", "one each"],
)
def test_a_group_norm_is_up_to_three_kernels(channels, groups, kernels):
    """One before it, the norm, and one behind it."""
    image, rows = ("rows", channels, 4, 4), ("rows", groups, 16 * channels // groups)
    body = "a = Relu(x) r = Identity(a) n = InstanceNormalization(r, w, w) b = Identity(n) y = Mul(b, w)"
    shapes = {"x": image, "a": image, "r": rows, "n": rows, "b": image, "y": image}
    assert counts(body, shapes) == {"kernel": kernels}
    assert counts(body.replace("a = Relu(x) r = Identity(a)", "r = Identity(x)"), shapes) == {"kernel": kernels - 1}


def modulated(blocks: int, products: str) -> dict[str, int]:
    """Blocks that add two parts of a modulation: each of its own product, or all of products of one value."""
    body, last = "", "x"
    for i in range(blocks):
        source = "x" if products == "one" else f"c{i}"
        body += f"c{i} = Tan({last}) " if products == "own" else ""
        body += f"m{i} = MatMul({source}, w) s{i}, t{i} = Split <axis = 1, num_outputs = 2> (m{i}) "
        body += f"a{i} = Tan({last}) b{i} = Add(a{i}, s{i}) d{i} = MatMul(b{i}, v) "
        body += f"e{i} = Tan(d{i}) f{i} = Add(e{i}, t{i}) g{i} = MatMul(f{i}, u) "
        last = f"g{i}"
    return counts(body + f"y = Gelu({last})")


def test_modulations_of_one_product_are_read_by_kernels_of_their_own():
    assert modulated(3, "one") == {"kernel": 2 * 3}
    assert modulated(12, "one") == {"kernel": 2 * 12}


def test_kernels_of_modulations_with_a_product_each_are_shared_between_blocks_that_are_alike_all_around():
    """Four first and four last have other neighbours each, all between the same; besides, Tan and what cuts first."""
    assert modulated(12, "own") == {"kernel": 2 * 4 + 1 + 2}


def attention(head: int, keys: int, turned: str = "x") -> tuple[str, dict[str, tuple]]:
    """Two attentions of one shape; what the first reads is ``turned``."""
    body = f"s = MatMul({turned}, x) t = Mul(s, s) p = Softmax(t) o = MatMul(p, x) "
    body += "r = MatMul(o, x) q = Softmax(r) z = MatMul(q, x) y = Identity(z)"
    scores, values = ("rows", 16, keys), ("rows", 16, head)
    return body, dict.fromkeys("stprq", scores) | dict.fromkeys("ozy", values)


@pytest.mark.parametrize(
    ("head", "keys", "is_half", "wanted"),
    [
        (16, 8, True, {"attention": 2}),
        (16, 5, True, {"attention": 2}),
        (12, 8, True, {"attention": 2, "padding": 4}),
        (16, 8, False, {"kernel": 1}),
        (8, 8, True, {"kernel": 1}),
        (8, 5, True, {"kernel": 1, "padding": 4}),
        (4, 8, True, {"kernel": 1, "padding": 1}),
        (4, 5, True, {"kernel": 1, "padding": 4}),
    ],
)
def test_fused_attentions_are_counted_one_by_one_and_others_by_shape(head, keys, is_half, wanted):
    body, shapes = attention(head, keys)
    assert counts(body, shapes, is_half) == wanted


def test_what_only_turns_a_side_of_an_attention_and_a_mask_are_no_kernels():
    assert counts("a = Transpose(x) " + attention(16, 16, "a")[0], attention(16, 16)[1]) == {"attention": 2}
    assert counts("a = Relu(x) " + attention(16, 16, "a")[0], attention(16, 16)[1]) == {"attention": 2}, "a mask"
    behind = "l = MatMul(x, w) a = Relu(l) " + attention(16, 16, "a")[0]
    assert counts(behind, attention(16, 16)[1]) == {"attention": 2, "kernel": 1}, "what a product made is no mask"


def test_keys_of_another_sequence_are_turned_by_kernels_where_their_products_are_merged():
    merged = "l = MatMul(x, v) k = MatMul(x, w) a = Transpose(l) b = Transpose(k) "
    body = attention(16, 16, "a")[0].replace("MatMul(o, x)", "MatMul(o, b)")
    own, other = (attention(16, keys)[1] for keys in (16, 8))
    assert counts(merged + body, own) == {"attention": 2}
    assert counts(merged + body, other) == {"attention": 2, "kernel": 2}


def test_a_head_is_not_padded_where_a_kernel_makes_it_anyway():
    body, shapes = attention(12, 8, "a")
    made = "l = MatMul(x, w) a = Relu(l) " + body.replace("MatMul(o, x)", "MatMul(a, x)")
    assert counts(made, shapes) == {"attention": 2, "kernel": 1, "padding": 3}


def test_images_change_their_layout_where_they_come_in_and_go_out():
    image = ("rows", 16, 4, 4)
    kernel = {"x": image, "y": image, "a": image}
    assert counts("y = Relu(x)", kernel) == {"kernel": 1}
    assert counts("a = Conv(x, w) y = Add(a, w)", kernel) == {"kernel": 2}


def test_joined_keys_are_repeated_where_a_batch_has_a_range():
    body = "".join(
        f"k{i} = MatMul({x}, w) j{i} = Concat <axis = 1> (k{i}, {x}) h{i} = Transpose(j{i}) s{i} = MatMul(x, h{i}) "
        f"p{i} = Softmax(s{i}) o{i} = MatMul(p{i}, {x}) "
        for i, x in enumerate(("x", "o0", "o1"))
    )
    assert counts(body + "y = Identity(o2)")["ranged_kernel"] == 2
    flat = {f"h{i}": ("rows", 2, 8, 16) for i in range(3)}
    assert "ranged_kernel" not in counts(body + "y = Identity(o2)", flat)
