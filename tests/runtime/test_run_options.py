"""RunOptions are checked once, where they are made, and messages name the parameter."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.runtime import open_session


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "abacus"}, "backend 'abacus' is unknown: choose onnxruntime, torch, tensorrt, rtx"),
        ({"device": "tpu"}, "device 'tpu' is unknown: choose cpu, cuda"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"compiler": "inductor"}, "compiler is for backend torch, not onnxruntime: leave it out"),
        ({"compiler": "inductor", "backend": "rtx"}, "compiler is for backend torch, not rtx"),
        ({"gpu_memory": 2**30}, "gpu_memory is .*backends tensorrt and rtx, not .*onnxruntime"),
        ({"trust_engines": True, "backend": "torch"}, "trust_engines is .*backends tensorrt and rtx, not .*torch"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        RunOptions(**fields)


def test_engines_always_run_on_the_gpu():
    assert RunOptions("rtx").device == "cuda" and RunOptions("rtx").on_engines
    assert RunOptions("torch").device == "cpu" and not RunOptions("torch").on_engines


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_cuda_graph_on_the_cpu_is_refused(bundle_folder, backend):
    from dipgo_deploy.bundle import load_bundle

    with pytest.raises(UsageError, match="cuda_graph needs device cuda, the device is cpu: leave it out"):
        open_session(load_bundle(bundle_folder), 1, RunOptions(backend, cuda_graph=True))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_missing_gpu_is_refused_when_the_session_is_opened(bundle_folder, backend, monkeypatch):
    from dipgo_deploy.bundle import load_bundle

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="device cuda was requested, but PyTorch finds no CUDA GPU here"):
        open_session(load_bundle(bundle_folder), 1, RunOptions(backend, "cuda"))
