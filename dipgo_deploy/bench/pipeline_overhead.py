"""Times of a pipeline's other components, measured once. The end-to-end speed-up needs these times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.report import LeftOut
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.models.components import PipelineRun, load_component
from dipgo_deploy.models.pipeline_folder import component_names

__all__ = ["PipelineOverhead", "time_pipeline_overhead"]

_MOST_REPEATS = 5
"""Five passes are enough: overhead enters a ratio on both sides, and a VAE on a CPU may take seconds."""


@dataclass(frozen=True)
class PipelineOverhead:
    """Milliseconds by component, for one batch of images, and the components that could not be timed."""

    components_ms: dict[str, float] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def total_ms(self) -> float | None:
        """All components together, or None without components."""
        return sum(self.components_ms.values()) if self.components_ms else None


def time_pipeline_overhead(bundle: Bundle, options: BenchOptions) -> Work[PipelineOverhead]:
    """Time the text encoders and the VAE of a bundle's folder in PyTorch on the bench's device.

    One prompt is encoded (with its negative prompt under guidance), and a whole batch is decoded.

    Args:
        bundle: the bundle whose folder contains the components.
        options: batch, device, threads and number of repeats.

    Returns:
        The median time of each component. A component that cannot run is omitted, and the reason is reported.
    """
    contract, overhead = bundle.manifest.contract, PipelineOverhead()
    run = PipelineRun(contract.rows_per_image, (options.batch, *contract.latent_shape), options.run.device)
    names = component_names(bundle.folder)
    for done, name in enumerate(names, 1):
        try:
            overhead.components_ms[name] = _component_ms(bundle, name, run, options)
        except DipgoError as error:
            overhead.left_out.append(LeftOut(name, str(error)))
        yield Progress("timing text encoder and VAE", done, len(names), name)
    return overhead


def _component_ms(bundle: Bundle, name: str, run: PipelineRun, options: BenchOptions) -> float:
    with _torch_threads(options.run.threads):
        one_pass, durations = load_component(bundle.folder, name, run), []
        for _ in range(min(options.repeats, _MOST_REPEATS)):
            start = time.perf_counter()
            one_pass()
            durations.append(1e3 * (time.perf_counter() - start))
    return statistics.median(durations)


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Give PyTorch as many threads as ONNX Runtime has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
