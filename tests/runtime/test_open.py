"""A bundle's engines on the way to a session: driver, what stands, preflight; and the fifth rung of verify."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.bundle.manifest import add_records
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import EngineRecord, EngineTensor
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.files import save_engine_record
from dipgo_deploy.runtime.open import built_precision, engine_backend, engine_records, shared_bytes
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.runtime.tensorrt_engine import EngineFile
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.preflight import Engine
from dipgo_deploy.trt.target import Target
from dipgo_deploy.verify import VerifyOptions
from tests.runtime.fake_tensorrt import Library


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")


@pytest.mark.parametrize(
    "command", ["verify --target", "verify --device cpu --target", "generate --backend", "bench --backend"]
)
@pytest.mark.parametrize("target", ["tensorrt", "rtx"])
def test_without_a_gpu_one_line_says_so(no_gpu, bundle_folder, capsys, command, target):
    name, *options = command.split()
    assert run([name, str(bundle_folder), *options, target]) == 5
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


def here(gpu=(8, 9)):
    return Target("rtx", SimpleNamespace(), "1.7", CudaDriver((Device(0, "a GPU", gpu, 1 << 30),), "13.0", ""))


def records(folder, **changes):
    """Stand-in records of two graphs in a folder of engines."""
    folder.mkdir(parents=True)
    for graph, precision in {"subnet_00": "float32", "subnet_01": "float32", **changes}.items():
        sizes = {"bytes": 10, "weight_bytes": 1, "activation_bytes": None, "layers": 1, "build_memory_bytes": 0}
        names = {"digest": "", "graph_digest": "", "weights_digest": "", "sha256": "", "version": "1.7"}
        record = EngineRecord(
            graph=graph, target="rtx", gpu=folder.name.rpartition("-")[2], precision=precision, flags=(),
            batch=BatchRange(1, 1, 1), io={}, profile={}, seconds=2.0, **sizes, **names,
        )  # fmt: skip
        save_engine_record(folder / f"{graph}.json", record)


def test_a_bundle_without_engines_is_refused(bundle, bundle_copy):
    with pytest.raises(InputError, match="engines of rtx 1.7 for sm89 are wanted, the bundle has none"):
        built_precision(bundle, here())
    (bundle_copy / "unet" / "engines" / "rtx-1.7-sm89").mkdir(parents=True)
    with pytest.raises(InputError, match="has no engines of rtx: run dipgo-deploy build-engine --target rtx"):
        built_precision(load_bundle(bundle_copy), here())


def test_engines_of_other_machines_do_not_count(bundle_copy):
    bundle, home = load_bundle(bundle_copy), bundle_copy / "unet" / "engines"
    records(home / "rtx-1.7-sm86", subnet_00="bfloat16", subnet_01="bfloat16")
    records(home / "rtx-1.7-sm89", subnet_00="float16", subnet_01="float16")
    records(home / "rtx-1.7-sm120")
    assert [built_precision(bundle, here(gpu)) for gpu in ((8, 6), (8, 9), (12, 0))] == ["bfloat16", "float16", None]
    assert {one.gpu for one in engine_records(bundle, here())} == {"sm89"} and len(engine_records(bundle, here())) == 2
    records(home / "rtx-1.7-sm75", subnet_00="float16")
    with pytest.raises(InputError, match="has engines in float16 and float32 of rtx"):
        built_precision(bundle, here((7, 5)))


def test_engines_built_since_the_bundle_was_opened_are_known(bundle_copy, monkeypatch):
    bundle, home = load_bundle(bundle_copy), bundle_copy / "unet" / "engines" / "rtx-1.7-sm89"
    records(home)
    add_records(bundle_copy, home.iterdir())
    seen = []
    monkeypatch.setattr(opened, "load_target", lambda *_: here())
    monkeypatch.setattr(opened, "preflight", lambda folder, manifest, *_, **__: seen.append(manifest) or {})
    monkeypatch.setattr(opened, "TensorRTBackend", lambda *_, **__: None)
    engine_backend(bundle, "rtx", 1)
    assert {f"unet/engines/{home.name}/subnet_0{i}.json" for i in (0, 1)} <= {entry.path for entry in seen[0].files}


def test_stripped_engines_are_opened_with_the_graphs_they_were_built_of(bundle_copy, monkeypatch):
    bundle, home, seen = load_bundle(bundle_copy), bundle_copy / "unet" / "engines" / "rtx-1.7-sm89", []
    records(home)
    found = {
        one.graph: Engine(home / f"{one.graph}.engine", replace(one, flags=("strip",) * (one.graph == "subnet_01")))
        for one in engine_records(bundle, here())
    }
    monkeypatch.setattr(opened, "load_target", lambda *_: here())
    monkeypatch.setattr(opened, "preflight", lambda *_, **__: found)
    monkeypatch.setattr(opened, "TensorRTBackend", lambda module, files, **__: seen.append(files))
    engine_backend(bundle, "rtx", 1)
    graph = bundle_copy / "unet" / "subnet_01.onnx"
    paths = {name: home / f"{name}.engine" for name in ("subnet_00", "subnet_01")}
    assert seen == [
        {"subnet_00": EngineFile(paths["subnet_00"]), "subnet_01": EngineFile(paths["subnet_01"], graph, 1)}
    ]


def test_what_engines_share_is_the_largest_activations_and_outputs(bundle_copy):
    home = bundle_copy / "unet" / "engines" / "rtx-1.7-sm89"
    records(home)
    one, two = engine_records(load_bundle(bundle_copy), here())
    half, wide = EngineTensor("output", (-1, 4), "float16"), EngineTensor("output", (2, 8), "float32")
    one = replace(one, activation_bytes=100, io={"x": EngineTensor("input", (-1, 99), "float32"), "y": half})
    two = replace(two, activation_bytes=None, io={"y": wide, "z": half})
    assert shared_bytes([one, two], 3) == 100 + 64 + 24 and shared_bytes([], 3) == 0


def test_engines_run_no_other_schedule_than_the_bundles(bundle):
    with pytest.raises(UsageError, match="runs a bundle's own engines"):
        bundle.session(2, backend="rtx", compiled=bundle.compiled)


def test_verify_climbs_to_the_engines(bundle, tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.engine" for name in bundle.compiled.graphs}
    for name, content in bundle.compiled.graphs.items():
        files[name].write_bytes(content)

    def backend(*_, gpu_memory, trust):
        assert (gpu_memory, trust) == (2**30, True)
        return bundle.program, TensorRTBackend(Library(bundle.denoiser), files, gpu_memory=gpu_memory, device="cpu")

    monkeypatch.setattr("dipgo_deploy.runtime.open.engine_backend", backend)
    report = verify(bundle, VerifyOptions(images=2, target="rtx", gpu_memory=2**30, trust_engines=True))
    assert report.passed
    assert report.rungs[-1].name == "rtx = onnxruntime"
    assert report.rungs[-1].local.relative <= 1e-4
