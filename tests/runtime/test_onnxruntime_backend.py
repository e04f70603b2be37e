from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dipgo_deploy.core.blocks import ZERO_MACS
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import Combine, Graph, Program, Run, Term
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.session import Session

WEIGHT = np.arange(4, dtype=np.float32)
FLOAT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def value(name: str, dtype: str, *shape) -> object:
    return helper.make_tensor_value_info(name, FLOAT[dtype], shape)


def graph_bytes(dtype: str = "float32") -> bytes:
    """feature = sample + weight (in another file); prediction = feature * timestep."""
    weight = TensorProto(name="weight", data_type=FLOAT[dtype], dims=[4], data_location=TensorProto.EXTERNAL)
    size = 4 * np.dtype(dtype).itemsize
    for key, entry in {"location": f"{dtype}.bin", "offset": "64", "length": str(size)}.items():
        weight.external_data.add(key=key, value=entry)
    nodes = [
        helper.make_node("Add", ["sample", "weight"], ["b:0"]),
        helper.make_node("Cast", ["timestep"], ["t"], to=FLOAT[dtype]),
        helper.make_node("Unsqueeze", ["t", "axis"], ["column"]),
        helper.make_node("Mul", ["b:0", "column"], ["prediction"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        nodes,
        "toy",
        [value("sample", dtype, "rows", 4), value("timestep", "float32", "rows")],
        [value("prediction", dtype, "rows", 4), value("b:0", dtype, "rows", 4)],
        [weight, axis],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    for dtype in FLOAT:
        (tmp_path / f"{dtype}.bin").write_bytes(bytes(64) + WEIGHT.astype(dtype).tobytes())
    return tmp_path


def program(dtype: str = "float32") -> Program:
    """Two runs of one graph, each with slots of its own; the second keeps no feature."""
    contract = Contract("Toy", "0" * 64, dtype, sampler_spec("ddim", 2), "none", (4, 1, 1))
    names = ("in", "feature", "out", "out2")
    slots = (
        *(TensorSpec(name, ("batch", 4), "float32") for name in ("noise", "x")),
        *(TensorSpec(name, ("rows", 4), dtype) for name in names),
    )
    graph = Graph("g", "main", ("b",), ("sample", "timestep"), (), ("b:0", "prediction"), (), ZERO_MACS, 0)
    calls = (
        Combine("in", (Term("noise", 1.0),), 0),
        Run("g", 0, 2.0, (("sample", "in"),), (("b:0", "feature"), ("prediction", "out"))),
        Run("g", 1, 3.0, (("sample", "out"),), (("prediction", "out2"),)),
        Combine("x", (Term("out2", 1.0),), 1),
    )
    return Program(contract, "stage", "output", "subnets", (graph,), slots, calls, "noise", "x", ())


NOISE = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 4e-3)])
def test_slots_are_read_and_written_in_place(weights, dtype, tolerance):
    session = Session(program(dtype), OnnxRuntimeBackend({"g": graph_bytes(dtype)}, weights, threads=1), 3)
    image = session.run(NOISE, {})
    expected = ((NOISE + WEIGHT) * 2 + WEIGHT) * 3
    assert image.dtype == np.float32
    assert np.abs(image - expected).max() <= tolerance * np.abs(expected).max()
    assert session.slot("feature").dtype == np.dtype(dtype)
    assert np.abs(session.slot("feature") - (NOISE + WEIGHT)).max() <= tolerance * 4


def test_the_memory_that_onnx_runtime_writes_is_the_slot(weights):
    backend = OnnxRuntimeBackend({"g": graph_bytes()}, weights, threads=1)
    sizes = {"batch": 3, "rows": 3}
    buffers = {slot.name: backend.allocate(slot, sizes) for slot in program().slots}
    addresses = {name: buffer.ctypes.data for name, buffer in buffers.items()}
    call = backend.bind_run(program().calls[1], buffers, sizes)
    for scale in (1.0, -2.0):
        buffers["in"][...] = scale * NOISE
        call()
        assert np.abs(buffers["out"] - (scale * NOISE + WEIGHT) * 2).max() < 1e-5
        buffers["out"][...] = np.nan  # whatever is there is overwritten by the next call
    assert {name: buffer.ctypes.data for name, buffer in buffers.items()} == addresses


def test_nothing_is_left_of_the_run_before(weights):
    session = Session(program(), OnnxRuntimeBackend({"g": graph_bytes()}, weights, threads=1), 3)
    first = session.run(NOISE, {})
    assert not np.array_equal(session.run(NOISE * 7, {}), first)
    assert np.array_equal(session.run(NOISE, {}), first)


def test_one_inference_session_serves_all_runs_and_batches(weights):
    backend = OnnxRuntimeBackend({"g": graph_bytes()}, weights, threads=1)
    three, one = Session(program(), backend, 3), Session(program(), backend, 1)
    assert backend.session("g") is backend.session("g")
    assert np.array_equal(three.run(NOISE, {})[:1], one.run(NOISE[:1], {}))


@pytest.mark.parametrize("damage", [lambda b: b"junk", lambda b: b[:60], lambda b: b""])
def test_a_damaged_graph_is_refused_in_one_line(weights, damage):
    with pytest.raises(InputError, match="ONNX Runtime cannot load graph g") as caught:
        Session(program(), OnnxRuntimeBackend({"g": damage(graph_bytes())}, weights), 1)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot load graph g .*External data"):
        Session(program(), OnnxRuntimeBackend({"g": graph_bytes()}, tmp_path), 1)


def test_a_run_that_does_not_fit_its_graph_is_refused(weights):
    good = program()
    backend = OnnxRuntimeBackend({"g": graph_bytes()}, weights)
    cases = {
        "graph 'h', which is not in the bundle": replace(good.calls[1], graph="h"),
        "needs input 'sample', which the program does not bind": replace(good.calls[1], inputs=()),
        "has no input 'y', which the program binds": replace(good.calls[1], inputs=(("sample", "in"), ("y", "noise"))),
        "has no output 'y', which the program binds": replace(good.calls[1], outputs=(("y", "out"),)),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message):
            Session(replace(good, calls=(call,)), backend, 1)
    half = OnnxRuntimeBackend({"g": graph_bytes("float16")}, weights)
    with pytest.raises(InputError, match=r"'sample' is tensor\(float16\), but the slot is float32"):
        Session(good, half, 1)


def test_options_are_checked(weights, monkeypatch):
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        OnnxRuntimeBackend({}, weights, threads=0)
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        OnnxRuntimeBackend({}, weights, device="tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="finds no CUDA GPU here"):
        OnnxRuntimeBackend({}, weights, device="cuda")


def test_a_silent_fall_back_to_the_cpu_is_refused(weights, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    backend = OnnxRuntimeBackend({"g": graph_bytes()}, weights, device="cuda")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(MissingError, match="this ONNX Runtime has no CUDAExecutionProvider"):
            backend.session("g")
    cpu_only = ort.InferenceSession

    def fall_back(model, options, providers):
        return cpu_only(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", fall_back)
    monkeypatch.setattr("dipgo_deploy.runtime.streams.WorkStream.handle", 0)
    with pytest.raises(MissingError, match="fell back to CPUExecutionProvider: install the CUDA and cuDNN"):
        backend.session("g")


def test_the_number_of_threads_reaches_onnx_runtime(weights):
    backend = OnnxRuntimeBackend({"g": graph_bytes()}, weights, threads=1)
    assert backend.session("g").get_session_options().intra_op_num_threads == 1


def test_a_cuda_graph_on_the_cpu_is_refused(weights):
    with pytest.raises(UsageError, match="cuda_graph needs device cuda, the device is cpu"):
        OnnxRuntimeBackend({}, weights, cuda_graph=True)
    with pytest.raises(UsageError, match="CUDA graphs of single calls"):
        OnnxRuntimeBackend({}, weights).capture([])
