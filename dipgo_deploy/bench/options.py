"""What a bench is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import BackendName

__all__ = ["BenchOptions"]


@dataclass(frozen=True)
class BenchOptions:
    """Sizes, seeds and machine settings of one bench.

    Attributes:
        batch: images of one timed trajectory, and of every call of the quality runs.
        repeats: timed rounds; each runs every contender once and the full model twice.
        images: images of each contender that the quality columns judge.
        converged_images: how many of them, at most, are also compared with the converged run; 0 leaves it out.
        converged_calls: network calls of the converged run.
        tuning_images: held-out images on which each plain sampler chooses its spacing and sigmas.
        guidance_scale: of every run; None takes 2 under guidance ``concat`` and 1 without.
        seed: image i starts from noise ``seed + i``; the held-out images and the order of rounds derive from it.
        threads: threads within an operator of ONNX Runtime; None leaves it to ONNX Runtime.
        device: ``cpu`` or ``cuda``.
        backend: what runs the bundles: ``onnxruntime``, ``torch``, ``tensorrt`` or ``rtx``. The full run and plain
            samplers run on ONNX Runtime beside engines, which hold one program each, else on the same backend.
        cuda_graph, compiler, gpu_memory, trust_engines: as Bundle.session takes them.
        command: the command line that asked for it, for the record.

    Raises UsageError for a value that makes no sense.
    """

    batch: int = 8
    repeats: int = 10
    images: int = 256
    converged_images: int = 64
    converged_calls: int = 1000
    tuning_images: int = 16
    guidance_scale: float | None = None
    seed: int = 1000
    threads: int | None = None
    device: str = "cpu"
    backend: BackendName = "onnxruntime"
    cuda_graph: bool = False
    compiler: str | None = None
    gpu_memory: int | None = None
    trust_engines: bool = False
    command: str = ""

    @property
    def on_engines(self) -> bool:
        """Whether bundles run as TensorRT engines."""
        return self.backend in ("tensorrt", "rtx")

    def __post_init__(self) -> None:
        """Check every count."""
        least = {"batch": 1, "repeats": 2, "images": 1, "converged_images": 0, "converged_calls": 1, "tuning_images": 1}
        for name, floor in {**least, "seed": 0}.items():
            value = getattr(self, name)
            if value < floor:
                raise UsageError(f"{name} {value} makes no sense: give {floor} or more")
