"""Profiles of the reference models: what is measured, and what is refused."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.latency import LatencyTable, check_table
from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.engines import probes, profiling
from dipgo_deploy.engines.options import ProfileOptions
from dipgo_deploy.engines.probes import ProbeEngines, probe_programs
from dipgo_deploy.engines.profiling import profile, time_calls
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.models import make_contract
from dipgo_deploy.runtime.clock import HostClock
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.store import find_built
from dipgo_deploy.trt.target import Target, load_target
from tests.runtime.fake_tensorrt import Library


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_profile_measures_every_piece(digits_unet, traced, backend):
    trace = traced("digits-unet", "stage")
    options = ProfileOptions(RunOptions(backend, threads=1), batch=2, rounds=1, steps=4, guidance="concat")
    shown: list[Progress] = []
    table = finish(profile(digits_unet, trace, options), shown.append)
    assert shown[-1] == Progress("timing", 2, 2, "round 2 of 2")
    assert isinstance(table, LatencyTable)
    assert (table.batch, table.rows, table.target) == (2, 4, f"{backend}-cpu")
    assert sum(table.pieces_ms) > 0.1
    assert 0.3 < sum(table.blocks_ms.values()) / table.forward_ms <= 1


def test_programs_too_large_together_are_timed_apart(digits_unet, traced):
    options = ProfileOptions(RunOptions(threads=1), batch=1, rounds=1, steps=2, memory_bytes=1)
    *_, last = profile(digits_unet, traced("digits-unet", "stage"), options)
    assert last == Progress("timing", 18, 18, "round 18 of 18")


@pytest.mark.parametrize("precision", [None, "float16"])
def test_engines_are_built_for_a_profile_and_gone_after_it(digits_unet, traced, monkeypatch, precision):
    """Engine files hold ONNX here, and a library that computes on the CPU replaces TensorRT."""
    built, trace = [], traced("digits-unet", "stage")

    def build_engines(jobs):
        for job in jobs:
            built.append(job)
            engine = Path(job.folder) / f"{job.graph}.engine"
            engine.parent.mkdir(exist_ok=True)
            engine.write_bytes(Path(job.onnx).read_bytes())
            yield Progress("building engines", len(built), len(built), f"{job.graph} built")
        return tuple(SimpleNamespace(record=record_of(job)) for job in jobs)

    device = Device(0, "a GPU", (8, 9), 1 << 30)
    target = Target("rtx", None, "1.7", CudaDriver((device,), "13.0", ""))
    monkeypatch.setattr(Target, "check_gpus", lambda self, asked: ("sm89",))
    monkeypatch.setattr(probes, "load_target", lambda *_: target)
    monkeypatch.setattr(probes, "build_engines", build_engines)
    monkeypatch.setattr(probes, "TensorRTBackend", lambda _, files, **how: on_the_cpu(built[0], files, **how))
    monkeypatch.setattr(profiling, "clock_for", lambda device: HostClock())
    options = ProfileOptions(RunOptions("rtx"), batch=2, rounds=1, steps=3, guidance="concat", precision=precision)
    shown: list[Progress] = []
    table = finish(profile(digits_unet, trace, options), shown.append)
    assert [progress.stage for progress in shown] == ["building engines"] * len(built) + ["timing"] * 2
    assert shown[-1] == Progress("timing", 2, 2, "round 2 of 2") and len(built) > 9
    assert (table.target, table.dtype, table.rows) == ("rtx", precision or "float32", 4)
    check_table(table, replace(trace.blocks, dtype=precision or "float32"), 2)
    assert sum(table.pieces_ms) > 0.1
    assert {job.precision for job in built} == {table.dtype}
    assert all(job.flags.static and job.batch == BatchRange(2, 2, 2) for job in built)
    assert not Path(built[0].onnx).parent.exists()


def record_of(job):
    sizes = {"bytes": 10, "weight_bytes": 1, "activation_bytes": 100, "layers": 1, "build_memory_bytes": 0}
    names = {name: "" for name in ("digest", "graph_digest", "weights_digest", "sha256")}
    return EngineRecord(
        graph=job.graph, target="rtx", version="1.7", gpu="sm89", precision=job.precision, flags=(), batch=job.batch,
        io={}, profile={}, seconds=2.0, **sizes, **names,
    )  # fmt: skip


def on_the_cpu(job, files, *, reserve, name):
    assert reserve == 100 and name == "rtx"
    # The file is a link, and ONNX Runtime does not follow links.
    weights = (Path(job.onnx).parent / WEIGHTS_FILE).resolve()
    return TensorRTBackend(Library(weights.parent), files, reserve=reserve, name=name, device="cpu")


@pytest.mark.tensorrt
def test_probes_are_built_for_real_and_forgotten(digits_unet, traced, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
    monkeypatch.setattr("dipgo_deploy.trt.store.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(probes, "load_target", lambda name, purpose: load_target(name, "build"))
    monkeypatch.setattr(Target, "check_gpus", lambda self, asked: ("sm89",))
    monkeypatch.setattr(probes, "TensorRTBackend", lambda *_, **__: None)  # The backend needs a GPU.
    trace = traced("digits-unet", "stage")
    contract = make_contract(digits_unet, steps=2, guidance="none")
    program = probe_programs(trace.blocks, contract, ["subnets"], 0)[-1]
    (tmp_path / "work").mkdir()
    engines_of = ProbeEngines(trace, "rtx", 2, tmp_path / "work")
    records = []
    for status in ("built", "copied"):  # The second build copies the engine of the first.
        shown: list[Progress] = []
        assert finish(engines_of.build(program), shown.append) is None
        assert [progress.text for progress in shown] == [f"{program.graphs[0].name} {status}"]
        records.append(load_engine_record(next((tmp_path / "work" / f"program_{len(records):02}").glob("*.json"))))
    record = records[0]
    assert record.io["sample"].shape == (2, 1, 16, 16) and records[1].digest == record.digest
    engines = sorted((tmp_path / "work").rglob("*.engine"))
    assert len(engines) == 2 and find_built(record.digest) == engines[1]
    engines_of.drop()
    assert find_built(record.digest) is None and not any(engine.exists() for engine in engines)


def test_without_a_gpu_engines_are_not_profiled(digits_unet, traced, monkeypatch):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")
    with pytest.raises(MissingError, match="target rtx runs only on an NVIDIA GPU"):
        finish(profile(digits_unet, traced("digits-unet", "stage"), ProfileOptions(RunOptions("rtx"), steps=2)))


def test_a_model_in_half_precision_is_not_converted_again(digits_unet, traced):
    half = replace(digits_unet, dtype="float16")
    with pytest.raises(UsageError, match="the model is in float16: leave precision out, or load the model in float32"):
        finish(profile(half, traced("digits-unet", "stage"), ProfileOptions(RunOptions("rtx"), precision="float16")))


def test_a_model_without_weights_is_not_profiled(digits_unet, traced):
    bare = replace(digits_unet, module=copy.deepcopy(digits_unet.module).to("meta"))
    with pytest.raises(UsageError, match="was loaded without weights"):
        finish(profile(bare, traced("digits-unet", "stage"), ProfileOptions()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float16"}, "precision is for onnxruntime on cuda, tensorrt and rtx, not for onnxruntime-cpu"),
        ({"run": RunOptions("torch"), "precision": "float16"}, "not for torch-cpu: leave it out"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 1}, "steps must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        ProfileOptions(**change)


def test_calls_and_marks_are_on_the_backends_own_stream():
    log = []

    @contextmanager
    def running():
        log.append("enter")
        yield
        log.append("exit")

    contract = SimpleNamespace(latent_at=lambda _: (1, 2, 2), guidance="none")
    session = SimpleNamespace(
        program=SimpleNamespace(contract=contract),
        batch=1,
        backend=SimpleNamespace(running=running),
        begin=lambda *_: log.append("begin"),
        calls=[lambda: log.append("call")] * 2,
    )
    clock = SimpleNamespace(
        mark=lambda: log.append("mark") or len(log), elapsed_ms=lambda first, second: second - first
    )
    model = SimpleNamespace(num_classes=None, at_sizes=lambda _: SimpleNamespace(conditioning=lambda *_: {}))
    assert time_calls(session, model, clock) == [2, 2, 4]
    assert log == ["begin", "enter", "mark", "call", "mark", "call", "mark", "exit"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: profiles of the CPU are measured above")
def test_a_profile_on_a_gpu(digits_unet, traced):
    options = ProfileOptions(RunOptions("torch", "cuda"), batch=2, rounds=2, steps=4)
    table = finish(profile(digits_unet, traced("digits-unet", "stage"), options))
    assert table.target == "torch-cuda"
