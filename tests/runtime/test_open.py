"""Sessions of a bundle: options reach the backend, and engines pass preflight. Only the GPU is faked."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.bundle.half_precision import graph_source, write_half_precision
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import EngineRecord, EngineTensor
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.files import save_engine_record
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime import RunOptions, open_session
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import engine_records, make_backend, open_engines, shared_bytes
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.target import Target
from tests.runtime.fake_tensorrt import STRIPPED, FakeGpu, write_engines

RTX = RunOptions("rtx")


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture(scope="module")
def inputs(bundle):
    return run_inputs(bundle.model, bundle.contract, [3, 4])


@pytest.fixture
def copy(bundle_copy, engine_cache):
    return load_bundle(bundle_copy)


@pytest.fixture
def gpu(monkeypatch, copy):
    return FakeGpu(monkeypatch, copy.denoiser)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")


@pytest.mark.parametrize(
    "command", ["verify --backend", "verify --device cpu --backend", "generate --backend", "bench --backend"]
)
@pytest.mark.parametrize("target", ["tensorrt", "rtx"])
def test_without_a_gpu_the_command_line_says_so_in_one_line(no_gpu, bundle_folder, capsys, command, target):
    name, *options = command.split()
    assert run([name, str(bundle_folder), *options, target]) == 5
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_the_driver_is_checked_before_the_bundle(no_gpu, bundle):
    with pytest.raises(MissingError, match="rtx"):
        open_engines(bundle, 2, RTX)


def test_a_batch_outside_the_contract_is_refused_on_every_backend(bundle):
    for backend in ("onnxruntime", "torch", "rtx"):
        with pytest.raises(UsageError, match="batch must be 1 to 64, as the bundle's contract says, got 65"):
            open_session(bundle, 65, RunOptions(backend))


def test_other_schedules_of_the_model_run_on_both_backends(bundle, inputs):
    schedule = bundle.schedule
    full = bundle.compile(full_schedule(schedule.contract, schedule.granularity, schedule.kind, schedule.blocks))
    assert full.program.nfe == 6 and len(full.graphs) == 1
    by_torch = open_session(bundle, 2, RunOptions("torch"), guidance_scale=2.0, compiled=full).run(*inputs)
    image = open_session(bundle, 2, guidance_scale=2.0, compiled=full).run(*inputs)
    assert np.abs(image - by_torch).max() <= 1e-4 * np.abs(by_torch).max()
    own = open_session(bundle, 2, guidance_scale=2.0).run(*inputs)
    assert np.abs(image - own).max() > 1e-2, "the schedule changes nothing, so this test shows nothing"


def test_a_bundle_of_segments_runs_on_torch_as_subnets(bundle, inputs):
    segments = bundle.compile(bundle.schedule, "segments")
    cut = replace(bundle, program=segments.program)
    by_torch = open_session(cut, 2, RunOptions("torch"), guidance_scale=2.0)
    assert by_torch.program.layout == "subnets"
    image = open_session(bundle, 2, guidance_scale=2.0).run(*inputs)
    assert np.abs(by_torch.run(*inputs) - image).max() <= 1e-4 * np.abs(image).max()


def test_options_reach_the_backend(bundle):
    graph = bundle.program.runs[0].graph
    backend = make_backend(bundle, bundle.compiled, RunOptions(threads=1))
    assert backend.session(graph).get_session_options().intra_op_num_threads == 1
    compiling = make_backend(bundle, bundle.compiled, RunOptions("torch", compiler="eager"))
    assert compiling.compiled("", bundle.model.forward) is not bundle.model.forward
    with pytest.raises(UsageError, match="backend rtx runs engines, not graphs that are cut here"):
        make_backend(bundle, bundle.compiled, RTX)


def test_engines_run_only_the_schedule_of_their_bundle(bundle):
    with pytest.raises(UsageError, match="backend rtx runs a bundle's own engines: export the schedule and build them"):
        open_session(bundle, 2, RTX, compiled=bundle.compiled)


@pytest.mark.parametrize("target", ["tensorrt", "rtx"])
def test_engines_make_the_images_of_onnx_runtime(copy, gpu, inputs, target):
    """The bundle was loaded before its engines were built. The manifest on disk is newer than the one in memory."""
    write_engines(copy, target)
    expected = open_session(copy, 2, guidance_scale=2.0).run(*inputs)
    session = open_session(copy, 2, RunOptions(target), guidance_scale=2.0)
    np.testing.assert_allclose(session.run(*inputs), expected, atol=1e-4)
    assert gpu.runs == [call.graph for call in copy.program.runs] and session.backend.name == target


def test_gpu_memory_evicts_engines(copy, gpu, inputs):
    write_engines(copy)
    free = open_session(copy, 2, RTX, guidance_scale=2.0)
    expected = free.run(*inputs)
    assert len(gpu.loads) == len(copy.program.graphs)
    limited = RunOptions("rtx", gpu_memory=free.backend.device_bytes - 1)
    session = open_session(copy, 2, limited, guidance_scale=2.0)
    np.testing.assert_array_equal(session.run(*inputs), expected)
    assert len(session.backend.loaded) < len(copy.program.graphs)


def test_a_cuda_graph_replays_the_second_run(copy, gpu, inputs, monkeypatch):
    write_engines(copy)
    captured = []

    def capture(calls, stream):
        captured.append(len(calls))
        return lambda: [call() for call in calls]

    monkeypatch.setattr("dipgo_deploy.runtime.tensorrt_backend.capture", capture)
    session = open_session(copy, 2, RunOptions("rtx", cuda_graph=True), guidance_scale=2.0)
    first = session.run(*inputs)
    np.testing.assert_array_equal(session.run(*inputs), first)
    assert captured == [len(copy.program.calls)]


def test_engines_built_elsewhere_need_trust(copy, gpu):
    write_engines(copy, trusted=False)
    with pytest.raises(InputError, match="was not built on this machine"):
        open_session(copy, 2, RTX)
    assert open_session(copy, 2, RunOptions("rtx", trust_engines=True)).backend.name == "rtx"


def test_a_batch_that_engines_do_not_take_is_refused(copy, gpu):
    write_engines(copy, batch=BatchRange(3, 3, 3))
    with pytest.raises(UsageError, match="batch must be 3 to 3 for engine .*, got 2"):
        open_session(copy, 2, RTX)
    assert open_session(copy, 3, RTX).batch == 3


def test_stripped_engines_get_the_weights_of_their_graphs(copy, gpu, inputs):
    home = write_engines(copy)
    plain_bytes = sum(path.stat().st_size for path in home.glob("*.engine"))
    plain = open_session(copy, 2, RTX, guidance_scale=2.0)
    expected = plain.run(*inputs)
    write_engines(copy, flags=("strip",))
    session = open_session(copy, 2, RTX, guidance_scale=2.0)
    np.testing.assert_array_equal(session.run(*inputs), expected)
    stripped_bytes = len(copy.program.graphs) * (len(STRIPPED) + 1000)
    assert session.backend.device_bytes - plain.backend.device_bytes == stripped_bytes - plain_bytes


def test_engines_in_half_precision_run_on_the_half_precision_program(copy, gpu, inputs):
    feature = copy.program.graphs[0].writes[0]
    record = PrecisionRecord("float16", "", 2e-2, 1, (), (), (feature,), 0.0, 0.0)
    write_half_precision(copy, record, ())
    write_engines(copy, precision="float16")
    expected = open_session(copy, 2, guidance_scale=2.0).run(*inputs)
    session = open_session(copy, 2, RTX, guidance_scale=2.0)
    assert np.abs(session.run(*inputs) - expected).max() <= 0.1 * np.abs(expected).max()
    program, steps, _ = open_engines(copy, 2, RTX)
    assert program == graph_source(copy, "float16").program
    for lowered in (program, steps.program):
        dtypes = {slot.name: slot.dtype for slot in lowered.slots}
        outputs = {name: dtypes[slot] for call in lowered.runs for name, slot in call.outputs}
        assert outputs.pop(feature) == "float32" and set(outputs.values()) == {"float16"}


def test_a_bundle_without_engines_is_refused(copy, gpu):
    with pytest.raises(InputError, match="rtx 1.7 needs engines for sm89, the bundle has no engines"):
        open_session(copy, 2, RTX)
    (copy.denoiser / "engines" / "rtx-1.7-sm89").mkdir(parents=True)
    with pytest.raises(InputError, match="has no engines of rtx: build engines for target rtx again"):
        open_session(copy, 2, RTX)


def target_for(gpu=(8, 9)):
    return Target("rtx", SimpleNamespace(), "1.7", CudaDriver((Device(0, "a GPU", gpu, 1 << 30),), "13.0", ""))


def write_records(folder, **precisions):
    """Records of two graphs without engine files."""
    folder.mkdir(parents=True)
    for graph, precision in {"subnet_00": "float32", "subnet_01": "float32", **precisions}.items():
        sizes = {"bytes": 10, "weight_bytes": 1, "activation_bytes": None, "layers": 1, "build_memory_bytes": 0}
        names = {"digest": "", "graph_digest": "", "weights_digest": "", "sha256": "", "version": "1.7"}
        record = EngineRecord(
            graph=graph, target="rtx", gpu=folder.name.rpartition("-")[2], precision=precision, flags=(),
            batch=BatchRange(1, 1, 1), io={}, profile={}, seconds=2.0, **sizes, **names,
        )  # fmt: skip
        save_engine_record(folder / f"{graph}.json", record)


def test_engines_of_other_machines_do_not_count(copy, monkeypatch):
    home = copy.denoiser / "engines"
    write_records(home / "rtx-1.7-sm86", subnet_00="bfloat16", subnet_01="bfloat16")
    write_records(home / "rtx-1.7-sm89", subnet_00="float16", subnet_01="float16")
    write_records(home / "rtx-1.7-sm120")
    for gpu, precision in {(8, 6): "bfloat16", (8, 9): "float16", (12, 0): "float32"}.items():
        records = engine_records(copy, target_for(gpu))
        assert [record.precision for record in records] == [precision] * 2
        assert {record.gpu for record in records} == {target_for(gpu).driver.devices[0].gpu}
    write_records(home / "rtx-1.7-sm75", subnet_00="float16")
    FakeGpu(monkeypatch, copy.denoiser, (7, 5))
    with pytest.raises(InputError, match="has engines in float16 and float32 of rtx"):
        open_session(copy, 2, RTX)


def test_engines_share_the_largest_activations_and_outputs(copy):
    write_records(copy.denoiser / "engines" / "rtx-1.7-sm89")
    first, second = engine_records(copy, target_for())
    half, single = EngineTensor("output", (-1, 4), "float16"), EngineTensor("output", (2, 8), "float32")
    first = replace(first, activation_bytes=100, io={"x": EngineTensor("input", (-1, 99), "float32"), "y": half})
    second = replace(second, activation_bytes=None, io={"y": single, "z": half})
    specs = {
        first.graph: {"y": TensorSpec("y", ("rows", 4), "float16")},
        second.graph: {"y": TensorSpec("y", (2, 8), "float32"), "z": TensorSpec("z", ("rows+tokens", 4), "float16")},
    }
    sizes = {"rows": 3, "tokens": 2}
    assert shared_bytes([first, second], specs, sizes) == 100 + 64 + 40 and shared_bytes([], specs, sizes) == 0
