"""The environment a result was made in: versions, machine, providers. Measurements carry it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from dipgo_deploy import __version__
from dipgo_deploy.core.versions import installed_versions
from dipgo_deploy.runtime.devices import execution_providers
from dipgo_deploy.trt.driver import probe_cuda

__all__ = ["PACKAGES", "environment"]

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
"""Distributions whose versions are worth knowing when two machines disagree."""


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
    """Cores this process may use: containers often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
