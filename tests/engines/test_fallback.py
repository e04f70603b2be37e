"""The search for fp32 fallback nodes: what it finds, what it refuses, and what is written to the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dipgo_deploy.bundle import Bundle
from dipgo_deploy.bundle.bundle import CompiledProgram
from dipgo_deploy.bundle.half_precision import load_half_precision, write_half_precision
from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.engines.fallback import find_fallback_nodes
from dipgo_deploy.engines.options import FallbackOptions
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.half_probe import HalfProbe
from dipgo_deploy.runtime.generate import Inputs, run_inputs
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.verify.deviation import Recording, relative_difference
from tests.models.families import tiny
from tests.runtime.bundles import PLANTED, few_graphs, planted

QUICK = FallbackOptions(images=1, steps=2)


def search(bundle: Bundle, dtype: str = "float16", options: FallbackOptions = QUICK) -> PrecisionRecord:
    return finish(find_fallback_nodes(bundle, dtype, "digest", options))


def nodes_of(record: PrecisionRecord) -> set[str]:
    return {*record.always_fp32, *(node for group in record.fallback for node in group.nodes)}


def inputs_of(bundle: Bundle) -> Inputs:
    return run_inputs(bundle.model, bundle.contract, [0])


def run(bundle: Bundle, compiled: CompiledProgram | None = None) -> np.ndarray:
    return open_session(bundle, 1, guidance_scale=2.0, compiled=compiled).run(*inputs_of(bundle), check_finite=False)


def test_half_precision_overflows_in_the_planted_block_and_its_nodes_stay_in_float32(tmp_path: Path) -> None:
    plain = planted().as_dtype("float16")
    with torch.no_grad():
        assert not torch.isfinite(plain.forward(**plain.example_inputs(2))).all()
    bundle = few_graphs(planted(), tmp_path / "bundle")
    probe = HalfProbe(bundle.denoiser / MASTER_FILE, bundle.blocks, "float16")
    rounded = {name: probe.rounded_cut(graph, probe.always_fp32, ()) for name, graph in bundle.compiled.graphs.items()}
    assert not np.isfinite(run(bundle, CompiledProgram(bundle.program, rounded))).all()

    record = search(bundle)
    assert [group.block for group in record.fallback] == [PLANTED]
    assert "reaches" in record.fallback[0].reason and "float16 holds 65504" in record.fallback[0].reason
    inside = {name for piece, names in enumerate(probe.pieces) if probe.block(piece) == PLANTED for name in names}
    assert set(record.fallback[0].nodes) <= inside and len(record.fallback[0].nodes) <= 5
    assert record.local <= 2e-2 and record.free <= 2e-2

    write_half_precision(bundle, record, nodes_of(record))
    source = load_half_precision(bundle.folder, bundle.denoiser, "float16")
    graphs = {name: path.read_bytes() for name, path in source.graphs.items()}
    session = Session(source.program, OnnxRuntimeBackend(graphs, bundle.denoiser), 1, 2.0)
    assert relative_difference(session.run(*inputs_of(bundle)), run(bundle)) <= 2e-2


def test_an_error_beyond_the_tolerance_keeps_the_whole_piece_in_float32(tmp_path: Path) -> None:
    model = tiny("ddpm")
    # Near 3000 half precision has steps of 2. The next normalization scales the values back.
    with torch.no_grad():
        model.module.get_submodule(PLANTED).resnets[0].conv1.bias.add_(3000.0)
    bundle = few_graphs(model, tmp_path / "bundle")
    record = search(bundle)
    assert [group.block for group in record.fallback] == [PLANTED]
    assert "deviates by" in record.fallback[0].reason and "0.02 is allowed" in record.fallback[0].reason
    assert len(record.fallback[0].nodes) > 20 and record.local <= 2e-2
    with pytest.raises(
        GateError, match=r"1e-07 and 1e-06 are allowed: raise the tolerance, or take the other half precision"
    ):
        search(bundle, options=FallbackOptions(images=1, steps=1, tolerance=1e-7))


def test_the_search_says_what_it_does_and_ends_with_the_record(tmp_path: Path) -> None:
    shown: list[Progress] = []
    work = find_fallback_nodes(few_graphs(planted(), tmp_path / "bundle"), "bfloat16", "digest", QUICK)
    record = finish(work, shown.append)
    assert shown[0] == Progress("searching fp32 fallback nodes", 0, 4, "recording the trajectory in float32")
    assert [progress.text for progress in shown[1:]] == ["measuring ranges", "running the schedule in half precision"]
    assert record.fallback == () and record.source == "digest"  # bfloat16 holds millions.
    assert record.local <= 5e-2


def test_a_bundle_that_is_not_finite_in_float32_is_refused(tmp_path: Path, monkeypatch) -> None:
    bundle = few_graphs(planted(), tmp_path / "bundle")
    monkeypatch.setattr("dipgo_deploy.engines.fallback.record_run", lambda *_: Recording({}, np.full(1, np.nan)))
    with pytest.raises(GateError, match="float32 trajectory is not finite: verify the bundle"):
        search(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1, got 0.0"),
        ({"tolerance": 1.0}, "tolerance must lie between 0 and 1, got 1.0"),
        ({"tolerance": float("nan")}, "tolerance must lie between 0 and 1, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FallbackOptions(**options)


def test_half_precision_graphs_are_added_to_a_bundle_that_stays_as_it_was(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    from dipgo_deploy.bundle import load_bundle

    bundle = few_graphs(tiny("sd"), tmp_path / "bundle", "segments")
    before = run(bundle)
    record = search(bundle)
    write_half_precision(bundle, record, nodes_of(record))
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
    source = load_half_precision(bundle.folder, bundle.denoiser, "float16")
    assert source.program.contract.dtype == "float16"
    assert sum(graph.weight_bytes for graph in source.program.graphs) <= 0.51 * bundle.manifest.model_weight_bytes
    for path in source.graphs.values():
        onnx.checker.check_model(str(path), full_check=True)
