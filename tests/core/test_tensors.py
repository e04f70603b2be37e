from __future__ import annotations

import pytest

from dipgo_deploy.core.tensors import DTYPE_BYTES, TensorSpec, resolve_dim


@pytest.mark.parametrize(("dim", "size"), [(7, 7), ("rows", 6), ("5*rows", 30), ("batch", 3), ("2*batch*rows", 36)])
def test_symbolic_sizes_are_products(dim, size):
    assert resolve_dim(dim, {"rows": 6, "batch": 3}) == size


def test_an_unknown_symbol_is_named():
    with pytest.raises(KeyError, match="tokens"):
        resolve_dim("2*tokens", {"rows": 1})


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_bytes_follow_the_dtype(dtype):
    spec = TensorSpec("x", ("rows", 3, 4), dtype)
    assert spec.resolve({"rows": 2}) == (2, 3, 4)
    assert spec.nbytes({"rows": 2}) == 24 * DTYPE_BYTES[dtype]
