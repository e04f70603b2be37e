"""BenchOptions: sizes, seeds and run settings of a bench."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions

__all__ = ["QUICK", "BenchOptions"]

_LEAST = {
    "batch": 1,
    "repeats": 2,  # one round has no median and no A/A ratio
    "images": 1,
    "converged_images": 0,
    "converged_calls": 1,
    "tuning_images": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class BenchOptions:
    """Sizes, seeds and run settings of one bench.

    Attributes:
        batch: images of one timed trajectory, and of every call of the quality runs.
        repeats: timed rounds. Each round runs every contender once and the full model twice.
        images: images of each contender for the quality columns.
        converged_images: how many of these images are also compared with the converged run. 0 skips the converged run.
        converged_calls: network calls of the converged run.
        tuning_images: held-out images on which each plain sampler chooses its spacing and sigmas.
        guidance_scale: guidance scale of every run. None means 2 under guidance ``concat`` and 1 without guidance.
        seed: image i starts from noise ``seed + i``. The held-out images and the order of rounds derive from the seed.
        run: where and how schedules run. Engines hold one program each, so next to engines the full run and the plain
            samplers run on ONNX Runtime. With any other backend all contenders run on that backend.
        quick: label the report as a quick bench. See `QUICK`.
        command: the command line of the bench, for the record.

    Raises:
        UsageError: a count that is too small.
    """

    batch: int = 8
    repeats: int = 10
    images: int = 256
    converged_images: int = 64
    converged_calls: int = 1000
    tuning_images: int = 16
    guidance_scale: float | None = None
    seed: int = 1000
    run: RunOptions = RunOptions()
    quick: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        """Check every count."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")

    @property
    def document(self) -> dict[str, Any]:
        """The settings as a report records them: the fields of ``run`` stand next to the others, as in bench 1.0."""
        fields = asdict(self)
        run = fields.pop("run")
        del fields["command"]
        return {**fields, **run}


QUICK = BenchOptions(repeats=3, images=16, converged_images=8, converged_calls=100, tuning_images=4, quick=True)
"""A first look within a minute. Medians of 16 images are rough, and 100 calls have not quite converged."""
