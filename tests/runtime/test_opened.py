"""A bundle's engines on the way to a session: driver, what stands, preflight; and the fifth rung of verify."""

from __future__ import annotations

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.runtime import VerifyOptions, load_bundle, verify
from dipgo_deploy.runtime.opened import built_precision, engine_backend
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.fake_tensorrt import Library


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")


@pytest.mark.parametrize("command", ["verify --target", "generate --backend", "bench --backend"])
@pytest.mark.parametrize("target", ["tensorrt", "rtx"])
def test_without_a_gpu_one_line_says_so(no_gpu, bundle_folder, capsys, command, target):
    name, option = command.split()
    assert run([name, str(bundle_folder), option, target]) == 5
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "rtx", "--device", "cpu"], "backend rtx runs on a GPU"),
        (["--gpu-memory", "1G"], "--gpu-memory belongs to backends tensorrt and rtx"),
        (["--trust-engines"], "--trust-engines belongs to backends tensorrt and rtx"),
        (["--compile"], "--compile belongs to backend torch"),
        (["--cuda-graph"], "a CUDA graph needs device cuda"),
        (["--cuda-graph", "--backend", "torch"], "a CUDA graph needs a CUDA GPU"),
    ],
)
def test_options_that_do_not_go_together(bundle_folder, tmp_path, capsys, options, message):
    out = str(tmp_path / "grid.png")
    assert run(["generate", str(bundle_folder), "--out", out, "--count", "1", "--class", "1", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_driver_is_asked_before_the_bundle(no_gpu, bundle):
    with pytest.raises(MissingError, match="rtx"):
        engine_backend(bundle, "rtx", 2)


def test_a_bundle_without_engines_is_refused(bundle):
    with pytest.raises(InputError, match="has no engines of rtx: run dipgo-deploy build-engine --target rtx"):
        built_precision(bundle, "rtx")


def test_engines_run_no_other_schedule_than_the_bundles(bundle):
    with pytest.raises(UsageError, match="runs a bundle's own engines"):
        bundle.session(2, backend="rtx", compiled=bundle.compiled)


def test_verify_climbs_to_the_engines(bundle, tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.engine" for name in bundle.compiled.graphs}
    for name, content in bundle.compiled.graphs.items():
        files[name].write_bytes(content)

    def opened(*_, gpu_memory, trust):
        assert (gpu_memory, trust) == (2**30, True)
        return bundle.program, TensorRTBackend(Library(bundle.denoiser), files, gpu_memory=gpu_memory, device="cpu")

    monkeypatch.setattr("dipgo_deploy.runtime.opened.engine_backend", opened)
    report = verify(bundle, VerifyOptions(images=2, target="rtx", gpu_memory=2**30, trust_engines=True))
    assert report.passed
    assert report.rungs[-1].name == "rtx = onnxruntime"
    assert report.rungs[-1].local.relative <= 1e-4
