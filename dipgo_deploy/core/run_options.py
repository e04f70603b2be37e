"""RunOptions: the backend, device and limits for running a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import UsageError

__all__ = ["BackendName", "DeviceName", "RunOptions"]

BackendName = Literal["onnxruntime", "torch", "tensorrt", "rtx"]
"""The backends of a bundle. ``rtx`` is TensorRT for RTX."""

DeviceName = Literal["cpu", "cuda"]
"""The devices of a backend."""


@dataclass(frozen=True)
class RunOptions:
    """Where and how graphs run.

    Attributes:
        backend: the library that runs the graphs. ``tensorrt`` and ``rtx`` run engines that were built before.
        device: ``cpu`` or ``cuda``. Engines always run on ``cuda``.
        threads: threads per operator. None lets the backend choose.
        cuda_graph: replay calls as CUDA graphs.
        compiler: a backend of ``torch.compile``, such as ``inductor``. Only for ``torch``.
        gpu_memory: bytes of GPU memory for engines, slots and activations together. Only for engines.
        trust_engines: load engines that were not built on this machine. Only for engines.

    Raises:
        UsageError: an unknown backend or device, fewer than one thread, or an option of another backend.
    """

    backend: BackendName = "onnxruntime"
    device: DeviceName = "cpu"
    threads: int | None = None
    cuda_graph: bool = False
    compiler: str | None = None
    gpu_memory: int | None = None
    trust_engines: bool = False

    def __post_init__(self) -> None:
        """Check every field against the backend, and put engines on the GPU."""
        for name, value, choices in (
            ("backend", self.backend, get_args(BackendName)),
            ("device", self.device, get_args(DeviceName)),
        ):
            if value not in choices:
                raise UsageError(f"{name} {value!r} is unknown: choose {', '.join(choices)}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
        if self.compiler is not None and self.backend != "torch":
            raise UsageError(f"compiler is for backend torch, not {self.backend}: leave it out")
        for name in ("gpu_memory", "trust_engines"):
            if getattr(self, name) and not self.on_engines:
                raise UsageError(
                    f"{name} is an option of backends tensorrt and rtx, not of {self.backend}: leave it out"
                )
        if self.on_engines:
            object.__setattr__(self, "device", "cuda")

    @property
    def on_engines(self) -> bool:
        """Whether the backend runs TensorRT engines."""
        return self.backend in get_args(TargetName)
