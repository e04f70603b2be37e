from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import DTYPE_BYTES, SizeRange, TensorSpec, check_specs, resolve_dim

DIMS = {
    7: 7, "rows": 6, "5*rows": 30, "batch": 3, "2*batch*rows": 36, "tokens+256": 266, "rows*tokens/4+-1*rows": 9,
}  # fmt: skip


@pytest.mark.parametrize("dim", DIMS)
def test_symbolic_sizes_are_sums_of_products(dim):
    assert resolve_dim(dim, {"rows": 6, "batch": 3, "tokens": 10}) == DIMS[dim]
    check_specs([TensorSpec("x", (dim,), "int64")], "file")


@pytest.mark.parametrize("dim", [-1, "", "text", "rows+", "rows**2", "rows/0", "tokens-1", "2**9"])
def test_other_sizes_are_refused(dim):
    with pytest.raises(InputError, match="file: x has no usable shape"):
        check_specs([TensorSpec("x", (dim,), "int64")], "file")


def test_a_range_holds_multiples_of_its_step():
    assert SizeRange(1, 77, 1024).has(154) and not SizeRange(1, 77, 1024).has(1025)
    assert SizeRange(8, 64, 128, 8).has(96) and not SizeRange(8, 64, 128, 8).has(97)
    assert [str(SizeRange(*size)) for size in ((7, 7, 7), (1, 77, 154))] == ["7", "1 to 154"]


def test_an_unknown_symbol_is_named():
    with pytest.raises(KeyError, match="tokens"):
        resolve_dim("2*tokens", {"rows": 1})


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_bytes_follow_the_dtype(dtype):
    spec = TensorSpec("x", ("rows", 3, 4), dtype)
    assert spec.resolve({"rows": 2}) == (2, 3, 4)
    assert spec.nbytes({"rows": 2}) == 24 * DTYPE_BYTES[dtype]
