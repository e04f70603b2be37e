"""Reports of a verification: what passes, what fails and where, and which options are refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dipgo_deploy.bundle import Bundle, CompiledProgram, ExportOptions, export, load_bundle
from dipgo_deploy.bundle.half_precision import write_half_precision
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime import RunOptions
from dipgo_deploy.verify import VerifyOptions, ladder, verify_bundle
from dipgo_deploy.verify.deviation import Deviation
from dipgo_deploy.verify.options import HALF
from tests.models.families import tiny
from tests.runtime import fake_tensorrt as fake
from tests.runtime.bundles import few_graphs, planted, scheduled


def test_an_intact_bundle_passes_and_the_schedule_is_reported_separately(bundle_folder: Path) -> None:
    report = verify_bundle(load_bundle(bundle_folder), VerifyOptions(images=2))
    assert report.passed and [rung.passed for rung in report.rungs] == [True] * 3
    assert report.rungs[0].free == 0.0
    assert report.rungs[2].local is not None and report.rungs[2].local.relative < 1e-4
    assert 5 < report.psnr_db["worst"] <= report.psnr_db["p10"] <= report.psnr_db["p50"] < 119


def test_any_text_length_of_the_contract_is_verified(sd_bundle: Path) -> None:
    bundle = load_bundle(sd_bundle)
    assert verify_bundle(bundle, VerifyOptions(images=1, sizes={"tokens": 154})).passed
    with pytest.raises(UsageError, match="tokens is 2000, but the contract takes 1 to 1024"):
        verify_bundle(bundle, VerifyOptions(images=1, sizes={"tokens": 2000}))


def test_a_wrong_graph_is_found_and_named(bundle_folder: Path, monkeypatch) -> None:
    bundle = load_bundle(bundle_folder)
    plant(bundle, monkeypatch)
    report = verify_bundle(bundle, VerifyOptions(images=2))
    assert not report.passed
    assert report.rungs[-1].first is not None and report.rungs[-1].first.step == bundle.program.runs[0].step
    assert "onnxruntime subnets = torch" in report.failure and "step 0" in report.failure


def test_float64_decides_where_float32_itself_is_too_coarse(tmp_path: Path, monkeypatch) -> None:
    """Values near 1500 have float32 steps of 1e-4, and a normalisation brings them back to about 1."""
    model = tiny("ddpm")
    with torch.no_grad():
        model.module.get_submodule("down_blocks.1").resnets[0].conv1.bias.add_(1500.0)
    bundle = few_graphs(model, tmp_path / "bundle")
    report = verify_bundle(bundle, VerifyOptions(images=1))
    rung = report.rungs[2]
    assert report.passed and rung.name == "onnxruntime subnets = torch, by float64"
    assert rung.local is not None and rung.local.relative > 1e-4
    strict = verify_bundle(bundle, VerifyOptions(images=1, local_tolerance=1e-4))
    assert not strict.passed and strict.rungs[2].name == "onnxruntime subnets = torch"
    plant(bundle, monkeypatch)
    report = verify_bundle(bundle, VerifyOptions(images=1))
    assert not report.passed and report.failure.startswith("onnxruntime subnets = torch, by float64: local")
    monkeypatch.setattr(ladder, "local_deviations", lambda *_: iter([Deviation("x", 0, float("inf"))]))
    assert not verify_bundle(bundle, VerifyOptions(images=1)).passed


def plant(bundle: Bundle, monkeypatch, dtype: type = np.float32, error: float = 0.05) -> None:
    """Put an error into the first graph of a bundle."""
    name = bundle.program.runs[0].graph
    model = onnx.load_model_from_string(bundle.compiled.graphs[name])
    # One Add of the graph now adds a constant more.
    node = next(node for node in model.graph.node if node.op_type == "Add" and node.output[0] in _activations(model))
    bias = numpy_helper.from_array(np.array([error], dtype=dtype), "planted")
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
    report = verify_bundle(load_bundle(bundle_folder), VerifyOptions(images=2, min_psnr_db=200.0))
    assert all(rung.passed for rung in report.rungs)
    assert not report.passed and "min_psnr_db is 200" in report.failure


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"local_tolerance": 0.0}, "local_tolerance must be a positive number, got 0.0"),
        ({"free_tolerance": float("nan")}, "free_tolerance must be a positive number, got nan"),
        ({"min_psnr_db": float("inf")}, "min_psnr_db must be a positive number, got inf"),
        ({"run": RunOptions("torch")}, "backend torch is the reference of every verification"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VerifyOptions(**fields)


def test_the_reference_runs_on_the_cpu_next_to_engines() -> None:
    assert VerifyOptions(run=RunOptions("rtx")).device == "cpu"
    assert VerifyOptions(run=RunOptions("rtx"), reference_device="cuda").device == "cuda"
    assert VerifyOptions(run=RunOptions(device="cuda")).device == "cuda"


def test_options_reach_the_verified_backend(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    climbing = ladder.Ladder(bundle, VerifyOptions(images=1, run=RunOptions(threads=1)))
    session = climbing._open("onnxruntime", bundle.compiled)
    graph = bundle.program.runs[0].graph
    assert session.backend.session(graph).get_session_options().intra_op_num_threads == 1


def test_a_bundle_of_another_model_is_refused(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    contract = replace(bundle.contract, model_digest="0" * 64)
    other = replace(bundle, manifest=replace(bundle.manifest, contract=contract))
    vars(other)["model"] = bundle.model
    message = "the model in .* is .*, its contract is for 000000000000: re-export the bundle"
    with pytest.raises(InputError, match=message):
        verify_bundle(other, VerifyOptions(images=1))


def half_export(model: LoadedModel, folder: Path, dtype: str) -> Bundle:
    """A bundle that is exported in half precision."""
    return load_bundle(export(model, scheduled(model, (1, 0)), folder, ExportOptions(dtype=dtype)))


def test_a_float16_export_is_verified_as_it_is(tmp_path: Path) -> None:
    report = verify_bundle(half_export(tiny("dit"), tmp_path / "half", "float16"), VerifyOptions(images=1))
    assert report.passed, report.failure
    assert max(rung.free for rung in report.rungs) <= HALF[1] and report.rungs[2].local.relative <= HALF[0]


def coarse(offset: float) -> LoadedModel:
    """Values of ``offset``, which float16 rounds to multiples of 0.25, before a normalisation."""
    model = tiny("sd")
    with torch.no_grad():
        model.module.get_submodule("down_blocks.1").resnets[0].conv1.bias.add_(offset)
    return model


def test_roundings_of_float16_are_no_failure_and_an_error_still_is(tmp_path: Path, monkeypatch) -> None:
    """Random weights amplify roundings of float16 beyond its tolerances on both sides of a comparison."""
    bundle = half_export(coarse(300.0), tmp_path / "half", "float16")
    report = verify_bundle(bundle, VerifyOptions(images=1))
    rung = report.rungs[2]
    assert report.passed and rung.name == "onnxruntime subnets = torch, by float64", report.failure
    assert rung.local.relative > HALF[0] and rung.past == () and rung.free <= rung.free_tolerance
    strict = verify_bundle(bundle, VerifyOptions(images=1, local_tolerance=HALF[0], free_tolerance=1e-6))
    assert strict.rungs[2].past == ("local", "free") and strict.rungs[2].local.tolerance == HALF[0]
    assert strict.rungs[2].free_tolerance == 1e-6
    plant(bundle, monkeypatch, dtype=np.float16, error=100.0)
    assert verify_bundle(bundle, VerifyOptions(images=1)).rungs[2].past


def test_the_failure_names_the_number_that_broke_and_its_tolerance(bundle_folder: Path) -> None:
    report = verify_bundle(load_bundle(bundle_folder), VerifyOptions(images=1, free_tolerance=1e-12))
    (rung,) = [rung for rung in report.rungs if not rung.passed][-1:]
    assert rung.past == ("free",) and rung.free_tolerance == 1e-12 and rung.local.tolerance == 1e-4
    assert "free-running" in report.failure and "past tolerance 1.0e-12" in report.failure
    assert "local" not in report.failure


def test_a_float16_export_beyond_the_range_fails(tmp_path: Path) -> None:
    report = verify_bundle(half_export(planted(2e5), tmp_path / "half", "float16"), VerifyOptions(images=1))
    assert not report.passed and "past tolerance" in report.failure


def test_a_bfloat16_export_is_refused_on_the_cpu_in_one_line(tmp_path: Path) -> None:
    bundle = half_export(tiny("dit"), tmp_path / "half", "bfloat16")
    message = "ONNX Runtime has no bfloat16 on the CPU: verify on device cuda, or export in float32 and build engines"
    with pytest.raises(UsageError, match=message) as refusal:
        verify_bundle(bundle, VerifyOptions(images=1))
    assert "\n" not in str(refusal.value)


ON_ENGINES = VerifyOptions(images=2, run=RunOptions("rtx", gpu_memory=2**30))


@pytest.fixture
def on_engines(bundle_copy: Path, engine_cache: Path, monkeypatch) -> Bundle:
    """A bundle on a machine with a fake GPU."""
    bundle = load_bundle(bundle_copy)
    fake.FakeGpu(monkeypatch, bundle.denoiser)
    return bundle


def test_engines_are_the_last_rung(on_engines: Bundle) -> None:
    fake.write_engines(on_engines)
    report = verify_bundle(on_engines, ON_ENGINES)
    names = [rung.name for rung in report.rungs]
    assert report.passed and names[2:] == ["onnxruntime subnets = torch", "rtx = onnxruntime"]
    assert report.rungs[-1].local.relative <= 1e-4


def test_engines_that_were_not_built_here_need_trust(on_engines: Bundle) -> None:
    fake.write_engines(on_engines, trusted=False)
    with pytest.raises(InputError, match="was not built on this machine"):
        verify_bundle(on_engines, ON_ENGINES)
    assert verify_bundle(on_engines, replace(ON_ENGINES, run=RunOptions("rtx", trust_engines=True))).passed


def test_engines_in_half_precision_have_the_tolerances_of_half_precision(on_engines: Bundle) -> None:
    write_half_precision(on_engines, PrecisionRecord("float16", "", 2e-2, 1, (), (), (), 0.0, 0.0), ())
    fake.write_engines(on_engines, precision="float16")
    report = verify_bundle(on_engines, ON_ENGINES)
    assert report.passed and 1e-4 < report.rungs[-1].local.relative <= HALF[0]
    assert not verify_bundle(on_engines, replace(ON_ENGINES, local_tolerance=1e-4)).passed


def test_an_engine_that_computes_something_else_is_named(on_engines: Bundle, monkeypatch) -> None:
    fake.write_engines(on_engines)
    execute = fake.IExecutionContext.execute_async_v3

    def execute_wrongly(context, stream):
        done = execute(context, stream)
        for name in context._engine._outputs:
            context._array(name)[...] *= 1.01
        return done

    monkeypatch.setattr(fake.IExecutionContext, "execute_async_v3", execute_wrongly)
    report = verify_bundle(on_engines, ON_ENGINES)
    assert not report.passed and report.failure.startswith("rtx = onnxruntime, by float64: local 1.0e-02")
    assert "step 0" in report.failure


CALLABLE = """
import inspect, sys
import dipgo_deploy
{first}
{second}
import dipgo_deploy.verify.verify
assert dipgo_deploy.verify is sys.modules["dipgo_deploy.verify"] and callable(dipgo_deploy.verify)
assert list(inspect.signature(dipgo_deploy.verify).parameters) == ["bundle", "options"]
try:
    dipgo_deploy.verify(None, bundle=None)
except TypeError as error:
    assert "multiple values for argument 'bundle'" in str(error), error
else:
    raise AssertionError("the call did not reach the function")
"""


@pytest.mark.parametrize("order", [0, 1], ids=["attribute first", "submodule first"])
def test_the_package_is_also_a_verb_whatever_is_imported_first(order: int) -> None:
    """Importing a submodule binds the package to its name, which must not hide the verb."""
    imports = ["from dipgo_deploy import verify", "from dipgo_deploy.verify.options import VerifyOptions"]
    program = CALLABLE.format(first=imports[order], second=imports[1 - order])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
