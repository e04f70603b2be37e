"""The full run that a learned sampler stands in for."""

from __future__ import annotations

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.schedulers import LEARNED, cause, scheduler_from_spec

__all__ = ["full_run_of"]


def full_run_of(spec: SamplerSpec) -> SamplerSpec:
    """The sampler that a learned sampler stands in for, or the sampler itself. Raises as scheduler_from_spec does."""
    if spec.class_name != LEARNED or not spec.config_dict.get("full_run"):
        return spec
    scheduler = scheduler_from_spec(spec)
    try:
        full: SamplerSpec = scheduler.full_run
    except ValueError as error:
        raise InputError(f"{LEARNED} refuses its config ({cause(error)}): record it again") from error
    return full
