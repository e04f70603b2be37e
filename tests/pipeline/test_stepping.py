"""Steps of a pipeline on engines and graphs. Only the GPU is faked."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.bundle.half_precision import write_half_precision
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from tests.runtime.fake_tensorrt import FakeGpu, write_engines

TEXT = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bundle(sd_bundle: Path, tmp_path: Path, engine_cache):
    return load_bundle(shutil.copytree(sd_bundle, tmp_path / "bundle"))


@pytest.fixture
def gpu(bundle, monkeypatch):
    return FakeGpu(monkeypatch, bundle.denoiser)


def trajectory(unet, times, batch: int = 1) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    text = TEXT.repeat_interleave(batch, 0)
    latents = [torch.randn(batch, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1) for _ in times]
    return [unet(latent, time, text).sample.numpy() for latent, time in zip(latents, times, strict=True)]


def deviation(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("target", ["tensorrt", "rtx"])
def test_engines_predict_what_the_graphs_predict(bundle, gpu, target):
    write_engines(bundle, target)
    times = bundle.contract.sampler.timesteps
    unet = DeployedDenoiser.from_bundle(bundle, backend=target, gpu_memory=10**9)
    plain = DeployedDenoiser.from_bundle(bundle, threads=1)
    for batch in (1, 3, 1):
        assert deviation(trajectory(unet, times, batch), trajectory(plain, times, batch)) <= 1e-4
    assert len(gpu.loads) == 2 * len(bundle.program.graphs), "engines are opened once for each batch"
    assert gpu.runs == 3 * [run.graph for run in bundle.program.runs]


def test_a_limit_on_gpu_memory_reaches_the_engines(bundle, gpu):
    write_engines(bundle)
    times, graphs = bundle.contract.sampler.timesteps, bundle.program.graphs
    free = DeployedDenoiser.from_bundle(bundle, backend="rtx", gpu_memory=10**9)
    expected = trajectory(free, times)
    assert len(gpu.loads) == len(graphs)
    (_, backend), *_ = free._programs._compiled.values()
    limited = DeployedDenoiser.from_bundle(bundle, backend="rtx", gpu_memory=backend.device_bytes - 1)
    assert deviation(trajectory(limited, times), expected) == 0
    (_, backend), *_ = limited._programs._compiled.values()
    assert len(backend.loaded) < len(graphs), "nothing was evicted"


def test_engines_that_were_not_built_here_need_trust(bundle, gpu):
    write_engines(bundle, trusted=False)
    times = bundle.contract.sampler.timesteps
    with pytest.raises(InputError, match="was not built on this machine"):
        trajectory(DeployedDenoiser.from_bundle(bundle, backend="rtx"), times)
    assert len(trajectory(DeployedDenoiser.from_bundle(bundle, backend="rtx", trust_engines=True), times)) == len(times)


def test_a_batch_that_engines_were_not_built_for_is_refused(bundle, gpu):
    write_engines(bundle, batch=BatchRange(3, 3, 3))
    unet = DeployedDenoiser.from_bundle(bundle, backend="rtx")
    unet.prepare(batch=3)
    assert len(gpu.loads) == len(bundle.program.graphs), "engines are loaded before the first run"
    with pytest.raises(RefusedCall, match="batch must be 3 to 3 for engine .*, got 1"):
        unet.prepare()
    times = bundle.contract.sampler.timesteps
    with pytest.raises(RefusedCall, match="batch must be 3 to 3 for engine .*, got 2"):
        trajectory(unet, times, 2)
    assert len(trajectory(unet, times, 3)) == len(times) and len(gpu.loads) == len(bundle.program.graphs)


def test_a_late_start_on_engines_is_refused(bundle, gpu):
    write_engines(bundle)
    unet = DeployedDenoiser.from_bundle(bundle, backend="rtx")
    times = bundle.contract.sampler.timesteps
    with pytest.raises(RefusedCall, match="engines of rtx are built for whole runs, this run starts at step 2: use"):
        trajectory(unet, times[2:])


def test_engines_in_half_precision_predict_what_the_graphs_predict(bundle, gpu):
    """One feature is beyond float16, so its slot stays float32."""
    feature = bundle.program.graphs[0].writes[0]
    write_half_precision(bundle, PrecisionRecord("float16", "", 2e-2, 1, (), (), (feature,), 0.0, 0.0), ())
    write_engines(bundle, precision="float16")
    times = bundle.contract.sampler.timesteps
    engines = trajectory(DeployedDenoiser.from_bundle(bundle, backend="rtx"), times)
    plain = trajectory(DeployedDenoiser.from_bundle(bundle), times)
    assert 1e-5 < deviation([image.astype(np.float32) for image in engines], plain) <= 2e-2


def test_a_stream_is_waited_for_around_the_calls_of_a_step(bundle, monkeypatch):
    """All calls of a step are made between the entry and the exit of the backend's stream."""
    log: list[str] = []
    bind = OnnxRuntimeBackend.bind_run

    @contextmanager
    def running(self):
        log.append("enter")
        yield
        log.append("exit")

    def bind_run(self, *arguments):
        call = bind(self, *arguments)
        return lambda: (log.append("run"), call())

    monkeypatch.setattr(OnnxRuntimeBackend, "running", running)
    monkeypatch.setattr(OnnxRuntimeBackend, "bind_run", bind_run)
    trajectory(DeployedDenoiser.from_bundle(bundle), bundle.contract.sampler.timesteps)
    assert log == ["enter", "run", "exit"] * bundle.program.nfe


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(UsageError, match="backend 'paper' is unknown: choose onnxruntime, torch"):
        DeployedDenoiser.from_bundle(bundle, backend="paper")
