"""Step sessions on engines: a library that computes on the CPU stands in for TensorRT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.graphs.half_graph import half_blocks
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime import fake_tensorrt as fake

TEXT = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bundle(sd_bundle: Path):
    return load_bundle(sd_bundle)


@pytest.fixture
def engines(bundle, monkeypatch):
    """Backends that were opened, each with its batch."""
    found = []

    def engine_backend(given, target, batch, **options):
        files = {name: given.folder / path for name, path in given.manifest.graphs.items()}
        found.append((target, batch, options))
        return given.program, TensorRTBackend(fake.Library(given.denoiser), files, device="cpu")

    monkeypatch.setattr(opened, "engine_backend", engine_backend)
    return found


def trajectory(unet, times, batch: int = 1) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    text = TEXT.repeat_interleave(batch, 0)
    latents = [torch.randn(batch, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1) for _ in times]
    return [unet(latent, time, text).sample.numpy() for latent, time in zip(latents, times, strict=True)]


def test_engines_predict_what_the_graphs_predict(bundle, engines):
    times = bundle.manifest.contract.sampler.timesteps
    unet = DeployedDenoiser.from_bundle(bundle, backend="tensorrt", gpu_memory=10**9)
    plain = DeployedDenoiser.from_bundle(bundle, threads=1)
    for batch in (1, 3, 1):
        for found, wanted in zip(trajectory(unet, times, batch), trajectory(plain, times, batch), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    options = {"gpu_memory": 10**9, "trust": False}
    assert engines == [("tensorrt", 1, options), ("tensorrt", 3, options)], "opened once for each batch"


def test_a_batch_that_engines_were_not_built_for_is_refused(bundle, engines, monkeypatch):
    takes_three = opened.engine_backend

    def engine_backend(given, target, batch, **options):
        if batch != 3:
            raise UsageError(f"a batch of {batch} images is wanted, engine g takes 3 to 3")
        return takes_three(given, target, batch, **options)

    monkeypatch.setattr(opened, "engine_backend", engine_backend)
    unet = DeployedDenoiser.from_bundle(bundle, backend="rtx")
    unet.prepare(batch=3)
    assert [batch for _, batch, _ in engines] == [3]
    with pytest.raises(RefusedCall, match="a batch of 1 images is wanted, engine g takes 3 to 3"):
        unet.prepare()
    times = bundle.manifest.contract.sampler.timesteps
    with pytest.raises(RefusedCall, match="a batch of 2 images is wanted"):
        trajectory(unet, times, 2)
    assert len(trajectory(unet, times, 3)) == len(times) and len(engines) == 1


def test_a_late_start_on_engines_is_refused(bundle, engines):
    unet = DeployedDenoiser.from_bundle(bundle, backend="rtx")
    times = bundle.manifest.contract.sampler.timesteps
    with pytest.raises(RefusedCall, match="engines of rtx are built for whole runs, this one begins at step 2: use"):
        trajectory(unet, times[2:])


def test_a_stream_is_waited_for_around_the_calls_of_a_step(bundle, monkeypatch):
    """Everything that a step queues lies between the entry and the exit of the backend's stream."""
    from contextlib import contextmanager

    from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

    log: list[str] = []
    bind = OnnxRuntimeBackend.bind_run

    @contextmanager
    def running(self):
        log.append("enter")
        yield
        log.append("exit")

    def bind_run(self, *given):
        act = bind(self, *given)
        return lambda: (log.append("run"), act())

    monkeypatch.setattr(OnnxRuntimeBackend, "running", running)
    monkeypatch.setattr(OnnxRuntimeBackend, "bind_run", bind_run)
    trajectory(DeployedDenoiser.from_bundle(bundle), bundle.manifest.contract.sampler.timesteps)
    assert log == ["enter", "run", "exit"] * bundle.program.nfe


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(UsageError, match="choose onnxruntime or torch"):
        trajectory(DeployedDenoiser.from_bundle(bundle, backend="paper"), bundle.manifest.contract.sampler.timesteps)


@pytest.mark.parametrize("exported", ["float32", "float16"])
def test_engines_in_half_precision_get_slots_of_it(bundle, monkeypatch, exported):
    wide = bundle.program.graphs[0].writes[0]
    variant = SimpleNamespace(blocks=half_blocks(bundle.blocks, "float16", (wide,), {}))
    contract = replace(bundle.program.contract, dtype="float16")
    program = replace(bundle.program, contract=contract)
    monkeypatch.setattr(opened, "engine_backend", lambda *_, **__: (program, None))
    monkeypatch.setattr(opened, "load_variant", lambda *_: variant)
    monkeypatch.setattr(opened, "own_variant", lambda _: variant)
    if exported == "float16":
        own = replace(bundle.manifest.contract, dtype="float16")
        bundle = replace(bundle, manifest=replace(bundle.manifest, contract=own))
    half, _ = opened.engine_steps(bundle, "rtx", 1)
    plain = bundle.lower_steps()
    assert [run.graph for run in half.program.runs] == [run.graph for run in plain.program.runs]
    types = {slot.name: slot.dtype for slot in half.program.slots}
    found = {name: types[slot] for run in half.program.runs for name, slot in run.outputs}
    assert found.pop(wide) == "float32" and set(found.values()) == {"float16"}
