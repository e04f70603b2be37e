"""The variants of plain samplers: every spacing and noise-level option that changes the images.

A plain sampler's timestep spacing and noise levels are each worth several dB. So benches and searches compare with the
best variant of each sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.sampler import SamplerReading
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.samplers import sampler_spec

__all__ = ["PLAIN_SAMPLERS", "SPACINGS", "Variant", "variants"]

SPACINGS = ("linspace", "leading", "trailing")
"""How diffusers chooses timesteps (``timestep_spacing``)."""

PLAIN_SAMPLERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "unipc": "UniPC"}
"""Names in ``dipgo_deploy.models``, and titles in reports."""

_FINAL_SIGMAS = ("zero", "sigma_min")


@dataclass(frozen=True)
class Variant:
    """A sampler under one choice of spacing and noise levels, which ``label`` describes."""

    label: str
    spec: SamplerSpec
    reading: SamplerReading


def variants(name: str, steps: int, scheduler_config: Mapping[str, Any]) -> Iterator[Variant]:
    """Every way to run a sampler, without duplicates.

    Args:
        name: a key of `PLAIN_SAMPLERS`.
        steps: number of steps of the sampler.
        scheduler_config: the model's noise schedule. Choices that the noise schedule does not allow are skipped.

    Yields:
        Variants with distinct coefficients.
    """
    seen: set[SamplerReading] = set()
    for label, overrides in _choices(name):
        try:
            spec = sampler_spec(name, steps, scheduler_config, overrides)
            reading = read_sampler(spec)
        except DipgoError:
            continue  # this noise schedule does not allow the spacing or the sigma option
        # Equal coefficients at other timesteps are another variant: the network sees other times.
        key = replace(reading, input_scales=(*reading.input_scales, *spec.timesteps))
        if key not in seen:
            seen.add(key)
            yield Variant(label, spec, reading)


def _choices(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Labels and scheduler options to try."""
    if name == "ddim":
        yield from ((spacing, {"timestep_spacing": spacing}) for spacing in SPACINGS)
        return
    for final in _FINAL_SIGMAS:
        ends = {"final_sigmas_type": final}
        suffix = "" if final == "zero" else ", sigma_min"
        yield from ((spacing + suffix, {"timestep_spacing": spacing, **ends}) for spacing in SPACINGS)
        # Karras noise levels depend on the ends alone, which every spacing shares: one spacing is enough.
        yield f"karras{suffix}", {"timestep_spacing": "linspace", "use_karras_sigmas": True, **ends}
