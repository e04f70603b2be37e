"""Weights of which an engine holds a part."""

from __future__ import annotations

import pytest

from dipgo_deploy.graphs.folding import folded_values
from tests.graphs.kernel_graphs import graph


@pytest.mark.parametrize(
    ("body", "shapes", "saved"),
    [
        ("s = ReduceMax(w) r = Transpose(s) y = Add(x, r)", {"s": (1, 16), "r": (16, 1)}, 256 - 16),
        ("s = ReduceMax <keepdims = 0> (w) y = Add(x, s)", {"s": ()}, 256 - 1),
        ("s = ReduceMax(w) y = Add(x, s)", {"s": ("rows", 1)}, 0),
        ("s = ReduceMax(w) y = Add(x, s)", {}, 0),
        ("s = Add(v, w) y = MatMul(x, s)", {"s": (16, 16)}, 256),
        ("s = Concat <axis = 0> (w, w) y = MatMul(x, w) z = MatMul(x, s)", {"s": (32, 16), "z": ("rows", 8, 32)}, 0),
        ("y = Add(x, w)", {}, 0),
    ],
    ids=["a part", "a scalar", "open", "unknown", "a sum of two", "read besides", "as it is"],
)
def test_what_reads_nothing_but_weights_is_held_in_their_place(body, shapes, saved):
    assert folded_values(*graph(body, shapes, "y z" if "z" in shapes else "y")) == saved
