"""Whether watched pipelines still have the scheduler that a bundle was made for.

A denoiser sees timesteps alone, and many schedulers share theirs. A pipeline that is watched is asked for its own.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.models.schedulers import is_recorded_as
from dipgo_deploy.runtime.dropin.refusal import RefusedCall

__all__ = ["PipelineCheck"]


class PipelineCheck:
    """Compares the schedulers of watched pipelines, which it does not keep alive, with ``sampler``."""

    def __init__(self, sampler: SamplerSpec) -> None:
        self._sampler = sampler
        self._pipelines: WeakSet[Any] = WeakSet()
        self._known: Any = None

    def watch(self, pipeline: Any) -> None:
        """Ask this pipeline too."""
        self._pipelines.add(pipeline)

    def check(self) -> None:
        """Raise RefusedCall where a watched pipeline has another scheduler; looked at once for each scheduler."""
        for pipeline in self._pipelines:
            scheduler = pipeline.scheduler
            if scheduler is not self._known and not is_recorded_as(scheduler, self._sampler):
                raise RefusedCall(
                    f"the bundle is made for {self._sampler.class_name} as its contract configures it, the pipeline "
                    f"has a {type(scheduler).__name__} of another class or config: put models.scheduler_from_spec(…) "
                    "back"
                )
            self._known = scheduler
