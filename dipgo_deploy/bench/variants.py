"""The plain samplers that a schedule has to beat, each in every variant that a model allows.

A plain sampler's timestep spacing and noise levels are options of its own, each worth several dB, so every sampler is
given its best variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.sampler import SamplerReading
from dipgo_deploy.models import sampler_spec
from dipgo_deploy.models.sampler_coefficients import read_sampler

__all__ = ["PLAIN_SAMPLERS", "SPACINGS", "Variant", "variants"]

PLAIN_SAMPLERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "unipc": "UniPC"}
"""The samplers by their name in models, and how the report calls them."""

SPACINGS = ("linspace", "leading", "trailing")
"""What diffusers calls the ways to choose timesteps."""

_FINAL_SIGMAS = ("zero", "sigma_min")


@dataclass(frozen=True)
class Variant:
    """A sampler under one choice of spacing and noise levels; ``label`` describes the choice."""

    label: str
    spec: SamplerSpec
    reading: SamplerReading


def variants(name: str, steps: int, scheduler_config: Mapping[str, Any]) -> Iterator[Variant]:
    """Every way to run sampler ``name`` in ``steps`` steps that a model of this config accepts; equal ones once."""
    seen: set[SamplerReading] = set()
    for label, overrides in _choices(name):
        try:
            spec = sampler_spec(name, steps, scheduler_config, overrides)
            reading = read_sampler(spec)
        except DipgoError:
            continue  # a spacing or sigma option that this model's noise schedule does not allow
        key = replace(reading, input_scales=(*reading.input_scales, *spec.timesteps))
        if key not in seen:
            seen.add(key)
            yield Variant(label, spec, reading)


def _choices(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Labels and options to try. Karras noise levels lie between the ends that any spacing gives: one is enough."""
    if name == "ddim":
        yield from ((spacing, {"timestep_spacing": spacing}) for spacing in SPACINGS)
        return
    for final in _FINAL_SIGMAS:
        ends = {"final_sigmas_type": final}
        end = "" if final == "zero" else ", sigma_min"
        yield from ((spacing + end, {"timestep_spacing": spacing, **ends}) for spacing in SPACINGS)
        yield f"karras{end}", {"timestep_spacing": "linspace", "use_karras_sigmas": True, **ends}
