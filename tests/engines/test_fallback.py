from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dipgo_deploy.bundle import Bundle
from dipgo_deploy.bundle.bundle import CompiledProgram
from dipgo_deploy.bundle.half_precision import load_variant, write_variant
from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.engines.fallback import find_fallback_nodes
from dipgo_deploy.engines.options import FallbackOptions
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.half_probe import HalfProbe
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.verify.deviation import Recording, relative_difference
from tests.models.families import tiny
from tests.runtime.bundles import PLANTED, few_graphs, planted

QUICK = FallbackOptions(images=1, steps=2)


def searched(bundle: Bundle, dtype: str = "float16", options: FallbackOptions = QUICK) -> PrecisionRecord:
    record = list(find_fallback_nodes(bundle, dtype, "digest", options))[-1][1]
    assert record is not None
    return record


def nodes_of(record: PrecisionRecord) -> set[str]:
    return {*record.fixed, *(node for island in record.islands for node in island.nodes)}


def given(bundle: Bundle) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    contract = bundle.manifest.contract
    return noise_for(range(1), contract.latent_shape), bundle.model.conditioning([0], contract.guidance)


def run(bundle: Bundle, compiled: CompiledProgram | None = None) -> np.ndarray:
    return bundle.session(1, guidance_scale=2.0, compiled=compiled).run(*given(bundle))


def test_plain_half_precision_overflows_and_the_island_is_the_planted_block(tmp_path: Path) -> None:
    plain = planted().as_dtype("float16")
    with torch.no_grad():
        assert not torch.isfinite(plain.forward(**plain.example_inputs(2))).all()
    bundle = few_graphs(planted(), tmp_path / "bundle")
    probe = HalfProbe(bundle.denoiser / MASTER_FILE, bundle.blocks, "float16")
    rounded = {name: probe.rounded_cut(graph, probe.fixed, ()) for name, graph in bundle.compiled.graphs.items()}
    assert not np.isfinite(run(bundle, CompiledProgram(bundle.program, rounded))).all()

    record = searched(bundle)
    assert [island.block for island in record.islands] == [PLANTED]
    assert "reaches" in record.islands[0].reason and "float16 holds 65504" in record.islands[0].reason
    inside = {name for piece, names in enumerate(probe.pieces) if probe.block(piece) == PLANTED for name in names}
    assert set(record.islands[0].nodes) <= inside and len(record.islands[0].nodes) <= 5
    assert record.local <= 2e-2 and record.free <= 2e-2

    write_variant(
        bundle.folder, bundle.denoiser, bundle.blocks, bundle.schedule, bundle.program, record, nodes_of(record)
    )
    variant = load_variant(bundle.folder, bundle.denoiser, "float16")
    graphs = {name: path.read_bytes() for name, path in variant.graphs.items()}
    session = Session(variant.program, OnnxRuntimeBackend(graphs, bundle.denoiser), 1, 2.0)
    assert relative_difference(session.run(*given(bundle)), run(bundle)) <= 2e-2


def test_an_error_past_the_tolerance_makes_an_island_of_the_whole_piece(tmp_path: Path) -> None:
    model = tiny("sd")
    with (
        torch.no_grad()
    ):  # thousands, between which half precision has steps of 2, and which a normalisation takes back
        model.module.get_submodule(PLANTED).resnets[0].conv1.bias.add_(3000.0)
    bundle = few_graphs(model, tmp_path / "bundle")
    record = searched(bundle)
    assert [island.block for island in record.islands] == [PLANTED]
    assert "deviates by" in record.islands[0].reason and "0.02 is allowed" in record.islands[0].reason
    assert len(record.islands[0].nodes) > 20 and record.local <= 2e-2
    with pytest.raises(GateError, match=r"raise --tolerance, or export in float32 and take the other half"):
        searched(bundle, options=FallbackOptions(images=1, steps=1, tolerance=1e-7))


def test_the_search_says_what_it_does_and_ends_with_the_record(tmp_path: Path) -> None:
    lines = list(find_fallback_nodes(few_graphs(planted(), tmp_path / "bundle"), "bfloat16", "digest", QUICK))
    assert lines[0] == ("recording the trajectory in float32", None)
    assert all(record is None for _, record in lines[:-1])
    record = lines[-1][1]
    assert record is not None and record.islands == () and record.source == "digest"  # bfloat16 holds millions
    assert record.local <= 5e-2


def test_a_bundle_that_is_not_finite_in_float32_is_refused(tmp_path: Path, monkeypatch) -> None:
    bundle = few_graphs(planted(), tmp_path / "bundle")
    monkeypatch.setattr(islands, "recorded", lambda *_: Recording({}, np.full(1, np.nan)))
    with pytest.raises(GateError, match="float32 trajectory is not finite: verify the bundle"):
        searched(bundle)


@pytest.mark.parametrize("options", [{"images": 0}, {"steps": 0}, {"tolerance": 0.0}, {"tolerance": float("nan")}])
def test_options_that_show_nothing_are_refused(options):
    with pytest.raises(UsageError, match="ask for 1 or more|no number between"):
        FallbackOptions(**options)


def test_a_variant_stands_in_the_bundle_whose_float32_graphs_stay(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    from dipgo_deploy.bundle import load_bundle

    bundle = few_graphs(tiny("sd"), tmp_path / "bundle", "segments")
    before = run(bundle)
    record = searched(bundle)
    write_variant(
        bundle.folder, bundle.denoiser, bundle.blocks, bundle.schedule, bundle.program, record, nodes_of(record)
    )
    again = load_bundle(bundle.folder, whole=True)
    assert np.array_equal(run(again), before)
    recorded = {entry.path for entry in again.manifest.files}
    assert {"precision.fp16.json", "program.fp16.json", "unet/segment_00.fp16.onnx"} <= recorded
    assert json.loads((bundle.folder / "precision.fp16.json").read_text())["format"] == "precision"
    half = UNet2DConditionModel.from_pretrained(
        bundle.folder, subfolder="unet", variant="fp16", torch_dtype=torch.float16, local_files_only=True
    )
    state = bundle.model.module.state_dict()
    assert all(torch.equal(tensor, state[name].half()) for name, tensor in half.state_dict().items())
    variant = load_variant(bundle.folder, bundle.denoiser, "float16")
    assert variant.program.contract.dtype == "float16"
    assert sum(graph.weight_bytes for graph in variant.program.graphs) <= 0.51 * bundle.manifest.model_weight_bytes
    for path in variant.graphs.values():
        onnx.checker.check_model(str(path), full_check=True)
