"""What a pipeline does around its denoiser, timed once: the end-to-end speed-up needs it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.plain import LeftOut
from dipgo_deploy.bench.stages import Progress
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.models.components import PipelineRun, load_component
from dipgo_deploy.models.pipeline_folder import component_names

__all__ = ["Surroundings", "time_surroundings"]

_MOST_REPEATS = 5


@dataclass(frozen=True)
class Surroundings:
    """Milliseconds by component, for one batch of images, and what could not be timed."""

    components_ms: dict[str, float] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def total_ms(self) -> float | None:
        """All components together; None where there is none."""
        return sum(self.components_ms.values()) if self.components_ms else None


def time_surroundings(bundle: Bundle, options: BenchOptions) -> Generator[Progress, None, Surroundings]:
    """Time the text encoders and the VAE of a bundle's folder, in PyTorch on the bench's device, median of a few runs.

    One prompt is encoded (with its negative under guidance) and a whole batch decoded. A component that is there but
    cannot be run is left out with its reason.
    """
    contract, found = bundle.manifest.contract, Surroundings()
    run = PipelineRun(contract.rows_per_image, (options.batch, *contract.latent_shape), options.device)
    names = component_names(bundle.folder)
    for done, name in enumerate(names, 1):
        try:
            found.components_ms[name] = _component_ms(bundle, name, run, options)
        except DipgoError as error:
            found.left_out.append(LeftOut(name, str(error)))
        yield Progress("timing text encoder and VAE", done, len(names))
    return found


def _component_ms(bundle: Bundle, name: str, run: PipelineRun, options: BenchOptions) -> float:
    with _threads(options.threads):
        act, durations = load_component(bundle.folder, name, run), []
        for _ in range(min(options.repeats, _MOST_REPEATS)):
            start = time.perf_counter()
            act()
            durations.append(1e3 * (time.perf_counter() - start))
    return statistics.median(durations)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads as many as ONNX Runtime's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
