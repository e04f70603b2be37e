from __future__ import annotations

import sys

from dipgo_deploy.runtime.environment import capabilities, execution_providers
from dipgo_deploy.trt.driver import CudaDriver, Device

NO_GPU = CudaDriver((), None, "cuInit returned 100 (no CUDA device)")
GPU = CudaDriver((Device(0, "NVIDIA H200", (9, 0), 1 << 37),), "13.0", "")


def states(driver: CudaDriver, providers: tuple[str, ...], installed: bool) -> dict[str, str]:
    return {c.name: c.status for c in capabilities(driver, providers, lambda _: installed)}


def test_a_bare_machine_can_do_nothing_and_learns_the_line_for_each():
    statuses = capabilities(NO_GPU, (), lambda _: False)
    assert {c.status for c in statuses} == {"absent"}
    assert all(c.reason and c.remedy for c in statuses)


def test_without_a_gpu_rtx_builds_and_the_rest_needs_one():
    statuses = states(NO_GPU, ("CUDAExecutionProvider", "CPUExecutionProvider"), True)
    assert statuses == {
        "onnxruntime-cpu": "ready",
        "cuda-driver": "absent",
        "onnxruntime-cuda": "absent",
        "tensorrt": "absent",
        "tensorrt-rtx": "partial",
    }


def test_with_a_gpu_everything_installed_is_ready():
    statuses = states(GPU, ("CUDAExecutionProvider", "CPUExecutionProvider"), True)
    assert set(statuses.values()) == {"ready"}
    reasons = {c.name: c.reason for c in capabilities(GPU, (), lambda _: True)}
    assert "NVIDIA H200 (sm90)" in reasons["cuda-driver"] and "sm90" in reasons["tensorrt"]


def test_cpu_wheel_on_a_gpu_machine_is_told_to_swap_wheels():
    statuses = {c.name: c for c in capabilities(GPU, ("CPUExecutionProvider",), lambda _: True)}
    assert "uninstall onnxruntime" in statuses["onnxruntime-cuda"].remedy


def test_providers_are_empty_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert execution_providers() == ()
