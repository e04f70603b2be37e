from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dipgo_deploy.bundle import Bundle, CompiledProgram, load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.verify import VerifyOptions, ladder
from dipgo_deploy.verify.deviation import Deviation
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs


def test_an_intact_bundle_passes_and_reports_the_schedule_apart(bundle_folder: Path) -> None:
    report = verify(load_bundle(bundle_folder), VerifyOptions(images=2))
    assert report.passed and [rung.passed for rung in report.rungs] == [True] * 3
    assert report.rungs[0].free == 0.0
    assert report.rungs[2].local is not None and report.rungs[2].local.relative < 1e-4
    assert 5 < report.psnr_db["worst"] <= report.psnr_db["p10"] <= report.psnr_db["p50"] < 119


def test_a_wrong_graph_is_found_and_named(bundle_folder: Path, monkeypatch) -> None:
    bundle = load_bundle(bundle_folder)
    plant(bundle, monkeypatch)
    report = verify(bundle, VerifyOptions(images=2))
    assert not report.passed
    assert report.rungs[-1].first is not None and report.rungs[-1].first.step == bundle.program.runs[0].step
    assert "onnxruntime subnets = torch" in report.failure and "step 0" in report.failure


def test_what_float32_itself_cannot_hold_is_judged_by_float64(tmp_path: Path, monkeypatch) -> None:
    """Numbers of 1500, between which float32 has steps of 1e-4, and which a normalisation takes back to about 1."""
    model = tiny("sd")
    with torch.no_grad():
        model.module.get_submodule("down_blocks.1").resnets[0].conv1.bias.add_(1500.0)
    bundle = few_graphs(model, tmp_path / "bundle")
    report = verify(bundle, VerifyOptions(images=1))
    rung = report.rungs[2]
    assert report.passed and rung.name == "onnxruntime subnets = torch, by float64"
    assert rung.local is not None and rung.local.relative > 1e-4
    asked = verify(bundle, VerifyOptions(images=1, local_tolerance=1e-4))
    assert not asked.passed and asked.rungs[2].name == "onnxruntime subnets = torch"
    plant(bundle, monkeypatch)
    report = verify(bundle, VerifyOptions(images=1))
    assert not report.passed and report.failure.startswith("onnxruntime subnets = torch, by float64: local")
    monkeypatch.setattr(ladder, "local_deviations", lambda *_: iter([Deviation("x", 0, float("inf"))]))
    assert not verify(bundle, VerifyOptions(images=1)).passed


def plant(bundle: Bundle, monkeypatch) -> None:
    """Put an error into the first graph of a bundle."""
    name = bundle.program.runs[0].graph
    model = onnx.load_model_from_string(bundle.compiled.graphs[name])
    # One Add of the graph now adds a constant more.
    node = next(node for node in model.graph.node if node.op_type == "Add" and node.output[0] in _activations(model))
    bias = numpy_helper.from_array(np.array([0.05], dtype=np.float32), "planted")
    model.graph.initializer.append(bias)
    inner = node.output[0]
    node.output[0] = "before_planting"
    position = list(model.graph.node).index(node) + 1
    model.graph.node.insert(position, onnx.helper.make_node("Add", ["before_planting", "planted"], [inner]))
    broken = CompiledProgram(bundle.program, {**bundle.compiled.graphs, name: model.SerializeToString()})
    monkeypatch.setitem(bundle.__dict__, "compiled", broken)


def _activations(model: onnx.ModelProto) -> set[str]:
    """Values that a later node reads, not graph outputs."""
    outputs = {value.name for value in model.graph.output}
    return {name for node in model.graph.node for name in node.input} - outputs


def test_the_quality_gate_fails_on_its_own(bundle_folder: Path) -> None:
    report = verify(load_bundle(bundle_folder), VerifyOptions(images=2, min_psnr_db=200.0))
    assert all(rung.passed for rung in report.rungs)
    assert not report.passed and "200 dB is wanted" in report.failure


def test_absurd_options(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match="0 images cannot be verified"):
        verify(load_bundle(bundle_folder), VerifyOptions(images=0))
