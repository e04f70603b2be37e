"""The CUDA driver, asked directly, before any library above it is touched.

Nothing above it can be trusted without: ONNX Runtime lists its CUDA provider and silently falls back to the CPU, and
TensorRT's Runtime, made without a driver, ends the process when touched. So ``cuInit`` and ``cuDeviceGetCount`` come
first, through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["DRIVER_VARIABLE", "CudaDriver", "Device", "devices", "probe_cuda"]

DRIVER_VARIABLE = "DIPGO_CUDA_DRIVER"
"""Environment variable that names another driver library than the system's."""

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""

_ERRORS = {
    3: "not initialised",
    34: "the driver is a stub",
    100: "no CUDA device",
    101: "invalid device",
    803: "the driver's kernel module and library differ in version: restart the machine",
    804: "the driver is too old for this library",
    999: "unknown driver error",
}


@dataclass(frozen=True)
class Device:
    """One GPU: its number, name, compute capability (``(8, 9)``; ``(0, 0)`` untold) and memory in bytes (0 untold)."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def gpu(self) -> str:
        """The architecture as engines name it: ``sm89``."""
        return f"sm{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class CudaDriver:
    """GPUs that the driver can use, the CUDA version it speaks (``13.0``) and, without a GPU, why not."""

    devices: tuple[Device, ...]
    version: str | None
    reason: str


def devices() -> tuple[Device, ...]:
    """The GPUs that the CUDA driver can use; () without a driver. Never raises."""
    return probe_cuda().devices


def probe_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDriver:
    """Ask the CUDA driver for its GPUs; never raises. ``load`` opens a shared library by name."""
    library = os.environ.get(DRIVER_VARIABLE) or _DRIVER
    try:
        driver = load(library)
    except OSError:
        return CudaDriver((), None, f"{library} was not found: no NVIDIA driver is installed")
    try:
        return _asked(driver)
    except AttributeError as error:
        return CudaDriver((), None, f"{library} is no CUDA driver ({error})")


def _asked(driver: Any) -> CudaDriver:
    code = driver.cuInit(0)
    if code:
        return CudaDriver((), None, f"cuInit returned {_error_text(code)}")
    count = ctypes.c_int()
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return CudaDriver((), None, f"cuDeviceGetCount returned {_error_text(code)}")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    found = tuple(_device(driver, index) for index in range(count.value))
    spoken = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return CudaDriver(found, spoken, "" if found else "the driver reports 0 devices")


def _error_text(code: int) -> str:
    return f"{code} ({_ERRORS.get(code, 'see the CUDA driver API')})"


def _device(driver: Any, index: int) -> Device:
    name = ctypes.create_string_buffer(256)
    code = driver.cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(index))
    told = f"device {index}" if code else name.value.decode(errors="replace")
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), ctypes.c_int(index))
    capability = (_attribute(driver, _MAJOR, index), _attribute(driver, _MINOR, index))
    return Device(index, told, capability, memory.value)


def _attribute(driver: Any, attribute: int, index: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(index))
    return value.value
