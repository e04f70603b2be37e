"""Targets: the libraries TensorRT and TensorRT for RTX, and whether they can be used on this machine.

Both modules offer every name of the Python API that this project uses, which a test checks. TensorRT builds and runs
only with an NVIDIA GPU. TensorRT for RTX builds without a GPU, for every architecture that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.trt.driver import CudaDriver, probe_cuda

__all__ = ["INSTALL", "MODULES", "Purpose", "Target", "is_installed", "load_target"]

MODULES: dict[TargetName, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""Module of each target."""

INSTALL: dict[TargetName, str] = {
    "tensorrt": "pip install 'dipgo-deploy[tensorrt]' (needs NVIDIA's package index)",
    "rtx": "pip install 'dipgo-deploy[rtx]'",
}
"""How to install each target."""

Purpose = Literal["build", "run"]
"""What a target is needed for. TensorRT for RTX builds without a GPU, but no target runs without a GPU."""


@dataclass(frozen=True)
class Target:
    """A target that can be used: its module and version, and the driver of this machine."""

    name: TargetName
    module: Any
    version: str
    driver: CudaDriver

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architectures that engines can be built for, such as ``sm89``. TensorRT builds only for present GPUs."""
        present = tuple(dict.fromkeys(device.gpu for device in self.driver.devices))
        if self.name == "tensorrt":
            return present
        known = (name.lower() for name in vars(self.module.ComputeCapability) if name.startswith("SM"))
        return tuple(sorted(known, key=lambda name: int(name[2:])))

    def check_gpus(self, gpus: Sequence[str]) -> tuple[str, ...]:
        """The architectures to build for: ``gpus`` without repetitions, or the architecture of the first GPU.

        Raises UsageError for an unknown architecture, MissingError if ``gpus`` is empty and there is no GPU.
        """
        present = [device.gpu for device in self.driver.devices]
        chosen = tuple(dict.fromkeys(gpus)) or tuple(present[:1])
        known = ", ".join(self.architectures)
        if not chosen:
            raise MissingError(f"no GPU to build for ({self.driver.reason}): set gpus to some of {known}")
        if unknown := [gpu for gpu in chosen if gpu not in self.architectures]:
            raise UsageError(f"{self.name} {self.version} builds for {known}, not for {unknown[0]}: choose among these")
        return chosen

    def check_refit(self, is_refittable: bool) -> None:
        """Raise MissingError if refittable engines are requested on a machine without a GPU."""
        if is_refittable and not self.driver.devices:
            raise MissingError(
                f"refit and strip need an NVIDIA GPU at build time ({self.driver.reason}): run on a machine with a "
                "GPU, or leave them out"
            )

    def choose_gpus(self, config: Any, gpus: Sequence[str]) -> None:
        """Set the architectures of a builder config. TensorRT has no such choice."""
        if self.name == "tensorrt":
            return
        config.num_compute_capabilities = len(gpus)
        for index, gpu in enumerate(gpus):
            config.set_compute_capability(getattr(self.module.ComputeCapability, gpu.upper()), index)


def load_target(
    name: str | None = None, purpose: Purpose = "build", probe: Callable[[], CudaDriver] = probe_cuda
) -> Target:
    """Check that a target can be used here, and import its module.

    Args:
        name: ``tensorrt`` or ``rtx``. None takes the first target that can be used.
        purpose: building or running.
        probe: queries the CUDA driver.

    Returns:
        The target.

    Raises:
        UsageError: the name is unknown.
        MissingError: the target is not installed, or needs a GPU.
    """
    if name is not None and name not in MODULES:
        raise UsageError(f"target {name!r} is unknown: choose {' or '.join(MODULES)}")
    driver = probe()
    candidates: tuple[TargetName, ...] = tuple(MODULES) if name is None else (name,)  # type: ignore[assignment]
    reasons = []
    for candidate in candidates:
        reason = _refusal(candidate, purpose, driver)
        if not reason:
            module = _import_module(candidate)
            return Target(candidate, module, str(module.__version__), driver)
        reasons.append(reason)
    raise MissingError("; ".join(reasons))


def is_installed(module: str) -> bool:
    """Whether a module could be imported. The module is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # The module has been imported, and has no spec.
        return True


def _refusal(name: TargetName, purpose: Purpose, driver: CudaDriver) -> str:
    """Why a target cannot be used, and what to do. "" if it can be used."""
    if not is_installed(MODULES[name]):
        return f"{MODULES[name]} is not installed: {INSTALL[name]}"
    if driver.devices:
        return ""
    if purpose == "run":
        return f"target {name} runs only on an NVIDIA GPU ({driver.reason}): run on a machine with a GPU"
    if name == "tensorrt":
        return (
            f"target tensorrt builds only on an NVIDIA GPU ({driver.reason}): run on a machine with a GPU, or choose "
            "target rtx"
        )
    return ""


def _import_module(name: TargetName) -> ModuleType:
    try:
        return import_module(MODULES[name])
    except Exception as error:  # A missing shared library of theirs raises errors of several classes.
        raise MissingError(f"{MODULES[name]} cannot be imported ({error}): {INSTALL[name]}") from None
