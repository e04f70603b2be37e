"""What this machine can run, and the environment that measurements record.

``capabilities`` gives the status of every backend, from the CUDA driver and the installed packages. ``environment``
gives versions, processor, memory and GPUs, because a measurement means nothing without them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dipgo_deploy import __version__
from dipgo_deploy.core.contract import installed_versions
from dipgo_deploy.trt.driver import CudaDriver, probe_cuda
from dipgo_deploy.trt.target import INSTALL, is_installed

__all__ = ["Capability", "PACKAGES", "Status", "capabilities", "environment", "execution_providers"]


Status = Literal["ready", "partial", "absent"]
"""``ready``: runs here. ``partial``: builds here but does not run here. ``absent``: cannot be used."""

_GPU_REMEDY = "run on a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class Capability:
    """The status of one backend or driver, the reason, and the command that would change the status ("" if none)."""

    name: str
    status: Status
    reason: str
    remedy: str = ""


def execution_providers() -> tuple[str, ...]:
    """The execution providers that the installed ONNX Runtime was built with. Empty without ONNX Runtime."""
    try:
        import onnxruntime  # noqa: TID251 - asks what the library was built with, runs nothing
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())


def capabilities(
    driver: CudaDriver, providers: tuple[str, ...], installed: Callable[[str], bool] = is_installed
) -> tuple[Capability, ...]:
    """The status of the driver and of every backend.

    Args:
        driver: what the CUDA driver reports.
        providers: execution providers of ONNX Runtime.
        installed: whether a module is installed, by its name.

    Returns:
        One entry each for ONNX Runtime on CPU and CUDA, the driver and both TensorRT libraries.
    """
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
        gpus = ", ".join(f"{device.name} ({device.gpu})" for device in driver.devices)
        return Capability("cuda-driver", "ready", f"CUDA {driver.version}, {gpus}")
    return Capability("cuda-driver", "absent", driver.reason, _GPU_REMEDY)


def _onnxruntime_cuda(driver: CudaDriver, providers: tuple[str, ...]) -> Capability:
    name, has_provider = "onnxruntime-cuda", "CUDAExecutionProvider" in providers
    if has_provider and driver.devices:
        return Capability(name, "ready", "ONNX Runtime has its CUDA provider and the driver has a GPU")
    if has_provider:
        return Capability(name, "absent", f"the CUDA provider has no GPU: {driver.reason}", _GPU_REMEDY)
    # onnxruntime and onnxruntime-gpu install into the same folder, so one of them has to go first.
    remedy = ("pip uninstall onnxruntime && " if providers else "") + "pip install 'dipgo-deploy[gpu]'"
    return Capability(name, "absent", "the installed ONNX Runtime has no CUDA provider", remedy)


def _tensorrt(driver: CudaDriver, installed: bool) -> Capability:
    if not installed:
        return Capability("tensorrt", "absent", "tensorrt is not installed", INSTALL["tensorrt"])
    if not driver.devices:
        reason = f"tensorrt builds and runs only on a GPU: {driver.reason}"
        return Capability("tensorrt", "absent", reason, _GPU_REMEDY)
    return Capability("tensorrt", "ready", f"builds and runs engines for {driver.devices[0].gpu}")


def _tensorrt_rtx(driver: CudaDriver, installed: bool) -> Capability:
    name = "tensorrt-rtx"
    if not installed:
        return Capability(name, "absent", "tensorrt-rtx is not installed", INSTALL["rtx"])
    if not driver.devices:
        reason = f"builds engines for other machines (build-engine --gpu) but cannot run them: {driver.reason}"
        return Capability(name, "partial", reason, _GPU_REMEDY)
    return Capability(name, "ready", "builds and runs engines, if this GPU is among its architectures")


PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "numpy",
    "safetensors",
    "pydantic",
    "typer",
)
"""Distributions whose versions are recorded, because results may differ between their versions."""


def environment() -> dict[str, Any]:
    """Versions, platform, processor, usable cores, memory in bytes, execution providers and GPUs, as plain data."""
    driver = probe_cuda()
    return {
        "dipgo_deploy": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "packages": installed_versions(PACKAGES),
        "providers": list(execution_providers()),
        "gpus": [device.name for device in driver.devices],
        "cuda": driver.version,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _usable_cores() -> int | None:
    """Cores that this process may use. Containers often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
