"""A stand-in for the CUDA driver library, as a Python object and as a compiled shared library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

__all__ = ["compiled_driver", "fake_driver"]

_SOURCE = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGetCount(int *count) { *count = %(devices)d; return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake GPU", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
"""


def fake_driver(init: int = 0, count_code: int = 0, devices: int = 1, name_code: int = 0) -> SimpleNamespace:
    """A driver whose calls return these codes and write through their pointers. The GPUs are sm89."""

    def count(pointer: object) -> int:
        pointer._obj.value = devices
        return count_code

    def version(pointer: object) -> int:
        pointer._obj.value = 13020
        return 0

    def name(buffer: ctypes.Array[ctypes.c_char], length: ctypes.c_int, index: ctypes.c_int) -> int:
        buffer.value = f"GPU {index.value}".encode()
        return name_code

    def memory(pointer: object, index: ctypes.c_int) -> int:
        pointer._obj.value = 24 << 30
        return 0

    def attribute(pointer: object, which: ctypes.c_int, index: ctypes.c_int) -> int:
        pointer._obj.value = {75: 8, 76: 9}[which.value]
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDeviceGetCount=count,
        cuDriverGetVersion=version,
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=memory,
        cuDeviceGetAttribute=attribute,
    )


@cache
def compiled_driver(folder: Path, init: int = 0, devices: int = 0) -> Path:
    """A shared library with these answers, for DIPGO_CUDA_DRIVER. Skips the test if there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the Python stand-in is tested in tests/trt/test_driver.py")
    source, library = folder / "driver.c", folder / "libfake.so"
    source.write_text(_SOURCE % {"init": init, "devices": devices})
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True, capture_output=True)
    return library
