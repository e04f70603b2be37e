"""Plans of a bundle: bytes of both layouts, what fits, and which is recommended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.engines.estimate import BYTES_PER_NODE, WORKSPACE_BYTES
from dipgo_deploy.engines.options import PlanOptions
from dipgo_deploy.engines.planner import plan
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
    assert all(layout.least_bytes < layout.device_bytes for layout in (subnets, segments))


def test_slots_and_activations_grow_with_the_batch(bundle):
    one, eight = (plan(bundle, PlanOptions(batch=batch)).layouts[0] for batch in (1, 8))
    assert eight.slot_bytes == 8 * one.slot_bytes
    assert 7 < (eight.activation_bytes - WORKSPACE_BYTES) / (one.activation_bytes - WORKSPACE_BYTES) <= 8


def test_half_precision_halves_weights_and_features_but_not_code(bundle):
    plain, half = (plan(bundle, PlanOptions(precision=precision)) for precision in (None, "float16"))
    assert (plain.precision, half.precision) == ("float32", "float16")
    for float32, float16 in zip(plain.layouts, half.layouts, strict=True):
        assert float16.weight_bytes == pytest.approx(float32.weight_bytes / 2, rel=1e-3)
        assert float16.slot_bytes < float32.slot_bytes  # Latents stay in float32.
        code_bytes = float16.engine_bytes - float16.weight_bytes
        assert code_bytes == float32.engine_bytes - float32.weight_bytes > 0
        assert code_bytes % BYTES_PER_NODE["rtx"] == 0


def test_engines_of_a_target_that_was_never_measured_count_as_their_weights(bundle):
    layouts = plan(bundle, PlanOptions(target="tensorrt")).layouts
    assert [layout.engine_bytes for layout in layouts] == [layout.weight_bytes for layout in layouts]


def test_the_other_half_precision_than_the_exported_is_refused(bundle):
    contract = replace(bundle.manifest.contract, dtype="float16")
    half = replace(bundle, manifest=replace(bundle.manifest, contract=contract))
    with pytest.raises(UsageError, match="the bundle is in float16, bfloat16 is requested: export it in float32"):
        plan(half, PlanOptions(precision="bfloat16"))


def test_a_budget_that_holds_only_the_segments_recommends_them(bundle):
    subnets, segments = plan(bundle).layouts
    limited = plan(bundle, PlanOptions(gpu_memory=(subnets.device_bytes + segments.device_bytes) // 2))
    assert limited.recommended == "segments" and limited.reason == "the only layout whose engines fit together"
    assert limited.layouts[0].reload.bytes > 0 == limited.layouts[1].reload.bytes


def test_a_budget_below_both_layouts_recommends_the_layout_that_reloads_least(bundle):
    subnets, segments = plan(bundle).layouts
    limit = max(subnets.least_bytes, segments.least_bytes)
    assert limit < segments.device_bytes
    limited = plan(bundle, PlanOptions(gpu_memory=limit))
    reloads = {layout.layout: layout.reload.bytes for layout in limited.layouts}
    assert limited.recommended == min(reloads, key=reloads.get) and "reloads least" in limited.reason


def test_a_budget_that_holds_nothing_recommends_nothing(bundle):
    limited = plan(bundle, PlanOptions(gpu_memory=MIB // 4))
    assert limited.recommended is None
    assert "no layout fits: even one engine at a time needs ≈ " in limited.reason


def test_with_a_latency_table_the_faster_layout_is_recommended(bundle):
    # Expensive calls favor the layout with fewer calls.
    latency = replace(table_for(bundle.blocks, call_ms=100.0), spread=0.001)
    expensive = plan(bundle, PlanOptions(latency=latency))
    assert expensive.recommended == "subnets" and expensive.batch == 8
    assert expensive.layouts[0].latency_ms < expensive.layouts[1].latency_ms


def test_no_layout_is_recommended_within_the_error_of_the_table(bundle):
    latency = replace(table_for(bundle.blocks, call_ms=100.0), spread=0.001)
    exact = plan(bundle, PlanOptions(latency=latency))
    gain = exact.layouts[1].latency_ms / exact.layouts[0].latency_ms - 1
    assert f"estimated to be {gain:.1%} faster" in exact.reason and exact.latency_error == 0.001
    for error, recommended in ((0.99 * gain, "subnets"), (1.01 * gain, None), (float("inf"), None)):
        planned = plan(bundle, PlanOptions(latency=replace(latency, spread=error)))
        assert planned.recommended == recommended and planned.fits
    assert "within the error of the latency table" in planned.reason


def test_a_table_of_another_batch_or_model_is_refused(bundle):
    table = table_for(bundle.blocks)
    with pytest.raises(UsageError, match="measured with batch 8, requested is batch 4"):
        plan(bundle, PlanOptions(batch=4, latency=table))
    with pytest.raises(InputError, match="measured for dtype float16"):
        plan(bundle, PlanOptions(latency=replace(table, dtype="float16")))


@pytest.mark.parametrize("name", ["gpu_memory", "batch"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        PlanOptions(**{name: 0})
