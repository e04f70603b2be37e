"""Fits of engine sizes as they ship, and what is made of them."""

from __future__ import annotations

import pytest

from dipgo_deploy.graphs.kernels import KERNEL_KINDS
from dipgo_deploy.trt.sizes import code_bytes, size_fit, with_profile


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_fit_ships_for_rtx_with_its_source_and_errors(precision):
    fit = size_fit("rtx", precision)
    assert fit is not None and fit.precision == precision and "benchmarks/engine_bytes.py" in fit.source
    assert set(fit.bytes) == {*KERNEL_KINDS, "profiled_node"} and min(fit.bytes.values()) >= 0
    assert fit.errors["held_out"].keys() == fit.errors["fitted"].keys() == fit.errors["activations"].keys()
    assert fit.workspace_bytes > 0


def test_half_precisions_share_a_fit_and_an_unknown_version_takes_the_latest():
    assert size_fit("rtx", "bfloat16") is size_fit("rtx", "float16", "99.0")
    assert size_fit("rtx", "float16") is not size_fit("rtx", "float32")


def test_what_was_not_measured_has_no_fit_and_adds_nothing():
    assert size_fit("tensorrt", "float16") is None
    assert code_bytes({"engine": 1}, None) == 0


def test_code_is_the_sum_of_what_was_counted():
    fit = size_fit("rtx", "float16")
    counts = with_profile({"engine": 1, "node": 10}, True)
    assert counts["profiled_node"] == 10 and with_profile({"node": 10}, False)["profiled_node"] == 0
    wanted = fit.bytes["engine"] + 10 * (fit.bytes["node"] + fit.bytes["profiled_node"])
    assert code_bytes(counts, fit) == pytest.approx(wanted, abs=1)
