"""Fits of engine sizes as they ship, and what is made of them."""

from __future__ import annotations

import pytest

from dipgo_deploy.graphs.kernels import KERNEL_KINDS
from dipgo_deploy.trt.sizes import code_bytes, size_fit, with_profile


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_fit_ships_for_rtx_with_its_source_and_errors(precision):
    fit = size_fit("rtx", precision)
    assert fit is not None and fit.precision == precision and "benchmarks/engine_bytes.py" in fit.source
    assert fit.bytes.keys() == with_profile(dict.fromkeys(KERNEL_KINDS, 0), True).keys()
    assert min(fit.bytes.values()) >= 0
    assert fit.errors["held_out"].keys() == fit.errors["fitted"].keys() == fit.errors["activations"].keys()
    assert fit.workspace_bytes > 0


def test_half_precisions_share_a_fit_and_an_unknown_version_takes_the_latest():
    assert size_fit("rtx", "bfloat16") is size_fit("rtx", "float16", "99.0")
    assert size_fit("rtx", "float16") is not size_fit("rtx", "float32")


@pytest.mark.parametrize(("precision", "seen"), [("float16", "held_out"), ("float16", "fitted"), ("float32", "fitted")])
def test_the_sum_of_a_bundles_engines_is_foretold_within_a_tenth(precision, seen):
    """Of every bundle that was built; in half precision also by a fit that never saw its family."""
    errors = size_fit("rtx", precision).errors[seen]
    assert max(map(abs, errors.values())) < 0.1 and len(errors) > 10


def test_what_was_not_measured_has_no_fit():
    assert size_fit("tensorrt", "float16") is None


def test_code_is_the_sum_of_what_was_counted_and_a_range_of_batches_adds_to_it():
    fit = size_fit("rtx", "float16")
    counts = {"node": 10, "kernel": 3, "ranged_kernel": 2}
    static = 10 * fit.bytes["node"] + 3 * fit.bytes["kernel"]
    assert code_bytes(with_profile(counts, False), fit) == pytest.approx(static, abs=1)
    ranged = static + 10 * fit.bytes["profiled_node"] + 2 * fit.bytes["kernel"] + 5 * fit.bytes["profiled_kernel"]
    assert code_bytes(with_profile(counts, True), fit) == pytest.approx(ranged, abs=1)
