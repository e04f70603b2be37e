"""What this machine can run: the CUDA driver, asked directly, and from it the state of every backend.

The driver is asked through ctypes (``cuInit``, ``cuDeviceGetCount``) because nothing above it can be trusted without:
ONNX Runtime lists its CUDA provider and silently falls back to the CPU, TensorRT's Runtime crashes when touched.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

__all__ = ["Capability", "CudaDriver", "Status", "capabilities", "execution_providers", "is_installed", "probe_cuda"]

Status = Literal["ready", "partial", "absent"]
"""``ready``: runs here. ``partial``: can be used for less than running. ``absent``: cannot be used."""

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_ERRORS = {
    3: "not initialised",
    34: "the driver is a stub",
    100: "no CUDA device",
    101: "invalid device",
    803: "the driver's kernel module and library differ in version: restart the machine",
    804: "the driver is too old for this library",
    999: "unknown driver error",
}
_GPU_REMEDY = "run on a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class CudaDriver:
    """Names of the GPUs that the driver can use, the CUDA version it speaks (``13.0``) and, without a GPU, why not."""

    devices: tuple[str, ...]
    version: str | None
    reason: str


@dataclass(frozen=True)
class Capability:
    """One thing the machine could do: its state, the reason for it and the line that would change it ("" if none)."""

    name: str
    status: Status
    reason: str
    remedy: str = ""


def probe_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDriver:
    """Ask the CUDA driver for its GPUs; never raises. ``load`` opens a shared library by name."""
    try:
        driver = load(_DRIVER)
    except OSError:
        return CudaDriver((), None, f"{_DRIVER} was not found: no NVIDIA driver is installed")
    code = driver.cuInit(0)
    if code:
        return CudaDriver((), None, f"cuInit returned {_error_text(code)}")
    count = ctypes.c_int()
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return CudaDriver((), None, f"cuDeviceGetCount returned {_error_text(code)}")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    names = tuple(_device_name(driver, index) for index in range(count.value))
    spoken = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return CudaDriver(names, spoken, "" if names else "the driver reports 0 devices")


def _error_text(code: int) -> str:
    return f"{code} ({_ERRORS.get(code, 'see the CUDA driver API')})"


def _device_name(driver: Any, index: int) -> str:
    name = ctypes.create_string_buffer(256)
    code = driver.cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(index))
    return f"device {index}" if code else name.value.decode(errors="replace")


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a module without a spec, already imported
        return True


def execution_providers() -> tuple[str, ...]:
    """The execution providers that the installed ONNX Runtime was built with; () without ONNX Runtime."""
    try:
        import onnxruntime  # noqa: TID251 - asks what the library was built with, runs nothing
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())


def capabilities(
    driver: CudaDriver, providers: tuple[str, ...], installed: Callable[[str], bool] = is_installed
) -> tuple[Capability, ...]:
    """The state of every backend, given the driver, ONNX Runtime's providers and a test for installed modules."""
    return (
        _onnxruntime_cpu(providers),
        _cuda_driver(driver),
        _onnxruntime_cuda(driver, providers),
        _tensorrt(driver, installed("tensorrt")),
        _tensorrt_rtx(driver, installed("tensorrt_rtx")),
    )


def _onnxruntime_cpu(providers: tuple[str, ...]) -> Capability:
    if "CPUExecutionProvider" in providers:
        return Capability("onnxruntime-cpu", "ready", "ONNX Runtime runs bundles on the CPU")
    return Capability("onnxruntime-cpu", "absent", "onnxruntime is not installed", "pip install 'dipgo-deploy[cpu]'")


def _cuda_driver(driver: CudaDriver) -> Capability:
    if driver.devices:
        return Capability("cuda-driver", "ready", f"CUDA {driver.version}, {', '.join(driver.devices)}")
    return Capability("cuda-driver", "absent", driver.reason, _GPU_REMEDY)


def _onnxruntime_cuda(driver: CudaDriver, providers: tuple[str, ...]) -> Capability:
    name, built = "onnxruntime-cuda", "CUDAExecutionProvider" in providers
    if built and driver.devices:
        return Capability(name, "ready", "ONNX Runtime has its CUDA provider and the driver a GPU")
    if built:
        return Capability(name, "absent", f"the CUDA provider has no GPU: {driver.reason}", _GPU_REMEDY)
    swap = "pip uninstall onnxruntime && pip install 'dipgo-deploy[gpu]'"
    remedy = swap if providers else "pip install 'dipgo-deploy[gpu]'"
    return Capability(name, "absent", "the installed ONNX Runtime has no CUDA provider", remedy)


def _tensorrt(driver: CudaDriver, installed: bool) -> Capability:
    if not installed:
        line = "pip install 'dipgo-deploy[tensorrt]' (needs NVIDIA's package index)"
        return Capability("tensorrt", "absent", "tensorrt is not installed", line)
    if not driver.devices:
        reason = f"tensorrt builds and runs only on a GPU: {driver.reason}"
        return Capability("tensorrt", "absent", reason, _GPU_REMEDY)
    return Capability("tensorrt", "ready", "builds and runs engines for this GPU")


def _tensorrt_rtx(driver: CudaDriver, installed: bool) -> Capability:
    if not installed:
        remedy = "pip install 'dipgo-deploy[rtx]'"
        return Capability("tensorrt-rtx", "absent", "tensorrt-rtx is not installed", remedy)
    if not driver.devices:
        reason = f"builds engines for other machines, cannot run them: {driver.reason}"
        return Capability("tensorrt-rtx", "partial", reason, _GPU_REMEDY)
    return Capability("tensorrt-rtx", "ready", "builds and runs engines, if this GPU is among its targets")
