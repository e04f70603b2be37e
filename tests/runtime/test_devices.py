from __future__ import annotations

import ctypes
import re
import sys
from types import SimpleNamespace

import pytest

from dipgo_deploy.runtime.devices import (
    CudaDriver,
    capabilities,
    execution_providers,
    is_installed,
    probe_cuda,
)

NO_GPU = CudaDriver((), None, "cuInit returned 100 (no CUDA device)")
GPU = CudaDriver(("NVIDIA H200",), "13.0", "")


def fake_driver(init: int = 0, count_code: int = 0, devices: int = 1, name_code: int = 0) -> SimpleNamespace:
    """A stand-in for the driver library: every call returns a code and writes through the pointers it is given."""

    def count(pointer: object) -> int:
        pointer._obj.value = devices
        return count_code

    def version(pointer: object) -> int:
        pointer._obj.value = 13020
        return 0

    def name(buffer: ctypes.Array[ctypes.c_char], length: ctypes.c_int, index: ctypes.c_int) -> int:
        buffer.value = f"GPU {index.value}".encode()
        return name_code

    return SimpleNamespace(
        cuInit=lambda flags: init, cuDeviceGetCount=count, cuDriverGetVersion=version, cuDeviceGetName=name
    )


def test_devices_are_named_and_the_cuda_version_is_read():
    assert probe_cuda(lambda _: fake_driver(devices=2)) == CudaDriver(("GPU 0", "GPU 1"), "13.2", "")


def test_a_device_that_does_not_tell_its_name_still_counts():
    assert probe_cuda(lambda _: fake_driver(name_code=1)).devices == ("device 0",)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (fake_driver(init=100), r"cuInit returned 100 \(no CUDA device\)"),
        (fake_driver(init=12345), r"cuInit returned 12345"),
        (fake_driver(count_code=3), r"cuDeviceGetCount returned 3"),
        (fake_driver(devices=0), r"0 devices"),
    ],
)
def test_a_driver_without_a_usable_device_says_why(driver, reason):
    found = probe_cuda(lambda _: driver)
    assert found.devices == ()
    assert re.search(reason, found.reason)


def test_a_missing_driver_library_is_no_error():
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert "no NVIDIA driver is installed" in probe_cuda(missing).reason


def test_the_real_probe_answers_on_any_machine():
    found = probe_cuda()
    assert bool(found.devices) != bool(found.reason)


def states(driver: CudaDriver, providers: tuple[str, ...], installed: bool) -> dict[str, str]:
    return {c.name: c.status for c in capabilities(driver, providers, lambda _: installed)}


def test_a_bare_machine_can_do_nothing_and_learns_the_line_for_each():
    found = capabilities(NO_GPU, (), lambda _: False)
    assert {c.status for c in found} == {"absent"}
    assert all(c.reason and c.remedy for c in found)


def test_without_a_gpu_rtx_builds_and_the_rest_needs_one():
    found = states(NO_GPU, ("CUDAExecutionProvider", "CPUExecutionProvider"), True)
    assert found == {
        "onnxruntime-cpu": "ready",
        "cuda-driver": "absent",
        "onnxruntime-cuda": "absent",
        "tensorrt": "absent",
        "tensorrt-rtx": "partial",
    }


def test_with_a_gpu_everything_installed_is_ready():
    found = states(GPU, ("CUDAExecutionProvider", "CPUExecutionProvider"), True)
    assert set(found.values()) == {"ready"}


def test_cpu_wheel_on_a_gpu_machine_is_told_to_swap_wheels():
    found = {c.name: c for c in capabilities(GPU, ("CPUExecutionProvider",), lambda _: True)}
    assert "uninstall onnxruntime" in found["onnxruntime-cuda"].remedy


def test_providers_are_empty_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert execution_providers() == ()


def test_installed_modules_are_found_without_importing_them():
    assert is_installed("json")
    assert not is_installed("no_such_module_anywhere")
