"""Shapes as sums of products of symbols."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import SizeRange, TensorSpec
from dipgo_deploy.graphs.shapes import infer_specs
from tests.graphs.onnx_text import FOLDED, HEADS, model_from_text


def test_sizes_are_numbers_or_multiples_of_the_batch() -> None:
    specs = infer_specs(model_from_text(HEADS))
    assert specs["x"] == TensorSpec("x", ("rows", 4, 6), "float32")
    assert specs["y"] == TensorSpec("y", ("rows", 2, 4, 3), "float32")
    assert specs["rows_of_x"] == TensorSpec("rows_of_x", (1,), "int64")
    specs = infer_specs(model_from_text(FOLDED))
    assert specs["flat"].shape == ("4*rows", 6) and specs["wide"].shape == (1, "4*rows", 1)


# Two sequences joined and split again, as FLUX's attention does.
JOINT = """
agraph (float[rows, 16, 6] x, float[rows, tokens, 6] text) => (float[r, n, 6] joint, float[m, 2, 6] image, float[k] all)
<int64[1] minus = {-1}, int64[3] merged = {-1, 2, 6}, int64[1] flat = {-1}>
{
    joint = Concat<axis = 1>(text, x)
    image = Reshape(x, merged)
    all = Reshape(joint, flat)
}
"""


def test_sizes_are_sums_of_products_of_symbols() -> None:
    specs = infer_specs(model_from_text(JOINT), {"tokens": SizeRange(1, 7, 1024)})
    assert specs["joint"].shape == ("rows", "tokens+16", 6)
    assert specs["image"].shape == ("8*rows", 2, 6)
    assert specs["all"].shape == ("6*rows*tokens+96*rows",)
    assert specs["all"].resolve({"rows": 3, "tokens": 5}) == (3 * 21 * 6,)


def test_a_size_that_is_no_sum_of_products_is_refused() -> None:
    text = """
    agraph (float[rows, tokens] x) => (float[rows, n] y)
    <int64[1] start = {0}, int64[1] end = {3}, int64[1] axis = {1}>
    {
        y = Slice(x, start, end, axis)
    }
    """
    with pytest.raises(InputError, match="a size of y is not a sum of products of rows, tokens: fix the size, or the"):
        infer_specs(model_from_text(text), {"tokens": SizeRange(1, 7, 1024)})


def test_a_size_that_is_no_multiple_of_the_batch_is_refused() -> None:
    text = """
    agraph (float[rows, 3] x, float[1, 3] y) => (float[n, 3] z)
    {
        z = Concat<axis = 0>(x, y)
    }
    """
    model = model_from_text(text, y=np.zeros((1, 3), np.float32))
    with pytest.raises(
        InputError, match=r"a size of z is rows\+1, not a multiple of the batch: the model cannot run with a dynamic"
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
