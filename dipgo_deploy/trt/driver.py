"""Query the CUDA driver itself, before any library that depends on the driver is used.

Without a driver these libraries cannot be trusted. ONNX Runtime lists its CUDA provider and silently falls back to the
CPU. A TensorRT Runtime that is made without a driver ends the process. So ``cuInit`` and ``cuDeviceGetCount`` come
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
"""Environment variable with the path of a driver library that replaces the system's."""

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""

_ERRORS = {
    3: "not initialized",
    34: "the driver is a stub",
    100: "no CUDA device",
    101: "invalid device",
    803: "the driver's kernel module and library differ in version: restart the machine",
    804: "the driver is too old for this library",
    999: "unknown driver error",
}


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        index: the driver's number of the GPU.
        name: the driver's name of the GPU.
        capability: compute capability such as ``(8, 9)``. ``(0, 0)`` where the driver does not report one.
        memory_bytes: memory of the GPU. 0 where the driver does not report the size.
    """

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
    """GPUs that the driver can use, its CUDA version (``13.0``), and the reason if there is no GPU."""

    devices: tuple[Device, ...]
    version: str | None
    reason: str


def devices() -> tuple[Device, ...]:
    """The GPUs that the CUDA driver can use, () without a driver. Never raises."""
    return probe_cuda().devices


def probe_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> CudaDriver:
    """Query the CUDA driver for its GPUs. Never raises. ``load`` opens a shared library by name."""
    library = os.environ.get(DRIVER_VARIABLE) or _DRIVER
    try:
        driver = load(library)
    except OSError:
        return CudaDriver((), None, f"{library} was not found: no NVIDIA driver is installed")
    try:
        return _query(driver)
    except AttributeError as error:
        return CudaDriver((), None, f"{library} is not a CUDA driver ({error})")


def _query(driver: Any) -> CudaDriver:
    code = driver.cuInit(0)
    if code:
        return CudaDriver((), None, f"cuInit returned {_error_text(code)}")
    count = ctypes.c_int()
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return CudaDriver((), None, f"cuDeviceGetCount returned {_error_text(code)}")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    gpus = tuple(_device(driver, index) for index in range(count.value))
    # The driver encodes CUDA 13.2 as 13020.
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return CudaDriver(gpus, cuda_version, "" if gpus else "the driver reports 0 devices")


def _error_text(code: int) -> str:
    return f"{code} ({_ERRORS.get(code, 'see the CUDA driver API')})"


def _device(driver: Any, index: int) -> Device:
    name = ctypes.create_string_buffer(256)
    code = driver.cuDeviceGetName(name, ctypes.c_int(len(name)), ctypes.c_int(index))
    title = f"device {index}" if code else name.value.decode(errors="replace")
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), ctypes.c_int(index))
    capability = (_attribute(driver, _MAJOR, index), _attribute(driver, _MINOR, index))
    return Device(index, title, capability, memory.value)


def _attribute(driver: Any, attribute: int, index: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(index))
    return value.value
