"""Every scheduler of diffusers as a model's own sampler: what becomes of it, and the table in the documentation.

``python -m tests.models.every_scheduler`` writes the table again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.schedulers import scheduler_options

__all__ = ["PAGE", "cells", "outcome", "scheduler_names", "table", "table_of"]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "schedulers.md"

STEPS = 6
_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 5},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}
"""Options without a default."""

UNUSUAL: tuple[tuple[str, Any], ...] = (
    ("skip_prk_steps", True),
    ("algorithm_type", "sde-dpmsolver++"),
    ("solver_order", 3),
    ("predictor_order", 3),
    ("clip_sample", False),
    ("rescale_betas_zero_snr", True),
    ("prediction_type", "v_prediction"),
    ("use_karras_sigmas", True),
    ("timestep_spacing", "trailing"),
    ("stochastic_sampling", True),
    ("thresholding", True),
    ("solver_type", "heun"),
    ("beta_schedule", "squaredcos_cap_v2"),
    ("shift", 3.0),
    ("sigma_max", 10.0),
    ("original_inference_steps", 20),
    ("num_train_timesteps", 500),
)
"""Options that are off their defaults in folders people have, the most telling first."""


def scheduler_names() -> list[str]:
    """Every scheduler class of diffusers, also those that need a package which is not installed."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    return [name for name in sorted(names) if isinstance(getattr(diffusers, name), type)]


def cells() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every class with its defaults, and with up to three unusual options."""
    for name in scheduler_names():
        cls, required = getattr(diffusers, name), dict(REQUIRED.get(name, {}))
        yield name, required
        if hasattr(cls, "_backends"):
            continue
        options = scheduler_options(cls)
        unusual = [(key, value) for key, value in UNUSUAL if key in options and options[key] != value]
        yield from ((name, {**required, key: value}) for key, value in unusual[:3])


def outcome(name: str, options: Mapping[str, Any]) -> str:
    """What becomes of a scheduler: ``linear``, its own step with the reason, or refused with the reason."""
    try:
        reading = read_sampler(sampler_spec(None, STEPS, {"_class_name": name, **options}))
    except DipgoError as refusal:
        reason = str(refusal).rpartition(": ")[0].removeprefix(f"{name} ").replace(name, "the scheduler")
        # The message quotes what PyTorch says about tokens, masks or batched timesteps.
        is_first = "stops at call 0" in reason
        return f"refused: {'its step needs more than output, timestep and latent' if is_first else reason}"
    return "linear" if isinstance(reading, LinearSampler) else f"own step, {reading.reason}"


def table() -> str:
    """The table of the page, in Markdown."""
    rows = (f"| `{name}` | {outcome(name, REQUIRED.get(name, {}))} |" for name in scheduler_names())
    return "\n".join(["| scheduler, with its defaults | result |", "|---|---|", *rows]) + "\n"


def table_of(page: str) -> str:
    """The table in the text of the page."""
    return page.split(_BEGIN)[1].split(_END)[0]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    pattern = f"{re.escape(_BEGIN)}.*{re.escape(_END)}"
    PAGE.write_text(re.sub(pattern, lambda _: _BEGIN + table() + _END, text, flags=re.DOTALL), encoding="utf-8")
