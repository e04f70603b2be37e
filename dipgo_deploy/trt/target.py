"""Targets: TensorRT and TensorRT for RTX behind one name each, refused in one line where they cannot be used.

Both modules have the same Python API as far as it is used here (a test holds the lists of names). TensorRT builds and
runs only on a machine with an NVIDIA GPU; TensorRT for RTX builds without one, for the architectures it knows.
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
"""The line that installs each target."""

Purpose = Literal["build", "run"]
"""What a target is wanted for: TensorRT for RTX builds without a GPU, nothing runs without one."""


@dataclass(frozen=True)
class Target:
    """A usable target: its ``module``, version and the driver it was loaded beside."""

    name: TargetName
    module: Any
    version: str
    driver: CudaDriver

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architectures that engines can be built for here: ``sm89``; TensorRT knows only those that are present."""
        present = tuple(dict.fromkeys(device.gpu for device in self.driver.devices))
        if self.name == "tensorrt":
            return present
        known = (name.lower() for name in vars(self.module.ComputeCapability) if name.startswith("SM"))
        return tuple(sorted(known, key=lambda name: int(name[2:])))

    def check_gpus(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The architectures to build for: as asked, else that of the first GPU.

        Raises UsageError for one that the target does not know, MissingError where none is asked and none present.
        """
        present = [device.gpu for device in self.driver.devices]
        wanted = tuple(dict.fromkeys(asked)) or tuple(present[:1])
        if not wanted:
            raise MissingError(
                f"no GPU to build for: {self.driver.reason}; name one with --gpu, of {', '.join(self.architectures)}"
            )
        if odd := [gpu for gpu in wanted if gpu not in self.architectures]:
            known = ", ".join(self.architectures)
            raise UsageError(f"{self.name} {self.version} builds for {known}, not for {odd[0]}: choose among these")
        return wanted

    def check_refit(self, asked: bool) -> None:
        """MissingError where engines that can be refitted are asked for: no library builds them without a GPU."""
        if asked and not self.driver.devices:
            raise MissingError(
                f"--refit and --strip build only on an NVIDIA GPU ({self.driver.reason}): run on a machine that has "
                "one, or leave them out"
            )

    def choose_gpus(self, config: Any, gpus: Sequence[str]) -> None:
        """Tell a builder config what to build for; TensorRT has no choice."""
        if self.name == "tensorrt":
            return
        config.num_compute_capabilities = len(gpus)
        for index, gpu in enumerate(gpus):
            config.set_compute_capability(getattr(self.module.ComputeCapability, gpu.upper()), index)


def load_target(
    name: str | None = None, purpose: Purpose = "build", probe: Callable[[], CudaDriver] = probe_cuda
) -> Target:
    """Import a target's module, the driver asked before; ``None`` takes the first of both that can be used.

    Raises UsageError for an unknown name, MissingError where it is not installed or lacks a GPU for ``purpose``.
    """
    if name is not None and name not in MODULES:
        raise UsageError(f"target {name!r} is unknown: choose {' or '.join(MODULES)}")
    driver = probe()
    wanted: tuple[TargetName, ...] = tuple(MODULES) if name is None else (name,)  # type: ignore[assignment]
    reasons = []
    for candidate in wanted:
        reason = _refusal(candidate, purpose, driver)
        if not reason:
            module = _imported(candidate)
            return Target(candidate, module, str(module.__version__), driver)
        reasons.append(reason)
    raise MissingError("; ".join(reasons))


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a module without a spec, already imported
        return True


def _refusal(name: TargetName, purpose: Purpose, driver: CudaDriver) -> str:
    """Why a target cannot be used, and what to do; "" if it can."""
    if not is_installed(MODULES[name]):
        return f"{MODULES[name]} is not installed: {INSTALL[name]}"
    if driver.devices:
        return ""
    if purpose == "run":
        return f"target {name} runs only on an NVIDIA GPU ({driver.reason}): run on a machine that has one"
    if name == "tensorrt":
        return (
            f"target tensorrt builds only on an NVIDIA GPU ({driver.reason}): run on a machine that has one, or build "
            "with --target rtx"
        )
    return ""


def _imported(name: TargetName) -> ModuleType:
    try:
        return import_module(MODULES[name])
    except Exception as error:  # a missing library of theirs shows in several ways
        raise MissingError(f"{MODULES[name]} cannot be imported ({error}): {INSTALL[name]}") from None
