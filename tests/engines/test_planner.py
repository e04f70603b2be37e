"""Plans of a bundle: bytes of both layouts, what fits, and which is recommended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.engines.options import PlanOptions
from dipgo_deploy.engines.planner import plan
from dipgo_deploy.trt.sizes import size_fit
from tests.search.tables import table_for

MIB = 2**20


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


def test_segments_hold_every_weight_once(bundle):
    subnets, segments = plan(bundle).layouts
    assert segments.weight_bytes <= 1.01 * bundle.manifest.model_weight_bytes < subnets.weight_bytes
    assert subnets.calls == bundle.program.nfe < segments.calls
    assert subnets.device_bytes == subnets.engine_bytes + subnets.slot_bytes + subnets.activation_bytes
    assert all(one.least_bytes < one.device_bytes for one in (subnets, segments))


def test_slots_and_activations_grow_with_the_batch(bundle):
    one, eight = (plan(bundle, PlanOptions(batch=batch)).layouts[0] for batch in (1, 8))
    assert eight.slot_bytes == 8 * one.slot_bytes
    workspace = size_fit("rtx", "float32").workspace_bytes
    assert 7 < (eight.activation_bytes - workspace) / (one.activation_bytes - workspace) <= 8


def test_half_precision_halves_weights_and_features_and_other_code_is_foretold(bundle):
    plain, half = (plan(bundle, PlanOptions(precision=precision)) for precision in (None, "float16"))
    assert (plain.precision, half.precision) == ("float32", "float16")
    for wide, narrow in zip(plain.layouts, half.layouts, strict=True):
        assert narrow.weight_bytes == pytest.approx(wide.weight_bytes / 2, rel=1e-3)
        assert narrow.slot_bytes < wide.slot_bytes  # latents stay in float32
        assert narrow.engine_bytes > narrow.weight_bytes


def test_what_was_never_measured_counts_weights_alone_and_says_so(bundle):
    found = plan(bundle, PlanOptions(target="tensorrt"))
    assert found.sizes is None
    assert [one.engine_bytes for one in found.layouts] == [one.weight_bytes for one in found.layouts]
    assert "benchmarks/engine_bytes.py" in plan(bundle).sizes


def test_the_other_half_precision_than_the_exported_is_refused(bundle):
    contract = replace(bundle.manifest.contract, dtype="float16")
    half = replace(bundle, manifest=replace(bundle.manifest, contract=contract))
    with pytest.raises(UsageError, match="the bundle is in float16, bfloat16 is wanted: export it in float32"):
        plan(half, PlanOptions(precision="bfloat16"))


def test_a_budget_that_holds_only_the_segments_recommends_them(bundle):
    subnets, segments = plan(bundle).layouts
    found = plan(bundle, PlanOptions(gpu_memory=(subnets.device_bytes + segments.device_bytes) // 2))
    assert found.recommended == "segments"
    assert found.layouts[0].reload.bytes > 0 == found.layouts[1].reload.bytes


def test_a_budget_that_holds_nothing_recommends_nothing(bundle):
    found = plan(bundle, PlanOptions(gpu_memory=MIB // 4))
    assert found.recommended is None
    assert "no layout fits" in found.reason


def test_with_a_table_the_quicker_layout_is_taken(bundle):
    # Calls that cost nothing leave the layouts' other costs to decide; dear ones speak for fewer calls.
    dear = plan(bundle, PlanOptions(table=table_for(bundle.blocks, call_ms=100.0)))
    assert dear.recommended == "subnets"
    assert dear.batch == 8
    assert dear.layouts[0].latency_ms < dear.layouts[1].latency_ms


def test_a_table_of_another_batch_or_model_is_refused(bundle):
    table = table_for(bundle.blocks)
    with pytest.raises(UsageError, match="measured with 8 images, 4 are asked for"):
        plan(bundle, PlanOptions(batch=4, table=table))
    with pytest.raises(InputError, match="measured for dtype float16"):
        plan(bundle, PlanOptions(table=replace(table, dtype="float16")))


def test_absurd_memory_is_refused():
    with pytest.raises(UsageError, match="gpu_memory 0 makes no sense"):
        PlanOptions(gpu_memory=0)
