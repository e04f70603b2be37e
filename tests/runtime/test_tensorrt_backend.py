"""The TensorRT backend on a library that computes on the CPU: images, addresses, memory and evicted engines."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.runtime.tensorrt_engine import EngineFile, changed
from tests.runtime import fake_tensorrt as fake
from tests.runtime import test_onnxruntime_backend as toy

LISTS = Path(__file__).parents[1] / "trt" / "tensorrt_api.json"


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


@pytest.fixture(scope="module", params=["subnets", "segments"])
def compiled(request, bundle):
    return bundle.compiled if request.param == "subnets" else bundle.compile(bundle.schedule, "segments")


@pytest.fixture(scope="module")
def inputs(bundle):
    contract = bundle.manifest.contract
    return noise_for(range(2), contract.latent_shape), bundle.model.conditioning([3, 7], contract.guidance)


@pytest.fixture
def engines(compiled, tmp_path):
    files = {name: tmp_path / f"{name}.engine" for name in compiled.graphs}
    for name, content in compiled.graphs.items():
        files[name].write_bytes(content)
    return files


def session_of(bundle, compiled, engines, library=None, **options):
    library = library or fake.Library(bundle.denoiser)
    backend = TensorRTBackend(library, engines, device="cpu", **options)
    return library, Session(compiled.program, backend, 2, 4.0)


def total_of(engines):
    return sum(file.stat().st_size for file in engines.values())


def test_images_are_those_of_onnx_runtime(bundle, compiled, engines, inputs):
    _, session = session_of(bundle, compiled, engines)
    run = RunOptions(threads=1)
    expected = open_session(bundle, 2, run, compiled=compiled, guidance_scale=4.0).run(*inputs)
    for _ in range(2):  # nothing stale is left in the second run
        np.testing.assert_allclose(session.run(*inputs), expected, atol=1e-4)


def test_stripped_engines_get_their_weights_when_they_are_loaded(bundle, compiled, engines, inputs, tmp_path):
    stripped = {}
    for name, graph in engines.items():
        (tmp_path / f"{name}.stripped").write_bytes(fake.STRIPPED)
        stripped[name] = EngineFile(tmp_path / f"{name}.stripped", graph, 1000)
    library, session = session_of(bundle, compiled, stripped)
    _, plain = session_of(bundle, compiled, engines)
    np.testing.assert_array_equal(session.run(*inputs), plain.run(*inputs))
    assert sorted(name for what, name in library.log if what == "load") == sorted(compiled.graphs)
    held = len(engines) * (len(fake.STRIPPED) + 1000)
    assert session.backend.device_bytes - plain.backend.device_bytes == held - total_of(engines)
    name = next(iter(stripped))
    gone = {**stripped, name: EngineFile(stripped[name].path, tmp_path / "gone.onnx")}
    with pytest.raises(InputError, match=rf"engine {name} does not take the weights of .*gone.onnx .*: build it again"):
        session_of(bundle, compiled, gone)[1].run(*inputs)


def test_engines_are_loaded_at_their_first_call_and_once(bundle, compiled, engines, inputs):
    library, session = session_of(bundle, compiled, engines)
    assert library.log == []
    session.run(*inputs)
    session.run(*inputs)
    loads = [name for what, name in library.log if what == "load"]
    assert sorted(loads) == sorted(compiled.graphs)
    runs = [name for what, name in library.log if what == "run"]
    assert runs == 2 * [run.graph for run in compiled.program.runs]


def test_only_addresses_that_change_are_set(bundle, compiled, engines, inputs):
    library, session = session_of(bundle, compiled, engines)
    session.run(*inputs)
    library.log.clear()
    session.run(*inputs)
    again = sum(what == "address" for what, _ in library.log)
    bound = sum(len(run.inputs) + len(run.outputs) + 1 for run in compiled.program.runs)
    assert again < bound


def test_an_output_that_a_call_does_not_use_leaves_earlier_slots_alone(tmp_path):
    """Both runs share one engine. The second run does not use the feature that the first run wrote to a slot."""
    (tmp_path / "float32.bin").write_bytes(bytes(64) + toy.WEIGHT.tobytes())
    (tmp_path / "g.engine").write_bytes(toy.graph_bytes())
    backend = TensorRTBackend(fake.Library(tmp_path), {"g": tmp_path / "g.engine"}, device="cpu")
    session = Session(toy.program(), backend, 3)
    for _ in range(2):
        image = session.run(toy.NOISE, {})
        np.testing.assert_allclose(image, ((toy.NOISE + toy.WEIGHT) * 2 + toy.WEIGHT) * 3, rtol=1e-5)
        np.testing.assert_allclose(session.slot("feature"), toy.NOISE + toy.WEIGHT, rtol=1e-6)


def test_a_call_of_the_same_addresses_sets_none():
    assert changed({"a": 1, "b": 2}, {"a": 1, "b": 3}) == {"b": 3}
    assert changed({"a": 1}, {"a": 1}) == {}


def test_engines_are_evicted_under_a_limit_and_images_stay_the_same(bundle, compiled, engines, inputs):
    _, free = session_of(bundle, compiled, engines)
    expected = free.run(*inputs)
    library, session = session_of(bundle, compiled, engines, gpu_memory=free.backend.device_bytes - 1)
    np.testing.assert_array_equal(session.run(*inputs), expected)
    assert 0 < len(session.backend.loaded) < len(engines)
    np.testing.assert_array_equal(session.run(*inputs), expected)
    assert sum(what == "load" for what, _ in library.log) > len(engines)


def test_a_limit_too_small_for_one_engine_is_refused(bundle, compiled, engines, inputs):
    _, session = session_of(bundle, compiled, engines, gpu_memory=1000)
    with pytest.raises(MissingError, match="gpu_memory is 0.0 MiB: give more, or export with layout segments"):
        session.run(*inputs)


def test_all_engines_share_the_activations_of_the_largest(bundle, compiled, engines, inputs):
    sizes = {name: 100 * (index + 1) for index, name in enumerate(compiled.graphs)}
    library = fake.Library(bundle.denoiser, activations=sizes.__getitem__)
    _, session = session_of(bundle, compiled, engines, library)
    before = session.backend.device_bytes
    session.run(*inputs)
    files = sum(file.stat().st_size for file in engines.values())
    scratch = session.backend.device_bytes - before - files - max(sizes.values())
    assert 0 <= scratch < max(slot.nbytes({"batch": 2, "rows": 4}) for slot in compiled.program.slots) * 8


def test_a_cuda_graph_needs_all_engines(bundle, compiled, engines, inputs):
    _, session = session_of(bundle, compiled, engines)
    with pytest.raises(UsageError, match="cuda_graph needs all .* engines in memory, but .* was evicted"):
        session.backend.capture(session.calls)


def test_a_damaged_engine_is_refused(bundle, compiled, engines, inputs):
    next(iter(engines.values())).write_bytes(b"damaged")
    _, session = session_of(bundle, compiled, engines)
    with pytest.raises(InputError, match="cannot be loaded .see the log above.: build the engine again"):
        session.run(*inputs)


def test_the_limit_holds_activations_and_scratch_too(bundle, compiled, engines, inputs):
    _, session = session_of(bundle, compiled, engines)
    slots = session.backend.device_bytes
    session.run(*inputs)
    whole = session.backend.device_bytes
    for reserve in (0, whole - slots - total_of(engines)):
        _, session = session_of(bundle, compiled, engines, gpu_memory=whole, reserve=reserve)
        session.run(*inputs)
        assert len(session.backend.loaded) == len(engines)
        _, session = session_of(bundle, compiled, engines, gpu_memory=whole - 1, reserve=reserve)
        for _ in range(2):
            session.begin(*inputs)
            for call in session.calls:
                call()
                assert session.backend.device_bytes <= whole - 1
        assert len(session.backend.loaded) < len(engines)


def test_activations_that_prove_too_large_are_refused_every_time(bundle, compiled, engines, inputs):
    library = fake.Library(bundle.denoiser, activations=lambda name: 1 << 24)
    _, session = session_of(bundle, compiled, engines, library, gpu_memory=1 << 24)
    for _ in range(2):
        with pytest.raises(MissingError, match="gpu_memory is 16.0 MiB"):
            session.run(*inputs)
        assert session.backend.loaded == ()


def test_a_load_that_failed_can_be_tried_again(bundle, compiled, engines, inputs, monkeypatch):
    _, session = session_of(bundle, compiled, engines)
    with monkeypatch.context() as patch:
        patch.setattr(fake.ICudaEngine, "create_execution_context", lambda *_: None)
        for _ in range(2):
            with pytest.raises(MissingError, match="not enough GPU memory for engine .*: lower gpu_memory"):
                session.run(*inputs)
    assert session.backend.loaded == ()
    assert np.isfinite(session.run(*inputs)).all()


def test_a_missing_engine_is_refused(bundle, compiled, engines):
    engines.pop(compiled.program.runs[0].graph)
    with pytest.raises(InputError, match="which has no engine: build the engines again"):
        session_of(bundle, compiled, engines)


def test_an_engine_for_another_shape_is_refused(bundle, compiled, engines, inputs, monkeypatch):
    monkeypatch.setattr(fake.IExecutionContext, "set_input_shape", lambda *_: False)
    _, session = session_of(bundle, compiled, engines)
    with pytest.raises(InputError, match="got .*: build it for this batch"):
        session.run(*inputs)


def test_an_engine_that_refuses_to_run_is_an_error(bundle, compiled, engines, inputs, monkeypatch):
    monkeypatch.setattr(fake.IExecutionContext, "execute_async_v3", lambda *_: False)
    _, session = session_of(bundle, compiled, engines)
    with pytest.raises(InputError, match="refused to run"):
        session.run(*inputs)


def test_no_room_for_a_context_is_an_error(bundle, compiled, engines, inputs, monkeypatch):
    monkeypatch.setattr(fake.ICudaEngine, "create_execution_context", lambda *_: None)
    _, session = session_of(bundle, compiled, engines)
    with pytest.raises(MissingError, match="not enough GPU memory for engine .*: lower gpu_memory"):
        session.run(*inputs)


def test_the_fake_has_no_member_that_the_real_ones_lack():
    lists = json.loads(LISTS.read_text())
    for kind in (fake.Runtime, fake.ICudaEngine, fake.IExecutionContext, fake.Refitter, fake.OnnxParserRefitter):
        members = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
        for version, classes in lists.items():
            assert members <= set(classes[kind.__name__]), version


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_engines_on_a_gpu_make_the_images_of_onnx_runtime(bundle_copy, inputs):
    from dipgo_deploy.core.progress import finish
    from dipgo_deploy.engines import EngineOptions, build_bundle_engines
    from dipgo_deploy.trt.target import load_target

    try:
        target = load_target(None, "run")
    except MissingError as error:
        pytest.skip(str(error))
    bundle = load_bundle(bundle_copy)
    finish(build_bundle_engines(bundle, EngineOptions(target=target.name)))
    bundle = load_bundle(bundle_copy)
    expected = open_session(bundle, 2, guidance_scale=4.0).run(*inputs)
    for cuda_graph in (False, True):
        run = RunOptions(target.name, cuda_graph=cuda_graph)
        session = open_session(bundle, 2, run, guidance_scale=4.0)
        for _ in range(3):
            np.testing.assert_allclose(session.run(*inputs), expected, atol=1e-3)
