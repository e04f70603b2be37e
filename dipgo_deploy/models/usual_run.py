"""How a model is usually run: guidance layout and number of steps, where nobody asks for others.

1. What the model's config says, as those of random weights do.
2. Else the defaults of its own pipeline's call, as diffusers has them: the number of steps, and whether it guides.
3. Else what the pipelines of its class do, with 50 steps.

A folder that names the plain ``DiffusionPipeline`` has no pipeline of its own, and so none that guides.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.models.loading import LoadedModel
from dipgo_deploy.models.quiet import quiet_diffusers, quiet_transformers

__all__ = ["DOUBLING", "usual_guidance", "usual_steps"]

DOUBLING = ("UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")
"""Classes whose pipelines double the rows for a guidance_scale above 1; others call twice, or take it as an input."""

_STEPS = 50
_BASE = "DiffusionPipeline"


def usual_guidance(model: LoadedModel) -> Guidance:
    """The layout of the rows in a usual run; a guidance-distilled model has no unconditional ones."""
    if model.guidance is not None:
        return model.guidance
    if model.class_name not in DOUBLING or model.config.get("time_cond_proj_dim") is not None:
        return "none"
    defaults = _pipeline_defaults(model)
    return "concat" if defaults is None or (defaults.get("guidance_scale") or 0.0) > 1.0 else "none"


def usual_steps(model: LoadedModel) -> int:
    """The number of steps of a usual run."""
    return model.steps or (_pipeline_defaults(model) or {}).get("num_inference_steps") or _STEPS


def _pipeline_defaults(model: LoadedModel) -> Mapping[str, Any] | None:
    """Arguments of the call of the model's own pipeline by name; None where it is unknown."""
    import diffusers  # noqa: TID251 - the home of diffusers

    index = None if model.folder is None else model.folder / "model_index.json"
    if index is None or not index.is_file():
        return None
    name = read_json(index).get("_class_name")
    if name == _BASE:
        return {}
    # What needs a package that is absent stands there as a class of no use.
    with quiet_diffusers(), quiet_transformers():
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        return None
    return {one.name: one.default for one in inspect.signature(kind.__call__).parameters.values()}
